"""Figures of real systems: what each piece costs, and sweeps of the whole.

Means over the task seeds, with bands of 95 % confidence; a row of panels per K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from meco_jax.figures import OPEN, STYLE, Rows, scheme_styles, seed_band
from support.plots import down_to_zero

LEAST = 0.01  # extra costs below are drawn on a linear axis [%]
PLAIN = {"color": "#CC79A7", "marker": "P", "linestyle": "-."}
MISSES: dict[str, tuple[str, dict[str, Any]]] = {  # of a decision by plain P1: label, style
    "missed_slot": ("no powers and times keep the slot, C1",
                    {"color": "#0072B2", "marker": "^", "linestyle": "--"}),
    "late": ("late with the powers and times it planned",
             {"color": "#000000", "marker": "x", "linestyle": "-"}),
    "missed_edge": ("beyond the edge's cycles, C6",
                    {"color": "#E69F00", "marker": "s", "linestyle": ":", "markersize": 7} | OPEN),
}  # fmt: skip
ACCESS: dict[str, tuple[str, dict[str, Any]]] = {
    "tdma": ("optimum, TDMA", {"color": "#009E73", "marker": "D", "linestyle": "--"}),
    "fdma": ("optimum, FDMA", {"color": "#56B4E9", "marker": "<", "linestyle": "-"}),
}
LABELS = {"optimal": "optimum, certified", "bcos": "BCOS, the shipped policy"}
SWEEPS = {  # label of the x axis
    "edge": "edge's cycles F, of all tasks' [%]",
    "antennas": "antennas of the station [-]",
    "access": "slot length T [s]",
    "delay": "mean delay per task [ms]",
}


def steps_figure(rows: Rows) -> Figure:
    """Draw costs as pieces are switched on, and what deciding without them does.

    Args:
        rows: "piece", in their order, "scheme", "num_devices", "seed" and what
            ``realism.measures`` and ``realism.pay`` find.
    """
    pieces = list(dict.fromkeys(row["piece"] for row in rows))
    devices = sorted({row["num_devices"] for row in rows})
    styles = _styles(rows)
    styles["plain"] = "decided by plain P1, paid in the real system", PLAIN
    extra = [100 * row["gap_mean"] for row in rows if row["scheme"] in ("bcos", "plain")]
    places = np.arange(len(pieces))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 1.5 + (0.8 + 0.21 * len(pieces)) * len(devices)))
        grid = figure.subplots(len(devices), 3, sharey=True, sharex="col", squeeze=False)
        for size, (cost, gap, share) in zip(devices, grid):
            own = [row for row in rows if row["num_devices"] == size]
            for scheme, (label, style) in styles.items():
                if scheme != "plain":
                    values = _table(own, scheme, "cost_j", "piece", pieces)
                    _across(cost, values, places, True, label=label, **style)
                if scheme in ("bcos", "plain"):
                    values = 100 * _table(own, scheme, "gap_mean", "piece", pieces)
                    _across(gap, values, places, False, label=label, **style)
            energy = np.mean(_table(own, "optimal", "energy_j", "piece", pieces), axis=0)
            style = styles["optimal"][1] | OPEN | {"linestyle": "", "markersize": 6, "zorder": 1.9}
            cost.plot(energy, places, label="energy of the optimum alone", **style)
            for column, (label, style) in MISSES.items():
                values = 100 * _table(own, "plain", column, "piece", pieces)
                _across(share, values, places, False, label=label, **style)
            cost.set_title(f"K = {size:g}")
            cost.set(xscale="log")
            down_to_zero(gap, "", extra, "x", LEAST)
            gap.set(xlabel="")
            share.set(xlim=(-4, 104))
        grid[0, 0].set_yticks(places, [p if p == pieces[0] else f"+ {p}" for p in pieces])
        grid[0, 0].set_ylim(len(pieces) - 0.5, -0.5)
        grid[0, 1].set_title("cost over the optimum's")
        grid[0, 2].set_title("channels where plain P1's decision fails")
        grid[-1, 0].set_xlabel("mean cost: energy, and weighted delay [J]")
        grid[-1, 1].set_xlabel(f"mean gap [%]\n(linear below {LEAST:g})")
        grid[-1, 2].set_xlabel("share of channels [%]")
        _legend(figure, grid[0], rows)
    return figure


def sweeps_figure(rows: Rows) -> Figure:
    """Draw the whole against the edge's cycles, antennas and slot, and energy against delay.

    Args:
        rows: "sweep", "value", "access", "scheme", "num_devices", "seed", and what
            ``realism.measures`` finds.
    """
    names = [name for name in SWEEPS if any(row["sweep"] == name for row in rows)]
    devices = sorted({row["num_devices"] for row in rows})
    draw: dict[str, Callable[[Axes, Rows], None]] = {"access": _access, "delay": _trade_off}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.4 + 2.5 * len(names), 0.9 + 2.3 * len(devices)))
        grid = figure.subplots(len(devices), len(names), sharex="col", squeeze=False)
        for size, line in zip(devices, grid):
            for name, axes in zip(names, line):
                own = [r for r in rows if (r["num_devices"], r["sweep"]) == (size, name)]
                draw.get(name, _costs)(axes, own)
                axes.set_title(f"K = {size:g}")
                if axes.get_yscale() == "log":
                    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                    axes.yaxis.set_minor_formatter(NullFormatter())
                axes.yaxis.set_major_formatter("{x:g}")
                axes.set_ylabel("mean energy [J]" if name == "delay" else "mean cost [J]")
        for name, axes in zip(names, grid[-1]):
            axes.set_xlabel(SWEEPS[name])
            if name == "antennas":
                numbers = sorted({row["value"] for row in rows if row["sweep"] == name})
                axes.set(xscale="log")
                axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
                axes.xaxis.minorticks_off()
        _legend(figure, grid[0], rows)
    return figure


def _costs(axes: Axes, rows: Rows) -> None:
    """Draw costs against the swept number."""
    values = sorted({row["value"] for row in rows})
    x = 100 * np.array(values) if rows[0]["sweep"] == "edge" else np.array(values)
    axes.set(yscale="log")
    for scheme, (label, style) in _styles(rows).items():
        table = _table(rows, scheme, "cost_j", "value", values)
        _along(axes, x, table, label=label, **style)


def _access(axes: Axes, rows: Rows) -> None:
    """Draw the optimum's cost against the slot by access."""
    axes.set(yscale="log")
    for access, (label, style) in ACCESS.items():
        own = [r for r in rows if (r["access"], r["scheme"]) == (access, "optimal")]
        if own:
            values = sorted({row["value"] for row in own})
            table = _table(own, "optimal", "cost_j", "value", values)
            _along(axes, np.array(values), table, label=label, **style)


def _trade_off(axes: Axes, rows: Rows) -> None:
    """Draw the energy of the optimum and of BCOS against the delay, weight by weight."""
    values = sorted({row["value"] for row in rows})
    styles = _styles([row for row in rows if row["scheme"] != "mcos"])
    for scheme, (label, style) in styles.items():
        delay, energy = (_table(rows, scheme, column, "value", values)
                         for column in ("delay_s", "energy_j"))  # fmt: skip
        x, y = 1e3 * np.mean(delay, axis=0), np.mean(energy, axis=0)
        axes.plot(x, y, label=label, **style)
        if scheme != "optimal":
            continue
        for place in dict.fromkeys((0, len(values) // 2, len(values) - 1)):
            last = x[place] == np.max(x)  # its text must not leave the panel
            axes.annotate(f"{values[place]:g} J/s", (x[place], y[place]), (6, 5),
                          textcoords="offset points", fontsize=7,
                          ha="right" if last else "left")  # fmt: skip
    axes.margins(0.16)


def _styles(rows: Rows) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return label and style by scheme."""
    styles = scheme_styles([row["scheme"] for row in rows])
    return {name: (LABELS.get(name, own[0]), own[1]) for name, own in styles.items()}


def _table(rows: Rows, scheme: str, column: str, axis: str, points: Sequence[Any]) -> np.ndarray:
    """Arrange a column of a scheme as ``[seeds, points]``."""
    seeds = sorted({row["seed"] for row in rows})
    table = np.full((len(seeds), len(points)), np.nan)
    for row in rows:
        if row["scheme"] == scheme:
            table[seeds.index(row["seed"]), points.index(row[axis])] = row[column]
    return table


def _across(
    axes: Axes, table: np.ndarray, places: np.ndarray, relative: bool, **style: Any
) -> None:
    """Draw means over seeds ``[S, M]`` along the vertical axis, with their band."""
    axes.plot(np.mean(table, axis=0), places, **style)
    band = seed_band(table, relative)
    if band is not None:
        ends = np.clip(band, 0, None)
        axes.fill_betweenx(places, *ends, color=style["color"], alpha=0.12, linewidth=0)


def _along(axes: Axes, x: np.ndarray, table: np.ndarray, **style: Any) -> None:
    """Draw means over seeds ``[S, M]`` on a logarithmic axis, with their band."""
    axes.plot(x, np.mean(table, axis=0), **style)
    band = seed_band(table, relative=True)
    if band is not None:
        axes.fill_between(x, *band, color=style["color"], alpha=0.12, linewidth=0)


def _legend(figure: Figure, axes: Sequence[Axes], rows: Rows) -> None:
    """Name all lines once, below."""
    known: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels()):
            known.setdefault(label, handle)
    seeds = len({row["seed"] for row in rows})
    text = f"bands: 95 % confidence, {seeds} task seeds" if seeds > 2 else ""
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=3,
                  title=text or None)  # fmt: skip
