"""The arguments of a call: gains, systems and decisions as floats whose batch axes fit."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from meco_jax import system as sy
from meco_jax.runtime.checks import broadcast, is_traced, per_device, refuse, turned
from meco_jax.runtime.memory import once_per_system
from meco_jax.system import ArrayLike, System

P = ParamSpec("P")
R = TypeVar("R")


def gains_first(function: Callable[P, R]) -> Callable[P, R]:
    """Take the system before the gains too, as older versions did, with a DeprecationWarning.

    Args:
        function: of arguments ``h, system`` one after the other.
    """
    names = list(inspect.signature(function).parameters)
    place = names.index("h")

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> R:
        first, rest = arguments[:place], list(arguments[place:])
        if rest and isinstance(rest[0], System) and (rest[1:] or "h" in named):
            order = f"{function.__name__}({', '.join(names[: place + 2])}, ...)"
            rule = f"{function.__name__} takes gains before the system, {order}"
            warnings.warn(f"{rule}; the other order will go", DeprecationWarning, stacklevel=2)
            system = rest.pop(0)
            h = named.pop("h") if "h" in named else rest.pop(0)
            arguments = *first, h, system, *rest
        return function(*arguments, **named)  # type: ignore[arg-type]

    return call


def check_order(name: str, h: Any) -> None:
    """Raise a ValueError if a system stands where the gains belong."""
    if isinstance(h, System):
        raise ValueError(
            f"h must be gains [..., K], and the system comes second, {name}(h, system); got a "
            f"System first"
        )


def check_call(h: ArrayLike, system: System) -> tuple[jax.Array, System]:
    """Return gains and system as floats whose batch axes fit each other.

    Raises:
        ValueError: if a value or a shape is wrong.
    """
    system = sy.check_system(system)
    h = sy.check_channels(h, system.num_devices)
    check_batch(system, h)
    return h, system


def check_decision(offload: ArrayLike, system: System, h: jax.Array) -> jax.Array:
    """Return decisions ``[..., K]`` for a checked system and gains as floats.

    Raises:
        ValueError: if there is not one per device, its batch axes do not fit, or a decision is
            known and not from 0 to 1.
    """
    decision = per_device("offload", offload, system.num_devices, "decision")
    if not is_traced(decision):
        wrong = np.asarray(decision)
        wrong = wrong[~((wrong >= 0) & (wrong <= 1))]
        if wrong.size:
            raise refuse("offload", "from 0 to 1", wrong.flat[0])
    check_batch(system, h, decision)
    return decision  # type: ignore[no-any-return]


def _batch_shapes(system: System, *arrays: jax.Array) -> dict[str, tuple[int, ...]]:
    """Name the batch axes that gains, decisions and fields bring along."""
    names = "h", "offload", *(f"arrays[{i}]" for i in range(1, len(arrays)))
    return {n: x.shape[:-1] for n, x in zip(names, arrays)} | _field_shapes(system)


@once_per_system
def _field_shapes(system: System) -> dict[str, tuple[int, ...]]:
    """Name the batch axes that fields bring along, where there are any."""
    shapes = {}
    for name, leaf in sy.leaves(system).items():
        shape, rank = np.shape(leaf), sy.core_rank(system, name)
        if len(shape) > rank:
            shapes[f"system.{name}"] = shape[: len(shape) - rank]
    return shapes


@once_per_system
def core_ranks(system: System) -> dict[str, int]:
    """Name the fields, and how many of their last axes belong to one system of a batch."""
    return {name: sy.core_rank(system, name) for name in sy.leaves(system)}


def core_leaves(system: System, convert: Callable[[Any], Any]) -> dict[str, tuple[Any, int]]:
    """Name the fields as arrays, with how many of their last axes belong to one system.

    Args:
        system: a checked one.
        convert: makes a field an array.
    """
    found = {}
    for name, rank in core_ranks(system).items():
        leaf = convert(getattr(system, name))
        found[name] = (leaf[..., 0], 0) if sy.is_number(system, name) else (leaf, rank)
    return found


def batch_shape(system: System, *arrays: jax.Array) -> tuple[int, ...]:
    """Broadcast the batch axes of arrays ``[..., K]`` and of all fields."""
    shapes = _batch_shapes(system, *arrays).values()
    return np.broadcast_shapes(*(shape for shape in shapes if shape))


def check_batch(system: System, *arrays: jax.Array) -> None:
    """Check that batch axes fit, and that no scalar was meant as one value per device.

    Raises:
        ValueError: if they do not broadcast; if a scalar's last axis is as long as there are
            devices, and no field of the devices says that so many systems are meant.
    """
    shapes = _batch_shapes(system, *arrays)
    if not any(shapes.values()):
        return
    number = arrays[0].shape[-1]
    fields = {f"system.{name}" for name in sy.per_device(system)}
    for name, shape in shapes.items():
        if (
            name in fields
            or not name.startswith("system.")
            or shape[-1:] != (number,)
            or number < 2
        ):
            continue
        # Channels of a sweep of slots or bases may bring the axis along: no device has its own.
        others = fields | ({"h"} if name in ("system.slot", "system.log_base") else set())
        if not any(shapes.get(other, ())[-1:] == (number,) for other in others):
            raise _per_device_error(system, name.removeprefix("system."), shape)
    leaves = {f"system.{name}": np.shape(leaf) for name, leaf in sy.leaves(system).items()}
    broadcast(shapes, {n: leaves.get(n, (*s, number))[len(s) :] for n, s in shapes.items()})


def _per_device_error(system: System, name: str, shape: tuple[int, ...]) -> ValueError:
    """Make the error of a number per system whose last axis is as long as there are devices."""
    rows = [field for field in sy.PER_DEVICE if np.shape(getattr(system, field))[:-1] == (1,)]
    if rows and name in sy.FLEXIBLE and len(shape) == 1:  # beside rows from a .mat file
        return ValueError(
            f"system.{name} must have the shape of system.{rows[0]}, {(1, *shape)}, for an entry "
            f"per device; got shape {shape}: pass {name}[None], or {rows[0]}[0] of shape {shape}"
        )
    whole = np.shape(getattr(system, name))
    index = ", ".join([*[":"] * len(shape), "None"])
    column = turned(name, whole, shape[-1]).replace("pass", "for an entry per device pass")
    return ValueError(
        f"system.{name} must be one value for all devices of a system; got shape {whole} for "
        f"{shape[-1]} devices{column}. If {shape[-1]} systems are meant, pass {name}[{index}] of "
        f"shape {(*shape, 1, *whole[len(shape) :])}, or give task_bits the axis too"
    )
