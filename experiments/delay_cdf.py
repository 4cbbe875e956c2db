"""Figure 6: how long all offloading takes, sum t' over the channels, against the deadline T.

Writes cdf.csv (quantiles), results.csv, figure6.png/.pdf, training.png/.pdf, the policies
and run.json into --output_dir. Example:

    python experiments/delay_cdf.py --flagfile=experiments/flags/quick_cdf.flags
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
flags.DEFINE_integer("num_devices", 14, "K", lower_bound=1)
flags.DEFINE_float("slot", 1.0, "slot length T [s]", lower_bound=1e-6)
PROBABILITIES = np.linspace(0, 1, 501)


def main(argv: list[str]) -> None:
    """Train the lanes of all seeds, or draw again what is there."""
    common.begin(argv)
    trainings.run({"num_devices": [FLAGS.num_devices], "slot": [FLAGS.slot]}, draw, write)


def write(folder: Path, results: trainings.Results) -> None:
    """Write the quantiles."""
    common.write_csv(folder / "cdf.csv", quantiles(results))


def quantiles(results: trainings.Results) -> list[dict[str, Any]]:
    """Quantiles of sum t' over the feasible channels: a row a seed, scheme and probability."""
    rows = []
    for scheme, outcome in results.outcomes.items():
        for lane, point in enumerate(results.lanes.points):
            feasible = np.isfinite(results.outcomes["optimal"].energy[lane])
            times = np.quantile(outcome.sending_time[lane][feasible], PROBABILITIES)
            rows += [
                {"scheme": scheme, "seed": point["seed"], "probability": p, "sending_time_s": t}
                for p, t in zip(PROBABILITIES.tolist(), times.tolist())
            ]
    return rows


def draw(folder: Path) -> None:
    """Draw Figure 6 from cdf.csv and results.csv."""
    place = "scheme", "seed", "probability"
    rows = common.read_csv(folder / "cdf.csv", (*place, "sending_time_s"), place, whole=True)
    summary = trainings.read_results(
        folder, "deadline_met_fraction", fixed=("num_devices", "slot"),
        scheme=list(dict.fromkeys(row["scheme"] for row in rows)),
    )  # fmt: skip
    times = common.by_scheme(rows, "probability", "sending_time_s")
    on_time = common.by_scheme(summary, "slot", "deadline_met_fraction")
    late = {scheme: float(1 - on_time[scheme].mean()) for scheme in times}
    slot, num_devices = summary[0]["slot"], summary[0]["num_devices"]
    title = f"K = {num_devices:g}, T = {slot:g} s"
    probabilities = np.array(sorted({row["probability"] for row in rows}))
    figure = figures.delay_figure(times, probabilities, late, slot, title)
    figures.save_figure(figure, folder / "figure6")
    print(f"{'scheme':<19}beyond the deadline")
    for scheme, share in late.items():
        print(f"{scheme:<19}{100 * share:8.2f} %")


if __name__ == "__main__":
    common.launch(main)
