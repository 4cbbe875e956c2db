"""Schemes that plan with a margin, since gains are not known exactly.

A plan fills the slot to its end, so that an uplink is late as soon as the true gain is below the
one planned with: with any error of the estimate about half of them are. ``robust`` plans with
the quantile of the true gain given what is known of it, ``backoff`` with so many dB less.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import i0e, ndtri

from meco_jax import system as sy
from meco_jax.exact.relaxation import relax
from meco_jax.exact.uplink import local_at, make_uplink, priced_cost
from meco_jax.runtime.checks import is_traced, one_number, refuse, require
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.solver import NAMES, Scheme, solve
from meco_jax.system import Leaf, System

WIDTH = 6.0  # standard deviations below the mean that the distribution is integrated over
KNOWN = 1e-6  # a gain with less spread, in relation to it, is known exactly [-]
LEVELS = 24  # of the probability that an uplink is late, from HIGHEST
HIGHEST, LOWEST = 0.6, 1e-3  # to LOWEST times that of the slot [-]
LOG_NU, HALVINGS = 30.0, 24  # range of the price of risk [ln], and how often it is halved
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
    price: Leaf = None  # of a late slot [J], or None: each slot keeps ``outage``; see ``calibrate``

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
        outage = jnp.asarray(self.outage, expected.dtype)
        if self.per == "uplink":
            return decide(self.scheme, system, gain_quantile(expected, spread, outage))

        levels = risk_levels(expected, spread, outage)

        # First among all devices with a task, then among those that this plan lets send.
        def refine(
            best: tuple[jax.Array, jax.Array, jax.Array, Solution], _: None
        ) -> tuple[tuple[jax.Array, jax.Array, jax.Array, Solution], None]:
            candidates, guess, least, old = best
            prices = device_costs(system, levels.gain, candidates, guess)
            if self.price is None:
                choice = keep_outage(levels, prices, candidates, outage)
                safe = fill_outage(levels, choice, candidates, outage, expected, spread)
            else:
                choice = jnp.argmin(prices + self.price * levels.risk, axis=1)
                safe = jnp.where(candidates, picked(levels.gain, choice), 0.0)
            new = decide(self.scheme, system, safe)
            score = new.cost
            if self.price is not None:
                late = late_probability(system, expected, spread, new)
                score = score - self.price * jnp.sum(jnp.log1p(-jnp.minimum(late, 1 - KNOWN)))
            better = new.feasible & ~(score > least)
            candidates = jnp.where(new.feasible, new.offload > 0, sy.forced(system))
            kept = jax.tree.map(partial(jnp.where, better), new, old)
            return (candidates, safe, jnp.where(better, score, least), kept), None

        has_task = system.active & (system.task_bits > 0)
        shapes = jax.eval_shape(lambda: decide(self.scheme, system, expected))
        never = jnp.asarray(jnp.inf, expected.dtype)
        nothing = infeasible(shapes, has_task)
        (*_, plan), _ = jax.lax.scan(refine, (has_task, expected, never, nothing), length=2)
        return plan


def infeasible(shapes: Solution, has_task: jax.Array) -> Solution:
    """Make the answer of a channel that has none: nothing is sent, and all costs are infinite.

    Args:
        shapes: of an answer of one channel, a pytree.
        has_task: which devices have one ``[K]`` bool.
    """
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    costs = "energy", "lower_bound", "delay_cost", "energy_per_device"
    known = {name: getattr(nothing, name) for name in costs}
    infinite = {n: jnp.full_like(x, jnp.inf) for n, x in known.items() if x is not None}
    if "energy_per_device" in infinite:
        each = infinite["energy_per_device"]
        infinite["energy_per_device"] = jnp.where(has_task, each, jnp.zeros_like(each))
    return nothing.replace(**infinite)


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
    share = _checked_share("outage", outage, False)
    deviation = None if error is None else _checked_share("error", error, True)
    rho = _checked_share("correlation", correlation, True, low=-1)
    if per not in ("slot", "uplink"):
        raise refuse("per", "one of slot, uplink", per)
    return Robust(share, deviation, rho, scheme, per)


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
    margin = one_number("db", db)
    require("db", margin, 0.0, included=True)
    return Backoff(plain_number(margin), scheme)


def decide(scheme: str | Scheme, system: System, h: jax.Array) -> Solution:
    """Decide one channel ``[K]`` by a method's name or a function."""
    return solve(h, system, method=scheme) if isinstance(scheme, str) else scheme(system, h)  # type: ignore[arg-type]


@short_repr
class Levels(NamedTuple):
    """What devices may plan with: ``LEVELS`` gains each, then to stay, ``[K, LEVELS + 1]``.

    All of n independent uplinks are on time with probability prod (1 - q_k), so the risks
    r_k = -ln(1 - q_k) add up. How they are shared: at the price mu of the slot sending costs
    c_k(mu), THEORY.md, section 4, with the gain that belongs to r_k; at a price nu of risk each
    device takes the least of c_k + nu r_k over its levels and of its local energy. A strong
    uplink is made safe for little, a weak one is not.
    """

    gain: jax.Array  # [-]; 0 for staying local
    risk: jax.Array  # r = -ln(1 - q), q the probability that the true gain is below [-]


def risk_levels(expected: jax.Array, spread: jax.Array, outage: jax.Array) -> Levels:
    """Tabulate gains to plan with and their risks, for gains known as ``Robust.plan`` has them."""
    known, scale, a = (x[:, None] for x in _normalise(expected, spread))
    steps = jnp.asarray(np.linspace(0, 1, LEVELS), a.dtype)[None]
    wanted = HIGHEST * (LOWEST * outage / HIGHEST) ** steps
    below = _below_quantile(a, wanted)  # of gains that are late with less than that
    gain = jnp.where(known, expected[:, None], scale * (a + below))
    risk = jnp.where(known, 0.0, -jnp.log1p(-rice(a, below)[1]))
    none = jnp.zeros_like(expected)[:, None]
    return Levels(jnp.append(gain, none, axis=1), jnp.append(risk, none, axis=1))


def device_costs(
    system: System, gain: jax.Array, candidates: jax.Array, guess: jax.Array
) -> jax.Array:
    """Cost of every level, at the price that the slot has if gains are as guessed: [K, L + 1] [J].

    Args:
        system: the physics.
        gain: of ``Levels``.
        candidates: who may send ``[K]`` bool.
        guess: gains ``[K]`` [-].
    """
    forced = sy.forced(system)
    uplink = make_uplink(system, guess)
    relaxed = relax(uplink, forced.astype(guess.dtype))
    log_mu = relaxed.log_mu
    cost = jax.vmap(lambda h: priced_cost(make_uplink(system, h), log_mu), in_axes=1, out_axes=1)(
        gain[:, :-1]
    )
    cost = jnp.where(candidates[:, None] & (cost >= 0), cost, jnp.inf)
    stays = jnp.where(forced, jnp.inf, local_at(uplink, relaxed.edge_price))
    return jnp.append(cost, stays[:, None], axis=1)


def keep_outage(
    levels: Levels, costs: jax.Array, candidates: jax.Array, outage: jax.Array
) -> jax.Array:
    """Choose levels ``[K]`` at the least price of risk at which the slot keeps its outage."""
    budget = -jnp.log1p(-outage)
    usual = jnp.max(jnp.where(jnp.isfinite(costs), costs, 0.0)) / budget

    def choose(log_nu: jax.Array) -> jax.Array:
        return jnp.argmin(costs + usual * jnp.exp(log_nu) * levels.risk, axis=1)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        taken = picked(levels.risk, choose(middle))
        enough = jnp.sum(jnp.where(candidates, taken, 0.0)) <= budget
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    ends = jnp.asarray(-LOG_NU, budget.dtype), jnp.asarray(LOG_NU, budget.dtype)
    return choose(jax.lax.fori_loop(0, HALVINGS, halve, ends)[1])


def fill_outage(
    levels: Levels,
    choice: jax.Array,
    candidates: jax.Array,
    outage: jax.Array,
    expected: jax.Array,
    spread: jax.Array,
) -> jax.Array:
    """Give what the chosen levels leave of the outage to all in proportion: gains ``[K]`` [-].

    Any decision on these gains keeps the outage, however the levels were chosen; 0 for who
    stays.
    """
    budget = -jnp.log1p(-outage)
    sends = candidates & (choice < LEVELS)
    taken = jnp.where(sends, picked(levels.risk, choice), 0.0)
    total = jnp.sum(taken)
    taken = taken * (budget / jnp.where(total > 0, total, budget))
    # Who takes no risk at all is known exactly.
    quantile = gain_quantile(expected, spread, -jnp.expm1(-jnp.where(taken > 0, taken, budget)))
    return jnp.where(sends, quantile, 0.0)


def picked(table: jax.Array, choice: jax.Array) -> jax.Array:
    """Return the entries ``[K]`` of a table ``[K, L + 1]``."""
    return jnp.take_along_axis(table, choice[:, None], axis=1)[:, 0]


def late_probability(
    system: System, expected: jax.Array, spread: jax.Array, decision: Solution
) -> jax.Array:
    """Tell how likely each uplink of a decision is to be late, given what is known: ``[K]`` [-].

    It is if h^2 < N0 (e^(l / t) - 1) / p.
    """
    sends = (decision.offload > 0) & (decision.time > 0) & (decision.power > 0)
    load = decision.offload * system.task_bits / sy.nat_rate(system)
    time, power = (jnp.where(sends, x, 1.0) for x in (decision.time, decision.power))
    if system.access == "fdma":  # the noise is that of a share of the band
        power = power * system.slot / time
    needed = jnp.expm1(jnp.where(sends, load / time, 0.0)) / power
    needed = jnp.sqrt(needed) * jnp.sqrt(system.noise_power)
    known, scale, a = _normalise(expected, spread)
    share = rice(a, jnp.maximum(needed / scale - a, -a * (1 - 1e-6)))[1]
    certain = (needed > expected * (1 + 1e-5)).astype(share.dtype)
    return jnp.where(sends, jnp.where(known, certain, jnp.clip(share, 0.0, 1.0)), 0.0)


def _normalise(expected: jax.Array, spread: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether a gain is known, its deviation s per axis, and |mean| / s, all ``[K]``."""
    known = spread <= KNOWN * expected
    scale = jnp.where(known, 1.0, spread / 2**0.5)
    return known, scale, jnp.where(known, 0.0, expected / scale)


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
    known, scale, a = _normalise(expected, spread)
    below = _below_quantile(a, probability)

    def step(_: int, y: jax.Array) -> jax.Array:
        density, mass = rice(a, y)
        rise = (jnp.log(probability) - jnp.log(mass)) * mass / ((a + y) * density)
        return y + (a + y) * jnp.expm1(jnp.minimum(rise, 1.0))

    y = jax.lax.fori_loop(0, STEPS, step, jnp.broadcast_to(below, a.shape))
    return jnp.where(known, expected, scale * (a + y))


def _below_quantile(a: jax.Array, probability: jax.Array) -> jax.Array:
    """A number x - a below the quantile's: for a = 0, and of the real part alone."""
    return jnp.maximum(jnp.sqrt(-2 * jnp.log1p(-probability)) - a, ndtri(probability))


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


def _checked_share(name: str, value: Any, ends: bool, low: int = 0) -> Any:
    """Return a number from ``low`` to 1, as ``plain_number`` does.

    Raises:
        ValueError: if it is none, or known and out of its range.
    """
    number = plain_number(one_number(name, value))
    good = is_traced(number) or (low <= number <= 1 if ends else low < number < 1)
    if not good:
        raise refuse(name, f"from {low} to 1{'' if ends else ', both excluded'}", number)
    return number


def plain_number(number: Any) -> Any:
    """Return a known number as Python's, which can be hashed as ``solve`` asks of a method."""
    return number if is_traced(number) else float(number)


def check_scheme(scheme: Any) -> None:
    """Raise a ValueError unless a scheme is a method's name or a function."""
    if isinstance(scheme, str) and scheme in NAMES:
        return
    if not callable(scheme):
        known = ", ".join(sorted(NAMES))
        raise refuse("scheme", f"one of {known}, or a function of a system and gains", scheme)
