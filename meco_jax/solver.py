"""The library call: ``solve(h) -> Solution`` by any method, one channel or many.

This is the one place that maps the one-channel functions over batches, and that decides what
runs where: on the host's blocks, or as a part of a program that is being recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import allocation as one_channel
from meco_jax import optimal, schemes, search
from meco_jax import system as sy
from meco_jax.arguments import RANKS, batch_shape, check_call, check_decision
from meco_jax.checkpoint import pretrained
from meco_jax.checks import inside_trace, integer, is_traced, one_number, real, refuse, require
from meco_jax.network import Policy
from meco_jax.policy import LARGEST_EFFORT, GeneralPolicy
from meco_jax.settings import moves_data
from meco_jax.solution import Solution
from meco_jax.system import ArrayLike, System

CHUNK_BYTES = 2**29  # working memory of a batch
DEVICE_MULTIPLE = 8  # K is padded to a multiple of it
BLOCKS = 1, 8, 64, 512  # channels at once, on the host; more at once are no quicker
MOST_PROGRAMS = 64  # that are kept; called again, the others are compiled again
FEW = BLOCKS[:3]  # of the later stages of the optimum
CALL_COST = 10  # of a block, in channels
Method = Literal["bcos", "mcos", "mcos_partial", "optimal", "pcos"]
METHODS: dict[str, Callable[[System, jax.Array], Solution]] = {
    "mcos": schemes.mcos,
    "mcos_partial": schemes.mcos_partial,
    "pcos": schemes.pcos,
    "optimal": optimal.optimal,
}


@moves_data
def solve(
    h: ArrayLike,
    system: System | None = None,
    method: Method = "bcos",
    policy: Policy | GeneralPolicy | None = None,
    tolerance: float = 1e-4,
    effort: int = 4,
    max_nodes: int = search.MAX_NODES,
) -> Solution:
    """Decide who offloads, at what powers and in which slot times: P1, (6).

    Works eagerly, under ``jax.jit`` and under ``jax.vmap``. The numbers of a ``Solution`` can be
    differentiated, twice too: as those of the decision that is found, 0 where it is infeasible.
    ``lower_bound`` has the derivative of the bound that holds, of the energy where they meet.

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
        raise refuse("method", f"one of {known}", method)
    if not isinstance(policy, (Policy, GeneralPolicy, type(None))):
        raise refuse("policy", "trained or from meco_jax.load_policy", policy)
    effort = integer("effort", effort, 0, LARGEST_EFFORT)
    max_nodes = integer("max_nodes", max_nodes, low=0)
    require("tolerance", one_number("tolerance", tolerance), 0.0, included=False)
    if system is None:
        system = _default_system(h, policy)
    h, system = check_call(h, system)
    if isinstance(policy, Policy) and policy.system.num_devices != system.num_devices:
        raise ValueError(
            f"policy must be trained for {system.num_devices} devices, like h; "
            f"got one trained for {policy.system.num_devices}"
        )
    own = (policy or pretrained()) if method == "bcos" else None
    batch = batch_shape(system, h)
    effort = effort if isinstance(own, GeneralPolicy) else 0
    if _is_recorded(h, system, own):
        return _solve(h, system, own, method, effort=effort)
    if _stays_on_device(h, method) or 0 in batch:
        return _run(h, system, own, method, optimal.ONLY_STAGE, effort)
    multiple = 1 if isinstance(own, Policy) else DEVICE_MULTIPLE
    if not batch:
        found = _solve_one(h, system, own, method, effort, -h.shape[-1] % multiple)
        if method != "optimal" or not found.energy - found.lower_bound > tolerance * found.energy:
            return found
    rows = _Rows(h, system, multiple)
    found = rows.solve(np.arange(rows.number), own, method, optimal.STAGES[0], effort)
    if method == "optimal":
        _escalate(rows, found, tolerance, max_nodes)
    return rows.unpack(found)


def mcos(system: System, h: ArrayLike) -> Solution:
    """Offload only the tasks that miss the deadline locally: ``solve(h, system, "mcos")``."""
    return solve(h, system, "mcos")


def mcos_partial(system: System, h: ArrayLike) -> Solution:
    """Offload only what misses the deadline locally: ``solve(h, system, "mcos_partial")``."""
    return solve(h, system, "mcos_partial")


def pcos(system: System, h: ArrayLike) -> Solution:
    """Offload any part of each task optimally: ``solve(h, system, "pcos")``."""
    return solve(h, system, "pcos")


@moves_data
def allocate(system: System, h: ArrayLike, offload: ArrayLike) -> Solution:
    """Give fixed decisions their optimal powers and times: P1, (6), with a fixed.

    Args:
        system: the physics, any field with leading batch axes.
        h: amplitude gains ``[..., K]`` [-].
        offload: decisions ``[..., K]``, 0 or 1 [-]; padding is ignored.

    Returns:
        A ``Solution`` of the broadcast batch shape, see ``solve``. Infeasible where a set does
        not fit or a forced device stays.

    Raises:
        ValueError: as ``solve``, and if ``offload`` is not 0 or 1 everywhere.
    """
    h, system = check_call(h, system)
    offload = check_decision(offload, system, h)
    if not is_traced(offload) and not np.all((offload == 0) | (offload == 1)):
        wrong = np.asarray(offload)
        raise refuse("offload", "0 or 1", wrong[(wrong != 0) & (wrong != 1)].flat[0])
    return _map_decisions(one_channel.allocate, h, system, offload)


@moves_data
def repair(system: System, h: ArrayLike, offload: ArrayLike) -> Solution:
    """Make decisions feasible and give them their optimal powers and times.

    Args:
        system: the physics, any field with leading batch axes.
        h: amplitude gains ``[..., K]`` [-].
        offload: decisions ``[..., K]``, 0 to 1; a device is chosen to send above 1/2 [-].

    Returns:
        A ``Solution`` of the broadcast batch shape, see ``solve``; never worse than sending the
        forced devices alone, infeasible only where these do not fit.

    Raises:
        ValueError: as ``solve``, and if ``offload`` is not from 0 to 1 everywhere.
    """
    h, system = check_call(h, system)
    offload = check_decision(offload, system, h)
    return _map_decisions(schemes.repair, h, system, offload)


@partial(jax.jit, static_argnums=0)
def _map_decisions(
    function: Callable[..., Solution], h: jax.Array, system: System, offload: jax.Array
) -> Solution:
    """Map a one-channel function of a decision, and answer bad values under jit with NaN."""

    def checked(system: System, h: jax.Array, offload: jax.Array) -> Solution:
        valid = jnp.all((offload >= 0) & (offload <= 1) | ~system.active)
        decided = function(system, h, jnp.where(valid, offload, 0.0))
        return _invalidate(decided, valid, system.active)

    return map_channels(_checked(checked), system, h, offload)


def _default_system(h: ArrayLike, policy: Policy | GeneralPolicy | None) -> System:
    """Return the system that a call without one means: the policy's, or Table 1."""
    if isinstance(policy, Policy):
        return policy.system
    shape = real("h", h, sy.COMPLEX_HINT).shape
    if not shape or not shape[-1]:
        raise ValueError(f"h must have one gain per device, [..., K]; got shape {shape}")
    if shape[-1] == 1 and len(shape) > 1 and shape[-2] > 1:
        raise ValueError(
            f"h must have its devices on the last axis; got a column of shape {shape}: pass h.T, "
            f"or system=table1(1) for as many channels of one device"
        )
    return sy.table1(shape[-1])


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
        return map_channels(_checked(schemes.repair), system, h, policy.outputs(h).offload)
    function = METHODS[method]
    if function is optimal.optimal:
        function = partial(optimal.optimal, stage=stage)
    return map_channels(_checked(function), system, h)


def _run(*arguments: Any) -> Solution:
    """Call ``_solve``, and let go of all its programs before they become too many.

    Each holds some 50 MB and 200 to 500 memory mappings, of which Linux grants 65 530.
    """
    compiled: Any = _solve
    if compiled._cache_size() >= MOST_PROGRAMS:
        compiled.clear_cache()
    return _solve(*arguments)


class _Rows:
    """Channels ``[N]`` with all fields of their systems, on the host, to be taken in blocks.

    Blocks are padded to few shapes, so that many numbers of channels and devices share a
    compiled program: ``BLOCKS`` of channels, a multiple of ``DEVICE_MULTIPLE`` devices.
    """

    def __init__(self, h: jax.Array, system: System, multiple: int) -> None:
        self.batch, self.num_devices = batch_shape(system, h), h.shape[-1]
        self.number = math.prod(self.batch)
        missing = -self.num_devices % multiple

        def spread(leaf: ArrayLike, rank: int) -> np.ndarray:
            leaf = _pad(leaf, self.num_devices, missing) if rank else np.asarray(leaf)
            tail = leaf.shape[max(leaf.ndim - rank, 0) :]
            return np.broadcast_to(leaf, (self.batch or (1,)) + tail)  # a view

        self._gains = spread(h, 1)
        self._fields = {n: spread(getattr(system, n), rank) for n, rank in RANKS.items()}

    def take(self, places: np.ndarray) -> tuple[np.ndarray, System]:
        """Take channels, or one, by their places in the flattened batch."""
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
        size = block_size(len(places), sizes)
        blocks = np.resize(places, (-(-len(places) // size), size))
        # One alone has the program of a call with one channel, without a batch axis.
        taken = [self.take(block if size > 1 else block[0]) for block in blocks]
        found = [_run(*channels, policy, method, stage, effort) for channels in taken]

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
    # On the host, since arrays that are committed or weakly typed have programs of their own.
    h, system = jax.tree.map(np.asarray, (h, system))
    shapes = {name: getattr(system, name).shape for name in sy.PER_DEVICE}
    if missing or any(shape != (number,) for shape in shapes.values()):
        h = _pad(h, number, missing)
        system = system.replace(**{n: _pad(getattr(system, n), number, missing) for n in shapes})
    found = _run(h, system, policy, method, optimal.STAGES[0], effort)
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
        gains, one = rows.take(place)
        known = jax.tree.map(lambda x, i=place: x[i], best)
        energy, kind = float(known.energy), known.energy.dtype.type
        decision, bound = search.search(one, gains, energy, tolerance / 2, max_nodes)
        if decision is not None:
            known = search.solution_on_host(one, gains, decision)
        rounded = kind(bound)
        rounded = np.nextafter(rounded, kind(0)) if rounded > bound else rounded
        known = known.replace(lower_bound=np.clip(rounded, best.lower_bound[place], known.energy))
        put(np.array([place]), known)


def _stays_on_device(h: jax.Array, method: str) -> bool:
    """Whether moving gains to the host and back costs more than a program for their shape."""
    return isinstance(h, jax.Array) and jax.default_backend() != "cpu" and method != "optimal"


def _is_recorded(*trees: object) -> bool:
    """Tell whether a call becomes a part of a program: nothing can be looked at on the host."""
    return is_traced(trees) or inside_trace()


def _checked(function: Callable[..., Solution]) -> Callable[..., Solution]:
    """Answer a channel whose values are out of range with NaN energy."""

    def checked(system: System, h: jax.Array, *arguments: jax.Array) -> Solution:
        solution = function(system, h, *arguments)
        if solution.energy_per_device is None:  # of a scheme that is not ours
            energies = sy.realised_energies(system, h, solution.offload, solution.power)
            has_task = system.active & (system.task_bits > 0)
            energies = jnp.where(solution.feasible | ~has_task, energies, jnp.inf)
            solution = solution.replace(energy_per_device=energies)
        return _invalidate(solution, sy.is_valid(system, h), system.active)

    return checked


def _invalidate(solution: Solution, valid: jax.Array, active: jax.Array) -> Solution:
    """Keep a channel's solution where its input is valid: else NaN energy, and nothing sent."""
    return Solution(
        offload=jnp.where(valid, solution.offload, 0.0),
        power=jnp.where(valid, solution.power, 0.0),
        time=jnp.where(valid, solution.time, 0.0),
        energy=jnp.where(valid, solution.energy, jnp.nan),
        lower_bound=jnp.where(valid, solution.lower_bound, jnp.nan),
        feasible=solution.feasible & valid,
        energy_per_device=jnp.where(valid | ~active, solution.energy_per_device, jnp.nan),
    )


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
    batch = batch_shape(system, *arrays)
    num_devices = arrays[0].shape[-1]
    missing = -num_devices % DEVICE_MULTIPLE
    system = sy.pad_devices(system, num_devices + missing)
    arrays = tuple(jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) for x in arrays)
    leaves = {name: jnp.asarray(getattr(system, name)) for name in RANKS}
    own = {n: _flat(x, RANKS[n], batch) for n, x in leaves.items() if x.ndim > RANKS[n]}
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


def _flat(leaf: jax.Array, rank: int, batch: tuple[int, ...]) -> jax.Array:
    """Broadcast a leaf of core rank ``rank`` to ``[N, ...]``."""
    tail = leaf.shape[max(leaf.ndim - rank, 0) :]
    return jnp.broadcast_to(leaf, batch + tail).reshape((-1, *tail))
