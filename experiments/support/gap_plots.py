"""Figures of gaps in percent, a panel per swept number.

A gap is energy / optimum - 1 of a channel; a mean gap is the mean over channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from meco_jax.figures import STYLE, Rows
from meco_jax.runtime.describe import short_repr
from support.plots import ROUNDING, down_to_zero, line_styles

PANELS = {  # of beyond.csv: label, the training's range
    "num_devices": ("devices K [-]", (1, 64)),
    "slot": ("slot T [s]", (0.2, 2.0)),
    "log_base": ("base b of the logarithm [-]", (2, 10)),
    "mean_gain": ("mean power gain [-]", (1e-8, 1e-4)),
    "spread": ("spread of the mean gains [decades]", (0, 2)),
    "weights": ("spread of the weights [decades]", (0, 1.4)),
}


@short_repr
class GapPanel(NamedTuple):
    """One panel of ``gap_figure``."""

    label: str  # of the x axis
    x: Sequence[float] | np.ndarray  # [M]
    gaps: Mapping[str, Sequence[float] | np.ndarray]  # by line, [M] [-]
    inside: tuple[float, float] | None = None  # x of the training, shaded
    ylabel: str = "mean gap [%]"
    least: float = ROUNDING  # the axis is linear below [%]


def gap_figure(panels: Sequence[GapPanel]) -> Figure:
    """Draw gaps in percent, on a logarithmic axis that ends at 0, one panel per swept number."""
    alike = len({panel.ylabel for panel in panels}) == 1
    with matplotlib.rc_context(STYLE):
        columns = min(len(panels), 3)
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(1.2 + 2.4 * columns, 2.5 * rows + 0.4))
        grid = figure.subplots(rows, columns, squeeze=False, sharey=alike)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        all_values = np.concatenate([100 * np.ravel(list(p.gaps.values())) for p in panels])
        for axes, panel in zip(grid.flat, panels):
            values = [100 * np.asarray(gaps) for gaps in panel.gaps.values()]
            for name, line, style in zip(panel.gaps, values, line_styles()):
                marks = {"clip_on": False, "markevery": max(1, len(panel.x) // 12)}
                axes.plot(panel.x, line, label=name, **style | marks)
            wide = len(panel.x) > 0 and 0 < 20 * min(panel.x) < max(panel.x)
            axes.set(xlabel=panel.label, xscale="log" if wide else "linear")
            down_to_zero(axes, panel.ylabel, all_values if alike else values, "y", panel.least)
            if panel.inside:
                axes.set_xlim(axes.get_xlim())  # the shade may go on beyond
                axes.axvspan(*panel.inside, color="black", alpha=0.08, linewidth=0)
            if wide and len(panel.x) < 10 and max(panel.x) < 1000 * min(panel.x):
                # powers of ten are too few ticks
                axes.set_xticks(panel.x, [f"{x:.3g}" for x in panel.x], fontsize=7)
                axes.xaxis.minorticks_off()
            if alike and axes not in grid[:, 0]:
                axes.set_ylabel("")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if any(panel.inside for panel in panels):
            handles.append(Patch(color="black", alpha=0.08, linewidth=0))
            labels.append("the training's range")
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def beyond_figure(rows: Rows) -> Figure:
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
        panels.append(GapPanel(label, [row["value"] for row in few], gaps, inside))
    return gap_figure(panels)


def csi_figure(rows: Rows) -> Figure:
    """Draw late channels and gaps against the back-off, an estimation error per line."""
    rows = sorted(rows, key=lambda row: (float(row["error"]), float(row["backoff_db"])))
    columns = {"late_fraction": "channels beyond the deadline [%]",
               "gap_mean": "mean gap, late channels too [%]"}  # fmt: skip
    errors = dict.fromkeys(row["error"] for row in rows)
    backoffs = list(dict.fromkeys(row["backoff_db"] for row in rows))
    return gap_figure([
        GapPanel(
            "back-off [dB]", backoffs,
            {f"error {100 * error:.0f} %": [r[column] for r in rows if r["error"] == error]
             for error in errors}, ylabel=label, least=0.1,
        ) for column, label in columns.items()
    ])  # fmt: skip
