"""Seven cells on one band: energy against the distance of their stations.

A station stands in the middle, six around it. Each cell solves its slot in the mean interference
of the others, until nothing changes or --rounds are over. Writes into --output_dir: cells.csv,
cells.png/.pdf and run.json. Example:

    python experiments/interfering_cells.py --output_dir=runs/interfering_cells
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from support import common, csv_tables, list_flags, progress_bar, time_plots

from meco_jax import figures, table1
from meco_jax.simulation import solve_cells

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_integer("num_devices", 8, "K per cell", lower_bound=1)
flags.DEFINE_float("slot", 0.5, "slot length T [s]", lower_bound=1e-6)
flags.DEFINE_list("schemes", ["mcos", "optimal"], "methods of solve to compare")
flags.DEFINE_list("distances", ["100:300:25", "350:600:50"], "between the stations [m]")
flags.DEFINE_float("radius", 50.0, "of a cell; in 30 m gains are Table 1's [m]", lower_bound=1)
flags.DEFINE_float("exponent", 3.0, "of the path loss [-]", lower_bound=0)
flags.DEFINE_integer("draws", 32, "placements and channels per distance", lower_bound=1)
flags.DEFINE_integer("rounds", 50, "most rounds of the iteration", lower_bound=1)
flags.DEFINE_bool("plot_only", False, "draw again from --output_dir's csv")
flags.DEFINE_integer("seed", 0, "seed of tasks, places and channels", lower_bound=0)

REFERENCE = 30.0  # [m]
PLACE = "scheme", "distance"
COLUMNS = "energy_per_task_j", "feasible_fraction", "converged_fraction", "interference"


def main(argv: list[str]) -> None:
    """Solve all distances, or draw again what is there."""
    common.begin(argv)
    path = Path(FLAGS.output_dir) / "cells.csv"
    if FLAGS.plot_only:
        rows = csv_tables.read_csv(path, (*PLACE, *COLUMNS), PLACE)
    else:
        rows = evaluate(path)
    figures.save_figure(time_plots.cells_figure(rows), path.with_suffix(""))
    if not FLAGS.plot_only:
        common.write_run(path.with_name("run.json"))
        print(f"wrote {path.parent} in {common.seconds():.0f} s")


def evaluate(path: Path) -> list[dict[str, Any]]:
    """Solve all distances by all schemes; every finished row is in the csv at once."""
    schemes = list_flags.names("schemes", ("mcos", "bcos", "optimal"))
    distances = list_flags.numbers("distances", above=0)
    common.prepare()
    rows = []
    with progress_bar.Bar(len(schemes) * len(distances)) as bar:
        for scheme in schemes:
            for distance in distances:
                rows.append({"scheme": scheme, "distance": distance, **measure(scheme, distance)})
                bar.advance(1, f"{scheme}, {distance:g} m")
                csv_tables.write_csv(path, rows)
                common.write_run(path.with_name("run.json"), finished=False)
    return rows


def draw(distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw gains ``[D, 7, K]`` and cross gains ``[D, 7, 7, K]``, alike for all distances."""
    rng = np.random.default_rng(FLAGS.seed)
    shape = (FLAGS.draws, 7, FLAGS.num_devices)
    angle = np.pi / 3 * np.arange(6)
    around = np.append(0, np.exp(1j * angle)) * distance  # the stations
    places = FLAGS.radius * np.sqrt(rng.random(shape)) * np.exp(2j * np.pi * rng.random(shape))
    places = places + around[:, None]
    apart = np.abs(places[:, :, None] - around[None, None, :, None])
    loss = (REFERENCE / np.maximum(apart, REFERENCE)) ** FLAGS.exponent
    cross = np.sqrt(1e-6 * loss * rng.exponential(size=apart.shape))
    return np.einsum("djjk->djk", cross), cross


def measure(scheme: str, distance: float) -> dict[str, float]:
    """Solve the draws of a distance."""
    seeds = jnp.arange(FLAGS.seed, FLAGS.seed + 7)
    system = jax.vmap(lambda seed: table1(FLAGS.num_devices, FLAGS.slot, seed))(seeds)
    system = system.replace(slot=jnp.full(7, FLAGS.slot))
    h, cross = draw(distance)
    found = [solve_cells(*one, scheme, FLAGS.rounds) for one in  # type: ignore[arg-type]
             zip(h, [system] * len(h), cross)]  # fmt: skip
    ok = np.array([one.solution.feasible for one in found])
    energy = np.array([one.solution.energy for one in found], np.float64)
    noise = np.array([one.noise_power for one in found], np.float64)
    return {
        "energy_per_task_j": float(np.mean(energy[ok])) / FLAGS.num_devices
        if ok.any()
        else math.nan,
        "feasible_fraction": float(np.mean(ok)),
        "converged_fraction": float(np.mean([bool(one.converged) for one in found])),
        "interference": float(np.median(noise / 1e-9 - 1)),
        "rounds_mean": float(np.mean([int(one.rounds) for one in found])),
    }


if __name__ == "__main__":
    common.launch(main)
