"""Every scheme on the same fresh channels of every lane, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import system as sy
from meco_jax.exact import schemes as ours
from meco_jax.exact.shares import FIT_TOLERANCE
from meco_jax.paper.network import Policy
from meco_jax.paper.sweep import Groups, Lanes, lane_key, map_groups
from meco_jax.runtime.checks import outside_traces, refuse
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.settings import moves_data
from meco_jax.scenarios import sample_channels
from meco_jax.solution import Solution
from meco_jax.solver import Scheme, solve
from meco_jax.system import System

NAMES = (
    "mcos", "mcos_partial", "pcos", "pcos_learned", "bcos_raw", "bcos", "bcos_improved", "optimal",
    "lower_bound",
)  # fmt: skip


@short_repr
class Outcome(NamedTuple):
    """What one scheme does on the test channels of every lane, ``[L, N]`` each."""

    cost: jax.Array  # realised weighted energy, and delay, infinite where infeasible [J]
    lower_bound: jax.Array  # the Lagrangian one of P1, the same for all schemes [J]
    feasible: jax.Array  # bool: C1-C6 hold
    sending_time: jax.Array  # when all is sent: sum of the realised offloading times t' [s]
    offloaded: jax.Array  # share of the tasks that is sent [-]


@moves_data
def evaluate_grid(
    policies: dict[str, Policy],
    lanes: Lanes,
    num_channels: int,
    batch_size: int | None = None,
    schemes: Mapping[str, Scheme] | None = None,
) -> dict[str, Outcome]:
    """Run every scheme on the same fresh channels of each lane.

    Args:
        policies: the stacked policies "bcos" and "pcos" of the lanes.
        lanes: from ``make_grid``.
        num_channels: N, channels per lane.
        batch_size: lanes that run at once; by default one per device on a CPU, elsewhere 16.
        schemes: your own by name, functions of one channel as ``solve`` takes them.

    Returns:
        Outcomes of "mcos", "mcos_partial", "pcos" (optimal), "pcos_learned", "bcos_raw" (the
        network's own output), "bcos" (its decision, changed as little as makes it feasible, see
        ``repair``), "bcos_improved" (what ``improve`` finds from there, which says little of the
        network), "optimal", certified, and of your own.

    Raises:
        ValueError: if one of your own has the name of another, or as ``solve``.
    """
    outside_traces("evaluate_grid", policies, lanes)
    own = schemes or {}
    for name in own:
        if name in NAMES:
            raise refuse("schemes", f"named otherwise than {', '.join(NAMES)}", name)
    size = batch_size or (1 if jax.default_backend() == "cpu" else 16)
    groups = Groups(len(lanes.points), size)
    evaluate = partial(_evaluate, num_channels=num_channels, size=groups.size)
    h, outcomes = groups.join(groups.run(evaluate, groups.split((policies, lanes.seeds))))
    each = jax.tree.map(lambda leaf: leaf[:, None], lanes.systems)
    optimum = solve(h, each, method="optimal")
    found = {"optimal": optimum} | {name: _own(h, each, own[name]) for name in own}
    for name, solution in found.items():
        judged = _judge(lanes.systems, h, solution, outcomes["bcos"].lower_bound)
        outcomes[name] = jax.tree.map(np.asarray, judged)
    return outcomes


def _own(h: jax.Array, systems: System, scheme: Scheme) -> Solution:
    """Solve lanes ``[L, N, K]`` by a scheme that sees the devices of each lane alone."""
    active = np.asarray(systems.active)[:, 0]  # the first devices of each lane
    sizes, number = active.sum(axis=-1), h.shape[-1]
    lanes, parts = [], []
    for size in np.unique(sizes):
        mine = np.flatnonzero(sizes == size)
        fields = {name: getattr(systems, name)[mine] for name in sy.leaves(systems)}
        fields |= {name: fields[name][..., :size] for name in sy.per_device(systems)}
        found = solve(h[mine][..., :size], systems.replace(**fields), method=scheme)
        missing = number - size

        def pad(x: jax.Array, missing: int = missing) -> np.ndarray:
            return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing * (x.ndim > 2))])

        lanes.append(mine)
        parts.append(jax.tree.map(pad, found))
    order = np.argsort(np.concatenate(lanes))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *parts)  # type: ignore[no-any-return]


@partial(jax.jit, static_argnames=("num_channels", "size"))
def _evaluate(arrays: Any, num_channels: int, size: int) -> tuple[jax.Array, dict[str, Outcome]]:
    def lane(arrays: Any) -> tuple[jax.Array, dict[str, Outcome]]:
        policies, seed = arrays
        system = policies["bcos"].system
        h = sample_channels(lane_key(seed, "test"), system, num_channels)
        raw = policies["bcos"](h)
        solutions = {
            "mcos": jax.vmap(partial(ours.mcos, system))(h),
            "mcos_partial": jax.vmap(partial(ours.mcos_partial, system))(h),
            "pcos": jax.vmap(partial(ours.pcos, system))(h),
            "pcos_learned": policies["pcos"](h),
            "bcos_raw": raw,
            "bcos": jax.vmap(partial(ours.repair, system))(h, raw.offload),
            "bcos_improved": jax.vmap(partial(ours.improve, system))(h, raw.offload),
        }
        judge = jax.vmap(partial(_outcome, system))
        return h, {name: judge(h, found, raw.lower_bound) for name, found in solutions.items()}

    return map_groups(lane, arrays, size)


def _outcome(system: System, h: jax.Array, solution: Solution, bound: jax.Array) -> Outcome:
    used = sy.transmit_time(system, h, solution.offload, solution.power, solution.time)
    return Outcome(
        cost=solution.cost,
        lower_bound=bound,
        feasible=solution.feasible,
        sending_time=sy.last_arrival(system, solution.offload, used),
        offloaded=jnp.sum(solution.offload) / jnp.sum(system.active),
    )


_judge = jax.jit(jax.vmap(jax.vmap(_outcome, (None, 0, 0, 0))))


def summarise(outcomes: dict[str, Outcome], lanes: Lanes) -> list[dict[str, Any]]:
    """Average outcomes over the channels that are feasible for all: one row per lane and scheme.

    The rows of "lower_bound" hold the Lagrangian bound of P1 itself.

    Args:
        outcomes: from ``evaluate_grid``.
        lanes: the lanes evaluated; their axes go into the rows.

    Returns:
        Rows with the lane's axes, scheme, cost_mean_j, cost_ci95_j (half width over
        channels), feasible_fraction (C1-C5 hold), deadline_met_fraction (sum t' <= T alone),
        offload_fraction, gap_to_bound_mean and gap_to_optimum_mean (means over the channels of
        cost / bound - 1 and of cost / optimum - 1) and infeasible_fraction, the share of all
        channels that is left out. Costs and gaps are those of all answers, also of those
        that break C1-C5. Where all channels are left out, the others are NaN.
    """
    bounds = np.asarray(outcomes["optimal"].lower_bound, np.float64)
    rows = []
    for lane, (point, slot) in enumerate(zip(lanes.points, np.asarray(lanes.systems.slot))):
        keep = np.isfinite(bounds[lane])
        bound = bounds[lane][keep]
        optimum = np.asarray(outcomes["optimal"].cost[lane], np.float64)[keep]
        rest = {"infeasible_fraction": 1 - _mean(keep)}
        for scheme, outcome in outcomes.items():
            cost, _, feasible, sending_time, offloaded = (
                np.asarray(leaf[lane], np.float64)[keep] for leaf in outcome
            )
            on_time = sending_time <= float(slot) * (1 + FIT_TOLERANCE)
            means = _means(scheme, cost, (feasible, on_time, offloaded), bound, optimum)
            rows.append(point | means | rest)
        rows.append(point | _means("lower_bound", bound, ((), (), ()), bound, optimum) | rest)
    return rows


def _means(
    scheme: str, cost: np.ndarray, fractions: tuple[Any, ...], bound: Any, optimum: Any
) -> dict[str, Any]:
    """Average one lane and scheme over its feasible channels ``[N]``."""
    names = ("feasible_fraction", "deadline_met_fraction", "offload_fraction")
    return {
        "scheme": scheme,
        "cost_mean_j": _mean(cost),
        "cost_ci95_j": 1.96 * _spread(cost) / max(len(cost), 1) ** 0.5,
        **dict(zip(names, map(_mean, fractions))),
        "gap_to_bound_mean": _mean(cost / bound - 1),
        "gap_to_optimum_mean": _mean(cost / optimum - 1),
    }


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _spread(values: np.ndarray) -> float:
    return float(np.std(values)) if len(values) and np.all(np.isfinite(values)) else float("nan")
