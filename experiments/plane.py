"""The (K, T) plane: mean energy saved against MCOS, mean gap to the optimum, infeasible share.

One program trains BCOS and PCOS in every lane (K, T, seed). Writes results.csv,
plane.png/.pdf, the policies and run.json into --output_dir. Example:

    python experiments/plane.py --flagfile=experiments/flags/quick_plane.flags
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags
from support import common, list_flags, plots, trainings

from meco_jax import figures

FLAGS = flags.FLAGS
trainings.define_sweep_flags()
flags.DEFINE_list(
    "num_devices", [str(k) for k in range(4, 21, 2)], "the K of the plane; 4:8:2 is 4,6,8"
)
flags.DEFINE_list("slots", [f"{t / 10:g}" for t in range(3, 17)], "the T of the plane [s]")


def main(argv: list[str]) -> None:
    """Train all lanes in one program, or draw again what is there."""
    common.begin(argv)
    axes: dict[str, Any] = {
        "num_devices": list_flags.integers("num_devices", low=1),
        "slot": list_flags.numbers("slots", above=0),
    }
    trainings.run(axes, draw)


def draw(folder: Path) -> None:
    """Draw the plane from results.csv, means over the seeds."""
    columns = "cost_mean_j", "gap_to_optimum_mean", "infeasible_fraction"
    rows = trainings.read_results(folder, *columns, scheme=("bcos", "mcos"))
    figures.save_figure(plots.plane_figure(rows), folder / "plane")


if __name__ == "__main__":
    common.launch(main)
