"""Gap to the optimum against speed: every method for P1, on the same channels in one run.

A gap is energy / optimum - 1 of a channel; of methods that break C1-C5, of the answers that keep
them, and feasible_fraction says how many these are.

Baselines, greedy orders, the paper's network, the general policy, the certified optimum at
several sizes, and public solvers: CVXPY with Clarabel and SCIP (extra "bench"), left out where
they are not installed. Writes results.csv, frontier.png/.pdf and run.json into --output_dir,
for example by

    python experiments/frontier.py --flagfile=experiments/flags/frontier.flags
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from support import common, csv_tables, external_solvers, list_flags, plots, progress_bar, trainings

from meco_jax import (
    Policy,
    Solution,
    System,
    figures,
    sample_channels,
    solve,
    table1,
    train,
)
from meco_jax import system as sy
from meco_jax.batching import map_checked
from meco_jax.exact import sets
from meco_jax.exact.allocation import allocate, finish, prepare
from meco_jax.exact.enumeration import STAGES, Stage, optimal
from meco_jax.exact.pricing import set_energy
from meco_jax.exact.schemes import improve
from meco_jax.exact.search import search
from meco_jax.exact.uplink import Uplink, priced_cost
from meco_jax.runtime.policies import shipped

FLAGS = flags.FLAGS
common.define_flags()
trainings.define_training_flags()
flags.DEFINE_list("num_devices", ["14", "20"], "the K to compare at, a panel each; 4:8:2 is 4,6,8")
flags.DEFINE_float("slot", 0.5, "slot length T [s]", lower_bound=1e-6)
flags.DEFINE_float("log_base", 2.0, "base of the logarithm in (3)", lower_bound=1.001)
flags.DEFINE_integer("seed", 0, "task seed", lower_bound=0)
flags.DEFINE_integer("channels", 1024, "feasible channels, one batch", lower_bound=2)
flags.DEFINE_integer("repeats", 5, "timed batches per method, the fastest counts", lower_bound=1)
flags.DEFINE_integer("latency_calls", 300, "timed calls of one channel", lower_bound=2)
flags.DEFINE_integer("slow_channels", 64, "the first of them go to host and public solvers",
                     lower_bound=2)  # fmt: skip
flags.DEFINE_integer("nonlinear_channels", 4, "and so many to SCIP's nonlinear model",
                     lower_bound=0)  # fmt: skip
flags.DEFINE_float("seconds", 10.0, "time limit of SCIP a channel [s]", lower_bound=0.1)
flags.DEFINE_float(
    "tolerance",
    1e-4,
    "proven gap, 1 - lower bound / energy, that the exact methods go to",
    lower_bound=1e-6,
)
flags.DEFINE_multi_string("method", [], "only this method, as results.csv names it; repeatable")
flags.DEFINE_bool("plot_only", False, "draw again from --output_dir's results.csv")


EFFORTS = 0, 4, 6  # of the general policy
SLOW = "search on the host", "Clarabel, branch and bound", "SCIP, tangents", "SCIP, nonlinear"

# From a channel's number to seconds, None if its caller shall time it, and a decision, if any.
Solver = Callable[[int], tuple[float | None, np.ndarray | None]]


class Method(NamedTuple):
    """A method for P1."""

    name: str
    family: str  # its colour in the figure
    run: Callable[[jax.Array], Solution]  # [..., K] gains to solutions


def main(argv: list[str]) -> None:
    """Compare all methods, K by K."""
    common.begin(argv)
    folder = Path(FLAGS.output_dir)
    if FLAGS.plot_only:
        numbers = "gap_mean", "gap_worst", "feasible_fraction", "channels_per_second"
        place = "num_devices", "method"
        rows = csv_tables.read_csv(folder / "results.csv", (*place, "family", *numbers), place)
        draw(folder, rows)
        return
    devices = list_flags.integers("num_devices", low=1)
    known = [*(method.name for method in fast_methods(table1(1), None)), *SLOW]
    if not set(FLAGS.method) <= set(known):
        common.stop(f"--method must be among {'; '.join(known)}; got {'; '.join(FLAGS.method)}")
    config = trainings.train_configs()["bcos"]
    folder, rows = common.prepare(), []
    with progress_bar.Bar(len(devices)) as bar:
        for num_devices in devices:
            system = table1(num_devices, FLAGS.slot, FLAGS.seed)
            system = system.replace(log_base=FLAGS.log_base)
            bar.advance(0, f"K = {num_devices}: training BCOS")
            policy, _ = train(system, key=jax.random.key(FLAGS.seed), config=config)
            rows += compare(system, policy, partial(announce, bar, num_devices))
            csv_tables.write_csv(folder / "results.csv", rows)
            draw(folder, rows)
            common.write_run(folder / "run.json", finished=False)
    common.write_run(folder / "run.json")
    report(rows)
    print(f"wrote {folder} in {common.seconds():.0f} s")


def announce(bar: progress_bar.Bar, num_devices: int, part: float, what: str) -> None:
    """Show what is running."""
    bar.advance(part, f"K = {num_devices}: {what}")


def compare(
    system: System, policy: Policy, show: Callable[[float, str], None]
) -> list[dict[str, Any]]:
    """Run every method on the same feasible channels: one row each."""
    methods = fast_methods(system, policy)
    methods = [method for method in methods if method.name in (FLAGS.method or [method.name])]
    h, optimum = feasible_channels(system)
    rows = []
    show(0.1, "batches")
    seconds = common.clock({m.name: partial(m.run, h) for m in methods}, FLAGS.repeats)
    for method in methods:
        show(0.4 / len(methods), method.name)
        found = jax.tree.map(np.asarray, method.run(h))
        first, calls = latencies(method, np.asarray(h))
        rate = len(h) / seconds[method.name][1]
        rows.append(row(system, method, found, optimum, rate, calls) | {"first_call_s": first})
    few, true = np.asarray(h[: FLAGS.slow_channels]), optimum[: FLAGS.slow_channels]
    for method, calls, decisions in slow_methods(system, few):
        show(0.1, method.name)
        number = len(decisions)
        found = jax.tree.map(np.asarray, method.run(jnp.asarray(decisions, h.dtype)))
        mine = row(system, method, found, true[:number], number / sum(calls), calls)
        rows.append(mine | {"first_call_s": float("nan")})
    show(1 - 0.5 - 0.1 * (len(rows) - len(methods)), "done")
    return rows


def feasible_channels(system: System) -> tuple[jax.Array, np.ndarray]:
    """Draw channels in which P1 has an answer ``[N, K]``, and their optima ``[N]`` [J]."""
    h = sample_channels(jax.random.key(FLAGS.seed + 1), system, 2 * FLAGS.channels)
    optimum = solve(h, system, method="optimal", tolerance=1e-6)
    keep = np.flatnonzero(optimum.feasible)[: FLAGS.channels]
    if len(keep) < FLAGS.channels:
        common.stop(f"only {len(keep)} of {len(h)} channels are feasible; take a longer --slot")
    return h[keep], np.asarray(optimum.energy, np.float64)[keep]


def fast_methods(system: System, policy: Policy | None) -> list[Method]:
    """Methods that run in batches on the device."""
    by = partial(solve, system=system)
    checked = sy.check_system(system)

    def scheme(function: Callable[..., Solution]) -> Callable[[jax.Array], Solution]:
        return partial(jax.jit(partial(map_checked, function, "function")), checked)

    def stage(num_enumerated: int, num_exact: int) -> Callable[[jax.Array], Solution]:
        return scheme(partial(optimal, stage=Stage(num_enumerated, num_exact)))

    @jax.jit
    def improved(h: jax.Array) -> Solution:
        decision = policy.outputs(h).offload  # type: ignore[union-attr]  # None for the names alone
        return map_checked(improve, "function", checked, h, decision)

    orders = {"best channel": best_channel, "most local energy": local, "largest saving": saving}
    return [
        Method("MCOS", "baseline", partial(by, method="mcos")),
        Method("relaxed, rounded", "greedy", scheme(rounded)),
        *(Method(f"{name} first", "greedy", scheme(partial(prefixes, order=order)))
          for name, order in orders.items()),
        Method("improved from all-local", "greedy", scheme(lambda s, h: improve(s, h, 0 * h))),
        Method("BCOS, raw", "network", partial(jax.jit(Policy.__call__), policy)),
        Method("BCOS, projected", "network", partial(by, policy=policy)),
        Method("BCOS, improved", "network", improved),
        *(Method(f"solve, effort {n}", "network", partial(by, effort=n)) for n in EFFORTS),
        *(Method(f"one stage, n = {n}", "optimum", stage(n, num_exact))
          for n, num_exact in (Stage(2, 2), Stage(4, 4), *STAGES)),
        Method("solve, certified", "optimum",
               partial(by, method="optimal", tolerance=FLAGS.tolerance)),
    ]  # fmt: skip


def rounded(system: System, h: jax.Array) -> Solution:
    """Price bisection alone: the relaxed answer, its one part task left local."""
    uplink, _, relaxed = prepare(system, h)
    offload = jnp.floor(relaxed.offload)
    energy, time = set_energy(uplink, offload)
    return finish(uplink, offload, time, energy, relaxed.bound)


def prefixes(system: System, h: jax.Array, order: Callable[[Uplink, Any], jax.Array]) -> Solution:
    """Rank the devices, the forced ones first, and take the best prefix of the ranking."""
    uplink, forced, relaxed = prepare(system, h)
    ranks = jnp.argsort(jnp.lexsort((-order(uplink, relaxed), ~forced)))
    prefixes = sets.Prefixes(ranks, uplink.usable & ~forced, forced)
    some = prefixes.listed().rows.astype(h.dtype)  # [K + 1, K]
    energies, times = jax.vmap(partial(set_energy, uplink))(some)
    best = jnp.argmin(energies)
    return finish(uplink, some[best], times[best], energies[best], relaxed.bound)


def best_channel(uplink: Uplink, _: Any) -> jax.Array:
    """Order by the power gain."""
    return uplink.gain


def local(uplink: Uplink, _: Any) -> jax.Array:
    """Order by the energy of computing locally."""
    return uplink.local


def saving(uplink: Uplink, relaxed: Any) -> jax.Array:
    """Order by what sending saves at the price of the slot."""
    return uplink.local - priced_cost(uplink, relaxed.log_mu)


def latencies(method: Method, h: np.ndarray) -> tuple[float, list[float]]:
    """Seconds of the first call with one channel, compile and weights included, and of later."""
    shipped.cache_clear()
    calls = []
    for index in range(-3, FLAGS.latency_calls):
        began = time.perf_counter()
        jax.block_until_ready(method.run(h[index % len(h)]))
        calls.append(time.perf_counter() - began)
    return calls[0], calls[3:]


def slow_methods(
    system: System, h: np.ndarray
) -> Iterator[tuple[Method, list[float], list[np.ndarray]]]:
    """Solve channel by channel on the host: method, seconds per channel, decisions."""
    judge = jax.jit(partial(map_checked, allocate, "function"))
    for name, family, one, number in solvers(system, h):
        if name not in (FLAGS.method or SLOW):
            continue
        calls, decisions = [], []
        for index in range(number):
            began = time.perf_counter()
            spent, decision = one(index)
            calls.append(time.perf_counter() - began if spent is None else spent)
            decisions.append(np.zeros(system.num_devices) if decision is None else decision)
        yield (
            Method(name, family, partial(judge, system, jnp.asarray(h[:number]))),
            calls,
            decisions,
        )


def solvers(system: System, h: np.ndarray) -> Iterator[tuple[str, str, Solver, int]]:
    """Name the solvers that are installed, with their families and numbers of channels."""
    yield SLOW[0], "host", on_host(system, h), len(h)
    instances = [external_solvers.instance(system, row) for row in h]
    if importlib.util.find_spec("cvxpy"):
        yield SLOW[1], "public", by_clarabel(instances), len(h)
    else:
        print("CVXPY is not installed (pip install '.[bench]'): left out", flush=True)
    if external_solvers.has_scip():
        few = min(FLAGS.nonlinear_channels, len(h))
        for name, nonlinear, number in ((SLOW[2], False, len(h)), (SLOW[3], True, few)):
            if number:
                yield name, "public", by_scip(instances, nonlinear), number
    else:
        print("pyscipopt is not installed (pip install '.[bench]'): SCIP left out", flush=True)


def on_host(system: System, h: np.ndarray) -> Solver:
    """Search exactly in float64, from what all-local is improved to."""
    start = jax.jit(partial(map_checked, lambda s, h: improve(s, h, 0 * h), "function"))
    checked = sy.check_system(system)

    def one(index: int) -> tuple[None, np.ndarray]:
        known = start(checked, jnp.asarray(h[index]))
        better, _ = search(system, h[index], float(known.energy), FLAGS.tolerance)
        return None, np.asarray(known.offload) if better is None else better

    one(0)  # compiles
    return one


def by_clarabel(instances: list[Any]) -> Solver:
    """Branch and bound with Clarabel; a channel on which it fails counts as left local."""
    clarabel = external_solvers.Clarabel(len(instances[0].load))

    def one(index: int) -> tuple[None, np.ndarray | None]:
        try:
            return None, clarabel.solve(instances[index], FLAGS.tolerance)[1]
        except ArithmeticError:
            return None, None

    one(0)  # compiles
    return one


def by_scip(instances: list[Any], nonlinear: bool) -> Solver:
    """Solve with SCIP, within its time limit."""
    return lambda i: external_solvers.scip(instances[i], FLAGS.tolerance, FLAGS.seconds, nonlinear)


def row(
    system: System,
    method: Method,
    found: Solution,
    optimum: np.ndarray,
    rate: float,
    calls: list[float],
) -> dict[str, Any]:
    """Judge a method's answers; gaps, energy / optimum - 1, are over those that are feasible."""
    ok = np.asarray(found.feasible)
    energy = np.asarray(found.energy, np.float64)[ok]
    gap = np.maximum(energy / optimum[ok] - 1, 0)
    own = 1 - np.asarray(found.lower_bound, np.float64)[ok] / energy
    return {
        "num_devices": system.num_devices,
        "method": method.name,
        "family": method.family,
        "channels": len(optimum),
        "feasible_fraction": float(np.mean(ok)),
        "gap_mean": float(np.mean(gap)),
        "gap_worst": float(np.max(gap)),
        "optimal_fraction": float(np.mean(gap < 1e-5)),
        "certified_fraction": float(np.mean(own <= FLAGS.tolerance)),
        "channels_per_second": rate,
        "p50_us": 1e6 * float(np.percentile(calls, 50)),
        "p99_us": 1e6 * float(np.percentile(calls, 99)),
    }


def draw(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the figure from the rows of results.csv."""
    figures.save_figure(plots.frontier_figure(rows), folder / "frontier")


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'K':>3} {'method':<28}{'mean gap':>10}{'worst':>10}{'optimal':>9}"
          f"{'channels/s':>12}{'p50 us':>10}{'p99 us':>10}{'first s':>9}")  # fmt: skip
    for r in rows:
        print(f"{r['num_devices']:>3} {r['method']:<28}{r['gap_mean']:10.2e}{r['gap_worst']:10.2e}"
              f"{100 * r['optimal_fraction']:8.1f}%{r['channels_per_second']:12.4g}"
              f"{r['p50_us']:10.4g}{r['p99_us']:10.4g}{r['first_call_s']:9.2g}")  # fmt: skip


if __name__ == "__main__":
    common.launch(main)
