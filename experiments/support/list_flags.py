"""List flags as integers, numbers and names; lists of numbers may hold ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from absl import flags

from support.common import MOST, stop
from support.csv_tables import cell

FLAGS = flags.FLAGS
MOST_VALUES = 10_000  # in a range of a list flag


def integers(name: str, low: int, different: bool = True) -> list[int]:
    """Read a list flag, see ``_listed``, as integers of at least ``low``, or stop with a line."""
    try:
        values = [int(text) for text in _listed(name)]
    except ValueError:
        values = []
    alike = different and len(set(values)) < len(values)
    if not values or alike or not low <= min(values) <= max(values) <= MOST:
        kind = "different integers" if different else "integers"
        stop(f"--{name} must be {kind} of at least {low}{_got(name)}")
    return values


def numbers(name: str, above: float) -> list[float]:
    """Read a list flag, see ``_listed``, as numbers above a limit, or stop with a clear line.

    "e" is a number too. They must differ as csv and file names show them.
    """
    try:
        values = [math.e if text == "e" else float(text) for text in _listed(name)]
    except ValueError:
        values = []
    alike = len({cell(value) for value in values}) < len(values)
    if not values or alike or not all(above < value < math.inf for value in values):
        stop(f"--{name} must be different finite numbers above {above:g}{_got(name)}")
    return values


def _listed(name: str) -> list[str]:
    """Read a list flag whose parts may be ranges, "start:stop" or "start:stop:step".

    Both ends are included: "2,4:8:2" is 2, 4, 6, 8.
    """
    return [one for text in FLAGS[name].value or [] for one in _range(text)]


def _range(text: str) -> list[str]:
    """Spell out a range; what is none, or has no or too many members, stays as it is."""
    try:
        start, stop, *rest = map(Decimal, text.split(":"))  # decimal: 0.1 is a tenth
        (step,) = rest or (Decimal(1),)
        number = int((stop - start) / step) + 1
    except (ArithmeticError, ValueError):
        return [text]
    if not step.is_finite() or step < 0 or stop < start or number > MOST_VALUES:
        return [text]
    return [f"{start + i * step:f}" for i in range(number)]


def names(name: str, known: Sequence[str]) -> list[str]:
    """Read a list flag as different ones of the known names, or stop with a clear line."""
    values: list[str] = FLAGS[name].value or []
    if not values or not set(values) <= set(known) or len(set(values)) < len(values):
        stop(f"--{name} must be different names among {', '.join(known)}{_got(name)}")
    return values


def _got(name: str) -> str:
    return f"; got {','.join(FLAGS[name].value or []) or 'none'}"
