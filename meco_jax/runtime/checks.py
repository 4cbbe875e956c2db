"""What is said of bad input: ValueErrors that name the argument, the rule and the value.

Nothing is taken whose meaning would be lost on the way to an array of real numbers: imaginary
parts, masks, units, words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHOWN = 60  # most characters of a value in a message
TORCH_RULE = (
    "a tensor without a gradient, which NumPy would lose: pass it by .detach(), or through the "
    "torch.autograd.Function of GUIDE.md"
)
_probe = jax.jit(lambda: np.int32(0))


def inside_trace() -> bool:
    """Tell whether JAX is recording a program here, so that even constants become tracers.

    True in ``jax.jit``, ``scan``, ``cond`` or ``remat``; False in an eager ``grad`` or ``vmap``,
    where what does not depend on the argument is computed at once.
    """
    return isinstance(_probe(), jax.core.Tracer)


def is_traced(*trees: object) -> bool:
    """Tell whether any leaf is known under a transformation only."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def outside_traces(name: str, *arguments: object) -> None:
    """Raise unless a function that loops on the host is called where it can.

    Raises:
        ValueError: if JAX is recording a program, or an argument is traced.
    """
    if is_traced(arguments) or inside_trace():
        raise ValueError(
            f"{name} must be called outside jax.jit, grad, vmap, scan and their like, since it "
            f"loops on the host; got a call under one of them"
        )


def refuse(name: str, rule: str, value: object) -> ValueError:
    """Make the error of an argument: the rule and, in short, the value."""
    shown = repr(value).split("\n")[0]
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    return ValueError(f"{name} must be {rule}; got {shown}")


def real(name: str, value: Any, complex_hint: str = "") -> jax.Array | np.ndarray:
    """Return real numbers as an array: JAX's as it is, all else as NumPy's.

    Args:
        name: of the argument.
        value: a number, array or nested list of numbers.
        complex_hint: what to pass instead of complex numbers.

    Raises:
        ValueError: if it is no array of real numbers: None, words, objects, rows of different
            lengths, booleans, complex numbers, numbers with a unit, masked entries.
    """
    value = to_array(name, value)
    kind = value.dtype
    if getattr(kind, "kind", "") in ("f", "i", "u"):  # the usual case, and quick
        return value  # type: ignore[no-any-return]
    if jnp.issubdtype(kind, jnp.complexfloating):
        raise refuse(name, f"real numbers{complex_hint}", f"{kind} values")
    if not jnp.issubdtype(kind, jnp.floating):  # bfloat16 and its like are
        shown = value if isinstance(value, np.ndarray) and value.ndim == 0 else f"{kind} values"
        raise refuse(name, "real numbers", shown)
    return value  # type: ignore[no-any-return]


def to_array(name: str, value: Any) -> jax.Array | np.ndarray:
    """Return an array of any kind of entries: JAX's as it is, all else as NumPy's.

    Raises:
        ValueError: if it is none: None, words, rows of different lengths, numbers with a unit,
            masked entries, a tensor whose gradient would be lost.
    """
    if type(value) is np.ndarray or isinstance(value, jax.Array):
        return value  # type: ignore[no-any-return]
    if type(value) in (float, int):
        return np.asarray(value)
    if value is None or isinstance(value, (str, bytes, dict, set)):
        raise refuse(name, "real numbers", value)
    if np.ma.is_masked(value):
        raise refuse(name, "numbers without a mask", "masked entries")
    unit = getattr(value, "unit", getattr(value, "units", None))
    if unit is not None:
        raise refuse(name, "plain numbers in SI units", f"numbers in {unit}")
    value = _without_torch(name, value)
    try:
        if is_traced(value):
            return jnp.asarray(value)  # a list of tracers
        return np.asarray(value)
    except Exception:  # rows of different lengths; what other libraries raise where they refuse
        raise refuse(name, "real numbers", value) from None


def _without_torch(name: str, value: Any) -> Any:
    """Return PyTorch's tensors, alone or in lists, as NumPy's arrays, and all else as it is."""
    if isinstance(value, (list, tuple)):
        return [_without_torch(name, x) for x in value] if _holds_torch(value) else value
    if not _is_torch(value):
        return value
    if value.requires_grad:
        raise refuse(name, TORCH_RULE, f"{type(value).__name__} with requires_grad=True")
    try:
        try:
            return value.numpy(force=True)  # from any device
        except TypeError:  # bfloat16 and its like
            return value.float().numpy(force=True)
    except Exception:  # sparse, meta, quantised, or inside a transformation of PyTorch's
        raise refuse(name, "a dense tensor of real numbers", value) from None


def _holds_torch(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_torch, value))
    return _is_torch(value)


def _is_torch(value: Any) -> bool:
    """Tell a tensor, or one of a class made from it, by the name of the module: no dependency."""
    classes = type(value).__mro__
    return any(c.__module__.partition(".")[0] == "torch" for c in classes) and hasattr(
        value, "requires_grad"
    )


def flags(name: str, value: Any) -> jax.Array | np.ndarray:
    """Return booleans as an array that is nobody else's; 0 and 1 are as good.

    Raises:
        ValueError: if they are neither.
    """
    value = to_array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.bool_):
        value = real(name, value)
        if not is_traced(value) and not np.all((value == 0) | (value == 1)):
            raise refuse(name, "True or False", np.asarray(value))
    return value if value.dtype == bool and isinstance(value, jax.Array) else value.astype(bool)


def require(name: str, value: Any, low: float, included: bool, hint: str = "") -> None:
    """Raise a ValueError that names the argument, the rule and the first offending value.

    A value is judged as it is computed with: what rounds to 0 or overflows is out of range.

    Args:
        name: of the argument.
        value: a number or array; traced ones are passed over.
        low: end of the range.
        included: whether the end is allowed.
        hint: added where a value is below the range.
    """
    if isinstance(value, jax.core.Tracer):
        return
    given = np.asarray(real(name, value))
    used = as_floats(given)
    good = in_range(used, low, included)
    if good.all():
        return
    rule = f"finite and {'at least' if included else 'above'} {low:g}"
    first, rounded = given[~good].flat[0], used[~good].flat[0]
    note = "" if rounded == first or rounded != rounded else f", {rounded} in {used.dtype}"
    raise ValueError(f"{name} must be {rule}; got {first}{note}{hint if first < low else ''}")


def per_device(name: str, value: Any, num_devices: int, what: str) -> Any:
    """Return numbers or booleans ``[..., K]`` as floats.

    Raises:
        ValueError: if they are no real numbers, or not one ``what`` per device.
    """
    value = to_array(name, value)
    if jnp.issubdtype(value.dtype, jnp.bool_):
        value = value.astype(jnp.result_type(float))
    value = real(name, value)
    if not value.shape or value.shape[-1] != num_devices:
        raise ValueError(
            f"{name} must have one {what} for each of {num_devices} devices; got shape "
            f"{value.shape}{turned(name, value.shape, num_devices)}"
        )
    return as_floats(value)


def zero_or_one(name: str, value: Any) -> None:
    """Raise a ValueError unless all numbers are 0 or 1; traced ones are passed over."""
    if is_traced(value):
        return
    wrong = np.asarray(value)
    wrong = wrong[(wrong != 0) & (wrong != 1)]
    if wrong.size:
        raise refuse(name, "0 or 1", wrong.flat[0].item())


def broadcast(
    shapes: Mapping[str, tuple[int, ...]], cores: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[int, ...]:
    """Broadcast batch axes, by the name of the argument that has them.

    Args:
        shapes: batch axes by name.
        cores: the axes after these by name, where there are any.

    Raises:
        ValueError: if they do not fit.
    """
    together: tuple[int, ...] = ()
    for name, shape in shapes.items():
        try:
            together = np.broadcast_shapes(together, shape)
        except ValueError:
            pairs = (*shape, *[1] * len(together), *(cores or {}).get(name, ()))
            index = ", ".join([":"] * len(shape) + ["None"] * len(together))
            raise ValueError(
                f"{name} must have batch axes that broadcast against {together}; got {shape}. If "
                f"every pair is meant, pass {_short(name)}[{index}] of shape {pairs}: the answers "
                f"are then {(*shape, *together)}"
            ) from None
    return together


def turned(name: str, shape: tuple[int, ...], num_devices: int) -> str:
    """Say what to pass where the devices are on another axis than the last, as MATLAB has them."""
    name = _short(name)
    if len(shape) > 1 and set(shape) == {1}:
        return f": pass {name}.item()"
    if shape == (num_devices, 1):
        return f": pass {name}[:, 0] of shape {shape[:1]}"
    if len(shape) == 2 and shape[0] == num_devices:
        return f": pass {name}.T of shape {shape[::-1]}"
    return ""


def _short(name: str) -> str:
    """Return a field's name as it is given to its class."""
    return name.rpartition(".")[2]


def in_range(value: Any, low: float, included: bool) -> Any:
    """Tell which values are finite and in range: JAX's or NumPy's booleans."""
    return ((value >= low) if included else (value > low)) & (value < np.inf)


def as_floats(value: Any) -> Any:
    """Cast to the floats that JAX computes with: NumPy's stay NumPy's, jit takes them quickest.

    NumPy's are copied, since a program may still read its arguments after a call has returned,
    when the caller writes the next slot into the same array.
    """
    kind = np.float64 if jax.config.jax_enable_x64 else np.float32  # type: ignore[attr-defined]
    if value.dtype == kind and isinstance(value, jax.Array):
        return value
    with np.errstate(over="ignore", under="ignore"):
        return value.astype(kind)


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return a whole number in a range, Python's or NumPy's.

    Raises:
        ValueError: if it is none: a boolean, a float, an array, or out of range.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if whole and value >= low and (high is None or value <= high):
        return int(value)
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise refuse(
        name, f"at least {low}" if whole and high is None else f"an integer {limits}", value
    )


def one_number(name: str, value: Any) -> jax.Array | np.ndarray:
    """Return one real number.

    Raises:
        ValueError: if it is none, or an array of several.
    """
    number = real(name, value)
    if number.shape:
        raise refuse(name, "one number", value)
    return number
