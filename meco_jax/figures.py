"""Arrays to matplotlib figures; nothing here trains or reads files.

A scheme has the same colour, marker and line everywhere; the colours are safe for the
colour-blind, the lines differ in grey print too.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle, product
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meco_jax.files import write_atomically

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
FAMILIES: dict[str, dict[str, Any]] = {  # of methods: style
    "baseline": {"color": "#555555", "marker": "s"},
    "greedy": {"color": "#CC79A7", "marker": "^"},
    "network": {"color": "#D55E00", "marker": "o"},
    "optimum": {"color": "#009E73", "marker": "D"},
    "host": {"color": "#000000", "marker": "v"},
    "public": {"color": "#0072B2", "marker": "X"},
}
LINES: tuple[dict[str, Any], ...] = (  # of what is no scheme
    {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    {"color": "#0072B2", "marker": "^", "linestyle": "--"},
    {"color": "#009E73", "marker": "D", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "s", "linestyle": ":"},
    {"color": "#E69F00", "marker": "v", "linestyle": "-"},
    {"color": "#56B4E9", "marker": "P", "linestyle": "--"},
    {"color": "#000000", "marker": "x", "linestyle": "-."},
)
OTHERS: tuple[dict[str, Any], ...] = (  # of schemes that are not among these
    {"color": "#CC79A7", "marker": "P", "linestyle": "-"},
    {"color": "#E69F00", "marker": "*", "linestyle": "--"},
    {"color": "#56B4E9", "marker": "<", "linestyle": "-."},
    {"color": "#8B5A2B", "marker": ">", "linestyle": ":"},
)
ROUNDING = 1e-7  # gaps below are float32's
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: there on every machine
    "font.size": 9,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 150,
    "pdf.fonttype": 42,  # papers want TrueType
    "figure.constrained_layout.use": True,
}
STUDENT_T = (np.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # 97.5 %, n - 1 = 1..9


def energy_figure(
    x: Sequence[float], energy: Mapping[str, np.ndarray], label: str, title: str
) -> Figure:
    """Draw the paper's Figure 4 or 5, and beside it how far the schemes are from the optimum.

    Args:
        x: the swept values, ``[M]``.
        energy: by scheme, mean energies by task seed ``[S, M]`` [J]; "optimal" among them.
        label: of the x axis.
        title: what is not swept.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.8))
        left, right = figure.subplots(1, 2)
        excess = {name: 100 * (own / energy["optimal"] - 1) for name, own in energy.items()}
        for scheme in scheme_styles(energy):
            # The schemes share their tasks: one band shows how far these move all of them.
            band: Literal["log"] | None = "log" if scheme in ("mcos", "optimal") else None
            draw_scheme(left, x, energy, scheme, band)
            if scheme not in ("mcos", "mcos_partial", "optimal"):  # the first two are far off
                draw_scheme(right, x, excess, scheme, "linear")
        left.set(ylabel="weighted sum energy [J]", yscale="log", title=title)
        right.set(ylabel="energy over the optimum of P1 [%]", title="gap to the optimum")
        right.axhline(0, color="black", linewidth=0.8)
        for axes in (left, right):
            axes.set(xlabel=label, xticks=list(x) if len(x) < 10 else list(x)[::3])
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def delay_figure(
    times: Mapping[str, np.ndarray],
    probabilities: np.ndarray,
    late: Mapping[str, float],
    slot: float,
    title: str,
) -> Figure:
    """Draw the paper's Figure 6: the distribution of the time that all offloading takes.

    Args:
        times: by scheme, quantiles of sum t' by task seed ``[S, Q]`` [s].
        probabilities: of the quantiles ``[Q]``.
        late: by scheme, the share of channels beyond the deadline, for the legend.
        slot: T [s], the deadline.
        title: of the figure.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.8))
        axes = figure.subplots()
        for scheme, (label, style) in scheme_styles(times).items():
            label = f"{label}: {100 * late[scheme]:.1f} % late"
            marks = {"markevery": 50} | style
            axes.plot(np.mean(times[scheme], axis=0), probabilities, label=label, **marks)
        axes.axvline(slot, color="black", linewidth=1.0)
        axes.annotate("deadline T", (slot, 0.02), (3, 0), textcoords="offset points", fontsize=8)
        axes.set(xlabel="sum of the offloading times [s]", ylabel="share of channels [-]")
        axes.set(title=title, xlim=(-0.03 * slot, 1.2 * slot), ylim=(-0.02, 1.02))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def plane_figure(
    num_devices: Sequence[float], slots: Sequence[float], panels: Mapping[str, np.ndarray]
) -> Figure:
    """Draw heat maps over the (K, T) plane.

    Args:
        num_devices: K ``[M]``.
        slots: T ``[N]`` [s].
        panels: by title, values ``[N, M]``; NaN stays white.
    """
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(9.0, 3.4))
        for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels.items()):
            low, high = np.nanmin(values), np.nanmax(values)
            high = max(high, low + 1)  # rounding is no pattern
            image = axes.imshow(
                values, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high
            )
            figure.colorbar(image, ax=axes)
            axes.set(title=title, xlabel="number of devices K [-]", ylabel="slot length T [s]")
            axes.set_xticks(range(len(num_devices)), [f"{k:g}" for k in num_devices])
            axes.set_yticks(range(len(slots)), [f"{t:g}" for t in slots])
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    text = f"{value:.0f}" if abs(value) >= 10 else f"{round(value, 1) + 0.0:.1f}"
                    color = "white" if value < low + 0.6 * (high - low) else "black"
                    axes.text(column, row, text, ha="center", va="center", fontsize=5, color=color)
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
        figure = Figure(figsize=(7.2, 2.4 * len(histories) + 0.6))
        grid = figure.subplots(len(histories), len(panels), squeeze=False)
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(lanes)))
        for row, (title, history) in zip(grid, histories.items(), strict=True):
            role = "student" if "student_energy" in history else "teacher"
            for axes, (metric, label) in zip(row, panels, strict=True):
                for lane, name in enumerate(lanes):
                    values = history[f"{role}_{metric}"][:, lane]
                    axes.plot(history["step"], values, color=colors[lane], label=name)
                axes.set(xlabel="step [-]", ylabel=label, yscale="log")
            row[1].set_title(f"{title} ({role})")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


class GapPanel(NamedTuple):
    """One panel of ``gap_figure``."""

    label: str  # of the x axis
    x: Sequence[float] | np.ndarray  # [M]
    gaps: Mapping[str, Sequence[float] | np.ndarray]  # by line, [M] [-]
    inside: tuple[float, float] | None = None  # x of the training, shaded
    ylabel: str = "mean gap [%]"


def gap_figure(panels: Sequence[GapPanel]) -> Figure:
    """Draw gaps in percent, on a logarithmic axis from 0.001 % on, one panel a swept number."""
    alike = len({panel.ylabel for panel in panels}) == 1
    with matplotlib.rc_context(STYLE):
        columns = min(len(panels), 3)
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(1.2 + 2.4 * columns, 2.5 * rows + 0.4))
        grid = figure.subplots(rows, columns, squeeze=False, sharey=alike)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid.flat, panels):
            for (name, gaps), style in zip(panel.gaps.items(), cycle(LINES)):
                values = np.maximum(100 * np.asarray(gaps), 1e-3)
                axes.plot(panel.x, values, label=name, **style)
            if panel.inside:
                axes.axvspan(*panel.inside, color="black", alpha=0.06, linewidth=0)
            wide = min(panel.x) > 0 and max(panel.x) > 20 * min(panel.x)
            axes.set(xlabel=panel.label, xscale="log" if wide else "linear", yscale="log")
            if wide and max(panel.x) < 1000 * min(panel.x):  # powers of ten are too few ticks
                axes.set_xticks(panel.x, [f"{x:.3g}" for x in panel.x], fontsize=7)
                axes.xaxis.minorticks_off()
            if axes in grid[:, 0] or not alike:
                axes.set_ylabel(panel.ylabel)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def learning_figure(curves: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw how ways to learn fare: the gap and the decisions within the deadline, step by step.

    Args:
        curves: by way, "step", "gap" and "within_deadline", a row a seed ``[S, M]`` [-].
    """
    panels = (("gap", "mean gap, made feasible [%]"),
              ("within_deadline", "raw decisions within the deadline [%]"))  # fmt: skip
    colors = matplotlib.colormaps["tab20"](np.arange(len(curves)) * 2 % 20 / 20 + 0.01)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.8))
        for axes, (name, label) in zip(figure.subplots(1, 2), panels):
            for number, (way, curve) in enumerate(curves.items()):
                values, line = 100 * curve[name], ("-", "--", ":")[number % 3]
                axes.plot(curve["step"][0], values.mean(axis=0), line, color=colors[number],
                          label=way.replace("_", " "))  # fmt: skip
            axes.set(xlabel="step [-]", ylabel=label, yscale="log" if name == "gap" else "linear")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
    return figure


def frontier_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the mean and the worst gap to the optimum against speed, K by K.

    Args:
        rows: "num_devices", "method", "family", "gap_mean" and "gap_worst" [-],
            "channels_per_second" [1/s], a row a method.
    """
    devices = sorted({int(row["num_devices"]) for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    offsets = ((4, 3), (-10, 3), (4, -8), (-10, -8))  # of the numbers beside the markers
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.2 * len(devices) + 0.2))
        grid = figure.subplots(len(devices), 2, sharex=True, sharey=True, squeeze=False)
        for axes, (num_devices, kind) in zip(grid.flat, product(devices, ("mean", "worst"))):
            for row in rows:
                if row["num_devices"] != num_devices:
                    continue
                number = 1 + methods.index(row["method"])
                style = FAMILIES.get(row["family"], {"color": "#E69F00", "marker": "P"})
                place = row["channels_per_second"], max(row[f"gap_{kind}"], ROUNDING)
                axes.plot(*place, **style, linestyle="", label=f"{number}  {row['method']}")
                axes.annotate(
                    f"{number}", place, offsets[number % 4], textcoords="offset points",
                    fontsize=6, color=style["color"],
                )  # fmt: skip
            axes.set(xscale="log", yscale="log", title=f"K = {num_devices}, {kind} gap")
        grid[0, 0].set_ylim(ROUNDING / 4, 4 * max(1.0, *(row["gap_worst"] for row in rows)))
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=7
        )
        figure.supxlabel("channels a second [1/s]", fontsize=9)
        figure.supylabel(f"gap to the optimum, at least {ROUNDING:g} [-]", fontsize=9)
    return figure


def scale_figure(rows: Sequence[Mapping[str, Any]], slope: float) -> Figure:
    """Draw time, memory and proven gap of the optimum against the number of devices.

    Args:
        rows: "num_devices", "us_per_channel", "bytes_per_channel", "gap_mean", "gap_worst".
        slope: of ln time over ln K, for the title.
    """
    panels: tuple[tuple[str, str, tuple[tuple[str, float, str], ...]], ...] = (
        (f"slope {slope:.2f}", "time a channel [ms]", (("us_per_channel", 1e-3, "one stage"),)),
        ("", "working memory a channel [kB]", (("bytes_per_channel", 1e-3, "one stage"),)),
        ("", "proven gap [-]", (("gap_mean", 1.0, "mean"), ("gap_worst", 1.0, "worst"))),
    )
    devices = [row["num_devices"] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.7))
        for axes, (title, label, lines) in zip(figure.subplots(1, 3), panels):
            for (column, unit, name), style in zip(lines, ("D-", "v:")):
                values = [max(unit * row[column], ROUNDING) for row in rows]
                axes.plot(devices, values, style, color="#009E73", label=name)
            axes.set(xscale="log", yscale="log", xlabel="number of devices K [-]")
            axes.set(ylabel=label, title=title)
        axes.legend()
    return figure


def lanes_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw speed and memory of trainings in one call against their number.

    Args:
        rows: "method", "lanes", "lane_steps_per_s" [1/s] and "peak_mb" [MB].
    """
    panels = (("lane_steps_per_s", "lane steps a second [1/s]"), ("peak_mb", "peak memory [MB]"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.0))
        for axes, (column, label) in zip(figure.subplots(1, 2), panels):
            for method, style in zip(dict.fromkeys(row["method"] for row in rows), LINES):
                own = [row for row in rows if row["method"] == method]
                x, y = ([row[name] for row in own] for name in ("lanes", column))
                axes.plot(x, y, label=method, **style)
            axes.set(xscale="log", xlabel="lanes [-]", ylabel=label)
            axes.set_ylim(bottom=0)
        axes.legend()
    return figure


def soak_figure(
    memory: Sequence[Mapping[str, Any]], latency: Sequence[Mapping[str, Any]]
) -> Figure:
    """Draw the memory of a long load over time, and the latency of its calls.

    Args:
        memory: "seconds" [s] and "memory_mb" [MB] over time.
        latency: "method", "channels", "p50_us" and "p99_us" [us], a row a batch size.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.0))
        left, right = figure.subplots(1, 2)
        left.plot(*([row[name] for row in memory] for name in ("seconds", "memory_mb")), "k-")
        left.set(xlabel="time [s]", ylabel="memory of the process [MB]")
        left.set_ylim(0, 1.1 * max(row["memory_mb"] for row in memory))
        for method, style in zip(dict.fromkeys(row["method"] for row in latency), cycle(LINES)):
            own = sorted((row["channels"], row["p50_us"], row["p99_us"])
                         for row in latency if row["method"] == method)  # fmt: skip
            sizes, p50, p99 = np.transpose(own)
            right.plot(sizes, p50 / 1e3, label=f"{method}, median", **style)
            right.plot(sizes, p99 / 1e3, linestyle="", marker=style["marker"], markersize=2,
                       color=style["color"], label=f"{method}, 99th percentile")  # fmt: skip
        right.set(xscale="log", yscale="log", xlabel="channels a call [-]", ylabel="latency [ms]")
        right.legend(fontsize=6)
    return figure


def scheme_styles(names: Collection[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return label and style by scheme, those of ``SCHEMES`` first; any other has one too."""
    others = zip([name for name in names if name not in SCHEMES], cycle(OTHERS))
    known = {name: own for name, own in SCHEMES.items() if name in names}
    return known | {name: (name.replace("_", " "), style) for name, style in others}


def draw_scheme(
    axes: Axes,
    x: Sequence[float],
    by_scheme: Mapping[str, np.ndarray],
    scheme: str,
    band: Literal["linear", "log"] | None,
) -> None:
    """Draw a scheme's mean ``[S, M]`` over seeds, and its 95 % confidence band."""
    values, (label, style) = by_scheme[scheme], scheme_styles(by_scheme)[scheme]
    axes.plot(x, np.mean(values, axis=0), label=label, **style)
    seeds = len(values)
    if band and seeds > 1:
        with np.errstate(divide="ignore", invalid="ignore"):  # an infinite energy has no band
            values = np.log(values) if band == "log" else values
            half = student_t(seeds) * np.std(values, axis=0, ddof=1) / seeds**0.5
        ends = [np.mean(values, axis=0) + sign * half for sign in (-1, 1)]
        low, high = np.exp(ends) if band == "log" else ends
        axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)


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
