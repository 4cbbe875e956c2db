"""Render the results from the csv: the parts of README.md and RESULTS.md that hold numbers.

A document marks such a part by ``<!-- rendered from TEMPLATE -->`` and ``<!-- end -->``; the
templates are in experiments/templates. There stand

    {{ table:NAME }}                 a table of result_tables.TABLES
    {{ mean:CSV.COLUMN WHERE|FORM }} the mean of the rows for which all of WHERE holds, such as
                                     scheme=bcos or slot>=0.9, in a format of Python; least and
                                     most are extremes of the means over seeds
    {{ value:CSV.NAME|FORM }}        a number of result_values.VALUES
    {{ claim:CSV.NAME }}             nothing, if what the sentence says holds, by VALUES; where
                                     one does not, nothing is rendered

Writes the documents again, or with --check says which lines differ and ends with status 1:

    python experiments/render_results.py --check
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paper_claims
from absl import flags
from report import result_tables
from report.result_values import VALUES, Values
from support import common, csv_tables

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(paper_claims)
flags.DEFINE_bool("check", False, "write nothing; say what differs")

ROOT = Path(__file__).parent.parent
DOCUMENTS = "README.md", "experiments/RESULTS.md"
PART = re.compile(r"(<!-- rendered from (\S+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
PLACE = re.compile(r"(\s*)\{\{ (\w+):([^|}]+)(?:\|(\S+))? \}\}")
COMPARE = {"=": operator.eq, ">=": operator.ge, "<=": operator.le}
REDUCE: dict[str, Any] = {"mean": np.mean, "least": np.min, "most": np.max}
LANE = (  # rows differ by seed alone
    "num_devices", "slot", "scheme", "multiplier_step", "margin", "piece", "sweep", "access",
    "value",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Render every document."""
    common.begin(argv)
    differ = False
    for name in DOCUMENTS:
        old = (ROOT / name).read_text()
        new = render(old, Path(FLAGS.tables))
        for line in difflib.unified_diff(old.splitlines(), new.splitlines(), name, "csv", n=0):
            print(line)
        differ |= old != new
        if not FLAGS.check:
            (ROOT / name).write_text(new)
    sys.exit(FLAGS.check and differ)


def render(document: str, folder: Path) -> str:
    """Fill the rendered parts of a document anew, or stop and name all that cannot be."""
    problems: list[str] = []

    def part(match: re.Match[str]) -> str:
        template = ROOT / "experiments" / "templates" / match[2]
        text, found = fill(template.read_text(), folder)
        problems.extend(f"{match[2]}, line {line}: {problem}" for line, problem in found)
        return match[1] + text

    text = PART.sub(part, document)
    if problems:
        common.stop("\n".join(problems))
    return text


def fill(template: str, folder: Path) -> tuple[str, list[tuple[int, str]]]:
    """Fill a template: its text, and by line what is unknown, or claimed and false."""
    problems = []

    def place(match: re.Match[str]) -> str:
        try:
            written = write(folder, match[2], match[3].strip(), match[4] or "g")
            return match[1] + written if written else ""
        except (*result_tables.LACKS, AssertionError) as error:
            line = template.count("\n", 0, match.start(2)) + 1
            problems.append((line, f"{match[0].strip()}: {type(error).__name__} {error}"))
            return ""

    text = PLACE.sub(place, template)
    if "{{" in text:
        problems.append((0, "a placeholder is misspelt: " + text[text.index("{{") :][:40]))
    return text, problems


def write(folder: Path, kind: str, name: str, form: str) -> str:
    """Write what stands for a placeholder: nothing for a claim that holds."""
    if kind == "table":
        names, function = result_tables.TABLES[name]
        return result_tables.markdown(function(*(read(folder / f"{n}.csv") for n in names)))
    path, _, key = name.partition(".")
    if kind in REDUCE:
        number = reduce(read(folder / f"{path}.csv"), kind, *shlex.split(key))
    else:
        number = derive(folder, path)[key]
    if isinstance(number, bool) != (kind == "claim"):
        raise TypeError("takes a number for a claim, or a claim for a number")
    if kind == "claim":
        if not number:
            raise AssertionError("does not hold; say what does")
        return ""
    return f"{number:{form}}".replace("%", " %").replace(",", " ")


def reduce(rows: list[dict[str, Any]], kind: str, column: str, *where: str) -> float:
    """Average over seeds, if there are any, then take the mean, the least or the most."""
    for name, compare, text in (
        re.split("(>=|<=|=)", condition, maxsplit=1) for condition in where
    ):
        rows = [r for r in rows if COMPARE[compare](r[name], type(r[name])(text))]
    groups: dict[Any, list[float]] = {}
    for number, row in enumerate(rows):
        lane = tuple(row.get(name) for name in LANE) if "seed" in row else number
        if row[column] == row[column]:
            groups.setdefault(lane, []).append(row[column])
    if not groups:
        raise ValueError("no such row")
    return float(REDUCE[kind]([np.mean(group) for group in groups.values()]))


read = functools.cache(csv_tables.read_csv)


@functools.cache
def derive(folder: Path, name: str) -> Values:
    """Derive the values of a csv."""
    return VALUES[name](read(folder / f"{name}.csv"))


if __name__ == "__main__":
    common.launch(main)
