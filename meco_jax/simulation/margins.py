"""Schemes that plan with a margin, since gains are not known exactly.

A plan fills the slot to its end, so that an uplink is late as soon as the true gain is below the
one planned with: with any error of the estimate about half of them are. ``robust`` plans with
the quantile of the true gain given what is known of it, ``backoff`` with so many dB less.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import i0e, ndtri

from meco_jax import system as sy
from meco_jax.runtime.checks import is_traced, one_number, refuse, require
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.solver import METHODS, Scheme, solve
from meco_jax.system import Leaf, System

WIDTH = 6.0  # standard deviations below the mean that the distribution is integrated over
STEPS = 6  # of Newton's method; tests hold it to 1e-5
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


@short_repr
class Backoff(struct.PyTreeNode):
    """Plan as if all gains were some dB lower; see ``backoff``."""

    db: Leaf  # [dB]
    scheme: Any = struct.field(pytree_node=False)

    def __call__(self, system: System, h: jax.Array) -> Solution:
        """Decide on estimates of the gains ``[K]``."""
        return decide(self.scheme, system, h * 10 ** (-jnp.asarray(self.db, h.dtype) / 20))


@short_repr
class Robust(struct.PyTreeNode):
    """Plan with the quantile of each gain; see ``robust``."""

    outage: Leaf  # [-]
    error: Leaf  # [-], or None: the simulator says
    correlation: Leaf  # [-]
    scheme: Any = struct.field(pytree_node=False)
    per: str = struct.field(pytree_node=False)

    def __call__(self, system: System, h: jax.Array) -> Solution:
        """Decide on estimates of the gains ``[K]``, all of mean power ``system.mean_gain``."""
        if self.error is None:
            rule = "a number where a robust scheme is called outside simulate"
            raise refuse("error", rule, self.error)
        rho, error = (jnp.asarray(x, h.dtype) for x in (self.correlation, self.error))
        known = rho * rho * (1 - error * error)
        spread = jnp.sqrt(system.mean_gain * (1 - known))
        return self.plan(system, jnp.abs(rho) * h, jnp.broadcast_to(spread, h.shape))

    def plan(self, system: System, expected: jax.Array, spread: jax.Array) -> Solution:
        """Decide where complex gains are normal around means.

        Args:
            system: the physics.
            expected: amplitudes of the means ``[K]`` [-].
            spread: standard deviations of the complex gains ``[K]`` [-].
        """
        if self.per == "uplink":
            return decide(self.scheme, system, self._safe_gain(expected, spread, 1))

        # First as many uplinks as there are tasks; then as many as that plan has, if the plan
        # with the smaller margin does not have more.
        def refine(
            best: tuple[jax.Array, Solution], _: None
        ) -> tuple[tuple[jax.Array, Solution], None]:
            number, old = best
            new = decide(self.scheme, system, self._safe_gain(expected, spread, number))
            sends = jnp.sum(new.offload > 0, dtype=jnp.int32)
            better = new.feasible & (sends <= number) & ~(new.energy > old.energy)
            forced = jnp.sum(sy.forced(system), dtype=jnp.int32)
            number = jnp.where(new.feasible, sends, forced)
            return (number, jax.tree.map(partial(jnp.where, better), new, old)), None

        tasks = jnp.sum(system.active & (system.task_bits > 0), dtype=jnp.int32)
        shapes = jax.eval_shape(lambda: decide(self.scheme, system, expected))
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        nothing = nothing.replace(
            energy=nothing.energy + jnp.inf, lower_bound=nothing.lower_bound + jnp.inf
        )
        (_, plan), _ = jax.lax.scan(refine, (tasks, nothing), length=2)
        return plan

    def _safe_gain(self, expected: jax.Array, spread: jax.Array, number: Any) -> jax.Array:
        """Amplitudes below which gains are with the probability that each of n uplinks may have.

        All are above with 1 - outage = (1 - q)^n, as they are independent.
        """
        number = jnp.maximum(jnp.asarray(number, expected.dtype), 1)
        outage = jnp.asarray(self.outage, expected.dtype)
        return gain_quantile(expected, spread, -jnp.expm1(jnp.log1p(-outage) / number))


def robust(
    scheme: str | Scheme,
    outage: float,
    error: float | None = None,
    correlation: float = 1.0,
    per: str = "slot",
) -> Robust:
    """Make a scheme keep its deadlines though gains are known by estimates alone.

    It plans with the gain h_q that the true one is below with probability q, given the estimate:
    an uplink planned with it is late if and only if h < h_q. So a margin is large where an
    estimate says little, in relation to the gain, and the same share is late everywhere.

    The complex gain is normal around rho v, v the estimate, of power
    E[h^2] (1 - rho^2 (1 - error^2)); its amplitude has Rice's distribution. That is exact for
    Rayleigh fading and estimates of least mean square error, rho^2 (1 - error^2) the part of
    their power that is still known.

    Args:
        scheme: a method of ``solve`` by name, or ``f(system, h) -> Solution`` of one channel.
        outage: largest probability that the uplinks of a slot are not all on time, from 0 to 1,
            both excluded [-].
        error: of the estimates, (E[|e|^2] / E[h^2])^(1/2), 0 to 1 [-]. By default ``simulate``
            says what is known of each gain, with path loss, age and a fixed path.
        correlation: rho, of the gain when it was estimated with the one now, -1 to 1 [-].
        per: "slot", or "uplink": ``outage`` is that of each uplink alone.

    Returns:
        A scheme for ``simulate`` and, with ``error``, for ``solve(..., method=...)``: a pytree
        with the numbers as leaves. Energies and bounds in its answers are those of the plan. A
        channel whose forced devices do not fit with the margin is infeasible.

    Raises:
        ValueError: if a number is out of range, ``per`` or ``scheme`` is unknown.
    """
    check_scheme(scheme)
    _check_share("outage", outage, False)
    if error is not None:
        _check_share("error", error, True)
    _check_share("correlation", correlation, True, low=-1)
    if per not in ("slot", "uplink"):
        raise refuse("per", "one of slot, uplink", per)
    return Robust(outage, error, correlation, scheme, per)


def backoff(scheme: str | Scheme, db: float) -> Backoff:
    """Make a scheme plan with all gains some decibels lower, whatever is known of them.

    Args:
        scheme: a method of ``solve`` by name, or ``f(system, h) -> Solution`` of one channel.
        db: the margin, at least 0 [dB].

    Returns:
        A scheme for ``simulate`` and ``solve``: a pytree with ``db`` as a leaf.

    Raises:
        ValueError: if ``db`` is negative or ``scheme`` unknown.
    """
    check_scheme(scheme)
    require("db", one_number("db", db), 0.0, included=True)
    return Backoff(db, scheme)


def decide(scheme: str | Scheme, system: System, h: jax.Array) -> Solution:
    """Decide one channel ``[K]`` by a method's name or a function."""
    return solve(h, system, method=scheme) if isinstance(scheme, str) else scheme(system, h)  # type: ignore[arg-type]


def gain_quantile(expected: jax.Array, spread: jax.Array, probability: jax.Array) -> jax.Array:
    """Return the quantile of an amplitude whose complex gain is normal around a mean.

    Rice's distribution (Bell System Technical Journal 24, 1945) with a = |mean| / s and unit x,
    where s^2 is half the power: F(x) = integral of r exp(-(r - a)^2 / 2) I(a r) dr up to x,
    I = e^-z I0(z). ln F is concave, so Newton's method climbs from any point below the quantile,
    such as those for a = 0 and of the real part alone.

    Args:
        expected: amplitudes of the means, of any shape [-].
        spread: standard deviations of the complex gains, of the same shape [-].
        probability: below 1/2, or a little more, of a shape that broadcasts [-].

    Returns:
        Amplitudes of the same shape [-]; ``expected`` where the spread is 0.
    """
    known = spread <= 1e-6 * expected
    scale = jnp.where(known, 1.0, spread / 2**0.5)
    a = jnp.where(known, 0.0, expected / scale)
    rayleigh = jnp.sqrt(-2 * jnp.log1p(-probability))
    below = jnp.maximum(rayleigh - a, ndtri(probability))  # x - a

    def step(_: int, y: jax.Array) -> jax.Array:
        density, mass = rice(a, y)
        rise = (jnp.log(probability) - jnp.log(mass)) * mass / ((a + y) * density)
        return y + (a + y) * jnp.expm1(jnp.minimum(rise, 1.0))

    y = jax.lax.fori_loop(0, STEPS, step, jnp.broadcast_to(below, a.shape))
    return jnp.where(known, expected, scale * (a + y))


def rice(a: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Density and probability of Rice's distribution at x = a + y, in units of s.

    The integral goes over ``WIDTH`` below the smaller of x and a, by Gauss and Legendre.
    """
    top = a + y
    length = jnp.minimum(top, WIDTH + jnp.maximum(y, 0.0))
    last = a.ndim * (1,) + _NODES.shape
    nodes, weights = (
        jnp.asarray(x.reshape(last), a.dtype) for x in (0.5 - _NODES / 2, _WEIGHTS / 2)
    )
    place = y[..., None] - length[..., None] * nodes
    mass = length * jnp.sum(weights * _rice_density(a[..., None], place), axis=-1)
    return _rice_density(a, y), mass


def _rice_density(a: jax.Array, y: jax.Array) -> jax.Array:
    return (a + y) * jnp.exp(-y * y / 2) * i0e(a * (a + y))


def _check_share(name: str, value: Any, ends: bool, low: int = 0) -> None:
    """Raise a ValueError unless a number is from ``low`` to 1."""
    number = one_number(name, value)
    if is_traced(number):
        return
    good = low <= number <= 1 if ends else low < number < 1
    if not good:
        raise refuse(name, f"from {low} to 1{'' if ends else ', both excluded'}", value)


def check_scheme(scheme: Any) -> None:
    """Raise a ValueError unless a scheme is a method's name or a function."""
    if isinstance(scheme, str) and scheme in (*METHODS, "bcos"):
        return
    if not callable(scheme):
        known = ", ".join(sorted((*METHODS, "bcos")))
        raise refuse("scheme", f"one of {known}, or a function of a system and gains", scheme)
