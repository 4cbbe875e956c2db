"""Derivatives by rule: of values that come out of loops and choices, to any order.

A search for the best price or time is not differentiated step by step. Its result follows
from an equation (implicit functions), and what it minimises has the derivative at constant
result (envelopes). Both rules are differentiable themselves. No rule costs a value anything.
What is derived by them, and what is 0: THEORY.md, section 8.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_jvp
def with_derivative(value: Any, formula: Any) -> Any:
    """Return ``value`` with the derivatives of ``formula``, its equal but for rounding."""
    del formula
    return value


@with_derivative.defjvp
def _with_derivative_rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    return with_derivative(*primals), tangents[1]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def at_best(function: Callable[..., Any], given: tuple[Any, ...], best: tuple[Any, ...]) -> Any:
    """Evaluate ``function(*given, *best)``, where ``best`` makes it stationary: an envelope.

    The derivative is the partial one in ``given``, at ``best`` as it is; ``best`` itself may
    depend on what is differentiated, and its derivatives enter the second ones.

    Args:
        function: of arguments alone, it may close over no array.
        given: its first arguments.
        best: its other arguments.
    """
    return function(*given, *best)


@at_best.defjvp
def _at_best_rule(
    function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    given, best = primals
    _, slope = jax.jvp(lambda *given: function(*given, *best), given, tangents[0])
    return at_best(function, given, best), slope


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def largest(values: jax.Array, axis: int = 0) -> jax.Array:
    """Return the largest values along an axis, with the derivatives of the first of them each.

    JAX's own looks for values that equal the largest one, and gives NaN where a compiler has
    computed these again with another rounding, and none does.
    """
    return jnp.max(values, axis)


@largest.defjvp
def _largest_rule(
    axis: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (values,), (tangent,) = primals, tangents
    places = jax.lax.broadcasted_iota(int, values.shape, axis)
    first = places == jnp.argmax(values, axis, keepdims=True)
    return largest(values, axis), jnp.sum(jnp.where(first, tangent, 0.0), axis)


def smallest(values: jax.Array, axis: int = 0) -> jax.Array:
    """Return the smallest values along an axis, see ``largest``."""
    return -largest(-values, axis)
