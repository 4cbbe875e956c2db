"""What is worked out once per system, since a service solves the same one slot after slot."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

Found = TypeVar("Found")
Contents = list[tuple[np.ndarray, bytes]]
MOST_BYTES = 2**20  # of an array that is compared at each call; longer ones are checked anew
_ours: dict[int, weakref.ref[Any]] = {}  # systems that were made here, which nobody writes into


def once_per_system(function: Callable[..., Found]) -> Callable[..., Found]:
    """Remember what ``function(system, *integers)`` returns, for as long as the system lives.

    Whoever made the system may write into its arrays, or into what they are views of, read-only
    views too: they are compared with what they held. A system that such a function returns is
    private, and must share no memory of NumPy's with the one that was given.
    """
    known: dict[Any, tuple[weakref.ref[Any], Contents, Found]] = {}

    @functools.wraps(function)
    def call(system: Any, *integers: int) -> Found:
        x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
        place = (id(system), x64, *integers)
        entry = known.get(place)
        if entry is not None and entry[0]() is system and _unchanged(entry[1]):
            return entry[2]
        contents = _contents(system)  # before they are used: another thread may write
        found = function(system, *integers)
        if contents is not None:
            known[place] = _forget(known, place, system), contents, found
            if type(found) is type(system):
                _ours[id(found)] = _forget(_ours, id(found), found)
        return found

    return call


def _forget(known: dict[Any, Any], place: Any, system: Any) -> weakref.ref[Any]:
    """Refer to a system, and let go of what is known of it when it dies."""
    return weakref.ref(system, lambda _: known.pop(place, None))


def _unchanged(contents: Contents) -> bool:
    return all(array.tobytes() == held for array, held in contents)


def _contents(system: Any) -> Contents | None:
    """Return the arrays of a system that may be written, and what they hold.

    None where it cannot be remembered: a field is traced, a list, or a long array of NumPy's.
    """
    ours = _ours.get(id(system))
    if ours is not None and ours() is system:
        return []
    contents = []
    for leaf in getattr(system, "__dict__", {"none": {}}).values():
        array = _view_on_host(leaf) if isinstance(leaf, jax.Array) else leaf
        if isinstance(array, np.ndarray) and array.nbytes <= MOST_BYTES:
            contents.append((array, array.tobytes()))
        elif not _is_constant(leaf):
            return None
    return contents


def _view_on_host(leaf: jax.Array) -> np.ndarray | None:
    """Return the memory of JAX's array, which ``device_put`` and DLPack share with others'.

    None for what is traced, long, or on another device, where nobody can write from outside.
    """
    if isinstance(leaf, jax.core.Tracer) or leaf.is_deleted() or leaf.nbytes > MOST_BYTES:
        return None
    local = all(device.platform == "cpu" for device in leaf.devices())
    readable = local and leaf.is_fully_addressable and isinstance(leaf.dtype, np.dtype)
    return np.asarray(leaf) if readable else None


def _is_constant(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return not isinstance(leaf, jax.core.Tracer)
    return leaf is None or isinstance(leaf, (bool, int, float, str, np.generic))
