"""Given who offloads: the optimal powers and times, and the ``Solution``.

All is for one channel, ``[K]``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.exact.derivatives import with_derivative
from meco_jax.exact.pricing import set_energy
from meco_jax.exact.relaxation import Relaxed, relax
from meco_jax.exact.uplink import Uplink, device_energy, make_uplink, send_power, sum_terms
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.system import System


@short_repr
class Channel(NamedTuple):
    """What every method starts from: a channel, and what the relaxation says of it."""

    uplink: Uplink
    forced: jax.Array  # [K] bool: C2
    relaxed: Relaxed


def prepare(system: System, h: jax.Array, must: jax.Array | None = None) -> Channel:
    """Compute the uplinks of a channel, and solve its relaxation: THEORY.md, section 5.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        must: part of each task that must be sent ``[K]`` [-]; by default all or nothing of it,
            as P1 asks.
    """
    uplink, forced = make_uplink(system, h, whole=must is None), sy.forced(system)
    return Channel(uplink, forced, relax(uplink, forced.astype(h.dtype) if must is None else must))


def allocate(system: System, h: jax.Array, offload: jax.Array) -> Solution:
    """Give a fixed decision its optimal powers and times: P1, (6), with a fixed.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: decision ``[K]``, 0 or 1 [-]; padding is ignored.

    Returns:
        A ``Solution`` for the channel. Infeasible where the set does not fit or a forced
        device stays. All numbers can be differentiated twice in ``system`` and ``h``.
    """
    uplink, forced, relaxed = prepare(system, h)
    offload = jnp.where(system.active, offload, 0.0).astype(h.dtype)
    cost, time = set_energy(uplink, offload)
    cost = jnp.where(jnp.all((offload > 0) | ~forced), cost, jnp.inf)
    return finish(uplink, offload, time, cost, relaxed.bound)


def finish(
    uplink: Uplink, offload: jax.Array, time: jax.Array, cost: jax.Array, bound: jax.Array
) -> Solution:
    """Make the ``Solution`` of parts and times ``[K]``: feasible if the cost is finite.

    An infeasible one sends nothing: whoever acts on it without looking stays silent.
    """
    feasible = jnp.isfinite(cost)
    power = send_power(uplink, offload, time)
    has_task = uplink.min_time > 0
    each = device_energy(uplink, offload, power, time)
    energy, delay_cost = cost, None
    if uplink.delays is not None:
        delay_cost = jnp.sum(sum_terms(uplink.delays, offload, time))
        energy = with_derivative(jnp.sum(each), jnp.where(feasible, cost, 0.0) - delay_cost)
        energy, delay_cost = (jnp.where(feasible, x, jnp.inf) for x in (energy, delay_cost))
        cost = energy + delay_cost
    if uplink.band_power is not None:  # from that in a share of the slot to that in one of the band
        power = jnp.minimum(power * (time / uplink.slot), uplink.band_power)
    return Solution(
        offload=jnp.where(feasible, offload, 0.0),
        power=jnp.where(feasible, power, 0.0),
        time=jnp.where(feasible, time, 0.0),
        energy=energy,
        lower_bound=jnp.minimum(bound, cost),  # they may meet, and both are rounded
        feasible=feasible,
        energy_per_device=jnp.where(feasible, each, jnp.where(has_task, jnp.inf, 0.0)),
        delay_cost=delay_cost,
    )
