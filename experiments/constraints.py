"""What it costs the raw networks to keep C1-C5: multiplier step and margin of the penalty.

Trains BCOS and learned PCOS at every multiplier step alpha of (21) and every margin, and says
how often their own (a, p, t) keep all constraints, how often they do with t' for t
(``policy(h, times="realised")``), and at what energy. Writes constraints.csv, results.csv and
run.json into --output_dir, for example by

    python experiments/constraints.py --flagfile=experiments/flags/constraints.flags
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from report import result_tables
from support import common, csv_tables, list_flags, trainings

from meco_jax import TrainConfig
from meco_jax.paper.training import check_config

FLAGS = flags.FLAGS
trainings.define_sweep_flags()
flags.DEFINE_list("num_devices", ["14", "20"], "K, comma separated; 4:8:2 is 4,6,8")
flags.DEFINE_float("slot", 0.5, "slot length T [s]", lower_bound=1e-6)
flags.DEFINE_list("multiplier_steps", ["0.2", "5", "50"], "alpha of both, comma separated")
flags.DEFINE_list("margins", ["0", "0.03"], "margins of both, comma separated")

OPTIMA = {"bcos_raw": "optimal", "pcos_learned": "pcos"}  # by network


def main(argv: list[str]) -> None:
    """Train and judge every setting."""
    common.begin(argv)
    axes = {
        "num_devices": list_flags.integers("num_devices", low=1),
        "slot": [FLAGS.slot],
        "multiplier_step": list_flags.numbers("multiplier_steps", above=0),
        "margin": list_flags.numbers("margins", above=-math.inf),
    }
    try:
        for margin in axes["margin"]:
            check_config(TrainConfig(margin=margin))
    except ValueError as error:
        common.stop(common.as_flags(error))
    trainings.run(axes, draw, write)


def write(folder: Path, results: trainings.Results) -> None:
    """Write constraints.csv."""
    csv_tables.write_csv(folder / "constraints.csv", judge(results))


def judge(results: trainings.Results) -> list[dict[str, Any]]:
    """Judge both networks in every lane, on the channels that are feasible for P1.

    Returns:
        Rows with the lane's axes, scheme, kept (share of channels that keep C1-C5),
        kept_realised (with t' for t), gap_mean and gap_mean_kept (energy / optimum - 1 to the
        network's own optimum, over all channels and over the kept).
    """
    table = []
    for network, optimum in OPTIMA.items():
        rows = (row for row in results.rows if row["scheme"] == network)
        for lane, (point, row) in enumerate(zip(results.lanes.points, rows)):
            best = np.asarray(results.outcomes["optimal"].cost[lane], float)
            feasible = np.isfinite(best)
            best = np.asarray(results.outcomes[optimum].cost[lane], float)[feasible]
            found = results.outcomes[network]
            gap = np.asarray(found.cost[lane], float)[feasible] / best - 1
            kept = np.asarray(found.feasible[lane])[feasible]
            table.append(
                point
                | {
                    "scheme": network,
                    "kept": row["feasible_fraction"],
                    "kept_realised": row["deadline_met_fraction"],
                    "gap_mean": float(np.mean(gap)),
                    "gap_mean_kept": float(np.mean(gap[kept])) if np.any(kept) else float("nan"),
                }
            )
    return table


def draw(folder: Path) -> None:
    """Print the table."""
    place = "num_devices", "slot", "multiplier_step", "margin", "seed", "scheme"
    numbers = "kept", "kept_realised", "gap_mean", "gap_mean_kept"
    rows = csv_tables.read_csv(folder / "constraints.csv", (*place, *numbers), place, whole=True)
    result_tables.show(result_tables.constraints(rows))


if __name__ == "__main__":
    common.launch(main)
