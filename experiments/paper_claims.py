"""The paper's sentences about its Figures 4, 5 and 6, checked against our tables.

Each sentence is checked for the optima (certified optimum of P1, optimal PCOS) and for the
trained networks (raw BCOS, learned PCOS: all their answers, also those that break C1-C5). The
paper's curves are mean energies, so mean energies are compared, not gaps of channels. Prints a
Markdown table.

    python experiments/paper_claims.py --tables=experiments/figures
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from support import common, csv_tables

from meco_jax import figures

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "tables", "experiments/figures",
    "folder with figure4.csv, figure5.csv, ..., the results.csv of the runs",
)  # fmt: skip
SIDES = {"optima": ("optimal", "pcos"), "networks": ("bcos_raw", "pcos_learned")}
Claim = tuple[str, str, bool, str]  # sentence, side, verdict, what was measured


def main(argv: list[str]) -> None:
    """Print a line per sentence and side."""
    common.begin(argv)
    tables = [read(Path(FLAGS.tables), n) for n in (4, 5, 6)]
    print("| figure | the paper says | checked on | holds | measured |\n|---|---|---|---|---|")
    for figure, table, check in zip((4, 5, 6), tables, (figure4, figure5, figure6)):
        for sentence, side, verdict, measured in check(table):
            print(f"| {figure} | {sentence} | {side} | {'yes' if verdict else 'no'} | {measured} |")


def read(folder: Path, figure: int) -> list[dict[str, Any]]:
    """Read the table of a figure, or stop with a line if it cannot bear its sentences."""
    path, axis = folder / f"figure{figure}.csv", "num_devices" if figure == 4 else "slot"
    place = axis, "seed", "scheme"
    columns = "cost_mean_j", "feasible_fraction", "deadline_met_fraction", "offload_fraction"
    schemes = ["mcos", *itertools.chain(*SIDES.values())]
    rows = csv_tables.read_csv(path, (*place, *columns), place, whole=True, scheme=schemes)
    points = sorted({row[axis] for row in rows})
    below, above = {4: (8, 8), 5: (1.5, 1.6), 6: (np.inf, 0)}[figure]
    if not points[0] < below or not points[-1] >= above:
        common.stop(f"{path} must have {axis} below {below:g} and from {above:g} on")
    return rows


def means(table: list[dict[str, float]], axis: str, column: str) -> dict[str, np.ndarray]:
    """Mean a column over seeds, by scheme, along an axis."""
    return {k: v.mean(axis=0) for k, v in figures.by_scheme(table, axis, column).items()}


def figure4(table: list[dict[str, float]]) -> Iterator[Claim]:
    """Energy against K at T = 0.5 s."""
    energy = means(table, "num_devices", "cost_mean_j")
    devices = np.array(sorted({row["num_devices"] for row in table}))
    mcos = energy["mcos"]
    for side, (bcos, pcos) in SIDES.items():
        both = energy[bcos], energy[pcos]
        rises = all(np.all(np.diff(values) > 0) for values in (*both, mcos))
        yield "energy rises with K for all schemes", side, rises, "every step from K to K + 2"
        least = float(np.min(mcos / np.maximum(*both)))
        yield "MCOS always spends more", side, least > 1, f"mean energy at least {least:.0f} times"
        over = 100 * (both[0] / both[1] - 1)
        few, many = over[devices < 8].max(), over[devices >= 8]
        text = f"mean energy of BCOS at most {few:.1f} % above that of PCOS"
        yield "below K = 8 BCOS and PCOS are about the same", side, bool(few < 5), text
        grows = bool(np.all(np.diff(many) > 0))
        text = f"mean energy of BCOS from {many[0]:.0f} to {many[-1]:.0f} % above that of PCOS"
        text += "" if grows else ", not at every step"
        yield "above K = 8 their gap grows", side, bool(many[-1] > many[0]), text


def figure5(table: list[dict[str, float]]) -> Iterator[Claim]:
    """Energy against T at K = 14."""
    energy = means(table, "slot", "cost_mean_j")
    slots = np.array(sorted({row["slot"] for row in table}))
    for side, (bcos, pcos) in SIDES.items():
        both = energy[bcos], energy[pcos]
        falls = all(np.all(np.diff(values[slots <= 1.5]) < 0) for values in both)
        text = f"mean energy of BCOS falls {both[0][0] / both[0][-1]:.0f} fold over all T"
        yield "energy of BCOS and PCOS first falls with T", side, falls, text
        late = [100 * (1 - values[slots >= 1.6][0] / values[slots >= 1.5][0]) for values in both]
        text = f"from 1.5 to 1.6 s still {late[0]:.0f} and {late[1]:.0f} % less"
        yield "and is stable from T = 1.5 s", side, max(late) < 2, text
        over = 100 * (both[0] / both[1] - 1)
        text = (f"mean energy of BCOS {over[0]:.0f} % above that of PCOS at {slots[0]:g} s, "
                f"{over[-1]:.1f} % at {slots[-1]:g} s")  # fmt: skip
        shrinks = bool(over[0] > over[-1] >= -1)
        yield "PCOS is lower, and the gap shrinks with T", side, shrinks, text
    ratio = energy["mcos"].max() / energy["mcos"].min()
    text = f"largest over smallest {ratio:.2f}"
    yield "MCOS hardly changes with T", "MCOS", bool(ratio < 1.1), text


def figure6(table: list[dict[str, float]]) -> Iterator[Claim]:
    """Sum of the offloading times at T = 1 s, K = 14."""
    sent = means(table, "slot", "offload_fraction")
    on_time, kept = (
        {name: float(100 * shares[0]) for name, shares in means(table, "slot", column).items()}
        for column in ("deadline_met_fraction", "feasible_fraction")
    )
    share = 100 * float(sent["mcos"][0])
    text = f"it offloads {share:.1f} % of the tasks: no local task takes 1 s, so its time is 0"
    yield "MCOS takes about 0.5 s", "MCOS", share > 0, text
    bcos, pcos = (100 - on_time[name] for name in SIDES["networks"])
    text = f"{bcos:.2f} % of BCOS, {pcos:.2f} % of PCOS"
    yield "a few samples are beyond T", "networks", bool(0 < max(bcos, pcos) < 10), text
    shares = (f"{part[name]:.1f} %" for part in (on_time, kept) for name in SIDES["networks"])
    text = "sum of times within T: {} of BCOS, {} of PCOS; all of C1-C5: {} and {}".format(*shares)
    yield "BCOS and PCOS keep T with high probability", "networks", max(bcos, pcos) < 5, text


if __name__ == "__main__":
    common.launch(main)
