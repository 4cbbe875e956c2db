"""Figure 4: train BCOS and PCOS over the number of devices K and compare all schemes.

Writes results.csv, figure4.png/.pdf, training.png/.pdf, the policies and run.json into
--output_dir. Example:

    python experiments/sweep_k.py --flagfile=experiments/flags/quick.flags
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
flags.DEFINE_list("num_devices", [str(k) for k in range(4, 21, 2)], "the K to sweep")
flags.DEFINE_float("slot", 0.5, "slot length T [s]", lower_bound=1e-6)


def main(argv: list[str]) -> None:
    """Train all lanes in one program, or draw again what is there."""
    common.begin(argv)
    if FLAGS.plot_only:
        draw(Path(FLAGS.output_dir), common.read_csv(Path(FLAGS.output_dir) / "results.csv"))
        return
    devices = common.integers("num_devices", low=1)
    trainings.run({"num_devices": devices, "slot": [FLAGS.slot]}, write)


def write(folder: Path, results: trainings.Results) -> None:
    """Write both figures."""
    draw(folder, results.rows)
    trainings.draw_training(folder, results, "num_devices", "K")
    trainings.report(results.rows, "num_devices")


def draw(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Draw Figure 4 from the rows of results.csv."""
    devices = sorted({int(row["num_devices"]) for row in rows})
    energy = common.by_scheme(rows, "num_devices", "energy_mean_j")
    title = f"T = {rows[0]['slot']:g} s"
    figure = figures.energy_figure(devices, energy, "number of devices K [-]", title)
    figures.save_figure(figure, folder / "figure4")


if __name__ == "__main__":
    app.run(main)
