"""Instances with certified optima, and scores of schemes on them: the benchmark.

A family is a file of instances, drawn once by ``experiments/make_benchmarks.py``, with optima that
a float64 search proved to a relative 1e-9. Its name carries a version: what a name holds never
changes. Optima are of the numbers in the file, which float32 holds exactly.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Any, NamedTuple

import jax
import numpy as np

from meco_jax.judge import Verdict, judge
from meco_jax.runtime.checks import integer, outside_traces, per_device, refuse, zero_or_one
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.solver import allocate, solve
from meco_jax.system import ArrayLike, System
from meco_jax.wpmec import solver as wpmec_solver
from meco_jax.wpmec.judge import judge as judge_wpmec
from meco_jax.wpmec.system import WPMEC
from meco_jax.wpmec.system import Solution as WPMECSolution

__all__ = ["Family", "Score", "load", "names", "score"]
FOLDER = "benchmark_data"
TRUST = 5e-6  # by which an answer in float32 may misstate its worth, or exceed the proof [-]
INDEX = "index.txt"  # of the files' SHA-256
Answer = Solution | WPMECSolution
Scheme = Callable[[Any, jax.Array], Answer]


@short_repr
class Family(NamedTuple):
    """Instances of one kind and their certified optima."""

    name: str
    problem: str  # "p1": least ``Solution.cost`` [J]; "wpmec": highest rate [bit/s]
    h: np.ndarray  # [N, K] gains, as the problem's ``solve`` takes them [-]
    system: System | WPMEC  # fields [N, K] and [N]
    optimum: np.ndarray  # [N] float64 [J] or [bit/s]
    bound: np.ndarray  # [N] float64: proven, below the least cost or above the highest rate
    offload: np.ndarray  # [N, K] bool: who sends in the optimum


@short_repr
class Score(NamedTuple):
    """What a scheme does on a family."""

    name: str
    gap_mean: float  # of feasible answers, from the optimum, in relation to it [-]
    gap_95: float  # of which 95 % are below [-]
    gap_worst: float  # [-]
    infeasible: int  # answers that are not feasible, or no numbers
    impossible: int  # answers that claim to be better than the proven bound
    misstated: int  # answers that are not worth what they claim, or claim to be feasible
    us_per_channel: float  # in one batch, the fastest of the calls but the first [us]


@short_repr
class Problem(NamedTuple):
    """How schemes for a problem are run and judged."""

    system: type
    answer: type
    solve: Callable[..., Any]  # (h, system, method=...)
    allocate: Callable[..., Any]  # (h, system, offload)
    judge: Callable[..., Verdict]  # (h, system, answer)
    claim: str  # the field that says what an answer is worth
    sign: int  # 1: the least is best, -1: the most


PROBLEMS = {
    "p1": Problem(System, Solution, solve, allocate, judge, "cost", 1),
    "wpmec": Problem(
        WPMEC, WPMECSolution, wpmec_solver.solve, wpmec_solver.allocate, judge_wpmec, "rate", -1
    ),
}


def names() -> list[str]:
    """Return the names of all families."""
    return list(_checksums())


def load(name: str) -> Family:
    """Load a family.

    Args:
        name: one of ``names()``.

    Raises:
        ValueError: if there is none of that name, or its file is not the one that was made.
    """
    known = _checksums()
    if name not in known:
        raise refuse("name", f"one of {', '.join(known)}", name)
    file = _folder().joinpath(f"{name}.npz")
    if hashlib.sha256(file.read_bytes()).hexdigest() != known[name]:
        raise ValueError(f"{file} must have the SHA-256 {known[name]}; it is another file")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
        arrays = dict(data)
    words = {n: str(arrays.pop(n)) for n in ("problem", "access") if n in arrays}
    outputs = {n: arrays.pop(n) for n in ("h", "optimum", "bound", "offload")}
    problem = words.pop("problem")
    system = PROBLEMS[problem].system(**arrays, **words)
    return Family(name=name, problem=problem, system=system, **outputs)


def score(
    scheme: Scheme | str | ArrayLike | Answer,
    name: str | Family,
    repeats: int = 3,
    host: bool = False,
) -> Score:
    """Score a scheme on a family.

    A gap is |answer - optimum| / optimum. What an answer is worth, and whether it is feasible,
    is computed again in float64 from its decision, powers and times. Example::

        best_half = family.h > np.median(family.h, axis=1, keepdims=True)
        benchmarks.score(best_half, family)

    Args:
        scheme: a function of one channel, as the problem's ``solve`` takes it; the name of one
            of its methods; decisions ``[N, K]``, 0 or 1, from any program, which get their
            optimal powers and times and are not repaired; or answers ``[N]``, as ``repair``
            returns them.
        name: of a family, or a family.
        repeats: timed calls, at least 1.
        host: the function is not one of JAX: it is called for each channel with NumPy arrays,
            ``f(system, h)``, and returns a decision ``[K]`` or an answer.

    Raises:
        ValueError: as ``load`` and the problem's ``solve``, or if decisions have another shape.
    """
    repeats = integer("repeats", repeats, low=1)
    family = load(name) if isinstance(name, str) else name
    if not isinstance(family, Family):
        raise refuse("name", "the name of a family, or a family", name)
    if host and not callable(scheme):
        raise refuse("scheme", "a function where host is True", scheme)
    outside_traces("benchmarks.score", family.h)
    problem = PROBLEMS[family.problem]
    seconds = float("nan")  # of decisions that come from elsewhere
    if host:
        began = time.perf_counter()
        found = _on_host(problem, family, scheme)
        seconds = time.perf_counter() - began
    elif isinstance(scheme, problem.answer):
        found = scheme
    elif isinstance(scheme, str) or callable(scheme):
        found, seconds = _timed(partial(problem.solve, method=scheme), family, repeats)
    else:
        found = _decided(problem, family, scheme)
    return _compare(problem, family, found, seconds)


def _timed(call: Callable[..., Any], family: Family, repeats: int) -> tuple[Any, float]:
    """Solve a family: the answers, and the seconds of the fastest call but the first."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        found = jax.block_until_ready(call(family.h, family.system))
        times.append(time.perf_counter() - began)
    return found, min(times[1:])


def _decided(problem: Problem, family: Family, decisions: Any) -> Any:
    """Allocate decisions ``[N, K]``."""
    decisions = per_device("scheme", decisions, family.h.shape[1], "decision")
    if decisions.shape != family.h.shape:
        rule = f"decisions of shape {family.h.shape}, one per channel and device"
        raise ValueError(f"scheme must be {rule}; got shape {decisions.shape}")
    zero_or_one("scheme", decisions)
    return problem.allocate(family.h, family.system, decisions)


def _on_host(problem: Problem, family: Family, scheme: Any) -> Any:
    """Call a function of NumPy arrays channel by channel."""
    found: list[Any] = []
    for row, h in enumerate(family.h):
        one = scheme(jax.tree.map(lambda leaf: leaf[row], family.system), h.copy())  # noqa: B023
        found.append(one if isinstance(one, problem.answer) else np.asarray(one))
    if all(isinstance(one, problem.answer) for one in found):
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    shapes = {np.shape(one) for one in found} - {family.h.shape[1:]}
    if shapes:
        rule = f"return a decision of shape {family.h.shape[1:]}, or a {problem.answer.__name__}"
        raise ValueError(f"scheme must {rule}; got shape {shapes.pop()}")
    return _decided(problem, family, np.stack(found))


def _compare(problem: Problem, family: Family, found: Any, seconds: float) -> Score:
    """Judge answers ``[N]``, and compare them with the optima."""
    true = problem.judge(family.h, family.system, found)
    claimed = np.asarray(getattr(found, problem.claim), np.float64)
    says = np.asarray(found.feasible) & np.isfinite(claimed)
    good = says & true.feasible & np.isfinite(true.value)
    with np.errstate(invalid="ignore", over="ignore"):
        beyond = problem.sign * (claimed / family.bound - 1) < -TRUST
        wrong = np.abs(claimed - true.value) > TRUST * true.value
    gap = problem.sign * (true.value[good] / family.optimum[good] - 1)
    gap = np.maximum(gap, 0.0)
    return Score(
        name=family.name,
        gap_mean=float(np.mean(gap)) if len(gap) else np.nan,
        gap_95=float(np.quantile(gap, 0.95)) if len(gap) else np.nan,
        gap_worst=float(np.max(gap)) if len(gap) else np.nan,
        infeasible=int(np.sum(~good)),
        impossible=int(np.sum(says & beyond)),
        misstated=int(np.sum(says & (wrong | ~true.feasible))),
        us_per_channel=1e6 * seconds / len(family.h),
    )


def _checksums() -> dict[str, str]:
    """Read the SHA-256 of every family's file."""
    lines = _folder().joinpath(INDEX).read_text().splitlines()
    return {name: checksum for checksum, name in map(str.split, lines)}


def _folder() -> Any:
    return resources.files("meco_jax").joinpath(FOLDER)
