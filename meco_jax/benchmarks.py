"""Instances with certified optima, and scores of schemes on them: the benchmark.

A family is a file of instances, drawn once by ``experiments/make_benchmarks.py``, with optima that
a float64 search proved to a relative 1e-9. Its name carries a version: what a name holds never
changes. Optima are of the numbers in the file, which float32 holds exactly.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

import jax
import numpy as np

from meco_jax.runtime.checks import integer, outside_traces, refuse
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.solver import solve
from meco_jax.system import System
from meco_jax.wpmec.solver import solve as solve_wpmec
from meco_jax.wpmec.system import WPMEC
from meco_jax.wpmec.system import Solution as WPMECSolution

FOLDER = "benchmark_data"
TRUST = 2e-6  # what an answer in float32 may be better than the optimum by [-]
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
    impossible: int  # answers better than the proven bound: not to be believed
    us_per_channel: float  # in one batch, the fastest of the calls but the first [us]


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
    kind: Any = System if problem == "p1" else WPMEC
    return Family(name=name, problem=problem, system=kind(**arrays, **words), **outputs)


def score(scheme: Scheme | str, name: str | Family, repeats: int = 3) -> Score:
    """Score a scheme on a family.

    A gap is |answer - optimum| / optimum. Answers that claim more than the proven bound are
    counted apart, and their gaps are 0.

    Args:
        scheme: a function of one channel, as the problem's ``solve`` takes it, or the name of one
            of its methods.
        name: of a family, or a family.
        repeats: timed calls, at least 1.

    Raises:
        ValueError: as ``load`` and the problem's ``solve``.
    """
    repeats = integer("repeats", repeats, low=1)
    family = load(name) if isinstance(name, str) else name
    if not isinstance(family, Family):
        raise refuse("name", "the name of a family, or a family", name)
    outside_traces("benchmarks.score", family.h)
    call: Any = solve if family.problem == "p1" else solve_wpmec
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        found = jax.block_until_ready(call(family.h, family.system, method=scheme))
        times.append(time.perf_counter() - began)
    value = np.asarray(found.cost if family.problem == "p1" else found.rate, np.float64)
    sign = 1 if family.problem == "p1" else -1
    good = np.asarray(found.feasible) & np.isfinite(value)
    gap = sign * (value[good] / family.optimum[good] - 1)
    beyond = sign * (value[good] / family.bound[good] - 1) < -TRUST
    gap = np.maximum(gap, 0.0)
    return Score(
        name=family.name,
        gap_mean=float(np.mean(gap)) if len(gap) else np.nan,
        gap_95=float(np.quantile(gap, 0.95)) if len(gap) else np.nan,
        gap_worst=float(np.max(gap)) if len(gap) else np.nan,
        infeasible=int(np.sum(~good)),
        impossible=int(np.sum(beyond)),
        us_per_channel=1e6 * min(times[1:]) / len(family.h),
    )


def _checksums() -> dict[str, str]:
    """Read the SHA-256 of every family's file."""
    lines = _folder().joinpath(INDEX).read_text().splitlines()
    return {name: checksum for checksum, name in map(str.split, lines)}


def _folder() -> Any:
    return resources.files("meco_jax").joinpath(FOLDER)
