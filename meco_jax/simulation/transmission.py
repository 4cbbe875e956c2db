"""What a decision comes to in a slot: the true channels decide what gets through.

Devices send one after the other, in the order of their indices, each in its share of the slot
(TDMA, THEORY.md, section 2). Who has sent all stops; who has not by the end of its share is
*late*, and what it sent is lost.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.system import System

ROUNDING = 4e-6  # relative differences below are float32's, so the plan holds exactly [-]


@short_repr
class Effort(NamedTuple):
    """What each device did in a slot, ``[K]`` each."""

    energy: jax.Array  # sending and computing, not weighted [J]
    done: jax.Array  # bool: what it has to do is through; True where that is nothing
    sent: jax.Array  # bool: it used the uplink
    late: jax.Array  # bool: it did so in vain
    finish: jax.Array  # when it was through, from the start of the slot [s]


def carry_out(system: System, h: jax.Array, decision: Solution, fallback: str) -> Effort:
    """Play a slot of one cell.

    Whoever cannot compute its part by the end of the slot does not begin. Shares beyond the slot
    and powers beyond the limit are cut.

    Args:
        system: the physics, ``task_bits`` of the tasks at hand, ``[K]``.
        h: the true amplitude gains ``[K]`` [-].
        decision: of one channel.
        fallback: "local": whose uplink is late computes the task after its share if the rest of
            the slot suffices.
    """
    slot, limit = system.slot, 1 + ROUNDING
    offload = jnp.where(system.active, decision.offload, 0.0)
    power = jnp.where(decision.power <= system.max_power * limit, decision.power, system.max_power)
    end = jnp.cumsum(decision.time)
    start = end - decision.time
    share = jnp.where(end <= slot * limit, decision.time, jnp.maximum(slot - start, 0.0))
    sends = offload * system.task_bits > 0
    needed = sy.transmit_time(system, h, offload, power)
    arrives = ~sends | (needed <= share * limit)
    used = jnp.where(needed >= share * (1 - ROUNDING), share, needed)
    used = jnp.where(sends, used, 0.0)

    duration, energy = local_costs(system)
    rest = 1 - offload
    keeps = system.active & (rest * system.cycles_per_bit * system.task_bits > 0)
    busy = jnp.where(keeps, rest * jnp.where(keeps, duration, 0.0), 0.0)
    computes = keeps & (busy <= slot * limit)
    spent = power * used + jnp.where(computes, rest * energy, 0.0)
    late = sends & ~arrives
    finish = jnp.maximum(jnp.where(sends, start + used, 0.0), busy)
    done = arrives & (computes | ~keeps)
    if fallback == "local":
        again = jnp.where(late, jnp.maximum(start + share, busy) + offload * duration, 0.0)
        saved = late & (computes | ~keeps) & (again <= slot * limit)
        spent = spent + jnp.where(saved, offload * energy, 0.0)
        finish, done = jnp.where(saved, again, finish), done | saved
    return Effort(spent, done, sends, late, finish)


def local_costs(system: System) -> tuple[jax.Array, jax.Array]:
    """Time [s] and unweighted energy [J] to compute a whole task locally, (1), (2): ``[K]``."""
    plain = system.replace(weight=jnp.ones_like(system.weight))
    return sy.local_time(system), sy.local_energy(plain)
