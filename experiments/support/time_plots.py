"""Figures of cells over time: the day, speeds, queues, outages, a filmstrip, several cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from meco_jax.figures import STYLE, Rows, scheme_styles
from support.plots import LINES

CSI_NAMES = {(0, 0): "perfect CSI", (1, 0): "estimated CSI", (0, 1): "CSI one slot old"}

MARGINS: dict[str, tuple[str, dict[str, Any]]] = {  # name, look
    "slot": ("outage kept in every slot", {"linestyle": "-"}),
    "price": ("one price of risk in all slots", {"linestyle": "--", "fillstyle": "top"}),
    "backoff": ("fixed back-off in dB", {"linestyle": ":", "markerfacecolor": "white"}),
}
LATE = "#D55E00"


def day_figure(rows: Rows) -> Figure:
    """Draw energy and late slots over the hours, a column per kind of CSI."""
    columns = {}
    for (errs, old), name in CSI_NAMES.items():
        own = _of_kind(rows, errs, old)
        if own:
            error = max(row["error"] for row in own)
            columns[name + (f", error {error:g}" if errs else "")] = own
    return _energy_above_late(columns, "hour", "part of the day [-]", logarithmic=False)


def speed_figure(rows: Rows) -> Figure:
    """Draw energy and late slots against the speed of the devices."""
    columns = {
        f"estimate {age:g} slot old" if age else "estimate of the same slot": [
            row for row in rows if row["delay"] == age
        ]
        for age in sorted({row["delay"] for row in rows})
    }
    return _energy_above_late(columns, "speed", "speed [m/s]", logarithmic=True)


def _energy_above_late(
    columns: dict[str, list[Any]], x: str, label: str, logarithmic: bool
) -> Figure:
    """Draw energy per task above late slots, a column of panels per title and its rows."""
    rows = [row for own in columns.values() for row in own]
    limits = {"y": [1e3 * row["energy_per_task_j"] for row in rows]}
    if logarithmic:
        limits["x"] = [row[x] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 + 2.4 * len(columns), 5.0))
        grid = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
        for (energy, late), (title, own) in zip(grid.T, columns.items()):
            _lines(energy, own, x, "energy_per_task_j", 1e3)
            _lines(late, own, x, "late_slots_fraction", 100)
            energy.set(title=title)
            _logarithmic(energy, **limits)
            late.set(xlabel=label)
        grid[0, 0].set_ylabel("energy per task [mJ]")
        grid[1, 0].set_ylabel("late slots [%]")
        _legend(figure, grid[0, -1], rows)
    return figure


def queues_figure(rows: Rows) -> Figure:
    """Draw how many tasks wait against the load, beside the formula for perfect service."""
    kinds = sorted({row["error"] for row in rows})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6))
        grid = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        load = np.linspace(min(row["load"] for row in rows), 0.97, 100)
        for axes, error in zip(grid, kinds):
            axes.plot(load, load + load**2 / (2 * (1 - load)), color="black", linewidth=3,
                      alpha=0.25, label="one task per slot, exactly")  # fmt: skip
            _lines(axes, [row for row in rows if row["error"] == error], "load", "backlog", 1)
            title = f"estimated CSI, error {error:g}" if error else "perfect CSI"
            axes.set(xlabel="load [tasks per slot]", title=title)
            _logarithmic(axes, y=[row["backlog"] for row in rows])
        grid[0].set_ylabel("tasks that wait per device [-]")
        _legend(figure, grid[-1], rows)
    return figure


def outage_figure(rows: Rows) -> Figure:
    """Draw the outage met against the one asked for, and the energy of both kinds of margin."""
    errors = sorted({row["error"] for row in rows})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.8))
        left, right = figure.subplots(1, 2)
        asked = sorted({row["outage"] for row in rows if row["outage"] < 1})
        ends = 100 * np.array([asked[0] / 2, asked[-1] * 1.5])
        left.plot(ends, ends, color="black", linewidth=0.8)
        for error, style in zip(errors, LINES):
            for method, (_, look) in MARGINS.items():
                own = [r for r in rows if (r["error"], r["method"]) == (error, method)]
                own = sorted((r for r in own if r["late_slots_fraction"] > 0),
                             key=lambda r: r["late_slots_fraction"])  # fmt: skip
                if not own:
                    continue
                met = np.array([100 * r["late_slots_fraction"] for r in own])
                energy = np.array([1e3 * r["energy_per_task_j"] for r in own])
                line = {"color": style["color"], "marker": style["marker"], "markersize": 4} | look
                right.plot(met, energy, **line)
                if method != "backoff":
                    bars = [100 * r["late_slots_ci95"] for r in own]
                    left.errorbar([100 * r["outage"] for r in own], met, bars, capsize=2, **line)
            left.plot([], [], color=style["color"], marker=style["marker"],
                      label=f"error {error:g}")  # fmt: skip
        for name, look in (MARGINS[n] for n in MARGINS if any(row["method"] == n for row in rows)):
            left.plot([], [], color="black", marker="o", label=name, **look)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        left.set(xlabel="outage asked for [%]", ylabel="late slots [%]", xscale="log", yscale="log")
        right.set(
            xlabel="late slots [%]", ylabel="energy per task [mJ]", xscale="log", yscale="log"
        )
    return figure


def saved_over_backoff(row: dict[str, Any], rows: Rows) -> float:
    """Return what a margin saves over the fixed back-off that meets the same outage [-].

    The back-off is found between those of the table, linearly in dB over the logarithm of the
    outage, and its energy likewise; NaN where they do not reach so far.
    """
    fixed = [r for r in rows if (r["error"], r["method"]) == (row["error"], "backoff")]
    fixed = sorted((r for r in fixed if r["late_slots_fraction"] > 0),
                   key=lambda r: r["late_slots_fraction"])  # fmt: skip
    late = np.log([r["late_slots_fraction"] for r in fixed])
    energy = np.log([r["energy_per_task_j"] for r in fixed])
    met = row["late_slots_fraction"]
    if not fixed or not met or not late[0] <= np.log(met) <= late[-1]:
        return float("nan")
    return float(1 - row["energy_per_task_j"] / np.exp(np.interp(np.log(met), late, energy)))


def filmstrip_figure(rows: Rows) -> Figure:
    """Draw slots of one cell: who sends when, at what power, who computes, who is late.

    Args:
        rows: one per slot and device, of ``filmstrip`` in over_time.py.
    """
    number, devices = (1 + int(max(row[name] for row in rows)) for name in ("slot", "device"))
    end = 1e3 * rows[0]["length_s"]
    powers = [1e3 * row["power_w"] for row in rows if row["sends"]] or [1.0]
    norm = matplotlib.colors.LogNorm(max(min(powers), 1e-3), max(*powers, 1e-2))
    colors = matplotlib.colormaps["viridis"]
    late: dict[str, Any] = {"edgecolor": LATE, "linewidth": 1.5}
    local: dict[str, Any] = {
        "facecolor": "white",
        "edgecolor": "gray",
        "hatch": "////",
        "linewidth": 0.5,
    }
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(9.0, 1.4 + 0.16 * devices))
        grid = figure.subplots(1, number, sharex=True, sharey=True, squeeze=False)[0]
        for row in rows:
            axes, place = grid[int(row["slot"])], row["device"] + 1
            start, time = 1e3 * row["start_s"], 1e3 * row["time_s"]
            if row["sends"]:
                color = colors(norm(max(1e3 * row["power_w"], norm.vmin)))
                edge = late if row["late"] else {}
                axes.barh(place, time, left=start, height=0.8, color=color, **edge)
                if row["late"]:
                    axes.text(start + time, place, "x", va="center", fontsize=7, color=LATE)
            elif row["has_task"] and row["finish_s"] == row["finish_s"]:
                axes.barh(place, 1e3 * row["finish_s"], height=0.5, **local)
        for n, axes in enumerate(grid):
            axes.set(xlim=(0, 1.04 * end), title=f"slot {n + 1}", xlabel="time [ms]")
            axes.axvline(end, color="black", linewidth=0.8)
        grid[0].set(ylabel="device", ylim=(devices + 0.6, 0.4))
        grid[0].set_yticks([k for k in range(1, devices + 1) if k == 1 or k % 2 == 0])
        mapped = matplotlib.cm.ScalarMappable(norm, colors)
        bar = figure.colorbar(mapped, ax=grid, label="transmit power [mW]", pad=0.01)
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_formatter("{x:g}")
        patches = [
            Patch(facecolor=colors(0.6), label="sends"),
            Patch(facecolor=colors(0.6), label="late: sent in vain", **late),
            Patch(label="computes itself", **local),
        ]
        some = patches if any(row["has_task"] > row["sends"] for row in rows) else patches[:2]
        figure.legend(handles=some, loc="outside lower center", ncols=3)
    return figure


def cells_figure(rows: Rows) -> Figure:
    """Draw energy, interference, and where the iteration ends, against the distance."""
    panels = (
        ("energy_per_task_j", 1e3, "energy per task [mJ]"),
        ("interference", 1, "interference over noise, median [-]"),
        ("converged_fraction", 100, "iterations that converge [%]"),
    )
    styles = scheme_styles(list(dict.fromkeys(row["scheme"] for row in rows)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.4))
        for axes, (column, unit, label) in zip(figure.subplots(1, 3), panels):
            for scheme, (name, style) in styles.items():
                own = sorted(
                    (r for r in rows if r["scheme"] == scheme), key=lambda r: r["distance"]
                )
                x, y = ([r[key] for r in own] for key in ("distance", column))
                axes.plot(x, unit * np.array(y), label=name, **style)
            scale = "linear" if column == "converged_fraction" else "log"
            axes.set(xlabel="distance of the stations [m]", ylabel=label, yscale=scale)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _of_kind(rows: Rows, errs: int, old: int) -> list[Any]:
    return [row for row in rows if bool(row["error"]) == errs and bool(row["delay"]) == old]


def _lines(axes: Axes, rows: Rows, x: str, y: str, unit: float) -> None:
    """Draw a column by scheme: filled marks with a margin, open ones without."""
    styles = scheme_styles(list(dict.fromkeys(row["scheme"] for row in rows)))
    for (scheme, (_, style)), safe in ((s, m) for s in styles.items() for m in (False, True)):
        own = [r for r in rows if r["scheme"] == scheme and (r["outage"] < 1) == safe]
        if own:
            own = sorted(own, key=lambda r: r[x])
            face = {} if safe else {"markerfacecolor": "white"}
            line = {"linestyle": "-" if safe else ":", "markevery": max(1, len(own) // 8)}
            axes.plot([r[x] for r in own], [unit * r[y] for r in own], **style | line | face)


def _logarithmic(axes: Axes, **values: Any) -> None:
    """Make axes logarithmic over the values above 0 of x and y, if there are any."""
    for name, some in values.items():
        positive = np.array([value for value in np.ravel(some) if 0 < value < np.inf])
        if len(positive):
            limits = 0.7 * np.min(positive), 1.4 * np.max(positive)
            axes.set(**{f"{name}scale": "log", f"{name}lim": limits})


def _legend(figure: Figure, axes: Axes, rows: Rows) -> None:
    styles = scheme_styles(list(dict.fromkeys(row["scheme"] for row in rows)))
    for label, style in styles.values():
        axes.plot([], [], label=label, **style | {"linestyle": ""})
    outage = min(row["outage"] for row in rows)
    axes.plot([], [], "k-", marker="o", label=f"margin for {100 * outage:g} % late slots")
    axes.plot([], [], "k:", marker="o", markerfacecolor="white", label="no margin")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)


FIGURES: dict[str, Callable[[Rows], Figure]] = {  # by table
    "day": day_figure,
    "speed": speed_figure,
    "queues": queues_figure,
    "outage": outage_figure,
    "filmstrip": filmstrip_figure,
}
