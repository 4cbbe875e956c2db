"""Functions of one channel over many, written for P1: ``map_channels`` and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import engine
from meco_jax import system as sy
from meco_jax.engine import HostBatch
from meco_jax.runtime.arguments import (
    batch_shape,
    check_batch,
    check_call,
    core_leaves,
    gains_first,
)
from meco_jax.runtime.checks import per_device, refuse
from meco_jax.runtime.memory import once_per_system
from meco_jax.runtime.settings import moves_data
from meco_jax.solution import Solution
from meco_jax.system import ArrayLike, System

PER_DEVICE = "offload", "power", "time", "energy_per_device"  # of a ``Solution``
Program = Callable[[Any, System], Solution]
"""Solves channels and their systems, of one size: a program that JAX has compiled."""


@gains_first
@moves_data
def map_channels(
    function: Callable[..., Solution], h: ArrayLike, system: System, *arrays: ArrayLike
) -> Solution:
    """Map a scheme written for one channel over batches of channels and systems.

    It does what ``solve`` does with every method, for functions of more than gains, ``jax.jit``
    left to you. Batches that would not fit into ``engine.CHUNK_BYTES`` go through in chunks.
    Example::

        def threshold(system, h, least):  # [K] each
            offload = (h > least).astype(h.dtype)
            return meco_jax.repair(h, system, offload)

        solution = meco_jax.map_channels(threshold, h, system, np.full(h.shape, 1e-3))

    Args:
        function: ``function(system, h, *arrays) -> Solution`` of one channel, ``[K]`` each. It
            may leave ``energy_per_device`` out.
        h: amplitude gains ``[..., K]`` [-].
        system: the physics, any field with leading batch axes.
        *arrays: what else the function takes, ``[..., K]`` each.

    Returns:
        Solutions of the broadcast batch shape. Where gains or system are known under ``jax.jit``
        alone and out of range: ``feasible`` False and NaN energy.

    Raises:
        ValueError: if a value is known and out of range, a shape is wrong, or what ``function``
            returns is no ``Solution`` of one channel.
    """
    if not callable(function):
        raise refuse("function", "a function of a system and of arrays [K]", function)
    h, system = check_call(h, system)
    others = [per_device(f"arrays[{i}]", x, h.shape[-1], "entry") for i, x in enumerate(arrays)]
    check_batch(system, h, *others)
    return map_checked(function, "function", system, h, *others, multiple=1)


def map_checked(
    function: Callable[..., Solution],
    name: str,
    system: System,
    *arrays: jax.Array,
    multiple: int = engine.DEVICE_MULTIPLE,
) -> Solution:
    """Map a function as ``map_channels`` does, arguments checked.

    On a CPU K = 16 takes a third of the time of K = 14, so K is padded to full vector registers.

    Args:
        function: of one channel.
        name: of the argument that it is, for errors.
        system: the physics, checked.
        *arrays: gains first ``[..., K]``, checked.
        multiple: to which K is padded; 1 for functions of users, which see their devices alone.
    """
    function = checked_solutions(function, name)
    batch = batch_shape(system, *arrays)
    num_devices = arrays[0].shape[-1]
    missing = -num_devices % multiple
    system = sy.pad_devices(system, num_devices + missing)
    arrays = tuple(jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) for x in arrays)

    def one(fields: dict[str, jax.Array], *row: jax.Array) -> Solution:
        return function(System(**fields, access=system.access), *row)

    row_bytes = 4 * (2**14 + 300 * num_devices + 3 * num_devices**2)
    found = engine.map_rows(one, core_leaves(system, jnp.asarray), arrays, batch, row_bytes)
    return jax.tree.map(lambda x: x[..., :num_devices] if x.ndim > len(batch) else x, found)


def checked_solutions(function: Callable[..., Solution], name: str) -> Callable[..., Solution]:
    """Answer a channel whose values are out of range with NaN energy, and fill in energies.

    Args:
        function: ``function(system, *arrays) -> Solution`` of one channel.
        name: of the argument that it is, for the message if it returns something else.
    """

    def checked(system: System, h: jax.Array, *arrays: jax.Array) -> Solution:
        solution = function(system, h, *arrays)
        solution = engine.one_solution(Solution, name, solution, h, PER_DEVICE)
        answer = system, h, solution.offload, solution.power, solution.time
        if solution.energy_per_device is None:  # of a scheme that is not ours
            energies = sy.realised_energies(*answer)
            has_task = system.active & (system.task_bits > 0)
            energies = jnp.where(solution.feasible | ~has_task, energies, jnp.inf)
            solution = solution.replace(energy_per_device=energies)
        if solution.delay_cost is None and system.delay_weight is not None:
            delay = jnp.sum(sy.realised_delays(*answer))
            solution = solution.replace(delay_cost=jnp.where(solution.feasible, delay, jnp.inf))
        return invalidate(solution, sy.is_valid(system, h), system.active)

    return checked


def invalidate(solution: Solution, valid: jax.Array, active: jax.Array) -> Solution:
    """Keep a channel's solution where its input is valid: else NaN energy, and nothing sent."""
    delay = solution.delay_cost
    return Solution(
        offload=jnp.where(valid, solution.offload, 0.0),
        power=jnp.where(valid, solution.power, 0.0),
        time=jnp.where(valid, solution.time, 0.0),
        energy=jnp.where(valid, solution.energy, jnp.nan),
        lower_bound=jnp.where(valid, solution.lower_bound, jnp.nan),
        feasible=solution.feasible & valid,
        energy_per_device=jnp.where(valid | ~active, solution.energy_per_device, jnp.nan),
        delay_cost=None if delay is None else jnp.where(valid, delay, jnp.nan),
    )


def host_batch(h: jax.Array, system: System, multiple: int) -> HostBatch[System]:
    """Lay channels and their systems out on the host, to be taken in blocks."""
    build = partial(System, access=system.access)
    fields = core_leaves(system, np.asarray)
    return HostBatch(h, fields, batch_shape(system, h), multiple, build)


@once_per_system
def padded_on_host(system: System, missing: int) -> System:
    """Take a system ``[K]`` to the host, and append devices."""
    number = system.num_devices
    system = jax.tree.map(np.asarray, system)  # JAX's arrays cannot be written here either
    shapes = {name: getattr(system, name).shape for name in sy.per_device(system)}
    if missing or any(shape != (number,) for shape in shapes.values()):
        fields = {name: engine.pad(getattr(system, name), number, missing) for name in shapes}
        system = system.replace(**fields)
    return system
