"""A slot as an agent plays it: what becomes of its wish, and what the optimum would have earned.

All is for one cell, ``[K]``, and works under ``jax.jit`` and ``jax.vmap``.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.settings import as_key
from meco_jax.simulation.scenario import Scenario
from meco_jax.simulation.simulate import Observation, Outcome, State, observe, reset, step
from meco_jax.solution import Solution
from meco_jax.solver import allocate, repair, solve
from meco_jax.system import System

FEATURES = 5  # per device of an observation
LARGEST = 1e6  # of any feature
FAINTEST = -50.0  # least logarithm of a gain
USUAL_BITS = 1.6e6  # Table 1's mean task [bit]
INFEASIBLE = "repair", "penalty"  # what is done about a wish that does not fit


@short_repr
class Turn(NamedTuple):
    """What came of a slot."""

    reward: jax.Array  # [] -cost, less the penalty per missed task [J]
    ended: jax.Array  # [] bool: all batteries are empty
    offload: jax.Array  # [K] int8: the decision that was played
    feasible: jax.Array  # [] bool: the wish fitted as it was
    energy: jax.Array  # [] drawn from all batteries, not weighted [J]
    cost: jax.Array  # [] the same weighted, as P1 counts [J]
    missed: jax.Array  # [] int32: tasks that missed their deadline
    planned: jax.Array  # [] cost that the decision was expected to have, infinite if it did not fit
    optimum: jax.Array  # [] that of the certified optimum, infinite if nothing fits [J]
    lower_bound: jax.Array  # [] no feasible decision costs less [J]
    gap: jax.Array  # [] planned / optimum - 1, 0 where nothing fits [-]
    optimum_reward: jax.Array  # [] what the optimum would have earned in this slot [J]


def begin(seed: jax.Array, scenario: Scenario) -> tuple[State, jax.Array]:
    """Begin an episode: the state, and the features ``[K, FEATURES]`` of its first slot."""
    state, seen = reset(jax.random.fold_in(as_key("seed", seed), 0), scenario)
    return state, features(seen)


def play(
    state: State,
    wish: jax.Array,
    seed: jax.Array,
    number: jax.Array,
    penalty: jax.Array,
    infeasible: str,
) -> tuple[State, jax.Array, Turn]:
    """Play a slot; an episode is what ``simulate`` plays by the same decisions from its seed.

    Args:
        state: of the cell.
        wish: who is to send ``[K]``, 0 or 1.
        seed: of the episode.
        number: of the slot, from 1.
        penalty: of a missed task [J].
        infeasible: one of ``INFEASIBLE``.

    Returns:
        The state, the features ``[K, FEATURES]`` of the next slot, and what came of this one.
    """
    seen = observe(state)
    system = seen.system
    wish = jnp.where(system.active & (system.task_bits > 0), wish, 0.0)
    plan, fits = (repaired if infeasible == "repair" else unrepaired)(seen, wish)
    best = solve(seen.h, system, method="optimal")
    key = jax.random.fold_in(as_key("seed", seed), number)
    after, next_seen, outcome = step(key, state, plan)
    _, _, ideal = step(key, state, best)
    turn = Turn(
        reward=reward(system, outcome, penalty),
        ended=~jnp.any(outcome.alive),
        offload=plan.offload.astype(jnp.int8),
        feasible=fits,
        energy=jnp.sum(outcome.energy),
        cost=jnp.sum(system.weight * outcome.energy),
        missed=jnp.sum(outcome.missed, dtype=jnp.int32),
        planned=plan.energy,
        optimum=best.energy,
        lower_bound=best.lower_bound,
        gap=relative_gap(plan.energy, best.energy),
        optimum_reward=reward(system, ideal, penalty),
    )
    return after, features(next_seen), turn


def repaired(seen: Observation, wish: jax.Array) -> tuple[Solution, jax.Array]:
    """Change a wish as little as makes it fit: the plan, and whether nothing was changed."""
    plan = repair(seen.h, seen.system, wish)
    return plan, plan.feasible & jnp.all(plan.offload == wish)


def unrepaired(seen: Observation, wish: jax.Array) -> tuple[Solution, jax.Array]:
    """Plan a wish as it is, whether it fits or not: the plan, and whether it does.

    A device whose task cannot be computed in time and that stays nevertheless does nothing. If
    those that send do not fit into the slot, all send at full power in the order of their indices,
    until the slot is over: the energy is spent, and who has not had its turn is late.
    """
    system = seen.system
    idle = sy.forced(system) & (wish == 0)
    plan = allocate(seen.h, system.replace(active=system.active & ~idle), wish)
    fits = plan.feasible & ~jnp.any(idle)
    sends = wish > 0
    power = jnp.where(sends, system.max_power, 0.0)
    whole = sy.transmit_time(system, seen.h, wish, power)
    rushed = plan.replace(
        offload=wish, power=power, time=jnp.where(sends, jnp.minimum(whole, system.slot), 0.0)
    )
    plan = jax.tree.map(partial(jnp.where, plan.feasible), plan, rushed)
    return plan.replace(energy=jnp.where(fits, plan.energy, jnp.inf), feasible=fits), fits


def reward(system: System, outcome: Outcome, penalty: jax.Array) -> jax.Array:
    """Return minus the weighted energy, less the penalty for every missed task: ``[]`` [J]."""
    missed = jnp.sum(outcome.missed).astype(outcome.energy.dtype)
    return -jnp.sum(system.weight * outcome.energy) - penalty * missed


def relative_gap(planned: jax.Array, optimum: jax.Array) -> jax.Array:
    """Return planned / optimum - 1, and 0 where the optimum is 0 or nothing fits [-]."""
    known = (optimum > 0) & (optimum < jnp.inf)
    return jnp.where(known, planned / jnp.where(known, optimum, 1.0) - 1, 0.0)


def features(seen: Observation) -> jax.Array:
    """Describe the devices by numbers around 1 ``[K, FEATURES]``, see ``OffloadingEnv``."""
    relative = jnp.square(seen.h / jnp.sqrt(seen.system.mean_gain))
    waits = [seen.age.astype(relative.dtype), seen.backlog.astype(relative.dtype)]
    columns = [
        jnp.log(jnp.maximum(relative, jnp.exp(FAINTEST))),
        seen.system.task_bits / USUAL_BITS,
        sy.required_ratio(seen.system),
        *waits,
    ]
    return jnp.clip(jnp.stack(columns, axis=1), -LARGEST, LARGEST).astype(jnp.float32)
