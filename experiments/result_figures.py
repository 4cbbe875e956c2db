"""The figures of the results, drawn from the rows of csv files.

Draws all of them again, in a few seconds, into the folder of their csv:

    python experiments/result_figures.py --tables=experiments/figures
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import claims
from absl import flags
from matplotlib.figure import Figure
from report import result_tables
from report.result_tables import Rows
from support import common

from meco_jax import figures

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(claims)
PANELS = {  # of beyond.csv: label, the training's range
    "num_devices": ("devices K [-]", (1, 64)),
    "slot": ("slot T [s]", (0.2, 2.0)),
    "log_base": ("base b of the logarithm [-]", (2, 10)),
    "mean_gain": ("mean power gain [-]", (1e-8, 1e-4)),
    "spread": ("spread of the mean gains [decades]", (0, 2)),
    "weights": ("spread of the weights [decades]", (0, 1.4)),
}


def main(argv: list[str]) -> None:
    """Draw every figure."""
    common.begin(argv)
    for name in FIGURES:
        try:
            figure = draw(name, Path(FLAGS.tables))
        except result_tables.LACKS as error:
            common.stop(f"{name}: {result_tables.lacks(error)}")
        figures.save_figure(figure, Path(FLAGS.tables) / name)


def draw(name: str, folder: Path) -> Figure:
    """Draw one figure from the csv in a folder."""
    tables, function = FIGURES[name]
    return function(*(common.read_csv(folder / f"{table}.csv") for table in tables))


def beyond(rows: Rows) -> Figure:
    """Draw the policy's gaps beyond its training, and name what has no feasible channel."""
    lines = {name: name.removesuffix("_gap_mean").replace("_", " ")
             for name in rows[0] if name.endswith("_gap_mean")}  # fmt: skip
    panels = []
    for name in dict.fromkeys(row["family"] for row in rows):
        label, inside = PANELS.get(name, (name.replace("_", " "), None))
        own = [row for row in rows if row["family"] == name]
        few = [row for row in own if row["feasible_fraction"] > 0]
        if len(few) < len(own):
            none = ", ".join(f"{row['value']:g}" for row in own if row not in few)
            label += f"\n({none}: nothing feasible)"
        gaps = {text: [row[column] for row in few] for column, text in lines.items()}
        panels.append(figures.GapPanel(label, [row["value"] for row in few], gaps, inside))
    return figures.gap_figure(panels)


def csi(rows: Rows) -> Figure:
    """Draw late channels and gaps against the back-off, an estimation error per line."""
    rows = sorted(rows, key=lambda row: (float(row["error"]), float(row["backoff_db"])))
    columns = {"late_fraction": "channels beyond the deadline [%]",
               "gap_mean": "mean gap, late channels too [%]"}  # fmt: skip
    errors = dict.fromkeys(row["error"] for row in rows)
    backoffs = list(dict.fromkeys(row["backoff_db"] for row in rows))
    return figures.gap_figure([
        figures.GapPanel(
            "back-off [dB]", backoffs,
            {f"error {100 * error:.0f} %": [r[column] for r in rows if r["error"] == error]
             for error in errors}, ylabel=label, least=0.1,
        ) for column, label in columns.items()
    ])  # fmt: skip


def gradients(curves: Rows, rows: Rows) -> Figure:
    """Draw how the gradient estimators fare."""
    return figures.learning_figure(curves, int(rows[0]["seeds"]))


def scale(rows: Rows) -> Figure:
    """Draw time, memory and gap, with the slope of the time."""
    return figures.scale_figure(rows, result_tables.slope(rows))


FIGURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {  # by file: its csv
    "figure4": (("figure4",), partial(figures.energy_figure, axis="num_devices")),
    "figure5": (("figure5",), partial(figures.energy_figure, axis="slot")),
    "figure6": (("figure6_cdf", "figure6"), figures.delay_figure),
    "plane": (("plane",), figures.plane_figure),
    "beyond": (("beyond",), beyond),
    "csi": (("csi",), csi),
    "gradients": (("gradients_curves", "gradients"), gradients),
    "frontier": (("frontier",), figures.frontier_figure),
    "scale": (("scale",), scale),
    "lanes": (("lanes",), figures.lanes_figure),
    "soak": (("soak_memory", "soak"), figures.soak_figure),
}


if __name__ == "__main__":
    common.launch(main)
