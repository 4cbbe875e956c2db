"""The paper's figures, from rows to matplotlib; nothing here trains or reads files.

A scheme has the same colour, marker and line everywhere; the colours are safe for the
colour-blind, the lines differ in grey print too. A gap is energy / optimum - 1 of a channel; a
mean gap is the mean over channels and task seeds.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meco_jax.runtime.atomic import write_atomically
from meco_jax.runtime.statistics import student_t as student_t

Rows = Sequence[Mapping[str, Any]]

OPEN = {"markerfacecolor": "white"}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {  # name: (label, style)
    "mcos": ("MCOS", {"color": "#555555", "marker": "s", "linestyle": "-"}),
    "mcos_partial": ("MCOS, parts", {"color": "#555555", "marker": "+", "linestyle": "--"}),
    "bcos_raw": ("BCOS, raw network", {"color": "#D55E00", "marker": "v", "linestyle": ":"}),
    "bcos": ("BCOS, projected", {"color": "#D55E00", "marker": "o", "linestyle": "-"}),
    "bcos_improved": ("BCOS, improved", {"color": "#E69F00", "marker": "d", "linestyle": "--"}),
    "pcos_learned": ("PCOS, learned", {"color": "#0072B2", "marker": "^", "linestyle": "--"}),
    "pcos": ("PCOS, optimal", {"color": "#0072B2", "marker": "x", "linestyle": "-"}),
    "optimal": ("optimum of P1, certified", {"color": "#009E73", "marker": "D", "linestyle": "--"}),
    "lower_bound": ("lower bound of P1", {"color": "#000000", "marker": "", "linestyle": "-."}),
}
RAW = "bcos_raw", "pcos_learned"  # the networks' own answers, which may break C1-C5
for _name in RAW:
    SCHEMES[_name][1].update(OPEN)
AXES = {"num_devices": "number of devices K [-]", "slot": "slot length T [s]"}
OTHERS: tuple[dict[str, Any], ...] = (  # of what has no style of its own
    {"color": "#CC79A7", "marker": "P", "linestyle": "-"},
    {"color": "#F0E442", "marker": "*", "linestyle": "--"},
    {"color": "#56B4E9", "marker": "<", "linestyle": "-."},
    {"color": "#8B5A2B", "marker": ">", "linestyle": ":"},
)
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


def energy_figure(rows: Rows, axis: str) -> Figure:
    """Draw the paper's Figure 4 or 5, the gaps to the optimum, and what the networks keep.

    Args:
        rows: of ``meco_jax.evaluation.summarise``, any number of task seeds.
        axis: "num_devices" or "slot"; the other has one value.
    """
    energy, gaps, kept, on_time = (
        by_scheme(rows, axis, column) for column in
        ("cost_mean_j", "gap_to_optimum_mean", "feasible_fraction", "deadline_met_fraction")
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
    others = other_styles(names, SCHEMES)
    return {name: own for name, own in SCHEMES.items() if name in names} | {
        name: (name.replace("_", " "), style) for name, style in others.items()
    }


def other_styles(names: Iterable[str], known: Collection[str]) -> dict[str, dict[str, Any]]:
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


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Save ``path``.png and ``path``.pdf, the same bytes for the same figure."""
    with matplotlib.rc_context(STYLE):
        write_atomically(f"{path}.png", lambda file: figure.savefig(file, format="png"))
        metadata = {"CreationDate": None}
        write_atomically(
            f"{path}.pdf", lambda file: figure.savefig(file, format="pdf", metadata=metadata)
        )
