"""The calls: who sends, how long all harvest and each sends, by any method, one channel or many."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import engine
from meco_jax.engine import HostBatch
from meco_jax.runtime.checks import (
    inside_trace,
    integer,
    is_traced,
    one_number,
    per_device,
    require,
    zero_or_one,
)
from meco_jax.runtime.memory import once_per_system
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

INPUT_ROUNDING = 4  # roundings of the rate that those of float32 gains and systems may make
P = ParamSpec("P")
Method = Literal["local", "offload", "optimal", "prefix"]
Scheme = Callable[[WPMEC, jax.Array], Solution]  # of one channel
METHODS: dict[str, Scheme] = {
    "local": schemes.local,
    "offload": schemes.offload,
    "optimal": enumeration.optimal,
    "prefix": schemes.prefix,
}


def _names_gain(function: Callable[P, Solution]) -> Callable[P, Solution]:
    """Take the gains by their older name ``h`` too, with a DeprecationWarning."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Solution:
        if "h" in named:
            message = f"wpmec.{function.__name__} calls its power gains gain; the name h will go"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            arguments = named.pop("h"), *arguments
        return function(*arguments, **named)  # type: ignore[arg-type]

    return call


@_names_gain
@moves_data
def solve(
    gain: ArrayLike,
    system: WPMEC | None = None,
    method: Method | Scheme = "optimal",
    tolerance: float = 1e-6,
    max_nodes: int = search.MAX_NODES,
) -> Solution:
    """Decide who sends and who computes, how long all harvest and how long each sends.

    The weighted sum of the rates is maximised, THEORY.md, section 11. Works eagerly, under
    ``jax.jit`` and under ``jax.vmap``. The numbers of a ``Solution`` can be differentiated: as
    those of the mode that is found. ``upper_bound`` has the derivative of the bound that holds.

    Gains are power gains here, as in the publications of this problem; ``meco_jax.solve`` takes
    amplitude gains h, whose squares they are.

    Args:
        gain: power gains ``[..., K]`` [-].
        system: the physics, any field with leading batch axes that broadcast against the gains'.
            By default ``reference(K)``.
        method: "optimal", the optimum with a proof: ``upper_bound`` comes within ``tolerance`` of
            the rate. Under ``jax.jit`` one stage runs, and ``upper_bound`` says what it proves.
            "prefix", the devices of largest gain send, as many as is best; "local", nobody
            sends; "offload", all do. Or a scheme of your own, ``method(system, gain) -> Solution``
            of one channel: gains ``[K]`` and per-device fields ``[K]`` of your devices alone. The
            function is compiled once per K, so it must be hashable. ``solve`` does not check
            its answer.
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
    engine.check_method(method, METHODS)
    max_nodes = integer("max_nodes", max_nodes, low=0)
    require("tolerance", one_number("tolerance", tolerance), 0.0, included=False)
    h, system = check_call(gain, system)
    if is_traced(h, system) or inside_trace():
        solve_all: Any = _solve
        if callable(method) and inside_trace():
            solve_all = solve_all.__wrapped__  # it may close over what is being recorded
        return solve_all(h, system, method, enumeration.ONLY_STAGE)[0]  # type: ignore[no-any-return]
    batch = batch_shape(system, gain=h)
    if 0 in batch:
        return _solve(h, system, method, enumeration.ONLY_STAGE)[0]
    program = _program(method)
    multiple = 1 if callable(method) else engine.DEVICE_MULTIPLE
    if not batch:
        padded = partial(_padded_on_host, system)
        found = engine.run_one(program, h, padded, multiple)
        if method != "optimal" or not _is_open(found, tolerance):
            return found
    rows = host_batch(h, system, multiple)
    best = rows.run(program, np.arange(rows.number), engine.BATCH_SIZES)
    if method == "optimal":
        _escalate(rows, best, tolerance, max_nodes)
    return rows.unpack(best)


@_names_gain
@moves_data
def allocate(gain: ArrayLike, system: Any, offload: Any = None) -> Solution:
    """Give fixed modes their optimal times.

    Args:
        gain: power gains ``[..., K]`` [-].
        system: the physics, a ``WPMEC``; None means ``reference(K)``.
        offload: who sends ``[..., K]``, 0 or 1 [-]; padding is ignored.

    Returns:
        A ``Solution`` of the broadcast batch shape, see ``solve``; ``upper_bound`` is that of all
        modes.

    Raises:
        ValueError: as ``solve``, and if ``offload`` is not 0 or 1 everywhere.
    """
    if system is not None and not isinstance(system, WPMEC):
        rule = (
            "wpmec.allocate takes the system before the decision, allocate(gain, system, offload)"
        )
        message = f"{rule}; the other order will go"
        warnings.warn(message, DeprecationWarning, stacklevel=4)
        system, offload = offload, system
    h, system = check_call(gain, system)
    mode = per_device("offload", offload, system.num_devices, "decision")
    zero_or_one("offload", mode)
    batch_shape(system, gain=h, offload=mode)
    return _allocate(h, system, mode)


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
            found = engine.one_solution(Solution, "method", found, h, ("offload", "time"))
        return found, found.upper_bound

    return _map(one, system, h)


@jax.jit
def _allocate(h: jax.Array, system: WPMEC, offload: jax.Array) -> Solution:
    def one(system: WPMEC, h: jax.Array, offload: jax.Array) -> tuple[Solution, jax.Array]:
        valid = jnp.all((offload == 0) | (offload == 1) | ~system.active)
        found = schemes.allocate(system, h, (offload > 0) & system.active)
        return _invalidate(found, valid), found.upper_bound

    return _map(one, system, h, offload)[0]


def _program(
    method: str | Scheme, stage: enumeration.Stage = enumeration.STAGES[0]
) -> Callable[[Any, WPMEC], Solution]:
    """Return ``_solve`` of gains and systems on the host, ``[K]`` or ``[N, K]``.

    A bound in float32 allows for some 1e-6 of rounding: that of the optimum's own mode is
    computed again in float64.
    """

    def run(h: Any, system: WPMEC) -> Solution:
        engine.let_go(_solve)
        found, others = _solve(h, system, method, stage)
        if method != "optimal":
            return found
        rate, upper = np.asarray(found.rate), np.asarray(found.upper_bound)
        bound = np.minimum(upper, np.maximum(_own_bounds(h, system, found), np.asarray(others)))
        return found.replace(upper_bound=jax.device_put(np.maximum(bound, rate)))

    return run


def _map(
    one: Callable[..., tuple[Solution, jax.Array]], system: WPMEC, *arrays: jax.Array
) -> tuple[Solution, jax.Array]:
    """Map a function of one channel over the broadcast batch; values out of range become NaN."""
    batch = np.broadcast_shapes(batch_shape(system), *(x.shape[:-1] for x in arrays))
    number = arrays[0].shape[-1]

    def checked(
        fields: dict[str, jax.Array], h: jax.Array, *others: jax.Array
    ) -> tuple[Solution, jax.Array]:
        system = WPMEC(**fields)
        valid = is_valid(system, h)
        found, bound = one(system, jnp.where(system.active, h, 0.0), *others)
        return _invalidate(found, valid), bound

    row_bytes = 4 * (2**14 + 2000 * number)
    return engine.map_rows(checked, _fields(system, number, jnp), arrays, batch, row_bytes)


def _fields(system: WPMEC, number: int, xp: Any) -> engine.Fields:
    """Name the fields as arrays, per-device ones ``[..., K]``."""
    found = {name: (xp.asarray(getattr(system, name)), rank) for name, rank in RANKS.items()}
    return {
        name: (xp.broadcast_to(leaf, (*leaf.shape[:-1], number)) if rank else leaf, rank)
        for name, (leaf, rank) in found.items()
    }


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


def host_batch(h: Any, system: WPMEC, multiple: int) -> HostBatch[WPMEC]:
    """Lay channels and their systems out on the host, to be taken in blocks."""
    fields, batch = _fields(system, h.shape[-1], np), batch_shape(system, gain=h)
    return HostBatch(h, fields, batch, multiple, WPMEC)


@once_per_system
def _padded_on_host(system: WPMEC, missing: int) -> WPMEC:
    """Take a system ``[K]`` to the host, and append devices."""
    number = system.num_devices
    fields = _fields(system, number, np)
    return WPMEC(**{n: engine.pad(x, number, missing) if r else x for n, (x, r) in fields.items()})


def _is_open(found: Solution, tolerance: float) -> Any:
    """Tell whether more is to be looked for, ``[...]`` bool."""
    rate = np.asarray(found.rate)
    return np.asarray(found.upper_bound) - rate > tolerance * rate


def _escalate(rows: HostBatch[WPMEC], best: Solution, tolerance: float, max_nodes: int) -> None:
    """Send the channels whose gap is open to the later stage, and the last ones to the host.

    Args:
        rows: all channels.
        best: what is known of them, improved in place.
        tolerance: relative gap that is good enough [-].
        max_nodes: work of the search a channel.
    """

    def enumerated(stage: enumeration.Stage, places: np.ndarray) -> Solution:
        old = jax.tree.map(lambda x: x[places], best)
        new = rows.run(_program("optimal", stage), places, engine.LATER_SIZES)
        better = new.rate >= old.rate
        taken = jax.tree.map(
            lambda x, y: np.where(better if x.ndim < 2 else better[:, None], x, y), new, old
        )
        bound = np.minimum(old.upper_bound, new.upper_bound)
        return taken.replace(upper_bound=np.maximum(bound, taken.rate))

    def searched(place: int) -> Solution:
        gains, one = rows.take(place)
        devices = search.host_devices(one, gains)
        known = jax.tree.map(lambda x: x[place], best)
        mode, bound = search.search(devices, float(known.rate), tolerance / 2, max_nodes)
        offload = known.offload > 0 if mode is None else mode
        bound = min(bound, float(known.upper_bound))
        return search.solution_on_host(devices, offload, bound, known.rate.dtype.type)

    stages = [partial(enumerated, stage) for stage in enumeration.STAGES[1:]]
    engine.escalate(best, partial(_is_open, tolerance=tolerance), stages, searched)


def _own_bounds(h: np.ndarray, system: WPMEC, found: Solution) -> np.ndarray:
    """Bound the rates of the modes that were found in float64, ``[...]`` [bit/s].

    At the optimum of a mode nu = rate - 2 / 3 A a^(1/3), and a price that is not exact costs its
    square.
    """
    columns = {n: x if n in PER_DEVICE else x[..., None] for n, x in vars(system).items()}
    devices = search.host_devices(WPMEC(**columns), h)
    offload, rate = np.asarray(found.offload) > 0, np.asarray(found.rate)
    kind = rate.dtype.type
    local = np.where(offload, 0.0, devices.local).sum(axis=-1)
    root = np.cbrt(np.asarray(found.harvest, np.float64))
    nu = np.maximum(rate - local * root * 2 / 3, np.finfo(np.float32).tiny)
    bound = search.proven_on_host(devices, offload, nu) * (
        1 + INPUT_ROUNDING * np.finfo(kind).eps / 2
    )
    return np.asarray(engine.rounded(bound, kind, up=True))
