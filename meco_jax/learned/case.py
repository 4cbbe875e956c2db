"""A priced channel to learn from, and what a decision on it costs.

The energy of a decision is that of its best powers and times, in units of the Lagrangian bound: at
a grid of prices it is the largest of the decision's dual values, THEORY.md, section 5.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.exact.allocation import prepare
from meco_jax.exact.duals import price_grid
from meco_jax.learned.policy import COMPARING, device_features
from meco_jax.runtime.describe import short_repr
from meco_jax.system import System

OVERFLOW = 100.0  # energy of a set that takes twice what there is, over the bound [-]


@short_repr
class Case(NamedTuple):
    """One channel to learn from, ``[K]`` devices and ``[J]`` prices."""

    features: jax.Array  # [K, F] see ``policy.device_features``
    usable: jax.Array  # [K] bool
    forced: jax.Array  # [K] bool: C2, and can send
    base: jax.Array  # [K] bool: a good set, from which duals are counted
    base_dual: jax.Array  # [J] its dual value, over the bound [-]
    flip_cost: jax.Array  # [K, J] what flipping a device adds at a price, over the bound [-]
    least: jax.Array  # [K, 1] (t_min + d) / T, or [K, 2] with B C / F, C6 [-]
    counts: jax.Array  # [] bool: feasible, and sending pays for some device
    system: System  # what was priced
    h: jax.Array  # [K] amplitude gains [-]

    @property
    def free(self) -> jax.Array:
        """Devices that may send or stay: ``[K]`` bool."""
        return self.usable & ~self.forced


def make_case(system: System, h: jax.Array) -> Case:
    """Price one channel ``h: [K]``."""
    uplink, forced, relaxed = prepare(system, h)
    grid = price_grid(uplink, relaxed.sends, relaxed.log_mu, *COMPARING)
    counts = jnp.isfinite(relaxed.bound) & (relaxed.bound > 0) & jnp.any(relaxed.offload > 0)
    bound = jnp.where(counts, relaxed.bound, 1.0)
    least = uplink.min_time if uplink.fixed_time is None else uplink.min_time + uplink.fixed_time
    taken = [jnp.where(uplink.usable, least / uplink.slot, 0.0)]
    if uplink.edge_share is not None:
        taken.append(uplink.edge_share)
    return Case(
        features=device_features(uplink, forced, relaxed),
        usable=uplink.usable,
        forced=forced & uplink.usable,
        base=grid.base,
        base_dual=grid.base_dual / bound,
        flip_cost=grid.flip_cost / bound,
        least=jnp.stack(taken, axis=-1),
        counts=counts,
        system=system,
        h=h,
    )


def flipped(offload: jax.Array, case: Case) -> jax.Array:
    """By how much parts ``[K]`` differ from the base set: ``[K]`` [-]."""
    return jnp.where(case.base, 1 - offload, offload)


def energy(offload: jax.Array, case: Case) -> jax.Array:
    """Energy of parts ``[K]`` with their best powers and times, over the bound: ``[]`` [-].

    Its gradient is that of the relaxation, minus the savings at the price of the slot.
    """
    dual = case.base_dual + flipped(offload, case) @ case.flip_cost
    return jnp.max(dual) + _overflow(offload @ case.least)


def _overflow(used: jax.Array) -> jax.Array:
    """Price what is used beyond the slot and the edge's cycles, ``[..., 1 or 2]``: ``[...]``."""
    return OVERFLOW * jnp.sum(jnp.maximum(used - 1, 0.0), axis=-1)


def differences(offload: jax.Array, case: Case) -> jax.Array:
    """Energy with a_k = 1 less energy with a_k = 0, all others as they are: ``[K]`` [-].

    Args:
        offload: a decision ``[K]``, 0 or 1.
        case: the channel.
    """
    dual, used = case.base_dual + flipped(offload, case) @ case.flip_cost, offload @ case.least

    def with_all_at(value: float) -> jax.Array:  # each in turn
        change = value - offload
        duals = dual[None] + jnp.where(case.base, -change, change)[:, None] * case.flip_cost
        return jnp.max(duals, axis=1) + _overflow(used[None] + change[:, None] * case.least)

    return with_all_at(1.0) - with_all_at(0.0)


@jax.custom_vjp
def exact_energy(offload: jax.Array, case: Case) -> jax.Array:
    """Energy of a decision ``[K]``; its gradient is the exact discrete one, ``differences``."""
    return energy(offload, case)


def _exact_forward(offload: jax.Array, case: Case) -> tuple[jax.Array, tuple[jax.Array, Case]]:
    return energy(offload, case), (offload, case)


def _exact_backward(saved: tuple[jax.Array, Case], cotangent: jax.Array) -> tuple[jax.Array, None]:
    return cotangent * differences(*saved), None


exact_energy.defvjp(_exact_forward, _exact_backward)
