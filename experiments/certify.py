"""What the certified optimum proves, over task data and channels drawn anew in every row.

For each (K, logarithm base, T): the share of channels certified by one jitted stage and by
``solve``, and how close the answers are to the true optimum, found again by the exact
float64 search. Writes results.csv and run.json into --output_dir. Example:

    python experiments/certify.py --output_dir=runs/certify
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import flags
from support import common, csv_tables, list_flags, progress_bar

from meco_jax import Solution, System, sample_channels, solve, table1
from meco_jax.exact.allocation import allocate
from meco_jax.exact.search import search

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_list("num_devices", ["4", "8", "14", "20"], "the K; 4:8:2 is 4,6,8")
flags.DEFINE_list("log_bases", ["2", "e", "10"], "bases of the logarithm in (3)")
flags.DEFINE_list("slots", ["0.3", "0.5", "1.0"], "slot lengths T [s]")
flags.DEFINE_integer("channels", 2000, "channels per row, each with its own tasks", lower_bound=1)
flags.DEFINE_integer("seed", 0, "seed of tasks and channels", lower_bound=0)
flags.DEFINE_float(
    "tolerance", 1e-4, "proven gap, 1 - lower bound / energy, to reach", lower_bound=1e-6
)
flags.DEFINE_float("exactness", 1e-6, "tolerance of the exact search", lower_bound=0)


def main(argv: list[str]) -> None:
    """Certify, row by row; every finished row is in the csv at once."""
    common.begin(argv)
    devices = list_flags.integers("num_devices", low=1)
    bases, slots = (
        list_flags.numbers(name, above=low) for name, low in (("log_bases", 1), ("slots", 0))
    )
    cases = list(itertools.product(devices, bases, slots))
    folder, rows = common.prepare(), []
    with progress_bar.Bar(len(cases)) as bar:
        for num_devices, base, slot in cases:
            rows.append(certify(draw(num_devices, base, slot)))
            bar.advance(1, f"K = {num_devices}, b = {base:g}, T = {slot:g} s")
            csv_tables.write_csv(folder / "results.csv", rows)
            common.write_run(folder / "run.json", finished=False)
    common.write_run(folder / "run.json")
    report(rows)
    print(f"wrote {folder} in {common.seconds():.0f} s")


def draw(num_devices: int, base: float, slot: float) -> System:
    """Draw a system whose tasks differ from channel to channel, fields ``[N, K]``."""
    seeds = FLAGS.seed * FLAGS.channels + np.arange(FLAGS.channels)
    tasks = jax.vmap(lambda seed: table1(num_devices, seed=seed))(seeds)
    return tasks.replace(slot=np.full(len(seeds), slot), log_base=np.full(len(seeds), base))


def certify(system: System) -> dict[str, Any]:
    """Solve one row's channels by one stage, by ``solve`` and by the exact search."""
    one = jax.tree.map(lambda leaf: leaf[0], system)
    h = sample_channels(jax.random.key(FLAGS.seed), one, FLAGS.channels)
    run = partial(solve, h, system, method="optimal", tolerance=FLAGS.tolerance)
    seconds = common.clock({"solve": run}, repeats=2)["solve"][1]
    stage, proven = (jax.tree.map(np.asarray, found) for found in (one_stage(h, system), run()))
    ok = np.flatnonzero(proven.feasible)
    energy, bound = (np.asarray(x[ok], np.float64) for x in (proven.energy, proven.lower_bound))
    true = np.array([exact(system, h, place, proven) for place in ok])
    share = lambda condition: float(np.mean(condition)) if len(ok) else math.nan  # noqa: E731
    worst = lambda gap: float(np.max(gap)) if len(ok) else math.nan  # noqa: E731
    first_gap = 1 - stage.lower_bound[ok] / stage.energy[ok]
    return {
        "num_devices": one.num_devices,
        "log_base": float(one.log_base),
        "slot": float(one.slot),
        "channels": len(h),
        "feasible_fraction": len(ok) / len(h),
        "certified_one_stage": share(first_gap <= FLAGS.tolerance),
        "certified": share(1 - bound / energy <= FLAGS.tolerance),
        "optimal_fraction": share(energy <= true * (1 + 2e-6)),
        "gap_worst": worst(energy / true - 1),
        "false_bounds": int(np.sum(bound > true * (1 + 2e-6))),
        "us_per_channel": 1e6 * seconds / len(h),
    }


@jax.jit
def one_stage(h: jax.Array, system: System) -> Solution:
    """Solve as ``solve`` does inside other jitted code."""
    return solve(h, system, method="optimal")


def exact(system: System, h: jax.Array, place: Any, known: Solution) -> float:
    """Search one channel anew in float64, for anything below the known energy: the optimum [J]."""
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[place], system)
    energy, gains = float(known.energy[place]), np.asarray(h[place])
    better, _ = search(one, gains, energy, FLAGS.exactness)
    return energy if better is None else min(energy, float(_allocate(one, gains, better).energy))


_allocate = jax.jit(allocate)


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    titles = ("feasible", "one stage", "certified", "optimal")
    print("  K  base    T " + "".join(f"{title:>11}" for title in titles) + "  worst gap  us")
    for r in rows:
        shares = (r["feasible_fraction"], r["certified_one_stage"], r["certified"],
                  r["optimal_fraction"])  # fmt: skip
        print(f"{r['num_devices']:3} {r['log_base']:5.3g} {r['slot']:4g} "
              + "".join(f"{100 * share:10.2f}%" for share in shares)
              + f"{r['gap_worst']:11.1e}{r['us_per_channel']:6.0f}")  # fmt: skip


if __name__ == "__main__":
    common.launch(main)
