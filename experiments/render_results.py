"""Render the results from the csv: the parts of README.md and RESULTS.md that hold numbers.

A document marks such a part by ``<!-- rendered from TEMPLATE -->`` and ``<!-- end -->``; the
templates are in experiments/templates. There stand

    {{ table:NAME }}           a table of result_tables.TABLES
    {{ value:CSV.NAME|FORM }}  a number of result_values.VALUES, in a format of Python
    {{ claim:CSV.NAME }}       nothing, if what the sentence says holds; else nothing is rendered

Writes the documents again, or with --check says which lines differ and ends with status 1:

    python experiments/render_results.py --check
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any

import claims
import common
import result_tables
from absl import flags
from result_values import VALUES, Values

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(claims)
flags.DEFINE_bool("check", False, "write nothing; say what differs")

ROOT = Path(__file__).parent.parent
DOCUMENTS = "README.md", "experiments/RESULTS.md"
PART = re.compile(r"(<!-- rendered from (\S+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
PLACE = re.compile(r"(\s*)\{\{ (table|value|claim):([\w.]+)(?:\|([^ }]+))? \}\}")


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
        if not FLAGS.check and old != new:
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
    tables = Tables(folder)
    problems = []

    def place(match: re.Match[str]) -> str:
        space, *words = match.groups()
        try:
            written = tables.write(*words)
            return space + written if written else ""
        except (*result_tables.LACKS, AssertionError) as error:
            line = template.count("\n", 0, match.start(2)) + 1
            problems.append((line, f"{match[0].strip()}: {type(error).__name__} {error}"))
            return match[0]

    text = PLACE.sub(place, template)
    for line, words in enumerate(text.splitlines(), 1):
        if "{{" in words and line not in dict(problems):
            problems.append((line, "a placeholder is misspelt"))
    return text, problems


class Tables:
    """The csv of a folder, each read once, and what is written of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._values: dict[str, Values] = {}

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Read a csv."""
        if name not in self._rows:
            self._rows[name] = common.read_csv(self.folder / f"{name}.csv")
        return self._rows[name]

    def write(self, kind: str, name: str, form: str | None) -> str:
        """Write what stands for a placeholder: nothing for a claim that holds."""
        if kind == "table":
            names, function = result_tables.TABLES[name]
            return result_tables.markdown(function(*map(self.rows, names)))
        table, _, key = name.partition(".")
        if table not in self._values:
            self._values[table] = VALUES[table](self.rows(table))
        value = self._values[table][key]
        if kind == "claim":
            if not isinstance(value, bool):
                raise TypeError("is no claim")
            if not value:
                raise AssertionError("does not hold; say what does")
            return ""
        return f"{value:{form or 'g'}}".replace("%", " %").replace(",", " ")


if __name__ == "__main__":
    common.launch(main)
