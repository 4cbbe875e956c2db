"""Batches: a function of one channel over many, and channels in blocks of few sizes.

``map_channels`` maps inside a program. ``HostBatch`` cuts what lies on the host into blocks, and
pads its devices, so that few programs serve all sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import system as sy
from meco_jax.runtime.arguments import batch_shape, check_batch, check_call, core_leaves
from meco_jax.runtime.checks import as_floats, real, refuse
from meco_jax.runtime.memory import once_per_system
from meco_jax.runtime.settings import moves_data
from meco_jax.solution import Solution
from meco_jax.system import ArrayLike, System

CHUNK_BYTES = 2**29  # working memory of a batch
DEVICE_MULTIPLE = 8  # K is padded to a multiple of it
BATCH_SIZES = 1, 8, 64, 512  # channels at once, on the host; more at once are no quicker
CALL_COST = 10  # of a block, in channels
Program = Callable[[Any, System], Solution]
"""Solves channels and their systems, of one size: a program that JAX has compiled."""


@moves_data
def map_channels(function: Callable[..., Solution], system: System, *arrays: ArrayLike) -> Solution:
    """Map a scheme written for one channel over batches of channels and systems.

    What ``solve`` does with every method, for functions of more than gains, ``jax.jit`` left to
    you. Batches that would not fit into ``CHUNK_BYTES`` go through in chunks, and K is padded to
    full vector registers: on a CPU K = 16 takes a third of the time of K = 14. Example::

        def threshold(system, h, least):  # [K] each
            return meco_jax.repair(system, h, (h > least).astype(h.dtype))

        solution = meco_jax.map_channels(threshold, system, h, np.full(h.shape, 1e-3))

    Args:
        function: ``function(system, *arrays) -> Solution`` of one channel, ``[K]`` each. It may
            see padding devices, with ``system.active`` False and zeros in the arrays, and may
            leave ``energy_per_device`` out.
        system: the physics, any field with leading batch axes.
        arrays: gains first [-], ``[..., K]`` each.

    Returns:
        Solutions of the broadcast batch shape. Where gains or system are known under ``jax.jit``
        alone and out of range: ``feasible`` False and NaN energy.

    Raises:
        ValueError: if a value is known and out of range, a shape is wrong, or what ``function``
            returns is no ``Solution`` of one channel.
    """
    if not callable(function):
        raise refuse("function", "a function of a system and of arrays [K]", function)
    if not arrays:
        raise ValueError("arrays must have the gains first; got none")
    h, system = check_call(arrays[0], system)
    others = [_per_device(f"arrays[{i}]", x, h.shape[-1]) for i, x in enumerate(arrays[1:], 1)]
    check_batch(system, h, *others)
    return map_checked(function, "function", system, h, *others)


def _per_device(name: str, values: ArrayLike, num_devices: int) -> jax.Array:
    """Return numbers or booleans ``[..., K]`` as floats."""
    given: Any = values
    if jnp.issubdtype(getattr(given, "dtype", float), jnp.bool_):
        given = given.astype(jnp.result_type(float))
    given = as_floats(real(name, given))
    if not given.shape or given.shape[-1] != num_devices:
        rule = f"one entry for each of {num_devices} devices"
        raise ValueError(f"{name} must have {rule}; got shape {given.shape}")
    return given  # type: ignore[no-any-return]


def map_checked(
    function: Callable[..., Solution], name: str, system: System, *arrays: jax.Array
) -> Solution:
    """Map a function as ``map_channels`` does, arguments checked; ``name`` is what errors name."""
    function = checked_solutions(function, name)
    batch = batch_shape(system, *arrays)
    num_devices = arrays[0].shape[-1]
    missing = -num_devices % DEVICE_MULTIPLE
    system = sy.pad_devices(system, num_devices + missing)
    arrays = tuple(jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) for x in arrays)
    leaves = core_leaves(system, jnp.asarray)
    own = {n: _flat(x, rank, batch) for n, (x, rank) in leaves.items() if x.ndim > rank}
    shared = {n: x for n, (x, _) in leaves.items()}
    rows = (own, tuple(_flat(array, 1, batch) for array in arrays))

    def one(row: tuple[dict[str, jax.Array], tuple[jax.Array, ...]]) -> Solution:
        return function(System(**(shared | row[0]), access=system.access), *row[1])

    chunk = max(1, CHUNK_BYTES // (4 * (2**14 + 300 * num_devices + 3 * num_devices**2)))
    if math.prod(batch) > chunk:
        solutions = jax.lax.map(one, rows, batch_size=chunk)
    else:
        solutions = jax.vmap(one)(rows)

    def unpack(leaf: jax.Array) -> jax.Array:  # [N] or [N, padded K]
        leaf = leaf[:, :num_devices] if leaf.ndim > 1 else leaf
        return leaf.reshape(batch + leaf.shape[1:])

    return jax.tree.map(unpack, solutions)


def _flat(leaf: jax.Array, rank: int, batch: tuple[int, ...]) -> jax.Array:
    """Broadcast a leaf of core rank ``rank`` to ``[N, ...]``."""
    tail = leaf.shape[max(leaf.ndim - rank, 0) :]
    return jnp.broadcast_to(leaf, batch + tail).reshape((-1, *tail))


def checked_solutions(function: Callable[..., Solution], name: str) -> Callable[..., Solution]:
    """Answer a channel whose values are out of range with NaN energy, and fill in energies.

    Args:
        function: ``function(system, *arrays) -> Solution`` of one channel.
        name: of the argument that it is, for the message if it returns something else.
    """

    def checked(system: System, h: jax.Array, *arrays: jax.Array) -> Solution:
        solution = _one_solution(name, function(system, h, *arrays), h)
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


def _one_solution(name: str, found: Any, h: jax.Array) -> Solution:
    """Return a function's ``Solution`` of one channel ``[K]`` as floats and booleans."""
    if not isinstance(found, Solution):
        raise refuse(name, "a function that returns a meco_jax.Solution", found)
    fields = {}
    for field, value in vars(found).items():
        if field in ("energy_per_device", "delay_cost") and value is None:
            continue
        per_device = field in ("offload", "power", "time", "energy_per_device")
        rule, shape = ("[K]", h.shape) if per_device else ("[]", ())
        value = jnp.asarray(value) if isinstance(value, (bool, float, int)) else value
        truth = jnp.issubdtype(getattr(value, "dtype", float), jnp.bool_)
        if field == "feasible" and not truth:
            raise refuse(name, "a function that returns feasible as a boolean", value)
        if not truth:
            value = real(f"{field}, which {name} returns,", value)
        if value.shape != shape:
            raise ValueError(
                f"{name} must return {field} of shape {rule}, here {shape}, for one channel; "
                f"got shape {value.shape}"
            )
        fields[field] = jnp.asarray(value, bool if field == "feasible" else h.dtype)
    return Solution(**fields)


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


class HostBatch:
    """Channels ``[N]`` with all fields of their systems, on the host, to be taken in blocks.

    Blocks are padded to few shapes, so that many numbers of channels and devices share a
    compiled program: ``BATCH_SIZES`` of channels, a multiple of ``DEVICE_MULTIPLE`` devices.
    """

    def __init__(self, h: jax.Array, system: System, multiple: int) -> None:
        self.batch, self.num_devices = batch_shape(system, h), h.shape[-1]
        self.number = math.prod(self.batch)
        missing = -self.num_devices % multiple

        def spread(leaf: ArrayLike, rank: int) -> np.ndarray:
            leaf = _pad(leaf, self.num_devices, missing) if rank else np.asarray(leaf)
            tail = leaf.shape[max(leaf.ndim - rank, 0) :]
            return np.broadcast_to(leaf, (self.batch or (1,)) + tail)  # a view

        self._gains, self._access = spread(h, 1), system.access
        fields = core_leaves(system, np.asarray)
        self._fields = {name: spread(*field) for name, field in fields.items()}

    def take(self, places: np.ndarray) -> tuple[np.ndarray, System]:
        """Take channels, or one, by their places in the flattened batch."""
        index = np.unravel_index(places, self.batch or (1,))
        fields = {name: leaf[index] for name, leaf in self._fields.items()}
        return self._gains[index], System(**fields, access=self._access)

    def run(self, program: Program, places: np.ndarray, sizes: tuple[int, ...]) -> Solution:
        """Solve channels block by block: a ``Solution`` of writable NumPy arrays.

        Args:
            program: for each block.
            places: of the channels in the flattened batch ``[N]``.
            sizes: that a block may have.
        """
        size = block_size(len(places), sizes)
        blocks = np.resize(places, (-(-len(places) // size), size))
        # One alone has the program of a call with one channel, without a batch axis.
        taken = [self.take(block if size > 1 else block[0]) for block in blocks]
        found = [program(*channels) for channels in taken]

        def join(*leaves: jax.Array) -> np.ndarray:
            return np.concatenate([x if size > 1 else x[None] for x in map(np.asarray, leaves)])[
                : len(places)
            ]

        return jax.tree.map(join, *found)

    def unpack(self, found: Solution) -> Solution:
        """Give a ``Solution`` of all channels its batch shape and its own devices."""

        def leaf(x: np.ndarray) -> jax.Array:  # [N] or [N, padded K]
            x = x[:, : self.num_devices] if x.ndim > 1 else x
            # Unlike jnp.asarray, which compiles a copy for each shape.
            return jax.device_put(x.reshape(self.batch + x.shape[1:]))

        return jax.tree.map(leaf, found)


def block_size(number: int, sizes: tuple[int, ...]) -> int:
    """Return the size of the blocks, all alike, in which so many channels are soonest through."""
    return min(sizes, key=lambda size: -(-number // size) * (CALL_COST + size))


def run_one(program: Program, h: jax.Array, system: System, multiple: int) -> Solution:
    """Solve one channel ``[K]`` as ``HostBatch`` does, padded alike, but quicker."""
    number = h.shape[-1]
    missing = -number % multiple
    # On the host, since arrays that are committed or weakly typed have programs of their own.
    system, gains = _padded_on_host(system, missing), np.asarray(h)
    if missing:
        gains = _pad(gains, number, missing)
    found = program(gains, system)
    if missing:
        found = _cut(found, number)
    return found


@once_per_system
def _padded_on_host(system: System, missing: int) -> System:
    """Take a system ``[K]`` to the host, and append devices."""
    number = system.num_devices
    system = jax.tree.map(np.asarray, system)  # JAX's arrays cannot be written here either
    shapes = {name: getattr(system, name).shape for name in sy.per_device(system)}
    if missing or any(shape != (number,) for shape in shapes.values()):
        system = system.replace(**{n: _pad(getattr(system, n), number, missing) for n in shapes})
    return system


@partial(jax.jit, static_argnames="number")
def _cut(found: Solution, number: int) -> Solution:
    """Take ``number`` devices of a channel's ``Solution``."""
    return jax.tree.map(lambda x: x[:number] if x.ndim else x, found)


def _pad(leaf: ArrayLike, number: int, missing: int) -> Any:
    """Append ``missing`` zeros to ``[..., K]`` on the host."""
    leaf = np.asarray(leaf)
    padded = np.zeros((*leaf.shape[:-1], number + missing), leaf.dtype)
    padded[..., :number] = leaf
    return padded
