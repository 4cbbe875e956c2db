"""Tasks that arrive and wait: a queue per device, first come, first served, a task per slot."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.runtime.describe import short_repr
from meco_jax.simulation import draws
from meco_jax.simulation.scenario import Scenario

MOST_ARRIVALS = 64  # of a device in a slot; at a rate of 32 per slot more come once in 10^7


@short_repr
class Queue(NamedTuple):
    """The tasks that wait, oldest first; places beyond ``length`` hold zeros."""

    bits: jax.Array  # [K, Q] [bit]
    age: jax.Array  # [K, Q] int32: slots that the task was there before this one [-]
    length: jax.Array  # [K] int32
    arrived: jax.Array  # [K] int32: tasks that came at the start of this slot, lost ones too
    blocked: jax.Array  # [K] int32: those that found the queue full, and are lost


def empty_queue(scenario: Scenario) -> Queue:
    """Return queues without tasks."""
    shape = (scenario.system.num_devices, scenario.queue_size)
    none = jnp.zeros(shape[0], jnp.int32)
    return Queue(jnp.zeros(shape, jnp.result_type(float)), jnp.zeros(shape, jnp.int32), *3 * [none])


def arrive(
    key: jax.Array, scenario: Scenario, devices: jax.Array, queue: Queue, alive: jax.Array
) -> Queue:
    """Append the tasks that arrive at the start of a slot.

    Args:
        key: of the slot.
        scenario: kind and rate of the arrivals, sizes.
        devices: indices ``[K]``.
        queue: what is left from the slot before.
        alive: devices that have tasks at all ``[K]`` bool.
    """
    count = jnp.where(alive, arrivals(key, scenario, devices), 0)
    spread = 2 * draws.uniform(key, devices, draws.SIZES, scenario.queue_size) - 1
    sizes = scenario.system.task_bits[:, None] * (1 + scenario.size_spread * spread)
    place = jnp.arange(scenario.queue_size, dtype=jnp.int32)[None]
    length = jnp.minimum(queue.length + count, scenario.queue_size)
    new = (place >= queue.length[:, None]) & (place < length[:, None])
    return Queue(
        bits=jnp.where(new, sizes, queue.bits),
        age=jnp.where(new, 0, queue.age),
        length=length,
        arrived=count,
        blocked=queue.length + count - length,
    )


def arrivals(key: jax.Array, scenario: Scenario, devices: jax.Array) -> jax.Array:
    """Draw how many tasks arrive: ``[K]`` int32.

    One each, one with probability ``rate``, or Poisson of mean ``rate`` (below
    ``MOST_ARRIVALS``), by the inverse of the distribution.
    """
    if scenario.arrivals == "every":
        return jnp.ones(len(devices), jnp.int32)
    u = draws.uniform(key, devices, draws.ARRIVING, 1)
    if scenario.arrivals == "bernoulli":
        return (u[:, 0] < scenario.rate).astype(jnp.int32)
    number = jnp.arange(MOST_ARRIVALS, dtype=u.dtype)
    log_rate = jnp.log(jnp.maximum(scenario.rate, 1e-30))[:, None]
    log_mass = number[None] * log_rate - scenario.rate[:, None] - jax.lax.lgamma(number + 1)[None]
    below = jnp.cumsum(jnp.exp(log_mass), axis=1)
    below = below / below[:, -1:]  # rounding must leave no room above the last number
    return jnp.sum(u >= below, axis=1, dtype=jnp.int32)


def serve(
    scenario: Scenario, queue: Queue, completed: jax.Array, dies: jax.Array
) -> tuple[Queue, jax.Array, jax.Array]:
    """End a slot: take out what is through and what is dropped, and let the others age.

    Args:
        scenario: the deadline, and what is done after it.
        queue: of this slot.
        completed: whether the first task of a device is through ``[K]`` bool.
        dies: devices that end with this slot ``[K]`` bool; their tasks are lost.

    Returns:
        The queue at the end of the slot, how many tasks missed their deadline in it, and how many
        were dropped ``[K]`` int32.
    """
    place = jnp.arange(scenario.queue_size, dtype=jnp.int32)[None]
    waiting = (place < queue.length[:, None]) & ~((place == 0) & completed[:, None])
    slots = (queue.age + 1).astype(scenario.system.task_bits.dtype)
    deadline = jnp.floor(scenario.deadline)
    misses = waiting & ((slots == deadline) | dies[:, None] & (slots < deadline))
    drops = waiting & dies[:, None]
    if scenario.after_miss == "drop":
        drops |= waiting & (slots >= deadline)
    missed, dropped = (jnp.sum(x, axis=1, dtype=jnp.int32) for x in (misses, drops))
    gone = completed.astype(jnp.int32) + dropped  # the oldest ones
    length = queue.length - gone
    source = jnp.minimum(place + gone[:, None], scenario.queue_size - 1)
    stays = place < length[:, None]
    bits, age = (jnp.take_along_axis(x, source, axis=1) for x in (queue.bits, queue.age))
    none = jnp.zeros_like(length)
    left = Queue(jnp.where(stays, bits, 0.0), jnp.where(stays, age + 1, 0), length, none, none)
    return left, missed, dropped
