"""The learning curve of an agent against the optimum and against schemes that learn nothing."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from meco_jax.figures import STYLE, Rows, seed_band

FLAT: dict[str, tuple[str, dict[str, Any]]] = {  # scheme: label, look
    "nobody": ("nobody sends", {"color": "#555555", "linestyle": "-"}),
    "everybody": ("everybody sends", {"color": "#0072B2", "linestyle": "--"}),
    "random": ("at random", {"color": "#CC79A7", "linestyle": ":", "linewidth": 2.4}),
}


def agent_figure(rows: Rows) -> Figure:
    """Draw what schemes lose to the certified optimum, against the slots that were learned from.

    Args:
        rows: "scheme", "seed", "slots" and "loss" [-].
    """
    curve = [row for row in rows if row["scheme"] == "reinforce"]
    seeds, slots = (sorted({row[name] for row in curve}) for name in ("seed", "slots"))
    losses = np.full((len(seeds), len(slots)), np.nan)
    for row in curve:
        losses[seeds.index(row["seed"]), slots.index(row["slots"])] = 100 * row["loss"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.8))
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="slots learned from [-]")
        axes.set_ylabel("reward below the certified optimum's [%]")
        for scheme, (label, look) in FLAT.items():
            own = [100 * row["loss"] for row in rows if row["scheme"] == scheme]
            axes.plot([slots[0], slots[-1]], 2 * [np.mean(own)], label=label, **look)
        look = {"color": "#D55E00", "marker": "o"}
        axes.plot(slots, np.mean(losses, axis=0), label="REINFORCE", **look)
        band = seed_band(losses, relative=True)
        if band is not None:
            axes.fill_between(slots, *band, color="#D55E00", alpha=0.15, linewidth=0)
        title = f"{len(seeds)} trainings" + (", band: 95 % confidence" if len(seeds) > 2 else "")
        figure.legend(loc="outside lower center", ncols=4, title=title)
    return figure
