"""Figure 6: how long all offloading takes, sum t' over the channels, against the deadline T.

Writes cdf.csv (quantiles, means over seeds), results.csv, figure6.png/.pdf, training.png/.pdf,
the policies and run.json into --output_dir. Example:

    python experiments/delay_cdf.py --flagfile=experiments/flags/quick_cdf.flags
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paper_claims
from absl import flags
from support import common, csv_tables, trainings

from meco_jax import figures

FLAGS = flags.FLAGS
trainings.define_sweep_flags()
flags.DEFINE_integer("num_devices", 14, "K", lower_bound=1)
flags.DEFINE_float("slot", 1.0, "slot length T [s]", lower_bound=1e-6)
PROBABILITIES = np.linspace(0, 1, 501)


def main(argv: list[str]) -> None:
    """Train the lanes of all seeds, or draw again what is there."""
    common.begin(argv)
    trainings.run({"num_devices": [FLAGS.num_devices], "slot": [FLAGS.slot]}, draw, write)


def write(folder: Path, results: trainings.Results) -> None:
    """Write the quantiles."""
    csv_tables.write_csv(folder / "cdf.csv", quantiles(results))


def quantiles(results: trainings.Results) -> list[dict[str, Any]]:
    """Quantiles of sum t' over the feasible channels: a row per scheme and probability."""
    feasible = np.isfinite(results.outcomes["optimal"].cost)
    rows = []
    for scheme, outcome in results.outcomes.items():
        lanes = [np.quantile(times[ok], PROBABILITIES)
                 for times, ok in zip(outcome.sending_time, feasible)]  # fmt: skip
        rows += [
            {"scheme": scheme, "probability": p, "sending_time_s": t}
            for p, t in zip(PROBABILITIES.tolist(), np.mean(lanes, axis=0).tolist())
        ]
    return rows


def draw(folder: Path) -> None:
    """Draw Figure 6 from cdf.csv and results.csv."""
    place = "scheme", "probability"
    rows = csv_tables.read_csv(folder / "cdf.csv", (*place, "sending_time_s"), place, whole=True)
    summary = trainings.read_results(
        folder, "deadline_met_fraction", "feasible_fraction", fixed=("num_devices", "slot"),
        scheme=list(dict.fromkeys(row["scheme"] for row in rows)),
    )  # fmt: skip
    figures.save_figure(figures.delay_figure(rows, summary), folder / "figure6")
    kept = paper_claims.means(summary, "slot", "feasible_fraction")
    print(f"{'scheme':<19}beyond the deadline  breaks C1-C5")
    on_time = paper_claims.means(summary, "slot", "deadline_met_fraction")
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        late, broken = (100 * (1 - float(share[0])) for share in (on_time[scheme], kept[scheme]))
        print(f"{scheme:<19}{late:17.2f} %{broken:12.2f} %")


if __name__ == "__main__":
    common.launch(main)
