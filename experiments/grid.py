"""The (K, T) plane: energy saved against MCOS, gap to the optimum, infeasible share.

One program trains BCOS and PCOS in every lane (K, T, seed). Writes results.csv,
plane.png/.pdf, the policies and run.json into --output_dir. Example:

    python experiments/grid.py --flagfile=experiments/flags/quick_grid.flags
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np
import trainings
from absl import flags

from meco_jax import figures

FLAGS = flags.FLAGS
common.define_flags()
trainings.define_sweep_flags()
trainings.define_training_flags()
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(trainings)
flags.DEFINE_list("num_devices", [str(k) for k in range(4, 21, 2)], "the K of the plane")
flags.DEFINE_list("slots", [f"{t / 10:g}" for t in range(3, 17)], "the T of the plane [s]")


def main(argv: list[str]) -> None:
    """Train all lanes in one program, or draw again what is there."""
    common.begin(argv)
    axes: dict[str, Any] = {
        "num_devices": common.integers("num_devices", low=1),
        "slot": common.numbers("slots", above=0),
    }
    trainings.run(axes, draw)


def draw(folder: Path) -> None:
    """Draw the plane from results.csv, means over the seeds."""
    columns = "energy_mean_j", "gap_to_optimum_mean", "infeasible_fraction"
    rows = trainings.read_results(folder, *columns, scheme=("bcos", "mcos"))
    devices, slots = (sorted({row[name] for row in rows}) for name in ("num_devices", "slot"))

    def plane(scheme: str, column: str) -> np.ndarray:
        cells = np.zeros((len(slots), len(devices), 2))
        for row in rows:
            if row["scheme"] == scheme and np.isfinite(row[column]):
                place = slots.index(row["slot"]), devices.index(row["num_devices"])
                cells[place] += (row[column], 1)
        with np.errstate(invalid="ignore"):
            return cells[..., 0] / cells[..., 1]

    energy = {scheme: plane(scheme, "energy_mean_j") for scheme in ("bcos", "mcos")}
    panels = {
        "energy saved against MCOS [%]": 100 * (1 - energy["bcos"] / energy["mcos"]),
        "gap to the optimum [%]": 100 * plane("bcos", "gap_to_optimum_mean"),
        "infeasible channels [%]": 100 * plane("bcos", "infeasible_fraction"),
    }
    figures.save_figure(figures.plane_figure(devices, slots, panels), folder / "plane")


if __name__ == "__main__":
    common.launch(main)
