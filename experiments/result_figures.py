"""The figures of the results, drawn from the rows of csv files.

Draws all of them again, in a few seconds, into the folder of their csv:

    python experiments/result_figures.py --tables=experiments/figures
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import paper_claims
from absl import flags
from matplotlib.figure import Figure
from report import result_tables
from report.result_tables import Rows
from support import agent_plots, common, csv_tables, gap_plots, plots, realism_plots, time_plots

from meco_jax import figures

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(paper_claims)


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
    return function(*(csv_tables.read_csv(folder / f"{table}.csv") for table in tables))


def scale(rows: Rows) -> Figure:
    """Draw time, memory and gap, with the slope of the time."""
    return plots.scale_figure(rows, result_tables.slope(rows))


FIGURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {  # by file: its csv
    "figure4": (("figure4",), partial(figures.energy_figure, axis="num_devices")),
    "figure5": (("figure5",), partial(figures.energy_figure, axis="slot")),
    "figure6": (("figure6_cdf", "figure6"), figures.delay_figure),
    "plane": (("plane",), partial(plots.plane_figure, scheme="bcos_improved")),
    "beyond": (("beyond",), gap_plots.beyond_figure),
    "csi": (("csi",), gap_plots.csi_figure),
    "gradients": (("gradients_curves", "gradients"), plots.learning_figure),
    "frontier": (("frontier",), plots.frontier_figure),
    "scale": (("scale",), scale),
    "speed": (("speed", "speed_before"), plots.parts_figure),
    "droo": (("droo",), plots.loss_figure),
    "benchmark": (("benchmark",), plots.benchmark_figure),
    "lanes": (("lanes",), plots.lanes_figure),
    "learning": (("learning",), agent_plots.agent_figure),
    "realism": (("realism",), realism_plots.steps_figure),
    "realism_sweeps": (("realism_sweeps",), realism_plots.sweeps_figure),
    "soak": (("soak_memory", "soak"), plots.soak_figure),
    **{f"time_{name}": ((f"time_{name}",), own) for name, own in time_plots.FIGURES.items()},
    "cells": (("cells",), time_plots.cells_figure),
}


if __name__ == "__main__":
    common.launch(main)
