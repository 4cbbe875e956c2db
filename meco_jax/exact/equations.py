"""Equations with e^x, x nats per symbol, and their solutions.

Where a function takes ``xp``, it is that of JAX or of NumPy. Source: THEORY.md, section 4; those of
shared bands and fixed times section 10.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

NEAR = 2.1e-4  # largest relative error of ``near_efficiency``, fitted for ln y up to 100
SMALL_Y = (0.0, 1.0, 0.30338298, 0.00338781), (1.0, 0.63568729, 0.06587861)  # in sqrt(2 y)
LARGE_Y = (1.20830537, 0.364993291, 0.178662429, 0.0), (1.0, 0.182570117, -1.46422376e-5)  # ln y
BETWEEN = 3.6  # ln y where the two meet
EXCESS = [(-1) ** n / math.factorial(n) for n in range(12, 1, -1)]  # of x^10, ... x, 1
BAND_STEPS = 5  # Newton's, for what the band's share lets through at full power
FIXED_STEPS = 8  # Newton's, for the switching price where a sent task takes a fixed time


def excess(nats: Any, xp: ModuleType = jnp) -> Any:
    """x - 1 + e^-x for x > 0, without cancellation, of any shape."""
    small = xp.where(nats < 1, nats, 0.0)
    series = xp.zeros_like(small)
    for coefficient in EXCESS:
        series = series * small + coefficient
    return xp.where(nats < 1, small * small * series, (nats - 1) + xp.exp(-nats))


def near_efficiency(log_y: Any, xp: ModuleType = jnp) -> Any:
    """Nats x per symbol that are best at ln y > -90, to ``NEAR`` of them, by two fractions."""
    small = log_y < BETWEEN
    root = xp.exp((xp.minimum(log_y, BETWEEN) + math.log(2)) / 2)  # x ~ sqrt(2 y) for small y
    u = xp.where(small, root, log_y)
    top, bottom = (_polynomial(u, small, *pair, xp) for pair in zip(SMALL_Y, LARGE_Y))
    return top / bottom


def _polynomial(
    u: Any, small: Any, these: tuple[float, ...], others: tuple[float, ...], xp: ModuleType
) -> Any:
    """Evaluate ``these`` coefficients, from u^0 on, at u where it is ``small``, else ``others``."""
    value = 0.0
    for pair in reversed([*zip(these, others)]):
        value = value * u + xp.where(small, *pair)
    return value


@jax.custom_jvp
def band_nats(log_ratio: jax.Array) -> jax.Array:
    """Solve as ``solve_band``, with the derivative in ``log_ratio``."""
    return solve_band(log_ratio, jnp)


@band_nats.defjvp
def _band_nats_rule(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    nats = band_nats(*primals)
    return nats, tangents[0] / band_slope(nats, jnp)


def solve_band(log_ratio: Any, xp: ModuleType) -> Any:
    """Solve ln((e^x - 1) / x) = ``log_ratio`` > 0 for x.

    The left side is convex and rises by 1/2 to 1, from 0 at x = 0: Newton's method falls from
    2 ``log_ratio``, which is beyond the root, and does not pass it.
    """
    x = 2 * log_ratio
    for _ in range(BAND_STEPS):
        error = x + xp.log(-xp.expm1(-x) / x) - log_ratio
        x = xp.maximum(x - error / band_slope(x, xp), log_ratio)
    return x


def band_slope(nats: Any, xp: ModuleType) -> Any:
    """d ln((e^x - 1) / x) / dx = (x - 1 + e^-x) / (x (1 - e^-x)), 1/2 to 1."""
    return excess(nats, xp) / (-nats * xp.expm1(-nats))


def nats_with_fixed(total: Any, fixed: Any, xp: ModuleType) -> Any:
    """Solve x + ln(1 + r (x - 1 + e^-x)) = ``total`` > 0 for x, r = ``fixed``, ``[K]`` [nat].

    Newton's method, kept between bounds on the root: x - 1 + e^-x is at most (e^total - 1) / r.
    """
    grown = xp.expm1(xp.minimum(total, 80.0)) / xp.where(fixed > 0, fixed, 1.0)
    high = xp.where(fixed > 0, xp.minimum(total, xp.sqrt(2 * grown) + grown), total)
    low, x = 0.0 * high, high
    for _ in range(FIXED_STEPS):
        rest = 1 + fixed * excess(x, xp)
        error = x + xp.log(rest) - total
        low, high = xp.where(error < 0, x, low), xp.where(error < 0, high, x)
        step = x - error / (1 - fixed * xp.expm1(-x) / rest)
        x = xp.where((step > low) & (step <= high), step, (low + high) / 2)
    return x
