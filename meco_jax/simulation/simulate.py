"""Slots one after the other: ``reset``, ``step`` and the loop over both, as pure functions.

A slot goes like this. Tasks arrive; the base station knows the tasks and what was estimated of
the channels, an ``Observation``; a scheme decides; ``carry_out`` plays the slot on the true
channels; queues, batteries and channels move on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from meco_jax import system as sy
from meco_jax.batching import map_channels
from meco_jax.exact import twofold
from meco_jax.runtime.checks import (
    in_range,
    inside_trace,
    integer,
    is_traced,
    per_device,
    refuse,
    require,
)
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.settings import as_key, moves_data
from meco_jax.simulation import channels, tasks
from meco_jax.simulation.channels import Channel, Estimates
from meco_jax.simulation.margins import Backoff, Robust, check_scheme, late_probability
from meco_jax.simulation.scenario import Scenario, check_scenario, is_in_range
from meco_jax.simulation.tasks import Queue
from meco_jax.simulation.transmission import carry_out
from meco_jax.solution import Solution
from meco_jax.solver import Scheme, solve
from meco_jax.system import System


@short_repr
class State(NamedTuple):
    """All that a cell carries from slot to slot. Permuting its devices permutes what follows."""

    scenario: Scenario
    device: jax.Array  # [K] int32: the index that a device's random numbers depend on
    channel: Channel
    estimates: Estimates | None  # None where CSI is perfect
    queue: Queue
    drained: twofold.Pair  # [K] energy that batteries have given, as a float and its rest [J]


@short_repr
class Observation(NamedTuple):
    """What is known when a slot is decided."""

    system: System  # ``task_bits`` of the tasks at the heads of the queues, 0 where there is none
    h: jax.Array  # [K] amplitude gains as estimated, maybe some slots ago [-]
    expected: jax.Array  # [K] amplitude of the mean of the complex gain, given all that is known
    spread: jax.Array  # [K] its standard deviation around that mean [-]
    age: jax.Array  # [K] int32: slots that the task was there before this one [-]
    backlog: jax.Array  # [K] int32: tasks that wait, those at the heads included [-]


@short_repr
class Outcome(NamedTuple):
    """What came of a slot, ``[K]`` each but for the last two; ``simulate`` stacks ``[N, K]``."""

    energy: jax.Array  # drawn from the battery, not weighted [J]
    completed: jax.Array  # bool: the task at hand is through
    delay: jax.Array  # from its arrival until it was through; infinite where none is [s]
    bits: jax.Array  # of the task that is through [bit]
    sent: jax.Array  # bool: it used the uplink
    late: jax.Array  # bool: it did so in vain, h was below the gain planned with
    missed: jax.Array  # int32: tasks that missed their deadline in this slot, lost ones included
    arrived: jax.Array  # int32: tasks that arrived at its start, lost ones included
    backlog: jax.Array  # int32: tasks that waited when it was decided
    alive: jax.Array  # bool: the battery has energy left after it
    feasible: jax.Array  # [] bool: the scheme found an answer
    risk: jax.Array  # [] probability of a late uplink, given what was known and decided [-]


@moves_data
def reset(key: jax.Array | int, scenario: Scenario) -> tuple[State, Observation]:
    """Begin a simulation of one cell: draw its channels and the tasks of the first slot.

    Works under ``jax.jit`` and ``jax.vmap``, over keys and scenarios.

    Args:
        key: PRNG key or seed; the same one means the same in every precision.
        scenario: what happens; any of its numbers may be traced.

    Returns:
        The state, and what is known when the first slot is decided.

    Raises:
        ValueError: if ``key`` is neither, or as ``check_scenario``.
    """
    return _reset(as_key("key", key), check_scenario(scenario))


@moves_data
def step(
    key: jax.Array | int, state: State, decision: Solution
) -> tuple[State, Observation, Outcome]:
    """Play a slot.

    Works under ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan``.

    Args:
        key: PRNG key or seed of what comes after the slot: another one per slot.
        state: from ``reset`` or ``step``.
        decision: for what was observed, of one channel; ``offload``, ``power`` and ``time`` count.

    Returns:
        The state after the slot, what is known when the next one is decided, and the outcome.

    Raises:
        ValueError: if ``key`` is neither, ``state`` or ``decision`` something else, a decision
            has not one entry per device, or its numbers are known and out of range. Under
            ``jax.jit`` what is out of range gives NaN energies, and nothing is sent.
    """
    if not isinstance(state, State):
        raise refuse("state", "from reset or step", state)
    if not isinstance(decision, Solution):
        raise refuse("decision", "a meco_jax.Solution", decision)
    return _step(as_key("key", key), state, check_decision(decision, len(state.device)))


def check_decision(decision: Solution, num_devices: int) -> Solution:
    """Return a decision of one channel ``[K]`` with floats.

    Raises:
        ValueError: if it has not one entry per device, or a number is known and out of range.
    """
    fields = {}
    for name in ("offload", "power", "time"):
        value = per_device(f"decision.{name}", getattr(decision, name), num_devices, "entry")
        if len(value.shape) > 1:
            rule = f"have one entry for each of {num_devices} devices"
            raise ValueError(f"decision.{name} must {rule}; got shape {value.shape}")
        require(f"decision.{name}", value, 0.0, included=True)
        fields[name] = value
    offload = fields["offload"]
    if not is_traced(offload) and np.any(np.asarray(offload) > 1):
        raise refuse("decision.offload", "from 0 to 1", float(np.max(offload)))
    feasible = decision.feasible
    if np.shape(feasible) != () or not jnp.issubdtype(jnp.result_type(feasible), jnp.bool_):
        raise refuse("decision.feasible", "one boolean", feasible)
    return decision.replace(**fields)


@moves_data
def simulate(
    scenario: Scenario | State, scheme: str | Scheme, key: jax.Array | int, num_slots: int
) -> tuple[State, Outcome]:
    """Play slots of one cell, decided by a scheme: ``reset`` and a scan of ``step``.

    Of many cells and seeds at once by ``jax.vmap``, compiled once per kind of scenario, scheme,
    K and number of slots::

        keys = jax.random.split(jax.random.key(0), 1024)
        run = jax.jit(jax.vmap(lambda key: simulate(scenario, "optimal", key, 100)))
        state, outcome = run(keys)  # [1024, 100, K]

    Args:
        scenario: what happens; or the state that an earlier call ended with, to go on from there
            in parts, with another key each.
        scheme: a method of ``solve`` by name, a function ``f(system, h) -> Solution`` of one
            channel, or one of these with a margin, by ``robust`` or ``backoff``. Padding, and
            devices without a task or battery, are among the devices.
        key: PRNG key or seed. The first slots of more are those of fewer.
        num_slots: N, at least 1.

    Returns:
        The state at the end, and outcomes ``[N, K]``.

    Raises:
        ValueError: as ``reset`` and ``solve``, or if ``num_slots`` is no positive integer.
    """
    num_slots = integer("num_slots", num_slots, low=1)
    check_scheme(scheme)
    if isinstance(scenario, State):  # its scenario may have been replaced
        scenario = scenario._replace(scenario=check_scenario(scenario.scenario))
    else:
        scenario = check_scenario(scenario)
    decider = scheme if isinstance(scheme, (Backoff, Robust)) else Plain(scheme)
    run: Any = _simulate
    if inside_trace() and callable(decider.scheme):
        run = run.__wrapped__  # it may close over what is being recorded
    return run(as_key("key", key), scenario, decider, num_slots)


@short_repr
class Plain(struct.PyTreeNode):
    """A scheme as it is."""

    scheme: Any = struct.field(pytree_node=False)


@partial(jax.jit, static_argnames="num_slots")
def _simulate(
    key: jax.Array, start: Scenario | State, scheme: Plain | Backoff | Robust, num_slots: int
) -> tuple[State, Outcome]:
    def slot(
        carry: tuple[State, Observation], number: jax.Array
    ) -> tuple[tuple[State, Observation], Outcome]:
        state, observation = carry
        decision = answer(scheme, observation)
        state, observation, outcome = _step(jax.random.fold_in(key, number), state, decision)
        return (state, observation), outcome

    if isinstance(start, State):
        first = start, observe(start)
    else:
        first = _reset(jax.random.fold_in(key, 0), start)
    numbers = jnp.arange(1, num_slots + 1, dtype=jnp.int32)
    (state, _), outcomes = jax.lax.scan(slot, first, numbers)
    return state, outcomes


def answer(scheme: Plain | Backoff | Robust, seen: Observation) -> Solution:
    """Decide a slot by a scheme."""
    if isinstance(scheme, Robust) and scheme.error is None:
        plan: Callable[..., Solution] = scheme.plan
        return map_channels(plan, seen.expected, seen.system, seen.spread)
    if isinstance(scheme, Plain) and isinstance(scheme.scheme, str):
        return solve(seen.h, seen.system, method=scheme.scheme)  # type: ignore[arg-type]
    function = scheme.scheme if isinstance(scheme, Plain) else scheme
    return map_channels(function, seen.h, seen.system)


@jax.jit
def _reset(key: jax.Array, scenario: Scenario) -> tuple[State, Observation]:
    """Begin some slots early where estimates are old."""
    number = scenario.system.num_devices
    device = jnp.arange(number, dtype=jnp.int32)
    early = scenario.csi_delay
    keys = [jax.random.fold_in(key, i) for i in range(early + 1)]
    channel, estimates = channels.start_channel(keys[0], scenario, device), None
    if scenario.csi == "estimated":
        measured = channels.measure(keys[0], scenario, device, channel)
        estimates = Estimates(*(jnp.repeat(x[None], early + 1, axis=0) for x in measured))
    for later in keys[1:]:
        channel, estimates = _move(later, scenario, device, channel, estimates)
    queue = tasks.arrive(
        keys[0], scenario, device, tasks.empty_queue(scenario), scenario.system.active
    )
    none = jnp.zeros(number, jnp.result_type(float))
    state = State(scenario, device, channel, estimates, queue, (none, none))
    return state, observe(state)


@jax.jit
def _step(key: jax.Array, state: State, decision: Solution) -> tuple[State, Observation, Outcome]:
    scenario, queue = state.scenario, state.queue
    seen = observe(state)
    system = seen.system
    truth = channels.gains(scenario, state.channel)
    valid = sy.is_valid(system, truth) & is_in_range(scenario) & _is_decision(decision)
    offload, power, time = (jnp.where(valid, x, 0.0) for x in parts_of(decision))
    decision = decision.replace(
        offload=offload, power=power, time=time, feasible=decision.feasible & valid
    )
    effort = carry_out(system, truth, decision, scenario.fallback)
    has_task = system.active & (queue.length > 0)
    left = (scenario.battery - state.drained[0]) - state.drained[1]
    energy = jnp.where(has_task, effort.energy, 0.0)
    short = energy > left
    energy = jnp.where(short, left, energy)
    total = twofold.add(state.drained, (energy, jnp.zeros_like(energy)))
    drained = jnp.where(short, scenario.battery, total[0]), jnp.where(short, 0.0, total[1])
    alive = system.active & ((scenario.battery - drained[0]) - drained[1] > 0)
    completed = has_task & effort.done & ~short
    waited, missed, _ = tasks.serve(scenario, queue, completed, system.active & ~alive)
    delay = queue.age[:, 0].astype(effort.finish.dtype) * scenario.system.slot + effort.finish
    outcome = Outcome(
        energy=jnp.where(valid, energy, jnp.nan),
        completed=completed,
        delay=jnp.where(completed, delay, jnp.inf),  # a NaN would stop jax_debug_nans
        bits=jnp.where(completed, queue.bits[:, 0], 0.0),
        sent=effort.sent & has_task,
        late=effort.late & has_task,
        missed=missed + queue.blocked,
        arrived=queue.arrived,
        backlog=queue.length,
        alive=alive,
        feasible=decision.feasible,
        risk=_risk(state, seen, decision, effort.late & has_task),
    )
    channel, estimates = _move(key, scenario, state.device, state.channel, state.estimates)
    queue = tasks.arrive(key, scenario, state.device, waited, alive)
    state = State(scenario, state.device, channel, estimates, queue, drained)
    return state, observe(state), outcome


def _is_decision(decision: Solution) -> jax.Array:
    """Tell whether the numbers of a decision are in range: the check under ``jax.jit``, bool."""
    good = jnp.all(decision.offload <= 1)
    for part in parts_of(decision):
        good &= jnp.all(in_range(part, 0.0, True))
    return good


def parts_of(decision: Solution) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what of a decision is carried out: parts sent, powers and times ``[K]``."""
    return decision.offload, decision.power, decision.time


def _risk(state: State, seen: Observation, decision: Solution, late: jax.Array) -> jax.Array:
    """Probability that an uplink of the slot is late; known for certain where CSI is perfect."""
    if state.estimates is None:
        return jnp.any(late).astype(seen.h.dtype)
    each = late_probability(seen.system, seen.expected, seen.spread, decision)
    return 1 - jnp.prod(1 - each)


def _move(
    key: jax.Array,
    scenario: Scenario,
    device: jax.Array,
    channel: Channel,
    estimates: Estimates | None,
) -> tuple[Channel, Estimates | None]:
    """Move channels on by a slot, and estimate them."""
    channel = channels.next_channel(key, scenario, device, channel)
    if estimates is None:
        return channel, None
    newest = channels.measure(key, scenario, device, channel)
    return channel, channels.remember(estimates, newest)


def observe(state: State) -> Observation:
    """Return what is known when the slot is decided."""
    scenario, queue = state.scenario, state.queue
    left = (scenario.battery - state.drained[0]) - state.drained[1]
    system = scenario.system.replace(
        active=scenario.system.active & (left > 0), task_bits=queue.bits[:, 0]
    )
    known = channels.know(scenario, state.channel, state.estimates)
    return Observation(system, *known, queue.age[:, 0], queue.length)
