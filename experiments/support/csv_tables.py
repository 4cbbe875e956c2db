"""Tables as csv: what the scripts write, and what they read, touched by whatever program."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meco_jax.runtime.atomic import write_atomically
from support.common import stop

WORDS = (
    "scheme",
    "method",
    "family",
    "script",
    "quantity",
    "what",
    "unit",
    "piece",
    "sweep",
    "access",
    "decision",
    "played",
)  # columns that are no numbers


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns as csv; NaN is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: cell(value) for name, value in row.items()})
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def read_csv(
    path: Path,
    columns: Sequence[str] = (),
    place: Sequence[str] = (),
    whole: bool = False,
    **needs: Sequence[Any],
) -> list[dict[str, Any]]:
    """Read what ``write_csv`` wrote, or stop with a line that names file, place and rule.

    Other programs may have added a byte order mark, CRLF, or columns that are not asked for.

    Args:
        path: the file.
        columns: those to read, by default all: numbers, empty ones NaN, but for those of words.
        place: columns that tell rows apart: no two rows are alike in all of them.
        whole: there is a row for every combination of the values in ``place``.
        needs: by column, values that must be there.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        stop(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        stop(f"{path} must be UTF-8 text")
    if not text.endswith(("\n", "\r")):
        stop(f"{path} must end with a line break; it is {'cut off' if text else 'empty'}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, fields) for fields in reader if any(fields)]
    except csv.Error as error:
        stop(f"{path}, line {reader.line_num}: {error}")
    header = lines[0][1] if lines else []
    if len(header) == 1 and ";" in header[0]:
        stop(f"{path} must have commas between its columns; got semicolons")
    for name in columns or header:
        if header.count(name) != 1:
            stop(f"{path} must have one column {name or 'by each name'}; got {', '.join(header)}")
    if len(lines) < 2:
        stop(f"{path} must have rows; got {'the header alone' if header else 'none'}")
    rows, seen = list[dict[str, Any]](), dict[tuple[Any, ...], int]()
    for line, fields in lines[1:]:
        if len(fields) != len(header):
            stop(f"{path}, line {line} must have {len(header)} fields; got {len(fields)}")
        cells = dict(zip(header, fields))
        rows.append({name: _value(path, line, name, cells[name]) for name in columns or header})
        at = tuple(rows[-1][name] for name in place)
        if any(value != value for value in at):
            stop(f"{path}, line {line} must have {' and '.join(place)}; got {_where(place, at)}")
        if place and at in seen:
            stop(f"{path}, line {line} must differ from line {seen[at]}; got {_where(place, at)}")
        seen[at] = line
    for at in itertools.product(*map(dict.fromkeys, zip(*seen))) if whole else ():
        if at not in seen:
            stop(f"{path} must have a row for {_where(place, at)}")
    for name, values in needs.items():
        for value in values:
            if not any(row[name] == value for row in rows):
                stop(f"{path} must have rows for {_where([name], [value])}")
    return rows


def _value(path: Path, line: int, name: str, text: str) -> Any:
    """Read a cell."""
    rule = "a number or empty"
    if name in WORDS:
        rule = "a name"
        if text:
            return text
    else:
        with contextlib.suppress(ValueError):
            return float(text or "nan")
    stop(f"{path}, line {line}: {name} must be {rule}; got {text!r}")


def _where(place: Sequence[str], at: Sequence[Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in zip(place, map(cell, at)))


def cell(value: Any) -> Any:
    """Write a number as csv has it: NaN is an empty field."""
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.8g}"
    return value
