"""Figure 5: train BCOS and PCOS over the slot length T and compare all schemes.

Writes results.csv, figure5.png/.pdf, training.png/.pdf, the policies and run.json into
--output_dir. Example:

    python experiments/sweep_t.py --flagfile=experiments/flags/quick_t.flags
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import trainings
from absl import app, flags

from meco_jax import figures

FLAGS = flags.FLAGS
common.define_flags()
trainings.define_sweep_flags()
trainings.define_training_flags()
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(trainings)
flags.DEFINE_integer("num_devices", 14, "K", lower_bound=1)
flags.DEFINE_list("slots", [f"{t / 10:g}" for t in range(3, 17)], "the T to sweep [s]")


def main(argv: list[str]) -> None:
    """Train all lanes in one program, or draw again what is there."""
    common.begin(argv)
    if FLAGS.plot_only:
        draw(Path(FLAGS.output_dir), common.read_csv(Path(FLAGS.output_dir) / "results.csv"))
        return
    slots = common.numbers("slots", above=0)
    trainings.run({"num_devices": [FLAGS.num_devices], "slot": slots}, write)


def write(folder: Path, results: trainings.Results) -> None:
    """Write both figures."""
    draw(folder, results.rows)
    trainings.draw_training(folder, results, "slot", "T")
    trainings.report(results.rows, "slot")


def draw(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Draw Figure 5 from the rows of results.csv."""
    slots = sorted({row["slot"] for row in rows})
    energy = common.by_scheme(rows, "slot", "energy_mean_j")
    title = f"K = {rows[0]['num_devices']:g}"
    figure = figures.energy_figure(slots, energy, "slot length T [s]", title)
    figures.save_figure(figure, folder / "figure5")


if __name__ == "__main__":
    app.run(main)
