"""The uplink of each device: everything with e^x, and the rule of what fits the slot.

At x nats per symbol device k sends its task in t = D / (w x) with power p = (e^x - 1) / g and
pays t (beta p + mu) at a price mu [W] of slot time; the best x solves
e^x (x - 1) + 1 = mu g / beta. Prices are kept as their logarithm. Source: THEORY.md, section 4.

All is for one channel, ``[K]``. Where a function takes ``xp``, it is that of JAX or of NumPy: the
float64 search on the host uses the same formulas.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.exact import twofold
from meco_jax.exact.derivatives import at_best
from meco_jax.runtime.describe import short_repr
from meco_jax.system import System

FIT_TOLERANCE = 5e-7  # a set whose fastest times exceed the slot by less still fits [-]
NEAR = 2.1e-4  # largest relative error of ``near_efficiency``, fitted for ln y up to 100
SMALL_Y = (0.0, 1.0, 0.30338298, 0.00338781), (1.0, 0.63568729, 0.06587861)  # in sqrt(2 y)
LARGE_Y = (1.20830537, 0.364993291, 0.178662429, 0.0), (1.0, 0.182570117, -1.46422376e-5)  # ln y
BETWEEN = 3.6  # ln y where the two meet
EXCESS = [(-1) ** n / math.factorial(n) for n in range(12, 1, -1)]  # of x^10, ... x, 1
LEAST_POWER = 1e-37  # less has no digits in float32; a task is through sooner with it [W]
LEAST_LOG_Y = -80.0  # x^2 must not underflow; at x = 6e-18 and below energies are the same
SHARE_UNIT = 2.0**-20  # sums of its multiples are exact in float32, in any order, up to 16 slots
SMALLEST = 1e-36  # the rests of numbers so small are lost [-]


@short_repr
class Exact(NamedTuple):
    """What single floats of ``Uplink`` leave away, ``[K]`` each; constants to derivatives."""

    load: jax.Array  # the float of the same name [s nat]
    gain: jax.Array  # the float of the same name [1/W]
    load_rest: jax.Array  # what the true one has more, in relation [-]
    gain_rest: jax.Array  # the same [-]
    coarse: jax.Array  # t_min / T, a multiple of SHARE_UNIT, infinite out of reach [-]
    fine: jax.Array  # the rest of it [-]


@short_repr
class Uplink(NamedTuple):
    """The uplink of one channel in the symbols of THEORY.md, section 1: ``[K]`` each."""

    usable: jax.Array  # bool: real, with bits to send, and heard at all
    load: jax.Array  # D / w [s nat]
    gain: jax.Array  # g = h^2 / N0 [1/W]
    weight: jax.Array  # beta [-]
    log_scale: jax.Array  # ln(beta / g), of its prices [ln W]
    max_power: jax.Array  # p_max [W], []
    max_efficiency: jax.Array  # x_max = ln(1 + p_max g) [nat]
    min_time: jax.Array  # t_min = D / (w x_max), infinite out of reach [s]
    local: jax.Array  # e: weighted local energy, 0 for padding [J]
    slot: jax.Array  # T [s], []
    exact: Exact


def make_uplink(system: System, h: Any, xp: ModuleType = jnp) -> Uplink:
    """Compute the terms of every uplink.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-]; any finite value is fine, 0 too.
        xp: jax.numpy, or numpy with all of float64, which leaves nothing to be ``Exact`` about.
    """
    gain = sy.power_gain(system, h, xp)
    max_efficiency = xp.log1p(system.max_power * gain)
    load = xp.where(system.active, system.task_bits / sy.nat_rate(system, xp), 0.0)
    heard = (
        max_efficiency * (1e12 * system.slot) > load
    )  # slower is as good as never, and overflows
    usable = heard & (load > 0)
    # 1 stands in where nothing is sent: values and gradients stay finite under the masks.
    used_load, used_nats = xp.where(usable, load, 1.0), xp.where(usable, max_efficiency, 1.0)
    used_gain, used_weight = xp.where(usable, gain, 1.0), xp.where(usable, system.weight, 1.0)
    out_of_reach = xp.where(load > 0, xp.inf, 0.0)
    min_time = xp.where(usable, used_load / used_nats, out_of_reach)
    if xp is jnp:
        exact = _exact(system, h, usable, used_load, used_gain, used_nats)
    else:
        nothing = xp.zeros_like(load)
        exact = Exact(used_load, used_gain, nothing, nothing, min_time / system.slot, nothing)
    return Uplink(
        usable=usable,
        load=used_load,
        gain=used_gain,
        weight=used_weight,
        log_scale=xp.log(used_weight / used_gain),
        max_power=xp.asarray(system.max_power, gain.dtype),
        max_efficiency=used_nats,
        min_time=min_time,
        local=xp.where(system.active, sy.local_energy(system), 0.0),
        slot=xp.asarray(system.slot, gain.dtype),
        exact=exact,
    )


def _exact(
    system: System,
    h: jax.Array,
    usable: jax.Array,
    load: jax.Array,
    gain: jax.Array,
    nats: jax.Array,
) -> Exact:
    """Compute what rounding took from load, gain and fastest times: ``[K]``.

    Each residual is that of the equation which defines the number, in pairs of floats.
    """
    log_base = jnp.log(system.log_base)
    given = jax.lax.stop_gradient((load, gain, nats, log_base, system, h))
    load, gain, nats, log_base, system, h = given
    load, gain, nats, log_base = twofold.computed_once((load, gain, nats, log_base))
    all_nats = jnp.append(jnp.minimum(nats, 87.0), log_base)
    growth = twofold.expm1(all_nats)
    grown, last = (growth[0][:-1], growth[1][:-1]), (growth[0][-1], growth[1][-1])

    more_base = ((system.log_base - 1 - last[0]) - last[1]) / (system.log_base * log_base)
    load_rest = _excess_of(system.task_bits, log_base, load, system.bandwidth) + more_base
    scale = 2.0**24  # exact, and keeps the squares of small gains from underflow
    noise = system.noise_power * scale * scale
    gain_rest = _excess_of(h * scale, h * scale, gain, noise)
    power = twofold.two_product(system.max_power, gain)
    more = (power[0] - grown[0]) + (power[1] - grown[1]) + gain_rest * power[0]
    more = more / (1 + grown[0])
    more_nats = more * (1 - more / 2) / nats

    share = load / (system.slot * nats)
    fastest = twofold.two_product(system.slot, nats)
    used = twofold.two_product(share, fastest[0])
    left = ((load - used[0]) - used[1] - share * fastest[1]) / load
    load_rest, gain_rest, rest = (
        jnp.where(usable & (jnp.abs(x) < 1e-4), x, 0.0)
        for x in (load_rest, gain_rest, left + load_rest - more_nats)
    )
    coarse = jnp.round(share / SHARE_UNIT) * SHARE_UNIT
    out_of_reach = jnp.where(system.active & (system.task_bits > 0), jnp.inf, 0.0)
    exact = Exact(
        load=load,
        gain=gain,
        load_rest=load_rest,
        gain_rest=gain_rest,
        coarse=jnp.where(usable, coarse, out_of_reach),
        fine=jnp.where(usable, (share - coarse) + share * rest, 0.0),
    )
    return jax.lax.optimization_barrier(exact)


def _excess_of(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    """(a b - c d) / (a b), without cancellation where both are nearly equal."""
    left, right = twofold.two_product(a, b), twofold.two_product(c, d)
    return ((left[0] - right[0]) + (left[1] - right[1])) / jnp.where(left[0] != 0, left[0], 1.0)


def least_shares(
    uplink: Uplink, offload: jax.Array, xp: ModuleType = jnp
) -> tuple[jax.Array, jax.Array]:
    """Compute the least part of the slot that each part ``offload`` takes, ``[K]`` [-].

    Returns:
        A multiple of ``SHARE_UNIT``, infinite out of reach, and the rest of it.
    """
    if offload.dtype == bool:
        return xp.where(offload, uplink.exact.coarse, 0.0), xp.where(
            offload, uplink.exact.fine, 0.0
        )
    sent = offload > 0
    coarse = jnp.where(sent & uplink.usable, uplink.exact.coarse, 0.0)
    share, rest = twofold.two_product(offload, coarse)
    whole = jnp.round(share / SHARE_UNIT) * SHARE_UNIT
    fine = (share - whole) + (rest + offload * uplink.exact.fine)
    whole, fine = jax.lax.stop_gradient((whole, jnp.where(sent, fine, 0.0)))
    return jnp.where(sent & ~uplink.usable, uplink.exact.coarse, whole), fine


def room(
    shares: tuple[jax.Array, jax.Array], members: jax.Array, xp: ModuleType = jnp
) -> jax.Array:
    """Compute what some of ``least_shares`` leave of the slot, less than 0 if they exceed it.

    Args:
        shares: of ``[K]``.
        members: which of them to count ``[K]`` bool.
        xp: jax.numpy, or numpy.
    """
    coarse, fine = (xp.sum(xp.where(members, share, 0.0)) for share in shares)
    return (1 - coarse) - fine


def fits(uplink: Uplink, offload: jax.Array) -> jax.Array:
    """Tell whether a decision ``[K]`` can be sent within the slot, sum a t_min <= T: bool."""
    sent = offload if offload.dtype == bool else offload > 0
    return room(least_shares(uplink, offload), sent) >= -FIT_TOLERANCE


def log_price(uplink: Uplink, nats: jax.Array, xp: ModuleType = jnp) -> jax.Array:
    """Price at which x nats are best, ln(beta / g (e^x (x - 1) + 1)): ``[K]`` [ln W]."""
    return uplink.log_scale + nats + xp.log(excess(nats, xp))


@jax.custom_jvp
def best_efficiency(uplink: Uplink, log_mu: jax.Array) -> jax.Array:
    """Nats per symbol that minimise E + mu t, at most x_max: ``[K]`` [nat]."""
    return efficiency_at(uplink, log_mu)


def efficiency_at(uplink: Uplink, log_mu: Any, xp: ModuleType = jnp) -> Any:
    """Compute ``best_efficiency``, without its derivatives, of any shape that broadcasts.

    Solves ``e^x (x - 1) + 1 = y``, y = mu g / beta (a Lambert function), by Halley steps on
    its logarithm ``x + ln(x - 1 + e^-x) = ln y``, which is nearly straight: one from nearby is
    exact to 1e-10, so two are to float64's last digits.
    """
    log_y = xp.maximum(log_mu - uplink.log_scale, LEAST_LOG_Y)
    x = near_efficiency(log_y, xp)
    for _ in range(1 if xp is jnp and x.dtype == jnp.float32 else 2):
        rest, square = excess(x, xp), x * x
        error = x + xp.log(rest) - log_y
        x = x - 2 * error * rest * x / (2 * square - error * (rest * (1 + x) - square))
    return xp.minimum(x, uplink.max_efficiency)


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


@best_efficiency.defjvp
def _best_efficiency_rule(
    primals: tuple[Uplink, jax.Array], tangents: tuple[Uplink, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """d(x + ln(x - 1 + e^-x)) = d ln y, and the left side is x / (x - 1 + e^-x) dx."""
    (uplink, log_mu), (d_uplink, d_log_mu) = primals, tangents
    nats = best_efficiency(uplink, log_mu)
    d_log_y = d_log_mu - d_uplink.log_scale
    d_log_y = jnp.where(log_mu - uplink.log_scale > LEAST_LOG_Y, d_log_y, 0.0)
    return nats, jnp.where(
        nats < uplink.max_efficiency, excess(nats) / nats * d_log_y, d_uplink.max_efficiency
    )


def priced_cost(uplink: Uplink, log_mu: jax.Array) -> jax.Array:
    """Least cost of sending each task at a price, c(mu) = min_t E(t) + mu t: ``[K]`` [J].

    Infinite out of reach. Its derivative in the price is the time.
    """
    return at_best(_cost, (uplink, log_mu), (best_efficiency(uplink, log_mu),))


def _cost(uplink: Uplink, log_mu: jax.Array, best: jax.Array) -> jax.Array:
    """Cost of sending each task at a price with ``best`` nats a symbol, or x_max: ``[K]`` [J]."""
    nats = jnp.where(best < uplink.max_efficiency, best, uplink.max_efficiency)
    power = uplink.weight * jnp.expm1(nats) / uplink.gain
    cost = uplink.load / nats * (power + jnp.exp(log_mu))
    return jnp.where(uplink.usable, cost, uplink.min_time)  # min_time is 0 or infinite there


def switch_price(uplink: Uplink, xp: ModuleType = jnp) -> jax.Array:
    """Price at which sending a task costs as much as keeping it, c(mu) = e: ``[K]`` [ln W].

    Sending costs less below it, -inf where it never does. With x = ln(e / c(0)) nats a symbol
    both cost the same, c(mu) = c(0) e^x; above x_max the cost grows by t_min for each W.
    """
    never = ~uplink.usable | (uplink.local <= 0)
    free = uplink.load * uplink.weight / uplink.gain  # c(0), what sending costs where time is free
    nats = xp.log(xp.where(never, 1.0, uplink.local)) - xp.log(free)
    never |= nats <= 0
    nats = xp.where(never, uplink.max_efficiency, nats)
    reached = xp.minimum(nats, uplink.max_efficiency)
    beyond = reached * xp.expm1(xp.minimum(nats - reached, 80.0))
    log_mu = uplink.log_scale + reached + xp.log(excess(reached, xp) + beyond)
    return xp.where(never, -xp.inf, log_mu)


def send_power(uplink: Uplink, offload: jax.Array, time: jax.Array) -> jax.Array:
    """Power that sends the parts ``offload`` in ``time`` [s], (e^x - 1) / g: ``[K]`` [W]."""
    sends = uplink.usable & (offload > 0) & (time > 0)
    nats = jnp.where(sends, offload * uplink.load / jnp.where(sends, time, 1.0), 0.0)
    power = jnp.maximum(jnp.expm1(nats) / uplink.gain, jnp.where(sends, LEAST_POWER, 0.0))
    return jnp.where(nats < uplink.max_efficiency, power, uplink.max_power)


def energy_spent(uplink: Uplink, offload: jax.Array, time: jax.Array) -> jax.Array:
    """Weighted energy of parts sent in times, sum beta p t + (1 - a) e: ``[]`` [J]."""
    return jnp.sum(device_energy(uplink, offload, send_power(uplink, offload, time), time))


def device_energy(
    uplink: Uplink, offload: jax.Array, power: jax.Array, time: jax.Array
) -> jax.Array:
    """Weighted energy of each device, beta p t + (1 - a) e: ``[K]`` [J]."""
    return uplink.weight * power * time + (1 - offload) * uplink.local


def pairwise_sum(terms: jax.Array, xp: ModuleType = jnp) -> jax.Array:
    """Sum over the first axis by halves, which rounds least."""
    while len(terms) > 1:
        half = len(terms) // 2
        rest = terms[2 * half :]
        terms = xp.concatenate([terms[:half] + terms[half : 2 * half], rest])
    return terms[0]


def rounding(uplink: Uplink) -> float:
    """Largest relative error of one operation."""
    return float(jnp.finfo(uplink.load.dtype).eps) / 2


def excess(nats: Any, xp: ModuleType = jnp) -> Any:
    """x - 1 + e^-x for x > 0, without cancellation, of any shape."""
    small = xp.where(nats < 1, nats, 0.0)
    series = xp.zeros_like(small)
    for coefficient in EXCESS:
        series = series * small + coefficient
    return xp.where(nats < 1, small * small * series, (nats - 1) + xp.exp(-nats))
