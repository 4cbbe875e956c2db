"""The figures of single experiments: rows and arrays to matplotlib, in the style of the paper's.

Values below what an axis resolves are not lifted: the axis goes on to 0, linearly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.scale import SymmetricalLogScale
from matplotlib.ticker import NullFormatter

from meco_jax.figures import AXES, OPEN, SCHEMES, STYLE, Rows, other_styles

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
COLORS = "#D55E00", "#0072B2", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9"
DASHES, MARKERS = ("-", "--", "-.", ":"), "o^Dsv*PX<>p"
LIMIT = "exponentials alone: "  # of rows of speed.csv
ROUNDING = 1e-4  # gaps below are float32's [%]


def plane_figure(rows: Rows, scheme: str = "bcos") -> Figure:
    """Draw a scheme over the (K, T) plane: savings, gaps, infeasible channels.

    Args:
        rows: of ``meco_jax.evaluation.summarise``; means over seeds are drawn, and a cell
            without feasible channels stays white.
        scheme: as the rows name it.
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
        saved = 100 * (1 - plane(scheme, "cost_mean_j") / plane("mcos", "cost_mean_j"))
    panels = {
        "mean energy below that of MCOS [%]": saved,
        "mean gap to the optimum of P1 [%]": plane(scheme, "gap_to_optimum_mean"),
        "infeasible channels [%]": plane(scheme, "infeasible_fraction"),
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
        figure.suptitle(SCHEMES[scheme][0], fontsize=9)
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
                down_to_zero(axes, label, np.ravel(values), "y")
            row[1].set_title(f"{title} ({role})")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def learning_figure(curves: Rows, rows: Rows) -> Figure:
    """Draw how gradient estimators fare: the gap and the decisions that do not fit, step by step.

    Args:
        curves: "method", "step", "gap" and "within_deadline" [-], means over seeds.
        rows: "seeds", how many.
    """
    panels = (("gap", 0, "mean gap to the optimum, best prefix [%]"),
              ("within_deadline", 1, "raw decisions that do not fit the slot [%]"))  # fmt: skip
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.2))
        for axes, (column, whole, label) in zip(figure.subplots(1, 2), panels):
            for number, method in enumerate(dict.fromkeys(row["method"] for row in curves)):
                own = [row for row in curves if row["method"] == method]
                values = [100 * abs(whole - row[column]) for row in own]
                style = line_style(number, len(own))
                axes.plot([row["step"] for row in own], values, label=method.replace("_", " "),
                          **style)  # fmt: skip
            every = [100 * abs(whole - row[column]) for row in curves]
            axes.set(xlabel="step [-]")
            down_to_zero(axes, label, every, "y", 0.01)
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside right center",
            title=f"means over {rows[0]['seeds']:g} seeds",
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
    families = FAMILIES | other_styles((row["family"] for row in rows), FAMILIES)
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
            down_to_zero(gap, "gap to the optimum [%]", every, "x", ROUNDING)
        grid[0].set_yticks(range(len(methods)), labels)
        grid[0].set_ylim(len(methods) - 0.4, -0.6)
        marks = [grid[0].plot([], [], "o", color="gray", **style)[0]
                 for style in ({"markersize": 5}, {"markersize": 8} | OPEN)]  # fmt: skip
        figure.legend(
            marks, ["mean gap of the feasible answers", "worst gap"],
            loc="outside lower center", ncols=2,
        )  # fmt: skip
    return figure


def parts_figure(rows: Rows, before: Rows = ()) -> Figure:
    """Draw the time of each part of the certified optimum's first stage.

    Args:
        rows: of speed.csv, "what" and "value" [us per channel]; those whose name begins with
            ``LIMIT`` are what the exponentials of a part alone would take.
        before: the same of an older version.
    """
    versions = {"before": before, "now": rows} if before else {"now": rows}
    parts = {name: _parts(these) for name, these in versions.items()}
    limits = _parts([{**row, "what": row["what"].removeprefix(LIMIT)} for row in rows
                     if row["what"].startswith(LIMIT)])  # fmt: skip
    names, height = list(parts["now"]), 0.8 / len(parts)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.2))
        axes = figure.subplots()
        for number, (version, values) in enumerate(parts.items()):
            color = {"before": "#999999", "now": "#009E73"}[version]
            places = np.arange(len(names)) + (number - (len(parts) - 1) / 2) * height
            bars = axes.barh(places, [values[n] for n in names], 0.9 * height, color=color,
                             label=version)  # fmt: skip
            axes.bar_label(bars, fmt="%.2g", padding=3)
        for place, name in enumerate(names):
            line = axes.plot(2 * [limits[name]], [place - 0.45, place + 0.45], "k:")
        line[0].set_label("exponentials alone")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel="time per channel [us]")
        axes.margins(x=0.12)
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def _parts(rows: Rows) -> dict[str, float]:
    """Name the first stage's parts; an older version measured grids and bounds apart."""
    values = {row["what"]: row["value"] for row in rows}
    whole, stage = next(name.split(", ", 1) for name in values if name.startswith("whole stage"))
    bounds = values.get(f"grids and pattern bounds, {stage}")
    if bounds is None:
        apart = ("price grid, coarse", "price grid, fine", f"pattern product, {stage}")
        bounds = sum(values[name] for name in apart)
    exact = next(name for name in values if name.endswith(f"exact energies, {stage}"))
    return {
        "relaxed price": values["relaxed price"],
        "price grids and\nbounds of sets": bounds,
        "exact energies": values[exact],
        "whole stage": values[f"{whole}, {stage}"],
    }


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
            down_to_zero(axes, label, every, "y", ROUNDING)
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


def loss_figure(rows: Rows) -> Figure:
    """Draw the mean loss of every method of wireless powered offloading, family by family."""
    named = [{**row, "frames of": f"{row['family']}, K = {row['num_devices']:g}"} for row in rows]
    label = "mean loss, 1 - rate / best rate [-]"
    return comparison_figure(named, "frames of", "loss_mean", label)


def benchmark_figure(rows: Rows) -> Figure:
    """Draw the mean gap of every method on every family of the benchmark."""
    return comparison_figure(rows, "family", "gap_mean", "mean gap to the optimum [-]")


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
        down_to_zero(axes, label, [row[value] for row in rows], "x", 1e-7)
        axes.set(yticks=range(len(places)), yticklabels=places, ylim=(len(places) - 0.5, -0.5))
        figure.legend(loc="outside right upper")
        return figure


def down_to_zero(axes: Axes, label: str, values: Any, which: str, least: float = 0.0) -> None:
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
