"""Checks the results that are committed: the documents against the csv, the csv by fresh runs.

1. "documents": what render_results.py renders from the csv in experiments/figures/ must be what
   README.md and RESULTS.md say, line by line.
2. Fresh runs of the quick presets, each a process of its own in --output_dir/NAME, are compared
   with the committed csv. They have other channels, fewer of them, and short trainings, so each
   check states its tolerance. A run that is finished is not run again by the same command.

Prints a Markdown table, writes reproduce.csv and run.json into --output_dir, and ends with
status 1 if anything does not hold. Example:

    python experiments/reproduce.py --output_dir=runs/reproduce
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paper_claims
import render_results
from absl import flags
from report import result_tables
from support import common, csv_tables, progress_bar

Row = dict[str, Any]


class Run(NamedTuple):
    """A fresh run, and what of it is compared with experiments/figures/NAME.csv."""

    script: str
    flags: tuple[str, ...]
    place: tuple[str, ...]  # columns that tell which rows belong together
    file: str = "results.csv"


FOLDER = Path(__file__).parent
LANE = "num_devices", "slot", "seed", "scheme"
CASE = "num_devices", "log_base", "slot"
RUNS = {
    "figure4": Run("sweep_k", (f"--flagfile={FOLDER}/flags/quick.flags",), LANE),
    "figure5": Run("sweep_t", (f"--flagfile={FOLDER}/flags/quick_t.flags",), LANE),
    "figure6": Run("delay_cdf", (f"--flagfile={FOLDER}/flags/quick_cdf.flags",), LANE),
    "plane": Run("plane", (f"--flagfile={FOLDER}/flags/quick_plane.flags",), LANE),
    "certify": Run("certify", ("--num_devices=4,14,20", "--channels=200", "--seed=1"), CASE),
    "policy": Run(
        "evaluate_policy",
        ("--num_devices=4,14,20", "--channels=400", "--beyond_channels=50", "--panels=slot",
         "--seed=20000000"), CASE, "gaps.csv",
    ),
    "frontier": Run(
        "frontier",
        ("--num_devices=14", "--channels=256", "--epochs=20", "--slow_channels=8",
         "--nonlinear_channels=0", "--latency_calls=20", "--repeats=2"), ("num_devices", "method"),
    ),
    "scale": Run("scale", ("--num_devices=10,100,1000", "--work=8192"), ("num_devices",)),
}  # fmt: skip
PARTS = ("documents", *RUNS)

FLAGS = flags.FLAGS
common.define_flags()
flags.adopt_module_key_flags(paper_claims)
flags.DEFINE_multi_enum("only", list(PARTS), list(PARTS), "what to check; may be given again")


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    committed: str
    fresh: str
    tolerance: str
    holds: bool
    used: str = ""  # part of the tolerance that is used up


class Pair(NamedTuple):
    """A committed and a fresh number of the same place."""

    place: str
    old: float
    new: float
    miss: float  # how far they are apart, in units of what is allowed


def main(argv: list[str]) -> None:
    """Check part by part; each one's findings are in the csv at once."""
    common.begin(argv)
    folder = common.prepare(resumes=True)
    findings = find(folder)
    report(findings)
    bad = sum(not each["holds"] for each in findings)
    common.write_run(folder / "run.json", checks=len(findings), failed=bad)
    print(f"{len(findings) - bad} of {len(findings)} hold; wrote {folder}")
    sys.exit(bad > 0)


def find(folder: Path) -> list[Row]:
    """Check all parts that are asked for."""
    tables = Path(FLAGS.tables)
    findings: list[Row] = []
    with progress_bar.Bar(len(FLAGS.only)) as bar:
        for part in FLAGS.only:
            bar.advance(0, part)
            if part in RUNS:
                found = compare(part, tables, fresh(part, folder))
            else:
                found = list(documents(tables))
            findings += [{"part": part, **each._asdict()} for each in found]
            csv_tables.write_csv(folder / "reproduce.csv", findings)
            common.write_run(folder / "run.json", finished=False)
            bar.advance(1, part)
    return findings


def documents(tables: Path) -> Iterator[Finding]:
    """Compare every document with what the csv render: its lines that differ, and the whole."""
    for name in render_results.DOCUMENTS:
        old = (render_results.ROOT / name).read_text()
        both = old.splitlines(), render_results.render(old, tables).splitlines()
        pairs = enumerate(itertools.zip_longest(*both, fillvalue=""), 1)
        wrong = [
            Finding(f"{name}, line {line}", mine, true, "the digits printed", False)
            for line, (mine, true) in pairs if mine != true
        ]  # fmt: skip
        yield from wrong
        mine, true = (f"{len(lines)} lines" for lines in both)
        yield Finding(f"{name}, the whole", mine, true, "the digits printed", not wrong)


def report(findings: list[Row]) -> None:
    """Print the Markdown table."""
    titles = "part", "what", "committed", "fresh", "tolerance", "holds", "used"
    cells = [each | {"holds": "yes" if each["holds"] else "NO"} for each in findings]
    lines = [[text.replace("|", "/") for text in each.values()] for each in cells]
    result_tables.show([list(titles), *lines])


def fresh(name: str, folder: Path) -> list[Row]:
    """Run an experiment, unless the same command has finished before: its rows."""
    run, done, log = RUNS[name], folder / f"{name}.done", folder / f"{name}.log"
    command = [sys.executable, str(FOLDER / f"{run.script}.py"), *run.flags]
    command += [f"--output_dir={folder / name}"]
    wanted = " ".join(command[1:])  # by whatever Python
    if not done.exists() or done.read_text() != wanted:
        with open(log, "w") as output:
            status = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
        if status:
            common.stop(f"{run.script}.py ended with status {status}, see {log}", 1)
        done.write_text(wanted)
    return csv_tables.read_csv(folder / name / run.file, (), run.place)


def compare(name: str, tables: Path, new: list[Row]) -> list[Finding]:
    """Check the fresh rows of a run against the committed ones."""
    old = csv_tables.read_csv(tables / f"{name}.csv", (), RUNS[name].place)
    places = {tuple(row[column] for column in RUNS[name].place): row for row in old}
    rows = [(places.get(tuple(r[column] for column in RUNS[name].place)), r) for r in new]
    both = [(before, after) for before, after in rows if before]
    findings = []
    for what, check, tolerance in CHECKS[name]:
        try:
            findings.append(judge(what, check(both), tolerance))
        except result_tables.LACKS as error:
            findings.append(Finding(what, "", result_tables.lacks(error), tolerance, False))
    return findings


def judge(what: str, pairs: Iterator[Pair], tolerance: str) -> Finding:
    """Report the worst of a check's places; a check without places does not hold.

    Where nothing is feasible there is no number (NaN), and nothing to compare.
    """
    found = [pair for pair in pairs if not np.isnan(pair.miss)]
    if not found:
        return Finding(what, "", "", tolerance, False)
    worst = max(found, key=lambda pair: pair.miss)
    text = f"{what}, worst of {len(found)}: {worst.place}"
    numbers = f"{worst.old:.4g}", f"{worst.new:.4g}"
    return Finding(text, *numbers, tolerance, bool(worst.miss <= 1), f"{100 * worst.miss:.0f} %")


Both = list[tuple[Row, Row]]  # committed and fresh rows of the same places
Check = Callable[[Both], Iterator[Pair]]


def place(row: Row) -> str:
    """Write where a row stands."""
    short = {"num_devices": "K", "slot": "T", "log_base": "b", "seed": "seed", "method": "",
             "scheme": ""}  # fmt: skip
    words = [f"{short[n]} = {row[n]:.3g}" if short[n] else row[n] for n in short if n in row]
    return ", ".join(words)


def errors(both: Both, scheme: str, most: float = 4) -> Iterator[Pair]:
    """Mean energies apart in standard errors of both, from cost_ci95_j."""
    for old, new in both:
        if old["scheme"] == scheme:
            a, b = old["cost_mean_j"], new["cost_mean_j"]
            error = np.hypot(old["cost_ci95_j"], new["cost_ci95_j"]) / 1.96 + 1e-6 * a
            yield Pair(place(new), a, b, abs(a - b) / error / most)


def shares(both: Both, column: str, channels: tuple[int, int], most: float = 4) -> Iterator[Pair]:
    """Shares of channels apart in standard errors of the two numbers of channels."""
    for old, new in both:
        p, q = old[column], new[column]
        mean = (p * channels[0] + q * channels[1]) / sum(channels)
        error = np.sqrt(mean * (1 - mean) * sum(1 / n for n in channels)) + 1 / min(channels)
        if old.get("scheme", "optimal") == "optimal":
            yield Pair(place(new), p, q, abs(p - q) / error / most)


def factor(both: Both, column: str, most: float, **only: str) -> Iterator[Pair]:
    """Numbers apart by a factor."""
    for old, new in both:
        if all(old[name] == value for name, value in only.items()):
            apart = abs(np.log(new[column] / old[column]))
            yield Pair(place(new), old[column], new[column], apart / np.log(most))


def exact(both: Both, column: str, value: float) -> Iterator[Pair]:
    """Fresh numbers that must be one value, where there is any."""
    for old, new in both:
        if not np.isnan(new[column]):
            yield Pair(place(new), old[column], new[column], 2.0 * (new[column] != value))


def near(both: Both, column: str, most: float, least: float = 0, **only: str) -> Iterator[Pair]:
    """Numbers apart by a difference, where at least the share ``least`` is feasible."""
    for old, new in both:
        enough = old.get("feasible_fraction", 1) >= least
        if enough and all(old[name] == value for name, value in only.items()):
            apart = abs(new[column] - old[column])
            yield Pair(place(new), old[column], new[column], apart / most)


def order(both: Both, low: str, high: str) -> Iterator[Pair]:
    """Fresh energies over those of a scheme that no place may pass: ratios of at least 1."""
    cells = [{(r["num_devices"], r["slot"], r["seed"], r["scheme"]): r["cost_mean_j"]
              for r in rows} for rows in zip(*both)]  # fmt: skip
    for *where, scheme in cells[1]:
        if scheme == low:
            old, new = (cell[(*where, high)] / cell[(*where, low)] for cell in cells)
            name = "K = {:g}, T = {:g}, seed = {:g}".format(*where)
            yield Pair(name, old, new, 2.0 * (new < 1 - 1e-5) + 1 / new / 2)


def speedup(both: Both, slow: str, most: float) -> Iterator[Pair]:
    """How many times faster ``solve`` is than a method, by a factor."""
    rates = [{r["method"]: r["channels_per_second"] for r in rows} for rows in zip(*both)]
    if slow in rates[1]:
        old, new = (rate["solve, certified"] / rate[slow] for rate in rates)
        yield Pair(slow, old, new, abs(np.log(new / old)) / np.log(most))


def slopes(both: Both, most: float) -> Iterator[Pair]:
    """Slopes of ln time over ln K at the same K, by a difference."""
    old, new = (result_tables.slope(list(rows)) for rows in zip(*both))
    yield Pair("all K", old, new, abs(old - new) / most)


SIGMA = "4 standard errors"


def energies(channels: tuple[int, int]) -> list[tuple[str, Check, str]]:
    """Checks of the runs that train: same tasks, other channels, shorter trainings."""
    exactly = [(f"mean energy of {name} [J]", partial(errors, scheme=name), SIGMA)
               for name in ("optimal", "lower_bound", "pcos", "mcos")]  # fmt: skip
    share = partial(shares, column="infeasible_fraction", channels=channels)
    trained = [(f"mean energy of {name} [J]", partial(factor, column="cost_mean_j", most=most,
                                                      scheme=name), f"a factor of {most}")
               for name, most in (("bcos_improved", 1.2), ("bcos", 2), ("bcos_raw", 2),
                                  ("pcos_learned", 2))]  # fmt: skip
    ordered = [(f"energy of {high} over {low}", partial(order, low=low, high=high), "at least 1")
               for low, high in (("pcos", "optimal"), ("lower_bound", "optimal"), (
                   "optimal", "bcos_improved"), ("bcos_improved", "mcos"))]  # fmt: skip
    return [*exactly, ("infeasible channels", share, SIGMA), *trained, *ordered]


CHECKS: dict[str, list[tuple[str, Check, str]]] = {
    "figure4": energies((2000, 1000)),
    "figure5": energies((2000, 1000)),
    "figure6": energies((5000, 1000)),
    # The committed run has no projected decisions.
    "plane": [one for one in energies((1000, 500)) if one[0] != "mean energy of bcos [J]"],
    "certify": [
        *((f"{column} by solve", partial(exact, column=column, value=value), f"exactly {value}")
          for column, value in (("certified", 1), ("optimal_fraction", 1), ("false_bounds", 0))),
        ("certified by one stage", partial(near, column="certified_one_stage", most=0.05), "0.05"),
        ("feasible channels",
         partial(shares, column="feasible_fraction", channels=(2000, 200)), SIGMA),
    ],
    "policy": [
        ("channels feasible for one of policy and optimum alone",
         partial(exact, column="missed", value=0), "exactly 0"),
        *((f"mean gap at {name}", partial(near, column=f"{name}_gap_mean", most=most, least=0.1),
           f"{most}, where a tenth is feasible")
          for name, most in (("effort_0", 0.006), ("effort_4", 0.002), ("effort_6", 0.001))),
        ("feasible channels",
         partial(shares, column="feasible_fraction", channels=(2000, 400)), SIGMA),
    ],
    "frontier": [
        *((f"worst gap of {name}", partial(near, column="gap_worst", most=2e-4, method=name),
           "0.0002") for name in ("solve, certified", "search on the host")),
        *((f"solve's speed over {name}", partial(speedup, slow=name, most=6), "a factor of 6")
          for name in ("search on the host", "Clarabel, branch and bound", "SCIP, tangents")),
    ],
    "scale": [
        ("slope of ln time over ln K", partial(slopes, most=0.3), "0.3"),
        ("mean proven gap", partial(near, column="gap_mean", most=1e-3), "0.001"),
        ("memory per channel [byte]", partial(factor, column="bytes_per_channel", most=3),
         "a factor of 3"),
    ],
}  # fmt: skip


if __name__ == "__main__":
    common.launch(main)
