"""Arithmetic in pairs (value, rest): the sum of the two has twice the digits of one float.

Float sums and products keep their rounding errors here, so that small differences of large
numbers stay exact. Compilers may fuse a product into a sum: all products that count to first
order have factors of half the digits, exact either way, or go through integers. All is
elementwise, of any shape, and constant to derivatives. What it is for: THEORY.md, section 7.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[jax.Array, jax.Array]

LARGEST = 87.0  # of the exponents
STEPS = 64  # of the table of 2^(i / STEPS)
_STEP = math.log(2) / STEPS
_HIGH = round(_STEP * 2**17) / 2**17  # 11 bits, as the next: whole multiples are exact
_MIDDLE = round((_STEP - _HIGH) * 2**28) / 2**28
_LOW = _STEP - _HIGH - _MIDDLE
_GROWTH = np.array([math.expm1(_STEP * i) for i in range(STEPS)])
_BITS: dict[int, type[np.unsignedinteger]] = {32: np.uint32, 64: np.uint64}
_HALF = {32: 12, 64: 27}  # the lower digits


Tree = TypeVar("Tree")


def computed_once(values: Tree) -> Tree:
    """Return arrays whose every user sees the same roundings, and so the same comparisons.

    A compiler may compute a number again for each user, and fuse each time differently: one sum
    then counts a device as sent, and the next one does not. Barriers are dropped on CPUs before
    fusion; what a loop of two rounds carries is not computed again.
    """

    def keep(step: int, kept: Any) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(step == 0, new, old), values, kept)

    return jax.lax.fori_loop(0, 2, keep, jax.tree.map(jnp.zeros_like, values))


def two_sum(a: jax.Array, b: jax.Array) -> Pair:
    """Add two floats: the rounded sum and its error, exactly."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: jax.Array, b: jax.Array) -> Pair:
    """Multiply two floats: the product, cut by a digit, and the rest, to the pair's last."""
    a_high, b_high = _cut(a), _cut(b)
    a_low, b_low = a - a_high, b - b_high
    product = _cut(a * b, 1)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def add(a: Pair, b: Pair) -> Pair:
    """Add two pairs."""
    total, rest = two_sum(a[0], b[0])
    return _normal(total, rest + (a[1] + b[1]))


def multiply(a: Pair, b: Pair) -> Pair:
    """Multiply two pairs."""
    total, rest = two_product(a[0], b[0])
    return _normal(total, rest + (a[0] * b[1] + a[1] * b[0]))


def expm1(x: jax.Array) -> Pair:
    """Compute e^x - 1 for x from 0 to ``LARGEST``, to 2^-39 of it, 2^-48 in float64."""
    steps = jnp.round(x * (1 / _STEP))
    rest, error = two_sum(x - steps * _HIGH, -steps * _MIDDLE)
    rest, error = _normal(rest, error - steps * _LOW)
    square, more = two_product(rest, rest)
    cubic = rest * square * (1 / 6 + rest * (1 / 24 + rest * (1 / 120)))
    small = add((rest, error), (square / 2, more / 2 + rest * error + cubic))
    number = steps.astype(jnp.int32)
    value = _GROWTH.astype(x.dtype)
    table = jnp.asarray(np.stack([value, _GROWTH - value]), x.dtype)
    picked = table.at[:, number & (STEPS - 1)].get(mode="promise_in_bounds")
    raised = add((picked[0], picked[1]), add(small, multiply((picked[0], picked[1]), small)))
    power = power_of_two(1.5 * jnp.exp2((number >> 6).astype(x.dtype)))  # exact anywhere
    high = number >= STEPS
    whole, error = two_sum(jnp.where(high, power, 0.0), power * raised[0])
    less, again = two_sum(jnp.where(high, -1.0, 0.0), whole)
    return _normal(less, again + (error + power * raised[1]))


def power_of_two(x: jax.Array) -> jax.Array:
    """Largest power of 2 up to x > 0."""
    return _cut(x, jnp.finfo(x.dtype).nmant)


def _normal(a: jax.Array, b: jax.Array) -> Pair:
    """Add two floats, the first one larger, exactly."""
    total = a + b
    return total, b - (total - a)


def _cut(x: jax.Array, digits: int | None = None) -> jax.Array:
    """Clear a float's last binary digits, by default the lower half."""
    bits = jnp.finfo(x.dtype).bits
    kind = _BITS[bits]
    mask: np.unsignedinteger = kind(2**bits - 2 ** (digits or _HALF[bits]))
    whole = jnp.bitwise_and(jax.lax.bitcast_convert_type(x, kind), mask)
    return jax.lax.bitcast_convert_type(whole, x.dtype)
