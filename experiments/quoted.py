"""What README quotes against the committed csv: tables cell by cell, and sentences."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import claims
import common
import numpy as np
import readme_tables
from readme_tables import Lines, Rows, energy_over, number

Finding = tuple[str, str, str, str, bool]  # what, README's, the csv's, tolerance, verdict
DIGITS = "the digits printed"
LACKS = KeyError, IndexError, ValueError, TypeError  # of columns and rows that are not there


def check(part: str, readme: str, folder: Path) -> Iterator[Finding]:
    """Check the "tables" or the "prose" of README against the csv in a folder."""
    if part == "tables":
        for names, write in TABLES:
            tables = [common.read_csv(folder / f"{name}.csv") for name in names]
            try:
                table = write(*tables)
            except LACKS as error:
                yield f"{', '.join(names)}: the whole table", "", lacks(error), DIGITS, False
                continue
            yield from check_table(", ".join(names), table, readme)
    else:
        words = " ".join(readme.split())
        for name, pattern, quote in PROSE:
            match = re.search(pattern, words)
            found = match.groups() if match else ("not found",)
            what = f"{name}.csv: {pattern.replace('|', '/')}"
            rows = common.read_csv(folder / f"{name}.csv")
            try:
                wanted = quote(rows)
            except LACKS as error:
                yield what, ", ".join(found), lacks(error), DIGITS, False
                continue
            yield what, ", ".join(found), ", ".join(wanted), DIGITS, found == wanted


def lacks(error: Exception) -> str:
    """Say that a csv does not hold what is quoted."""
    return f"the csv lacks it ({type(error).__name__}: {error})"


def check_table(name: str, wanted: Lines, readme: str) -> Iterator[Finding]:
    """Compare one table: a finding for each cell that differs, and one for the whole."""
    found = find_table(readme, wanted[0])
    mine, true = (f"{len(t)} lines of {len(t[0]) if t else 0}" for t in (found, wanted))
    if [len(line) for line in found] != [len(line) for line in wanted]:
        yield f"{name}: size of the table", mine, true, DIGITS, False
        return
    wrong = [
        (f"{name}: row {values[0]!r}, column {column!r}", cell, value, DIGITS, False)
        for cells, values in zip(found, wanted)
        for column, cell, value in zip(wanted[0], cells, values)
        if cell != value
    ]
    yield from wrong
    yield f"{name}: the whole table", mine, true, DIGITS, not wrong


def find_table(readme: str, header: list[str]) -> Lines:
    """Find the table whose header starts with the same two cells: its cells, or nothing."""
    lines = readme.splitlines()
    start = "| " + " | ".join(header[:2]) + " |"
    first = next((i for i, line in enumerate(lines) if line.startswith(start)), len(lines))
    last = first
    while last < len(lines) and lines[last].startswith("|"):
        last += 1
    table = [line.strip("|").split("|") for line in lines[first:last]]
    return [[cell.strip() for cell in line] for line in table[:1] + table[2:]]


TABLES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("figure4",), readme_tables.figure4),
    (("constraints",), readme_tables.constraints),
    (("figure4", "figure5", "figure6"), readme_tables.paper),
    (("frontier",), readme_tables.frontier),
    (("certify",), readme_tables.certify),
    (("scale",), readme_tables.scale),
    (("policy",), readme_tables.policy),
    (("gradients",), readme_tables.gradients),
    (("lanes",), readme_tables.lanes),
    (("lanes_ratio",), readme_tables.ratios),
    (("precision",), readme_tables.precision),
    (("soak",), readme_tables.soak),
]


def percents(rows: Rows, axis: str, column: str) -> dict[str, np.ndarray]:
    """Means over seeds in percent, by scheme, along an axis."""
    return {name: 100 * values for name, values in claims.means(rows, axis, column).items()}


def times_mcos(rows: Rows) -> tuple[str, ...]:
    """Least and most that MCOS spends over the optimum, mean over channels."""
    times = 1 + claims.means(rows, "num_devices", "gap_to_optimum_mean")["mcos"]
    return f"{times.min():.0f}", f"{times.max():.0f}"


def gaps_of_bcos(rows: Rows) -> tuple[str, ...]:
    """Mean gap of BCOS made feasible up to K = 14, rounded up, and at K = 20 [%]."""
    gap = percents(rows, "num_devices", "gap_to_optimum_mean")["bcos"]
    devices = np.array(sorted({row["num_devices"] for row in rows}))
    return f"{math.ceil(gap[devices <= 14].max())}", f"{gap[devices == 20][0]:.1f}"


def raw_bcos(rows: Rows) -> tuple[str, ...]:
    """Largest mean gap of the raw network; what it keeps at K = 20: C1-C5, and T alone [%]."""
    gap, kept, on_time = (
        percents(rows, "num_devices", column)["bcos_raw"]
        for column in ("gap_to_optimum_mean", "feasible_fraction", "deadline_met_fraction")
    )
    return f"{gap.max():.0f}", f"{kept[-1]:.1f}", f"{on_time[-1]:.1f}"


def learned_pcos(rows: Rows) -> tuple[str, ...]:
    """What learned PCOS keeps at K = 4 and 20: C1-C5, and T alone [%]."""
    return tuple(
        f"{percents(rows, 'num_devices', column)['pcos_learned'][place]:.1f}"
        for column in ("feasible_fraction", "deadline_met_fraction") for place in (0, -1)
    )  # fmt: skip


def two_means(rows: Rows) -> tuple[str, ...]:
    """Optimal PCOS below the optimum at K = 20: mean gap, and ratio of mean energies [%]."""
    gap = percents(rows, "num_devices", "gap_to_optimum_mean")["pcos"][-1]
    return f"{-gap:.1f}", f"{100 * (1 - energy_over(rows)('pcos', 'optimal')[-1]):.1f}"


def in_words(share: float) -> str:
    """Write a share to the nearest word."""
    words = {0.1: "a tenth", 0.25: "a quarter", 1 / 3: "a third", 0.5: "half"}
    return words[min(words, key=lambda value: abs(value - share))]


def own_slope(rows: Rows) -> tuple[str, ...]:
    """BCOS at K = 20: raw, mean energy over the optimum's, T and C1-C5 kept; made feasible [%]."""
    over = energy_over(rows)
    raw, made = (100 * (over(name, "optimal")[-1] - 1) for name in ("bcos_raw", "bcos"))
    on_time, kept = (
        percents(rows, "num_devices", column)["bcos_raw"][-1]
        for column in ("deadline_met_fraction", "feasible_fraction")
    )
    return f"{raw:.0f}", f"{on_time:.1f}", f"{kept:.1f}", f"{made:.1f}"


def most_kept(rows: Rows) -> tuple[str, ...]:
    """Most channels that keep C1-C5 at K = 20, and the gap there, for BCOS and PCOS [%]."""
    words = []
    for scheme in ("bcos_raw", "pcos_learned"):
        few = [r for r in rows if r["scheme"] == scheme and r["num_devices"] == 20]
        best = max(few, key=lambda row: row["kept"])
        words += [f"{100 * best['kept']:.0f}", f"{100 * best['gap_mean']:.0f}"]
    return tuple(words)


def along_slots(rows: Rows) -> tuple[str, ...]:
    """Lowest mean gap of PCOS; T from which it is within 1 %; highest of BCOS made feasible."""
    gap = percents(rows, "slot", "gap_to_optimum_mean")
    slots = sorted({row["slot"] for row in rows})
    last = max(i for i, value in enumerate(gap["pcos"]) if value <= -1)
    return f"{-gap['pcos'].min():.0f}", f"{slots[last + 1]:g}", f"{gap['bcos'].max():.1f}"


def loose_networks(rows: Rows) -> tuple[str, ...]:
    """From T = 0.9 s on: mean gaps of raw BCOS and learned PCOS, and what they break [%]."""
    gap, kept = (
        percents(rows, "slot", column) for column in ("gap_to_optimum_mean", "feasible_fraction")
    )
    loose = np.array(sorted({row["slot"] for row in rows})) >= 0.9
    found: list[str] = []
    for name in ("bcos_raw", "pcos_learned"):
        for values in (gap[name][loose], 100 - kept[name][loose]):
            ends = dict.fromkeys((f"{values.min():.0f}", f"{values.max():.0f}"))
            found.append("-".join(ends))
    return tuple(found)


def loose_energies(rows: Rows) -> tuple[str, ...]:
    """Mean energies of the networks over the optimum's from T = 0.9 s on [%]."""
    over = energy_over(rows, "slot")
    loose = np.array(sorted({row["slot"] for row in rows})) >= 0.9
    both = [100 * (over(name, "optimal")[loose] - 1) for name in ("bcos_raw", "pcos_learned")]
    return f"{np.min(both):.0f}", f"{np.max(both):.0f}"


def late(rows: Rows) -> tuple[str, ...]:
    """Late answers of raw BCOS and of learned PCOS, and those that break C1-C5 [%]."""
    return tuple(
        f"{100 - percents(rows, 'slot', column)[name][0]:.1f}"
        for column in ("deadline_met_fraction", "feasible_fraction")
        for name in ("bcos_raw", "pcos_learned")
    )


def broken_at_most(axis: str, rows: Rows) -> tuple[str, ...]:
    """Most answers of raw BCOS and of learned PCOS that break C1-C5 along an axis [%]."""
    kept = percents(rows, axis, "feasible_fraction")
    return tuple(f"{100 - kept[name].min():.0f}" for name in ("bcos_raw", "pcos_learned"))


def lanes(rows: Rows) -> tuple[str, ...]:
    """Numbers of K, of T and of seeds."""
    return tuple(str(len({row[name] for row in rows})) for name in ("num_devices", "slot", "seed"))


def plane_gaps(rows: Rows) -> tuple[str, ...]:
    """Largest mean gap of BCOS from T = 0.6 s on, rounded up, and over the plane [%]."""
    cells: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        if row["scheme"] == "bcos":
            place = row["slot"], row["num_devices"]
            cells.setdefault(place, []).append(100 * row["gap_to_optimum_mean"])
    gaps = {place: np.nanmean(values) for place, values in cells.items()}
    loose = max(gap for (slot, _), gap in gaps.items() if slot >= 0.6)
    return f"{math.ceil(loose)}", f"{max(gaps.values()):.0f}"


def speedups(method: str, rows: Rows) -> tuple[str, ...]:
    """How many times faster ``solve`` is than a method, at K = 14 and 20."""
    rate = {(r["num_devices"], r["method"]): r["channels_per_second"] for r in rows}
    return tuple(f"{rate[k, 'solve, certified'] / rate[k, method]:.0f}" for k in (14, 20))


def latency(rows: Rows) -> tuple[str, ...]:
    """Milliseconds that ``solve`` takes for one channel alone, the median at K = 14."""
    few = [r for r in rows if r["method"] == "solve, certified" and r["num_devices"] == 14]
    return (f"{few[0]['p50_us'] / 1e3:.1f}",)


def certified(rows: Rows) -> tuple[str, ...]:
    """Feasible and all channels, and the least share that is certified [%]."""
    feasible = sum(round(row["channels"] * row["feasible_fraction"]) for row in rows)
    least = min(row["certified"] for row in rows if row["certified"] == row["certified"])
    return str(feasible), f"{sum(row['channels'] for row in rows):.0f}", f"{100 * least:g}"


def growth(rows: Rows) -> tuple[str, ...]:
    """Write the slope of ln time over ln K."""
    return (f"{slope(rows):.2f}",)


def slope(rows: Rows) -> float:
    """Fit ln time over ln K."""
    sizes, times = (np.log([r[name] for r in rows]) for name in ("num_devices", "us_per_channel"))
    return float(np.polyfit(sizes, times, 1)[0])


def late_on_noise(rows: Rows) -> tuple[str, ...]:
    """Late channels without back-off, in words, and the estimation errors [%]."""
    errors = [100 * row["error"] for row in rows]
    share = np.mean([row["late_fraction"] for row in rows if row["backoff_db"] == 0])
    return f"{min(errors):g}", f"{max(errors):g}", in_words(float(share))


def own_ground(rows: Rows) -> tuple[str, ...]:
    """Gaps of the network that was trained for a system, and of the shipped policy there [%]."""
    names = "BCOS, made feasible", "solve, effort 0", "solve, effort 6"
    gaps = {(r["method"], r["num_devices"]): 100 * r["gap_mean"] for r in rows}
    return tuple(number(gaps[name, k]) if gaps[name, k] > 1e-4 else "0"
                 for name in names for k in (14, 20))  # fmt: skip


def kills(rows: Rows) -> tuple[str, ...]:
    """Kills, killed runs and damaged files, none if all runs ended the same; seconds lost."""
    runs = {(row["script"], row["run"]) for row in rows}
    same = all(row["identical"] == 1 for row in rows)
    trained = [row["seconds_lost"] for row in rows if not row["method"].startswith("start")]
    damaged = sum(row["damaged"] for row in rows) if same else math.nan
    return f"{len(rows)}", f"{len(runs)}", f"{damaged:.0f}", f"{max(trained):.1f}"


def load(rows: Rows) -> tuple[str, ...]:
    """Calls, compiled programs, memory at the end and what the second half added [MB]."""
    half, last = rows[len(rows) // 2], rows[-1]
    grown, held = last["memory_mb"] - half["memory_mb"], last["memory_mb"]
    per_program = held / last["programs"]
    return (f"{last['calls']:.0f}", f"{last['programs']:.0f}", f"{held:.0f}", f"{grown:.0f}",
            f"{per_program:.0f}")  # fmt: skip


PAIR = r"([\d.]+) times at K = 14, ([\d.]+) times at K = 20"
PROSE: list[tuple[str, str, Callable[[Rows], tuple[str, ...]]]] = [
    ("figure4", r"mean gap is -([\d.]+) %, its mean energy ([\d.]+) % below", two_means),
    ("figure4", r"MCOS spends (\d+) to (\d+) times the optimum", times_mcos),
    ("figure4", r"mean gap of at most (\d+) % up to K = 14 and of ([\d.]+) % at K = 20",
     gaps_of_bcos),
    ("figure4", r"raw network's grows to (\d+) %, and at K = 20 it keeps all of C1-C5 on only "
                r"([\d.]+) % of the channels, though the sum of its times is within T on "
                r"([\d.]+) %", raw_bcos),
    ("figure4", r"Learned PCOS keeps all of C1-C5 on ([\d.]+) % of the channels at K = 4 and on "
                r"([\d.]+) % at K = 20 \(the sum of its times within T: ([\d.]+) and ([\d.]+) %\)",
     learned_pcos),
    ("figure4", r"\| 1 - m, the teacher's \| \+(\d+) % \| ([\d.]+) % \| ([\d.]+) % \| "
                r"\+([\d.]+) % \|", own_slope),
    ("constraints", r"best keeps C1-C5 at K = 20 on (\d+) % of the channels, at \+(\d+) % "
                    r"\(BCOS\), and on (\d+) %, at \+(\d+) % \(PCOS\)", most_kept),
    ("figure4", r"in Figure 4 up to (\d+) % of BCOS's and (\d+) % of PCOS's",
     partial(broken_at_most, "num_devices")),
    ("figure5", r"in Figure 5 up to (\d+) % and (\d+) %", partial(broken_at_most, "slot")),
    ("figure5", r"the mean gap of optimal PCOS is down to -(\d+) %. From T = ([\d.]+) s on .* "
                r"mean gap is at most ([\d.]+) %", along_slots),
    ("figure5", r"raw BCOS has ([\d-]+) % and breaks C1-C5 on ([\d-]+) % of the channels, "
                r"learned PCOS ([\d-]+) % and breaks them on ([\d-]+) %", loose_networks),
    ("figure5", r"mean energies (\d+)-(\d+) % above the optimum's where", loose_energies),
    ("figure6", r"beyond T in ([\d.]+) % \(BCOS\) and ([\d.]+) % \(PCOS\) of the channels, and "
                r"their answers break C1-C5 in ([\d.]+) % and ([\d.]+) %", late),
    ("plane", r"(\d+) x (\d+) x (\d+) lanes of BCOS and PCOS", lanes),
    ("plane", r"is below (\d+) % where the tasks fit, and 2-(\d+) % along the edge", plane_gaps),
    ("frontier", f"than the float64 search {PAIR}", partial(speedups, "search on the host")),
    ("frontier", f"branch and bound, compiled once, {PAIR}",
     partial(speedups, "Clarabel, branch and bound")),
    ("frontier", f"than SCIP on perspective cuts {PAIR}", partial(speedups, "SCIP, tangents")),
    ("frontier", r"One channel alone takes ([\d.]+) ms", latency),
    ("frontier", r"trained for that system has a mean gap of ([\d.]+) % and ([\d.]+) % .* never "
                 r"saw it, ([\d.]+) % and ([\d.]+) % at effort 0, ([\d.]+) % and ([\d.]+) % at "
                 r"effort 6", own_ground),
    ("certify", r"(\d+) of (\d+) feasible\): `solve` certifies (\d+) % of every row", certified),
    ("scale", r"time rises as K\^([\d.]+)", growth),
    ("kills", r"(\d+) kills of (\d+) runs\).* and (\d+) files were damaged.*since the "
              r"last checkpoint, at most ([\d.]+) s",
     kills),
    ("soak_memory", r"(\d+) calls, all answered as by a single thread, by (\d+) compiled "
                    r"programs. The process held (\d+) MB at the end, (\d+) MB more than at half "
                    r"time: (\d+) MB per program", load),
    ("csi", r"an estimation error of (\d+)-(\d+) % of the mean amplitude\), ([a-z ]+) of the "
            r"channels end beyond the deadline", late_on_noise),
]  # fmt: skip
