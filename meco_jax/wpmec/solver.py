"""The calls: who sends, how long all harvest and each sends, by any method, one channel or many."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax.batching import BATCH_SIZES, CHUNK_BYTES, DEVICE_MULTIPLE, block_size
from meco_jax.runtime.checks import (
    as_floats,
    inside_trace,
    integer,
    is_traced,
    one_number,
    real,
    refuse,
    require,
)
from meco_jax.runtime.settings import moves_data
from meco_jax.system import ArrayLike
from meco_jax.wpmec import enumeration, schemes, search
from meco_jax.wpmec.system import (
    PER_DEVICE,
    RANKS,
    WPMEC,
    Solution,
    batch_shape,
    check_call,
    is_valid,
)

LATER_SIZES = BATCH_SIZES[:3]  # of the later stage
INPUT_ROUNDING = 4  # roundings of the rate that those of float32 gains and systems may make
Method = Literal["local", "offload", "optimal", "prefix"]
Scheme = Callable[[WPMEC, jax.Array], Solution]  # of one channel
METHODS: dict[str, Scheme] = {
    "local": schemes.local,
    "offload": schemes.offload,
    "optimal": enumeration.optimal,
    "prefix": schemes.prefix,
}


@moves_data
def solve(
    h: ArrayLike,
    system: WPMEC | None = None,
    method: Method | Scheme = "optimal",
    tolerance: float = 1e-6,
    max_nodes: int = search.MAX_NODES,
) -> Solution:
    """Decide who sends and who computes, how long all harvest and how long each sends.

    The weighted sum of the rates is maximised, THEORY.md, section 11. Works eagerly, under
    ``jax.jit`` and under ``jax.vmap``. The numbers of a ``Solution`` can be differentiated: as
    those of the mode that is found. ``upper_bound`` has the derivative of the bound that holds.

    Args:
        h: power gains ``[..., K]`` [-].
        system: the physics, any field with leading batch axes that broadcast against h's. By
            default ``reference(K)``.
        method: "optimal", the optimum with a proof: ``upper_bound`` comes within ``tolerance`` of
            the rate. Under ``jax.jit`` one stage runs, and ``upper_bound`` says what it proves.
            "prefix", the devices of largest gain send, as many as is best; "local", nobody
            sends; "offload", all do. Or a scheme of your own, ``method(system, h) -> Solution``
            of one channel: gains ``[K]``, per-device fields ``[K]``, padding devices with
            ``system.active`` False and gains 0 among them. It is compiled once per size and
            function, which must be hashable. What it returns is believed.
        tolerance: relative gap up to which "optimal" goes on looking [-].
        max_nodes: work of the search in float64 that "optimal" ends with, a channel: nodes that
            it may bound, at least 0. ``upper_bound`` says what is proven by then.

    Returns:
        A ``Solution``. All modes are feasible: ``feasible`` is True wherever values are in range.

    Raises:
        ValueError: eagerly, if a value is out of range; at any time, if a shape is wrong or the
            method is unknown; if your own method is not hashable or returns no ``Solution`` of
            one channel. Under ``jax.jit`` values out of range give ``feasible`` False and NaN.
    """
    _check_method(method)
    max_nodes = integer("max_nodes", max_nodes, low=0)
    require("tolerance", one_number("tolerance", tolerance), 0.0, included=False)
    h, system = check_call(h, system)
    if is_traced(h, system) or inside_trace():
        solve_all: Any = _solve
        if callable(method) and inside_trace():
            solve_all = solve_all.__wrapped__  # it may close over what is being recorded
        return solve_all(h, system, method, enumeration.ONLY_STAGE)[0]
    batch = batch_shape(system, h=h)
    rows = _Rows(h, system, batch)
    stages = enumeration.STAGES if method == "optimal" else (enumeration.ONLY_STAGE,)
    best, others = rows.run(method, stages[0], np.arange(math.prod(batch)), BATCH_SIZES)
    if method == "optimal":
        _escalate(rows, best, others, tolerance, max_nodes)
    return rows.unpack(best)


@moves_data
def allocate(h: ArrayLike, offload: ArrayLike, system: WPMEC | None = None) -> Solution:
    """Give fixed modes their optimal times.

    Args:
        h: power gains ``[..., K]`` [-].
        offload: who sends ``[..., K]``, 0 or 1 [-]; padding is ignored.
        system: the physics, as ``solve``.

    Returns:
        A ``Solution`` of the broadcast batch shape, see ``solve``; ``upper_bound`` is that of all
        modes.

    Raises:
        ValueError: as ``solve``, and if ``offload`` is not 0 or 1 everywhere.
    """
    h, system = check_call(h, system)
    mode = _check_mode(offload, system.num_devices)
    batch_shape(system, h=h, offload=mode)
    return _allocate(h, system, mode)


def _check_mode(offload: Any, num_devices: int) -> Any:
    """Return modes ``[..., K]`` as floats, 0 or 1 where they are known."""
    if jnp.issubdtype(getattr(offload, "dtype", float), jnp.bool_):
        offload = offload.astype(jnp.result_type(float))
    mode: Any = as_floats(real("offload", offload))
    if not mode.shape or mode.shape[-1] != num_devices:
        rule = f"one decision for each of {num_devices} devices"
        raise ValueError(f"offload must have {rule}; got shape {mode.shape}")
    if not is_traced(mode) and not np.all((mode == 0) | (mode == 1)):
        wrong = np.asarray(mode)
        raise refuse("offload", "0 or 1", float(wrong[(wrong != 0) & (wrong != 1)].flat[0]))
    return mode


def _check_method(method: Any) -> None:
    """Raise a ValueError unless there is such a method."""
    if callable(method):
        try:
            hash(method)
        except TypeError:
            raise refuse("method", "hashable: it is compiled once", method) from None
    elif not isinstance(method, str) or method not in METHODS:
        rule = f"one of {', '.join(METHODS)}, or a function of a system and gains"
        raise refuse("method", rule, method)


@partial(jax.jit, static_argnames=("method", "stage"))
def _solve(
    h: jax.Array, system: WPMEC, method: str | Scheme, stage: enumeration.Stage
) -> tuple[Solution, jax.Array]:
    """Solve channels of any batch shape, and bound all modes but the answers ``[...]``."""

    def one(system: WPMEC, h: jax.Array) -> tuple[Solution, jax.Array]:
        if method == "optimal":
            return enumeration.best_mode(system, h, stage)
        function = METHODS[method] if isinstance(method, str) else method
        found = function(system, h)
        if callable(method):
            found = _one_solution(found, h)
        return found, found.upper_bound

    return _map(one, system, h)


@jax.jit
def _allocate(h: jax.Array, system: WPMEC, offload: jax.Array) -> Solution:
    def one(system: WPMEC, h: jax.Array, offload: jax.Array) -> tuple[Solution, jax.Array]:
        valid = jnp.all((offload == 0) | (offload == 1) | ~system.active)
        found = schemes.allocate(system, h, (offload > 0) & system.active)
        return _invalidate(found, valid), found.upper_bound

    return _map(one, system, h, offload)[0]


def _map(
    one: Callable[..., tuple[Solution, jax.Array]], system: WPMEC, *arrays: jax.Array
) -> tuple[Solution, jax.Array]:
    """Map a function of one channel over the broadcast batch; values out of range become NaN."""
    batch = np.broadcast_shapes(batch_shape(system), *(x.shape[:-1] for x in arrays))
    number = arrays[0].shape[-1]
    fields = {n: _spread(getattr(system, n), RANKS[n], number, jnp) for n in RANKS}
    own = {n: x for n, x in fields.items() if x.ndim > RANKS[n]}
    own = {n: _flat(x, RANKS[n], batch) for n, x in own.items()}

    def checked(row: Any) -> tuple[Solution, jax.Array]:
        system, h = WPMEC(**(fields | row[0])), row[1][0]
        valid = is_valid(system, h)
        found, others = one(system, jnp.where(system.active, h, 0.0), *row[1][1:])
        return _invalidate(found, valid), others

    rows = own, tuple(_flat(x, 1, batch) for x in arrays)
    chunk = max(1, CHUNK_BYTES // (4 * (2**14 + 2000 * number)))
    if math.prod(batch) > chunk:
        found = jax.lax.map(checked, rows, batch_size=chunk)
    else:
        found = jax.vmap(checked)(rows)
    return jax.tree.map(lambda x: x.reshape(batch + x.shape[1:]), found)


def _spread(leaf: Any, rank: int, number: int, xp: Any) -> Any:
    """Give a per-device field its K devices."""
    leaf = xp.asarray(leaf)
    return xp.broadcast_to(leaf, (*leaf.shape[:-1], number)) if rank else leaf


def _flat(leaf: jax.Array, rank: int, batch: tuple[int, ...]) -> jax.Array:
    """Broadcast a leaf of core rank ``rank`` to ``[N, ...]``."""
    tail = leaf.shape[max(leaf.ndim - rank, 0) :]
    return jnp.broadcast_to(leaf, batch + tail).reshape((-1, *tail))


def _one_solution(found: Any, h: jax.Array) -> Solution:
    """Return a scheme's ``Solution`` of one channel ``[K]`` as floats and booleans."""
    if not isinstance(found, Solution):
        raise refuse("method", "a function that returns a meco_jax.wpmec.Solution", found)
    fields = {}
    for name, value in vars(found).items():
        shape = h.shape if name in ("offload", "time") else ()
        value = jnp.asarray(value)
        if value.shape != shape:
            raise ValueError(
                f"method must return {name} of shape {shape} for one channel; "
                f"got shape {value.shape}"
            )
        fields[name] = value.astype(bool if name == "feasible" else h.dtype)
    return Solution(**fields)


def _invalidate(found: Solution, valid: jax.Array) -> Solution:
    """Keep a channel's solution where its input is valid: else NaN rate, and nothing sent."""
    return Solution(
        offload=jnp.where(valid, found.offload, 0.0),
        harvest=jnp.where(valid, found.harvest, 0.0),
        time=jnp.where(valid, found.time, 0.0),
        rate=jnp.where(valid, found.rate, jnp.nan),
        upper_bound=jnp.where(valid, found.upper_bound, jnp.nan),
        feasible=found.feasible & valid,
    )


class _Rows:
    """Channels ``[N]`` with all fields of their systems, on the host, to be taken in blocks.

    As ``batching.HostBatch``: blocks are padded to few shapes, which share compiled programs.
    """

    def __init__(self, h: Any, system: WPMEC, batch: tuple[int, ...]) -> None:
        self.batch, self.num_devices = batch, h.shape[-1]
        missing = -self.num_devices % DEVICE_MULTIPLE

        def spread(leaf: Any, rank: int) -> np.ndarray:
            leaf = np.asarray(leaf)
            if rank:
                leaf = _spread(leaf, 1, self.num_devices, np)
                leaf = np.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, missing)])
            tail = leaf.shape[max(leaf.ndim - rank, 0) :]
            return np.broadcast_to(leaf, batch + tail).reshape((-1, *tail))

        self.gains = spread(h, 1)
        self.fields = {name: spread(getattr(system, name), rank) for name, rank in RANKS.items()}

    def take(self, places: Any) -> tuple[np.ndarray, WPMEC]:
        """Take channels, or one, by their places in the flattened batch."""
        return self.gains[places], WPMEC(**{n: leaf[places] for n, leaf in self.fields.items()})

    def run(
        self, method: Any, stage: enumeration.Stage, places: np.ndarray, sizes: tuple[int, ...]
    ) -> tuple[Solution, np.ndarray]:
        """Solve channels block by block: writable NumPy arrays."""
        size = block_size(max(len(places), 1), sizes)
        blocks = np.resize(places, (-(-len(places) // size), size)) if len(places) else [places]
        found = [_solve(*self.take(block), method, stage) for block in blocks]

        def join(*leaves: jax.Array) -> np.ndarray:
            return np.concatenate([np.asarray(x) for x in leaves])[: len(places)]

        return jax.tree.map(join, *found)  # type: ignore[no-any-return]

    def unpack(self, found: Solution) -> Solution:
        """Give a ``Solution`` of all channels its batch shape and its own devices."""

        def leaf(x: np.ndarray) -> np.ndarray:  # [N] or [N, padded K]
            x = x[:, : self.num_devices] if x.ndim > 1 else x
            return x.reshape(self.batch + x.shape[1:])

        return jax.device_put(jax.tree.map(leaf, found))  # type: ignore[no-any-return]


def _escalate(
    rows: _Rows, best: Solution, others: np.ndarray, tolerance: float, max_nodes: int
) -> None:
    """Send the channels whose gap is open to the later stage, and the last ones to the host.

    Args:
        rows: all channels.
        best: what is known of them, improved in place.
        others: bounds of all modes but the answers ``[N]``, improved in place [bit/s].
        tolerance: relative gap that is good enough [-].
        max_nodes: work of the search a channel.
    """
    # A bound in float32 allows for some 1e-6 of rounding: that of the answer's own mode is
    # computed again in float64.
    own = np.minimum(_own_bounds(rows, best), best.upper_bound)

    def still_open() -> np.ndarray:
        tight = np.minimum(best.upper_bound, np.maximum(own, others))
        best.upper_bound[:] = np.maximum(tight, best.rate)
        return np.flatnonzero(best.upper_bound - best.rate > tolerance * best.rate)

    for stage in enumeration.STAGES[1:]:
        places = still_open()
        if len(places):
            found, rest = rows.run("optimal", stage, places, LATER_SIZES)
            bound = np.minimum(best.upper_bound[places], found.upper_bound)
            better = found.rate >= best.rate[places]
            taken = places[better]
            for old, new in zip(jax.tree.leaves(best), jax.tree.leaves(found)):
                old[taken] = new[better]
            best.upper_bound[places] = bound
            others[taken], own[taken] = rest[better], _own_bounds(rows, best, taken)
    for place in still_open():
        gains, one = rows.take(place)
        devices = search.host_devices(one, gains)
        kind = best.rate.dtype.type
        known = float(best.rate[place])
        mode, bound = search.search(devices, known, tolerance / 2, max_nodes)
        offload: Any = best.offload[place] > 0 if mode is None else mode
        bound = min(bound, float(best.upper_bound[place]))
        solution = search.solution_on_host(devices, offload, bound, kind)
        for old, new in zip(jax.tree.leaves(best), jax.tree.leaves(solution)):
            old[place] = new


def _own_bounds(rows: _Rows, found: Solution, places: Any = slice(None)) -> np.ndarray:
    """Bound the rates of the modes that were found, ``[N]`` [bit/s], in float64.

    At the optimum of a mode nu = rate - 2 / 3 A a^(1/3), and a price that is not exact costs its
    square.
    """
    gains, system = rows.take(places)
    columns = {n: x if n in PER_DEVICE else x[:, None] for n, x in vars(system).items()}
    devices = search.host_devices(WPMEC(**columns), gains)
    offload, rate = found.offload[places] > 0, found.rate[places].astype(np.float64)
    kind = found.rate.dtype.type
    local = np.where(offload, 0.0, devices.local).sum(axis=1)
    nu = rate - local * np.cbrt(found.harvest[places].astype(np.float64)) * 2 / 3
    nu = np.maximum(nu, np.finfo(np.float32).tiny)
    bound = search.proven_on_host(devices, offload, nu) * (
        1 + INPUT_ROUNDING * np.finfo(kind).eps / 2
    )
    return np.asarray(search.rounded_up(bound, kind))
