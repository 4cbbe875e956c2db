"""Rows and arrays to matplotlib figures; nothing here trains or reads files.

A scheme has the same colour, marker and line everywhere; the colours are safe for the
colour-blind, the lines differ in grey print too. A gap is energy / optimum - 1 of a channel; a
mean gap is the mean over channels and task seeds. Values below what an axis resolves are not
lifted: the axis goes on to 0, linearly.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count, cycle
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.scale import SymmetricalLogScale
from matplotlib.ticker import NullFormatter

from meco_jax.runtime.atomic import write_atomically
from meco_jax.runtime.describe import short_repr

Rows = Sequence[Mapping[str, Any]]

OPEN = {"markerfacecolor": "white"}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {  # name: (label, style)
    "mcos": ("MCOS", {"color": "#555555", "marker": "s", "linestyle": "-"}),
    "mcos_partial": ("MCOS, parts", {"color": "#555555", "marker": "+", "linestyle": "--"}),
    "bcos_raw": ("BCOS, raw network", {"color": "#D55E00", "marker": "v", "linestyle": ":"}),
    "bcos": ("BCOS, made feasible", {"color": "#D55E00", "marker": "o", "linestyle": "-"}),
    "pcos_learned": ("PCOS, learned", {"color": "#0072B2", "marker": "^", "linestyle": "--"}),
    "pcos": ("PCOS, optimal", {"color": "#0072B2", "marker": "x", "linestyle": "-"}),
    "optimal": ("optimum of P1, certified", {"color": "#009E73", "marker": "D", "linestyle": "--"}),
    "lower_bound": ("lower bound of P1", {"color": "#000000", "marker": "", "linestyle": "-."}),
}
RAW = "bcos_raw", "pcos_learned"  # the networks' own answers, which may break C1-C5
for _name in RAW:
    SCHEMES[_name][1].update(OPEN)
AXES = {"num_devices": "number of devices K [-]", "slot": "slot length T [s]"}
FAMILIES: dict[str, dict[str, Any]] = {  # of methods: style
    "baseline": {"color": "#555555", "marker": "s"},
    "greedy": {"color": "#CC79A7", "marker": "^"},
    "network": {"color": "#D55E00", "marker": "o"},
    "optimum": {"color": "#009E73", "marker": "D"},
    "host": {"color": "#000000", "marker": "v"},
    "public": {"color": "#0072B2", "marker": "X"},
}
LINES: tuple[dict[str, Any], ...] = (  # few lines; the sizes keep equal points visible
    {"color": "#D55E00", "marker": "o", "linestyle": "-", "markersize": 7},
    {"color": "#0072B2", "marker": "^", "linestyle": "--", "markersize": 5.5},
    {"color": "#009E73", "marker": "D", "linestyle": "-.", "markersize": 4},
    {"color": "#CC79A7", "marker": "s", "linestyle": ":", "markersize": 2.5},
)
OTHERS: tuple[dict[str, Any], ...] = (  # of schemes and families that are not among these
    {"color": "#CC79A7", "marker": "P", "linestyle": "-"},
    {"color": "#E69F00", "marker": "*", "linestyle": "--"},
    {"color": "#56B4E9", "marker": "<", "linestyle": "-."},
    {"color": "#8B5A2B", "marker": ">", "linestyle": ":"},
)
COLORS = "#D55E00", "#0072B2", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9"
DASHES, MARKERS = ("-", "--", "-.", ":"), "o^Dsv*PX<>p"
ROUNDING = 1e-4  # gaps below are float32's [%]
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: there on every machine
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 150,
    "pdf.fonttype": 42,  # papers want TrueType
    "figure.constrained_layout.use": True,
}
STUDENT_T = (np.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # 97.5 %, n - 1 = 1..9


def energy_figure(rows: Rows, axis: str) -> Figure:
    """Draw the paper's Figure 4 or 5, the gaps to the optimum, and what the networks keep.

    Args:
        rows: of ``meco_jax.evaluation.summarise``, any number of task seeds.
        axis: "num_devices" or "slot"; the other has one value.
    """
    energy, gaps, kept, on_time = (
        by_scheme(rows, axis, column) for column in
        ("energy_mean_j", "gap_to_optimum_mean", "feasible_fraction", "deadline_met_fraction")
    )  # fmt: skip
    x = sorted({row[axis] for row in rows})
    schemes = scheme_styles(energy)
    names = list(schemes)
    title = f"T = {rows[0]['slot']:g} s" if axis != "slot" else f"K = {rows[0]['num_devices']:g}"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.2))
        left, middle, right = figure.subplots(1, 3)
        left.set(ylabel="mean weighted sum energy [J]", yscale="log", title=title)
        # The schemes share their tasks: one band shows how far these move all of them.
        banded = [name for name in ("mcos", "optimal") if name in names]
        draw_schemes(left, x, {name: energy[name] for name in names}, banded)
        middle.set(ylabel="mean gap [%]", title="gap: energy / optimum - 1, without MCOS")
        middle.axhline(0, color="black", linewidth=0.8)
        # MCOS is far above all, the optimum is 0.
        others = [name for name in names if name not in ("mcos", "mcos_partial", "optimal")]
        draw_schemes(middle, x, {name: 100 * gaps[name] for name in others}, others)
        right.set(ylabel="share of channels [%]", title="what the networks' answers keep")
        raw = [name for name in RAW if name in names]
        draw_schemes(right, x, {name: 100 * kept[name] for name in raw}, raw)
        for name in raw:
            share, style = 100 * np.mean(on_time[name], axis=0), schemes[name][1]
            right.plot(x, share, color=style["color"], marker="|", linestyle=style["linestyle"])
        right.set_ylim(-3, 103)
        for marker, text in (("d", "all of C1-C5"), ("|", "sum of times within T")):
            right.plot([], [], "-", marker=marker, color="gray", label=text, **OPEN)
        right.legend(*(part[-2:] for part in right.get_legend_handles_labels()))
        for axes in (left, middle, right):
            axes.set(xlabel=AXES[axis], xticks=x if len(x) < 10 else x[::3])
        breaking = judged(kept)
        labels = [schemes[n][0] + (_broken(kept[n]) if n in breaking else "") for n in names]
        note = "open markers: mean of all answers, those that break C1-C5 too"
        seeds = _band_text(len(energy[names[0]]))
        figure.legend(
            left.get_lines(), labels, loc="outside lower center", ncols=3,
            title=f"{note}; {seeds}" if seeds else note,
        )  # fmt: skip
    return figure


def delay_figure(quantiles: Rows, rows: Rows) -> Figure:
    """Draw the paper's Figure 6: the distribution of the time that all offloading takes.

    Args:
        quantiles: "scheme", "probability" [-] and "sending_time_s", sum t' [s].
        rows: of ``meco_jax.evaluation.summarise`` for the same K and T.
    """
    slot = rows[0]["slot"]
    quantiles = sorted(quantiles, key=lambda row: float(row["probability"]))
    schemes = scheme_styles([row["scheme"] for row in quantiles])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2))
        axes = figure.subplots()
        axes.axvline(slot, color="black", linewidth=2.5, alpha=0.3)
        axes.annotate("deadline T", (slot, 0.02), (5, 0), textcoords="offset points", fontsize=8)
        for place, (name, (label, style)) in enumerate(schemes.items()):
            own = [row for row in quantiles if row["scheme"] == name]
            x, y = ([row[column] for row in own] for column in ("sending_time_s", "probability"))
            on_time, kept = (
                by_scheme(rows, "slot", column)[name]
                for column in ("deadline_met_fraction", "feasible_fraction")
            )
            label += f": {100 * (1 - np.mean(on_time)):.1f} % late" + _broken(kept)
            every = max(1, len(own) // 10)  # the curves that coincide have their marks in turn
            marks = {"markevery": (place * every // len(schemes), every)}
            axes.plot(x, y, label=label, **style | marks)
        axes.set(xlabel="sum of the offloading times [s]", ylabel="share of channels [-]")
        axes.set(title=f"K = {rows[0]['num_devices']:g}, T = {slot:g} s")
        axes.set(xlim=(-0.03 * slot, 1.2 * slot), ylim=(-0.02, 1.02))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def plane_figure(rows: Rows) -> Figure:
    """Draw BCOS, made feasible, over the (K, T) plane: savings, gaps, infeasible channels.

    Args:
        rows: of ``meco_jax.evaluation.summarise``; means over seeds are drawn, and a cell
            without feasible channels stays white.
    """
    devices, slots = (sorted({row[name] for row in rows}) for name in ("num_devices", "slot"))

    def plane(scheme: str, column: str) -> np.ndarray:
        cells = np.zeros((len(slots), len(devices), 2))
        for row in rows:
            if row["scheme"] == scheme and np.isfinite(row[column]):
                place = slots.index(row["slot"]), devices.index(row["num_devices"])
                cells[place] += (row[column], 1)
        with np.errstate(invalid="ignore"):
            return 100 * cells[..., 0] / cells[..., 1]

    with np.errstate(invalid="ignore"):
        saved = 100 * (1 - plane("bcos", "energy_mean_j") / plane("mcos", "energy_mean_j"))
    panels = {
        "mean energy below that of MCOS [%]": saved,
        "mean gap to the optimum of P1 [%]": plane("bcos", "gap_to_optimum_mean"),
        "infeasible channels [%]": plane("bcos", "infeasible_fraction"),
    }
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(10.5, 4.2))
        grid = figure.subplots(1, len(panels), sharey=True)
        for axes, (title, values) in zip(grid, panels.items()):
            low, high = np.nanmin(values), np.nanmax(values)
            high = max(high, low + 1)  # rounding is no pattern
            image = axes.imshow(
                values, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high
            )
            figure.colorbar(image, ax=axes)
            axes.set(title=title, xlabel=AXES["num_devices"])
            axes.set_xticks(range(len(devices)), [f"{k:g}" for k in devices])
            axes.set_yticks(range(len(slots)), [f"{t:g}" for t in slots])
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    text = f"{value:.0f}" if abs(value) >= 10 else f"{round(value, 1) + 0.0:.1f}"
                    color = "white" if value < low + 0.6 * (high - low) else "black"
                    axes.text(column, row, text, ha="center", va="center", fontsize=6, color=color)
        grid[0].set_ylabel(AXES["slot"])
        figure.suptitle("BCOS, made feasible", fontsize=9)
    return figure


def training_figure(
    histories: Mapping[str, Mapping[str, np.ndarray]], lanes: Sequence[str]
) -> Figure:
    """Draw how training went: energy, violation and multiplier against the steps.

    Args:
        histories: by title, "step" ``[M]`` and metrics ``[M, L]`` as ``train_grid`` returns them.
        lanes: label of each lane, ``[L]``.
    """
    panels = (
        ("energy", "energy of the batch [J]"),
        ("violation", "mean violation [s]"),
        ("multiplier", "multiplier [J/s]"),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.4 * len(histories) + 0.6))
        grid = figure.subplots(len(histories), len(panels), squeeze=False)
        for row, (title, history) in zip(grid, histories.items(), strict=True):
            role = "student" if "student_energy" in history else "teacher"
            for axes, (metric, label) in zip(row, panels, strict=True):
                values = history[f"{role}_{metric}"]
                for lane, name in enumerate(lanes):
                    style = line_style(lane, len(values))
                    axes.plot(history["step"], values[:, lane], label=name, **style)
                axes.set(xlabel="step [-]")
                _down_to_zero(axes, label, np.ravel(values), "y")
            row[1].set_title(f"{title} ({role})")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


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
            _down_to_zero(axes, panel.ylabel, all_values if alike else values, "y", panel.least)
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


def learning_figure(rows: Rows, seeds: int) -> Figure:
    """Draw how ways to learn fare: the gap and the decisions that do not fit, step by step.

    Args:
        rows: "method", "step", "gap" and "within_deadline" [-], means over seeds.
        seeds: how many.
    """
    panels = (("gap", 0, "mean gap to the optimum, made feasible [%]"),
              ("within_deadline", 1, "raw decisions that do not fit the slot [%]"))  # fmt: skip
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.2))
        for axes, (column, whole, label) in zip(figure.subplots(1, 2), panels):
            for number, way in enumerate(dict.fromkeys(row["method"] for row in rows)):
                own = [row for row in rows if row["method"] == way]
                values = [100 * abs(whole - row[column]) for row in own]
                style = line_style(number, len(own))
                axes.plot([row["step"] for row in own], values, label=way.replace("_", " "),
                          **style)  # fmt: skip
            every = [100 * abs(whole - row[column]) for row in rows]
            axes.set(xlabel="step [-]")
            _down_to_zero(axes, label, every, "y", 0.01)
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside right center",
            title=f"means over {seeds} seeds",
        )  # fmt: skip
    return figure


def frontier_figure(rows: Rows) -> Figure:
    """Draw the mean and the worst gap to the optimum, and the speed, of every method, K by K.

    Args:
        rows: "num_devices", "method", "family", "gap_mean", "gap_worst" and "feasible_fraction"
            [-], "channels_per_second" [1/s], a row per method.
    """
    devices = sorted({int(row["num_devices"]) for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    families = FAMILIES | _other_styles((row["family"] for row in rows), FAMILIES)
    labels = []
    for method in methods:
        shares = [row["feasible_fraction"] for row in rows if row["method"] == method]
        kept = ", ".join(f"{100 * share:.0f}" for share in shares)
        labels.append(f"{method} ({kept} % keep C1-C5)" if min(shares) < 1 else method)
    every = [100 * row[name] for row in rows for name in ("gap_mean", "gap_worst")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3 + 4 * len(devices), 1.6 + 0.2 * len(methods)))
        grid = figure.subplots(1, 2 * len(devices), sharey=True, squeeze=False)[0]
        for num_devices, gap, speed in zip(devices, grid[::2], grid[1::2]):
            for row in [row for row in rows if row["num_devices"] == num_devices]:
                place, style = methods.index(row["method"]), families[row["family"]]
                ends = [100 * row[name] for name in ("gap_mean", "gap_worst")]
                gap.plot(ends, [place, place], color=style["color"], linewidth=0.8)
                gap.plot(ends[1], place, **style | OPEN, markersize=8)
                gap.plot(ends[0], place, **style, markersize=5)
                speed.plot(row["channels_per_second"], place, **style, markersize=5)
            gap.set_title(f"K = {num_devices}")
            speed.set(xscale="log", xlabel="channels per second [1/s]", title=f"K = {num_devices}")
            _down_to_zero(gap, "gap to the optimum [%]", every, "x", ROUNDING)
        grid[0].set_yticks(range(len(methods)), labels)
        grid[0].set_ylim(len(methods) - 0.4, -0.6)
        marks = [grid[0].plot([], [], "o", color="gray", **style)[0]
                 for style in ({"markersize": 5}, {"markersize": 8} | OPEN)]  # fmt: skip
        figure.legend(
            marks, ["mean gap of the feasible answers", "worst gap"],
            loc="outside lower center", ncols=2,
        )  # fmt: skip
    return figure


def comparison_figure(rows: Rows, place: str, value: str, label: str) -> Figure:
    """Draw one number of every method, a line of marks per place.

    Args:
        rows: with the columns "method", ``place`` and ``value``.
        place: column of the names on the vertical axis, in order.
        value: column of the numbers, from 0.
        label: of the horizontal axis.
    """
    places = list(dict.fromkeys(row[place] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 1.4 + 0.32 * len(places)))
        axes = figure.subplots()
        for number, method in enumerate(methods):
            own = [row for row in rows if row["method"] == method]
            axes.plot(
                [row[value] for row in own], [places.index(row[place]) for row in own],
                linestyle="", label=method, marker=MARKERS[number % len(MARKERS)], markersize=6,
                color=COLORS[number % len(COLORS)], alpha=0.85,
            )  # fmt: skip
        _down_to_zero(axes, label, [row[value] for row in rows], "x", 1e-7)
        axes.set(yticks=range(len(places)), yticklabels=places, ylim=(len(places) - 0.5, -0.5))
        figure.legend(loc="outside right upper")
        return figure


def scale_figure(rows: Rows, slope: float) -> Figure:
    """Draw time, memory and proven gap of the optimum against the number of devices.

    Args:
        rows: "num_devices", "us_per_channel", "bytes_per_channel", "gap_mean", "gap_worst".
        slope: of ln time over ln K, for the title.
    """
    panels: tuple[tuple[str, str, tuple[tuple[str, float, str], ...]], ...] = (
        (f"time as K^{slope:.2f}", "time per channel [ms]", (("us_per_channel", 1e-3, ""),)),
        ("", "working memory per channel [kB]", (("bytes_per_channel", 1e-3, ""),)),
        ("", "proven gap [%]", (("gap_mean", 100, "mean"), ("gap_worst", 100, "worst"))),
    )
    devices = [row["num_devices"] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.9))
        for axes, (title, label, lines) in zip(figure.subplots(1, 3), panels):
            for (column, unit, name), style in zip(lines, ("D-", "v:")):
                values = [unit * row[column] for row in rows]
                axes.plot(devices, values, style, color="#009E73", label=name)
            axes.set(xscale="log", xlabel=AXES["num_devices"], title=title)
            every = [unit * row[column] for column, unit, _ in lines for row in rows]
            _down_to_zero(axes, label, every, "y", ROUNDING)
        axes.legend()
    return figure


def lanes_figure(rows: Rows) -> Figure:
    """Draw speed and memory of trainings in one call against their number.

    Args:
        rows: "method", "lanes", "lane_steps_per_s" [1/s] and "peak_mb" [MB].
    """
    panels = (("lane_steps_per_s", "lane steps per second [1/s]"), ("peak_mb", "peak memory [MB]"))
    numbers = sorted({int(row["lanes"]) for row in rows})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.3))
        for axes, (column, label) in zip(figure.subplots(1, 2), panels):
            methods = dict.fromkeys(row["method"] for row in rows)
            for method, style in zip(methods, line_styles()):
                own = [row for row in rows if row["method"] == method]
                x, y = ([row[name] for row in own] for name in ("lanes", column))
                axes.plot(x, y, label=method, **style)
            axes.set(xscale="log", xlabel="lanes [-]", ylabel=label)
            axes.set_ylim(0, 1.1 * max(row[column] for row in rows))
            axes.set_xticks(numbers, [f"{number}" for number in numbers])
            axes.xaxis.minorticks_off()
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def soak_figure(memory: Rows, latency: Rows) -> Figure:
    """Draw the memory of a long load over time, and the latency of its calls.

    Args:
        memory: "seconds" [s], "memory_mb" [MB] and "programs" over time.
        latency: "method", "channels", "p50_us" and "p99_us" [us], a row per batch size.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.5))
        left, middle, right = figure.subplots(1, 3)
        middle.sharey(right)
        left.plot(*([row[name] for row in memory] for name in ("seconds", "memory_mb")), "k-")
        programs = sorted({int(row["programs"]) for row in memory})
        text = "-".join(f"{number}" for number in dict.fromkeys((programs[0], programs[-1])))
        left.set(xlabel="time [s]", ylabel="memory of the process [MB]")
        left.set(title=f"{text} compiled programs")
        left.set_ylim(0, 1.1 * max(row["memory_mb"] for row in memory))
        for axes, column, title in ((middle, "p50_us", "median"),
                                    (right, "p99_us", "99th percentile")):  # fmt: skip
            methods = dict.fromkeys(row["method"] for row in latency)
            for method, style in zip(methods, line_styles()):
                own = [row for row in latency if row["method"] == method]
                x, y = [row["channels"] for row in own], [row[column] / 1e3 for row in own]
                axes.plot(x, y, label=method, **style | OPEN | {"linestyle": "", "markersize": 5})
            axes.set(xscale="log", yscale="log", xlabel="channels per call [-]", title=title)
            axes.set_ylabel("latency [ms]")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_yticks([2, 5, 10, 20, 50, 100])
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def by_scheme(rows: Rows, axis: str, value: str) -> dict[str, np.ndarray]:
    """Arrange a column by scheme as ``[seeds, sorted values of axis]``."""
    seeds = sorted({row["seed"] for row in rows})
    points = sorted({row[axis] for row in rows})
    table: dict[str, np.ndarray] = {}
    for row in rows:
        block = table.setdefault(row["scheme"], np.full((len(seeds), len(points)), np.nan))
        block[seeds.index(row["seed"]), points.index(row[axis])] = row[value]
    return table


def scheme_styles(names: Collection[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return label and style by scheme, those of ``SCHEMES`` first; any other has one too."""
    others = _other_styles(names, SCHEMES)
    return {name: own for name, own in SCHEMES.items() if name in names} | {
        name: (name.replace("_", " "), style) for name, style in others.items()
    }


def _other_styles(names: Iterable[str], known: Collection[str]) -> dict[str, dict[str, Any]]:
    """Give what is not known styles in turn, by name."""
    return dict(zip((n for n in dict.fromkeys(names) if n not in known), cycle(OTHERS)))


def draw_schemes(
    axes: Axes, x: Sequence[float], values: Mapping[str, np.ndarray], banded: Collection[str]
) -> None:
    """Draw means over seeds, and bands for some, which leave the limits to the means.

    Args:
        axes: to draw on, its scale set.
        x: ``[M]``.
        values: by scheme, ``[S, M]``.
        banded: the schemes with a band.
    """
    schemes = scheme_styles(values)
    for name, rows in values.items():
        axes.plot(x, np.mean(rows, axis=0), label=schemes[name][0], **schemes[name][1])
    axes.set_ylim(axes.get_ylim())
    for name in banded:
        band = seed_band(values[name], relative=axes.get_yscale() == "log")
        if band is not None:
            color = schemes[name][1]["color"]
            axes.fill_between(x, *band, color=color, alpha=0.12, linewidth=0)


def seed_band(values: np.ndarray, relative: bool) -> np.ndarray | None:
    """Ends ``[2, M]`` of the band of values ``[S, M]``, as ``_band_text`` says.

    Args:
        values: a row per task seed.
        relative: for a logarithmic axis: the mean times and over a factor.
    """
    seeds = len(values)
    if seeds == 1:
        return None
    if seeds == 2:
        return np.sort(values, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # an infinite energy has no band
        spread = np.std(np.log(values) if relative else values, axis=0, ddof=1)
    half = student_t(seeds) * spread / seeds**0.5
    mean = np.mean(values, axis=0)
    return np.stack([mean * np.exp(s * half) if relative else mean + s * half for s in (-1, 1)])


def _band_text(seeds: int) -> str:
    """Say what ``seed_band`` is: of two seeds Student's t says nothing."""
    if seeds == 1:
        return ""
    return "band: the 2 task seeds" if seeds == 2 else f"band: 95 % confidence, {seeds} task seeds"


def judged(kept: Mapping[str, np.ndarray]) -> list[str]:
    """Return the schemes whose answers may break C1-C5: the networks, and others that do.

    Args:
        kept: by scheme, shares of the answers that keep them ``[S, M]``.
    """
    return [name for name, shares in kept.items()
            if name in RAW or (name not in SCHEMES and not np.all(shares == 1))]  # fmt: skip


def _broken(kept: np.ndarray) -> str:
    """Say what share of the answers breaks C1-C5, from the shares that keep them ``[S, M]``."""
    shares = 100 * (1 - np.mean(kept, axis=0))
    ends = dict.fromkeys(f"{end:.1f}" for end in (np.min(shares), np.max(shares)))
    return f", {'-'.join(ends)} % break C1-C5"


def line_styles() -> Iterator[dict[str, Any]]:
    """Styles of lines, however many: the few of ``LINES``, then others."""
    yield from LINES
    yield from (line_style(number, 1) for number in count(len(LINES)))


def line_style(number: int, points: int) -> dict[str, Any]:
    """Style of one of many lines of ``points`` points: marks from the first one on, in turn."""
    every = max(1, points // 8)
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markevery": (number % every, every),
    }


def _down_to_zero(axes: Axes, label: str, values: Any, which: str, least: float = 0.0) -> None:
    """Make an axis logarithmic, and linear from ``least`` to 0 where values are below.

    Args:
        axes: with all its lines.
        label: of the axis.
        values: all that is on it.
        which: "x" or "y".
        least: where it turns linear; 0 for the smallest value above 0.
    """
    values = np.ravel(values)
    values = values[np.isfinite(values)]
    if not least:
        smallest = float(np.min(values[values > 0], initial=1.0))
        least = 10.0 ** np.floor(np.log10(smallest))
    if np.min(values, initial=1.0) >= least:
        axes.set(**{f"{which}scale": "log", f"{which}label": label})
        return
    # matplotlib's own ticks would crowd around 0
    last = np.ceil(np.log10(max(np.max(values), 10 * least)))
    powers = np.arange(np.round(np.log10(least)), last + 1, 1 if which == "y" else 2)
    linear = 0.7 if which == "y" else 1.5
    scale = SymmetricalLogScale(None, linthresh=least, linscale=linear)
    axes.set(**{f"{which}scale": scale, f"{which}ticks": [0, *10.0**powers]})
    axes.set(**{f"{which}lim": (-0.5 * least, 2 * max(np.max(values), least))})
    axes.set(**{f"{which}label": f"{label}\n(linear below {least:g})"})


def student_t(number: int) -> float:
    """Return the 97.5 % quantile of Student's t for the mean of ``number`` values."""
    if number <= len(STUDENT_T):
        return STUDENT_T[number - 1]
    z, inverse = 1.96, 1 / (number - 1)
    return z + (z**3 + z) / 4 * inverse + (5 * z**5 + 16 * z**3 + 3 * z) / 96 * inverse**2


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Save ``path``.png and ``path``.pdf, the same bytes for the same figure."""
    with matplotlib.rc_context(STYLE):
        write_atomically(f"{path}.png", lambda file: figure.savefig(file, format="png"))
        metadata = {"CreationDate": None}
        write_atomically(
            f"{path}.pdf", lambda file: figure.savefig(file, format="pdf", metadata=metadata)
        )
