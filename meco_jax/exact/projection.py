"""The feasible decision next to a given one: nobody is added but who must, and few leave.

All is for one channel, ``[K]``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from meco_jax.exact.shares import edge_shares, fits, least_shares, room
from meco_jax.exact.uplink import Uplink
from meco_jax.system import System


def project(system: System, uplink: Uplink, forced: jax.Array, offload: jax.Array) -> jax.Array:
    """Add the forced devices to a decision, and let devices leave until it fits.

    A decision that fits and has the forced devices comes back as it is. Who cannot send at all
    leaves first. Then devices leave one after the other: the one whose leaving costs least per
    part of what is lacking that it frees.

    Args:
        system: the physics.
        uplink: terms of every uplink ``[K]``.
        forced: C2, ``[K]`` bool.
        offload: decision ``[K]``, 0 to 1; a device is chosen to send above 1/2 [-].

    Returns:
        Who sends ``[K]`` bool. It does not fit where the forced devices alone do not.
    """
    uplink = jax.lax.stop_gradient(uplink)  # a choice has no derivative
    reachable = jnp.isfinite(uplink.min_time)
    wished = (offload > 0.5) & system.active & reachable
    cost, places = cost_of_leaving(uplink), jnp.arange(len(forced))

    def first_to_leave(sends: jax.Array) -> jax.Array:
        freed = relief(uplink, sends)
        may = sends & ~forced & (freed > 0)
        per_freed = cost * jnp.where(cost > 0, 1 / jnp.where(may, freed, 1.0), freed)
        first = jnp.argmin(jnp.where(may, per_freed, jnp.inf))
        return may & (places == first)

    def is_too_much(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        sends, leaves = state
        return ~fits(uplink, sends) & jnp.any(leaves)

    def let_leave(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        sends, leaves = state
        rest = sends & ~leaves
        return rest, first_to_leave(rest)

    # At most K rounds, since each lets a device leave; a decision that fits needs none.
    start = wished | forced
    return jax.lax.while_loop(is_too_much, let_leave, (start, first_to_leave(start)))[0]


def cost_of_leaving(uplink: Uplink) -> jax.Array:
    """Compute what each task costs more on its own device than sent at full power: ``[K]`` [J].

    Full power, since a slot that is too full leaves no time for less.
    """
    time = jnp.where(uplink.usable, uplink.min_time, 0.0)
    sent = uplink.weight * uplink.max_power * time
    if uplink.per_time is not None:
        sent = sent + uplink.per_time * time
    if uplink.per_task is not None:
        sent = sent + uplink.per_task
    return uplink.local - sent


def relief(uplink: Uplink, sends: jax.Array) -> jax.Array:
    """Compute which part of what is lacking each device would free by leaving: ``[K]`` [-].

    The parts of the slot (C1) and of the edge's cycles (C6) that are lacking add up.

    Args:
        uplink: terms of every uplink ``[K]``.
        sends: who sends ``[K]`` bool.
    """
    freed = jnp.zeros(sends.shape, uplink.load.dtype)
    kinds = [least_shares(uplink, uplink.usable)]
    if uplink.edge_share is not None:
        kinds.append(edge_shares(uplink, uplink.usable))
    for shares in kinds:
        lacking = -room(shares, sends)
        part = jnp.where(lacking > 0, shares[0] + shares[1], 0.0)
        freed = freed + jnp.minimum(part / jnp.where(lacking > 0, lacking, 1.0), 1.0)
    return freed
