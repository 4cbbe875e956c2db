"""The library call: ``solve(h) -> Solution`` by any method, one channel or many.

This is the one place that checks arguments, broadcasts systems against channels and maps
the one-channel functions over batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import optimal, schemes
from meco_jax import system as sy
from meco_jax.allocation import Solution
from meco_jax.checkpoint import pretrained
from meco_jax.network import Policy
from meco_jax.policy import LARGEST_EFFORT, GeneralPolicy
from meco_jax.system import ArrayLike, System

CHUNK_BYTES = 2**29  # working memory of a batch
DEVICE_MULTIPLE = 8  # K is padded to a multiple of it
BLOCKS = tuple(2**n for n in range(14))  # channels at once, on the host
FEW = 1, 8, 64  # of the later stages of the optimum
METHODS: dict[str, Callable[[System, jax.Array], Solution]] = {
    "mcos": schemes.mcos,
    "mcos_partial": schemes.mcos_partial,
    "pcos": schemes.pcos,
    "optimal": optimal.optimal,
}


def solve(
    h: ArrayLike,
    system: System | None = None,
    method: str = "bcos",
    policy: Policy | GeneralPolicy | None = None,
    tolerance: float = 1e-4,
    effort: int = 4,
    max_nodes: int = optimal.MAX_NODES,
) -> Solution:
    """Decide who offloads, at what powers and in which slot times: P1, (6).

    Works eagerly, under ``jax.jit`` and under ``jax.vmap``; the energy can be differentiated.

    Args:
        h: amplitude gains ``[..., K]`` [-].
        system: the physics, any field with leading batch axes that broadcast against h's.
            By default the policy's, or ``table1(K)``.
        method: "bcos", a policy's decision made feasible, with optimal powers and times;
            "mcos" or "mcos_partial", no more offloading than the deadline asks for;
            "pcos", the optimum if tasks could be split; "optimal", the optimum with a proof:
            ``lower_bound`` comes within ``tolerance`` of the energy. Under ``jax.jit`` only
            the first stage runs, and ``lower_bound`` says what it proves.
        policy: for "bcos", from ``meco_jax.train`` or ``train_policy``; by default the one that
            is shipped, which serves any system.
        tolerance: relative gap up to which "optimal" goes on looking [-].
        effort: of a general policy, 0-12: n compares the 2^n sets that differ in the n least
            certain devices; 0 is the fastest.
        max_nodes: work of the search in float64 that "optimal" ends with, a channel: partial
            decisions that it may bound, at least 0. The default takes about a second where
            nothing is proven before; ``lower_bound`` says what is proven by then.

    Returns:
        A ``Solution``. A channel whose forced devices do not fit into the slot is infeasible:
        ``feasible`` False, ``energy`` and ``lower_bound`` infinite, powers and times 0.

    Raises:
        ValueError: eagerly, if a value is out of range; at any time, if a shape is wrong, the
            method is unknown, or the policy was trained for another K. Under
            ``jax.jit`` values out of range give ``feasible`` False and NaN energy.
    """
    if method not in (*METHODS, "bcos"):
        known = ", ".join(sorted((*METHODS, "bcos")))
        raise ValueError(f"method must be one of {known}; got {method!r}")
    if not isinstance(effort, int) or not 0 <= effort <= LARGEST_EFFORT:
        raise ValueError(f"effort must be an integer from 0 to {LARGEST_EFFORT}; got {effort!r}")
    if policy is None and method == "bcos":
        policy = pretrained()
    if system is None:
        num_devices = (np.shape(h) or (0,))[-1]
        system = policy.system if isinstance(policy, Policy) else sy.table1(num_devices)
    system = sy.check_system(system)
    h = sy.check_channels(h, system.num_devices)
    if isinstance(policy, Policy) and policy.system.num_devices != system.num_devices:
        raise ValueError(
            f"policy must be trained for {system.num_devices} devices, like h; "
            f"got one trained for {policy.system.num_devices}"
        )
    sy.require("tolerance", tolerance, 0.0, included=False)
    whole = isinstance(max_nodes, (int, np.integer)) and not isinstance(max_nodes, bool)
    if not whole or max_nodes < 0:
        raise ValueError(f"max_nodes must be an integer of at least 0; got {max_nodes!r}")
    own = policy if method == "bcos" else None
    batch = _batch_shape(system, h)
    if _is_traced(h, system, own) or _stays_on_device(h, method) or 0 in batch:
        return _solve(h, system, own, method, effort=effort)
    multiple = 1 if isinstance(own, Policy) else DEVICE_MULTIPLE
    if not batch:
        found = _solve_one(h, system, own, method, effort, -h.shape[-1] % multiple)
        if method != "optimal" or not found.energy - found.lower_bound > tolerance * found.energy:
            return found
    rows = _Rows(h, system, multiple)
    found = rows.solve(np.arange(rows.number), own, method, optimal.STAGES[0], effort)
    if method == "optimal":
        _escalate(rows, found, tolerance, int(max_nodes))
    return rows.unpack(found)


@partial(jax.jit, static_argnames=("method", "stage", "effort"))
def _solve(
    h: jax.Array,
    system: System,
    policy: Policy | GeneralPolicy | None,
    method: str,
    stage: optimal.Stage = optimal.ONLY_STAGE,
    effort: int = 0,
) -> Solution:
    """Solve channels of any batch shape, each with its own system where fields are batched."""
    if isinstance(policy, GeneralPolicy):
        return map_channels(_checked(partial(policy.decide, effort=effort)), system, h)
    if policy is not None:
        offload, _, _ = policy.outputs(h.reshape(-1, h.shape[-1]))
        return map_channels(_checked(schemes.repair), system, h, offload.reshape(h.shape))
    function = METHODS[method]
    if function is optimal.optimal:
        function = partial(optimal.optimal, stage=stage)
    return map_channels(_checked(function), system, h)


class _Rows:
    """Channels ``[N]`` with all fields of their systems, on the host, to be taken in blocks.

    Blocks are padded to few shapes, so that many numbers of channels and devices share a
    compiled program: ``BLOCKS`` of channels, a multiple of ``DEVICE_MULTIPLE`` devices.
    """

    def __init__(self, h: jax.Array, system: System, multiple: int) -> None:
        self.batch, self.num_devices = _batch_shape(system, h), h.shape[-1]
        self.number = math.prod(self.batch)
        missing = -self.num_devices % multiple

        def spread(leaf: ArrayLike, rank: int) -> np.ndarray:
            leaf = _pad(leaf, self.num_devices, missing) if rank else np.asarray(leaf)
            tail = leaf.shape[max(leaf.ndim - rank, 0) :]
            return np.broadcast_to(leaf, (self.batch or (1,)) + tail)  # a view

        self._gains = spread(h, 1)
        self._fields = {n: spread(getattr(system, n), rank) for n, rank in _RANKS.items()}

    def take(self, places: np.ndarray) -> tuple[np.ndarray, System]:
        """Take channels by their places in the flattened batch."""
        index = np.unravel_index(places, self.batch or (1,))
        return self._gains[index], System(**{n: leaf[index] for n, leaf in self._fields.items()})

    def solve(
        self,
        places: np.ndarray,
        policy: Policy | GeneralPolicy | None,
        method: str,
        stage: optimal.Stage,
        effort: int = 0,
    ) -> Solution:
        """Solve channels block by block: a ``Solution`` of writable NumPy arrays."""
        sizes = BLOCKS if stage is optimal.STAGES[0] else FEW
        blocks = [places[start : start + sizes[-1]] for start in range(0, len(places), sizes[-1])]
        found = []
        for block in blocks:
            size = next(size for size in sizes if size >= len(block))
            padded = self.take(np.resize(block, size))
            found.append(_solve(*padded, policy, method, stage, effort))

        def join(*leaves: jax.Array) -> np.ndarray:
            return np.concatenate([np.asarray(x)[: len(b)] for x, b in zip(leaves, blocks)])

        return jax.tree.map(join, *found)

    def unpack(self, found: Solution) -> Solution:
        """Give a ``Solution`` of all channels its batch shape and its own devices."""

        def leaf(x: np.ndarray) -> jax.Array:  # [N] or [N, padded K]
            x = x[:, : self.num_devices] if x.ndim > 1 else x
            return jnp.asarray(x.reshape(self.batch + x.shape[1:]))

        return jax.tree.map(leaf, found)


def _solve_one(
    h: jax.Array,
    system: System,
    policy: Policy | GeneralPolicy | None,
    method: str,
    effort: int,
    missing: int,
) -> Solution:
    """Solve one channel ``[K]`` as ``_Rows`` does, padded by ``missing`` devices, but quicker."""
    number = h.shape[-1]
    if missing:
        padded = {name: _pad(getattr(system, name), number, missing) for name in sy.PER_DEVICE}
        h, system = _pad(h, number, missing), system.replace(**padded)
    found = _solve(h, system, policy, method, optimal.STAGES[0], effort)
    if missing:
        found = _cut(found, number)
    return found


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


def _escalate(rows: _Rows, best: Solution, tolerance: float, max_nodes: int) -> None:
    """Send the channels whose gap is open to larger stages, and the last ones to the host.

    Args:
        rows: all channels.
        best: what is known of them, improved in place.
        tolerance: relative gap that is good enough [-].
        max_nodes: work of the search a channel.
    """

    def still_open() -> np.ndarray:
        with np.errstate(invalid="ignore"):  # inf - inf where nothing is feasible
            return np.flatnonzero(best.energy - best.lower_bound > tolerance * best.energy)

    def put(places: np.ndarray, solutions: Solution) -> None:
        for old, new in zip(jax.tree.leaves(best), jax.tree.leaves(solutions)):
            old[places] = new

    for stage in optimal.STAGES[1:]:
        places = still_open()
        if len(places):
            put(places, rows.solve(places, None, "optimal", stage))
    for place in still_open():
        gains, systems = rows.take(np.array([place]))
        one = System(**{name: getattr(systems, name)[0] for name in _RANKS})
        known = jax.tree.map(lambda x, i=place: x[i], best)
        energy, kind = float(known.energy), known.energy.dtype.type
        decision, bound = optimal.search(one, gains[0], energy, tolerance / 2, max_nodes)
        if decision is not None:
            known = optimal.solution_on_host(one, gains[0], decision)
        rounded = kind(bound)
        rounded = np.nextafter(rounded, kind(0)) if rounded > bound else rounded
        known = known.replace(lower_bound=np.clip(rounded, best.lower_bound[place], known.energy))
        put(np.array([place]), known)


def _stays_on_device(h: jax.Array, method: str) -> bool:
    """Whether moving gains to the host and back costs more than a program for their shape."""
    return isinstance(h, jax.Array) and jax.default_backend() != "cpu" and method != "optimal"


def _checked(function: Callable[..., Solution]) -> Callable[..., Solution]:
    """Answer a channel whose values are out of range with NaN energy."""

    def checked(system: System, h: jax.Array, *arguments: jax.Array) -> Solution:
        solution, valid = function(system, h, *arguments), sy.is_valid(system, h)
        return Solution(
            offload=jnp.where(valid, solution.offload, 0.0),
            power=jnp.where(valid, solution.power, 0.0),
            time=jnp.where(valid, solution.time, 0.0),
            energy=jnp.where(valid, solution.energy, jnp.nan),
            lower_bound=jnp.where(valid, solution.lower_bound, jnp.nan),
            feasible=solution.feasible & valid,
        )

    return checked


def map_channels(function: Callable[..., Solution], system: System, *arrays: jax.Array) -> Solution:
    """Map a scheme written for one channel over batches of channels and systems.

    What ``solve`` does with every method, for schemes of your own. Batches that would not fit
    into ``CHUNK_BYTES`` go through in chunks, and K is padded to full vector registers: on a
    CPU K = 16 takes a third of the time of K = 14.

    Args:
        function: ``function(system, *arrays) -> Solution`` of one channel, ``[K]`` each; it may
            see padding devices, with ``system.active`` False and zeros in the arrays.
        system: the physics, any field with leading batch axes.
        arrays: gains first, ``[..., K]`` each.

    Returns:
        Solutions of the broadcast batch shape.
    """
    batch = _batch_shape(system, *arrays)
    num_devices = arrays[0].shape[-1]
    missing = -num_devices % DEVICE_MULTIPLE
    system = sy.pad_devices(system, num_devices + missing)
    arrays = tuple(jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) for x in arrays)
    leaves = {name: jnp.asarray(getattr(system, name)) for name in _RANKS}
    own = {n: _flat(x, _RANKS[n], batch) for n, x in leaves.items() if x.ndim > _RANKS[n]}
    rows = (own, tuple(_flat(array, 1, batch) for array in arrays))

    def one(row: tuple[dict[str, jax.Array], tuple[jax.Array, ...]]) -> Solution:
        return function(System(**(leaves | row[0])), *row[1])

    chunk = max(1, CHUNK_BYTES // (4 * (2**14 + 300 * num_devices + 3 * num_devices**2)))
    if math.prod(batch) > chunk:
        solutions = jax.lax.map(one, rows, batch_size=chunk)
    else:
        solutions = jax.vmap(one)(rows)

    def unpack(leaf: jax.Array) -> jax.Array:  # [N] or [N, padded K]
        leaf = leaf[:, :num_devices] if leaf.ndim > 1 else leaf
        return leaf.reshape(batch + leaf.shape[1:])

    return jax.tree.map(unpack, solutions)


_RANKS = {name: int(name in sy.PER_DEVICE) for name in (*sy.SYSTEM_RANGES, "active")}


def _batch_shape(system: System, *arrays: jax.Array) -> tuple[int, ...]:
    batches = [array.shape[:-1] for array in arrays]
    for name, rank in _RANKS.items():
        shape = jnp.shape(getattr(system, name))
        batches.append(shape[: max(len(shape) - rank, 0)])
    return jnp.broadcast_shapes(*batches)


def _flat(leaf: jax.Array, rank: int, batch: tuple[int, ...]) -> jax.Array:
    """Broadcast a leaf of core rank ``rank`` to ``[N, ...]``."""
    tail = leaf.shape[max(leaf.ndim - rank, 0) :]
    return jnp.broadcast_to(leaf, batch + tail).reshape((-1, *tail))


def _is_traced(*trees: object) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))
