"""One short ``repr`` for every class of the package: shapes, ranges and units, no long arrays."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import textwrap
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax.units import UNITS

T = TypeVar("T")
WIDTH = 100  # columns
MOST_ENTRIES = 2**22  # of an array that is looked into; of a larger one the shape must do
_GLUE = "\xa0"  # a space at which no line breaks


def short_repr(cls: type[T]) -> type[T]:
    """Give a data class, named tuple or dict a ``repr`` of a few lines.

    It shows numbers, and of arrays the shapes, ranges and units; of traced, deleted and remote
    arrays the shapes alone. Nothing is compiled.
    """
    cls.__repr__ = _write  # type: ignore[method-assign]
    return cls


def _write(self: Any) -> str:
    text = _describe_fields(self)
    wrapped = textwrap.wrap(
        text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(wrapped).replace(_GLUE, " ")


def _describe_fields(value: Any) -> str:
    if isinstance(value, dict):
        fields = dict(value)
    elif isinstance(value, tuple):
        fields = value._asdict()  # type: ignore[attr-defined]
    else:
        names = [field.name for field in dataclasses.fields(value) if field.repr]
        fields = {name: getattr(value, name, None) for name in names}
        if "parent" in {field.name for field in dataclasses.fields(value)}:
            fields.pop("name")  # of a Flax module
    left_out = _left_out(value)  # fields that are None unless asked for
    fields = {n: x for n, x in fields.items() if x is not None or n not in left_out}
    kind = type(value).__name__
    units = {name: UNITS.get(f"{kind}.{name}", UNITS.get(str(name), "")) for name in fields}
    parts = [f"{name}={_describe(x, units[name])}" for name, x in fields.items()]
    return f"{kind}({', '.join(parts)})"


def _left_out(value: Any) -> set[str]:
    """Name the fields whose default is None."""
    if dataclasses.is_dataclass(value):
        return {field.name for field in dataclasses.fields(value) if field.default is None}
    return {name for name, x in getattr(value, "_field_defaults", {}).items() if x is None}


def _describe(value: Any, unit: str) -> str:
    """Describe a field in one line."""
    unit = unit and f" {unit}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _describe_array(value, unit).replace(" ", _GLUE)
    if isinstance(value, (int, float)):
        return (f"{value:.4g}{unit}" if unit else repr(value)).replace(" ", _GLUE)
    if _is_described(value):
        return _describe_fields(value)
    if isinstance(value, (dict, list, tuple)):
        arrays = [x for x in jax.tree.leaves(value) if hasattr(x, "shape") and hasattr(x, "dtype")]
        if arrays:
            number = sum(math.prod(x.shape) for x in arrays)
            return f"{number} numbers in {len(arrays)} arrays".replace(" ", _GLUE)
        if isinstance(value, (list, tuple)) and len(value) > 4:
            return f"{len(value)} from {_shorten(value[0])} to {_shorten(value[-1])}"
    return getattr(value, "__name__", None) or _shorten(value)


def _is_described(value: Any) -> bool:
    return getattr(type(value), "__repr__", None) is _write or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


def _describe_array(x: Any, unit: str) -> str:
    shape = f"{x.dtype}[{','.join(map(str, x.shape))}]"
    if not _is_known(x):
        return shape
    x = np.asarray(x)
    if x.dtype == bool:
        return f"{shape} {np.count_nonzero(x)} of {x.size}" if x.ndim else str(x)
    x = x.astype(np.float64)
    if not x.ndim:
        return f"{x:.4g}{unit}"
    finite = x[np.isfinite(x)]
    if not finite.size:
        return f"{shape} none finite"
    low, high = f"{np.min(finite):.4g}", f"{np.max(finite):.4g}"
    text = f"all {low}{unit}" if low == high else f"{low} to {high}{unit}"
    text += "" if low == high else f", mean {np.mean(finite):.4g}"
    rest = x.size - finite.size
    return f"{shape} {text}" + (f", {rest} not finite" if rest else "")


def _is_known(x: Any) -> bool:
    """Whether an array is here, and real numbers, and not too many."""
    if isinstance(x, jax.Array):
        if isinstance(x, jax.core.Tracer) or x.is_deleted() or not x.is_fully_addressable:
            return False
    elif not isinstance(x, (np.ndarray, np.generic)):
        return False
    real = any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    return real and 0 < x.size <= MOST_ENTRIES


_SHORTENER = reprlib.Repr()
_SHORTENER.maxlevel, _SHORTENER.maxother, _SHORTENER.maxstring = 2, 60, 60


def _shorten(value: Any) -> str:
    return _SHORTENER.repr(value)
