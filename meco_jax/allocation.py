"""Given who offloads: the optimal powers and times, the slot price, the Lagrangian bound.

Only the slot (C1) couples the devices, so one price mu [W] on slot time decides all. At
x nats a symbol device k sends its task in t = D / (w x) with power p = (e^x - 1) / g and
pays t (beta p + mu); the best x solves e^x (x - 1) + 1 = mu g / beta. Prices are kept as
their logarithm. Derived from P1, (6), in THEORY.md, sections 4 and 5; what is done about rounding
is in THEORY.md, section 7. All is for one channel, ``[K]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from meco_jax import system as sy
from meco_jax import twofold
from meco_jax.derivatives import at_best, with_derivative
from meco_jax.describe import short_repr
from meco_jax.system import System

FIT_TOLERANCE = 5e-7  # a set whose fastest times exceed the slot by less still fits [-]
NATS_STEPS = 2  # Halley, to float32's last digits from any price; 5e-9 in float64
NEWTON_STEPS = 10  # for the price of a fixed set; 6 reach float32 save where many powers cap
LAST_STEPS = 6  # the same between two breakpoints, where no more powers cap
LEAST_POWER = 1e-37  # less has no digits in float32; a task is through sooner with it [W]
FREE = -200.0  # logarithm of a price of nothing [ln W]
RANKED = 64  # so many numbers are ranked by comparing all pairs, which costs less than a sort
LEAST_LOG_Y = -80.0  # x^2 must not underflow; at x = 6e-18 and below energies are the same
SHARE_UNIT = 2.0**-20  # sums of its multiples are exact in float32, in any order, up to 16 slots
SMALLEST = 1e-36  # the rests of numbers so small are lost [-]


@short_repr
class Solution(struct.PyTreeNode):
    """Hold an answer for channels ``[..., K]``; see ``meco_jax.solve``."""

    offload: jax.Array  # [..., K] a: 0 or 1, in partial schemes the part of the task sent [-]
    power: jax.Array  # [..., K] p [W]
    time: jax.Array  # [..., K] t [s]
    energy: jax.Array  # [...] realised weighted energy, infinite where infeasible [J]
    lower_bound: jax.Array  # [...] nothing feasible spends less; infinite where nothing is [J]
    feasible: jax.Array  # [...] bool: C1-C5 hold
    # [..., K] what each device adds to ``energy``: 0 for padding, infinite for all that have a
    # task where the energy is; ``solve`` fills it in for schemes that leave it out [J]
    energy_per_device: jax.Array = None  # type: ignore[assignment]

    def as_dict(self) -> dict[str, np.ndarray]:
        """Return plain NumPy arrays by field name, for ``np.savez`` or ``scipy.io.savemat``."""
        return {name: np.asarray(leaf) for name, leaf in vars(self).items() if leaf is not None}


@short_repr
class Exact(NamedTuple):
    """What single floats of ``Link`` leave away, ``[K]`` each; constants to derivatives."""

    load: jax.Array  # the float of the same name [s nat]
    gain: jax.Array  # the float of the same name [1/W]
    load_rest: jax.Array  # what the true one has more, in relation [-]
    gain_rest: jax.Array  # the same [-]
    coarse: jax.Array  # t_min / T, a multiple of SHARE_UNIT, infinite out of reach [-]
    fine: jax.Array  # the rest of it [-]


@short_repr
class Link(NamedTuple):
    """The uplinks of one channel in the symbols of THEORY.md, section 1: ``[K]`` each."""

    usable: jax.Array  # bool: real, with bits to send, and heard at all
    load: jax.Array  # D / w [s nat]
    gain: jax.Array  # g = h^2 / N0 [1/W]
    weight: jax.Array  # beta [-]
    max_power: jax.Array  # p_max [W], []
    max_nats: jax.Array  # x_max = ln(1 + p_max g) [nat]
    min_time: jax.Array  # t_min = D / (w x_max), infinite out of reach [s]
    local: jax.Array  # e: weighted local energy, 0 for padding [J]
    slot: jax.Array  # T [s], []
    exact: Exact


@short_repr
class Grid(NamedTuple):
    """Dual terms at J prices: the dual of S is ``offset + sum_(S xor base) turn``.

    THEORY.md, section 5.

    All terms are low by what rounding can take: every dual is a bound. Counted from a set that
    is good at these prices: from any other, such as that of nobody, the dual would be a small
    difference of large sums.
    """

    log_mu: jax.Array  # [J] prices [ln W]
    base: jax.Array  # [K] bool: who sends at the relaxed problem's price
    offset: jax.Array  # [J] dual of ``base`` [J]
    turn: jax.Array  # [K, J] what turning a device over adds, 0 where it cannot send [J]


@short_repr
class Relaxed(NamedTuple):
    """The answer of a relaxed problem, see ``relax``."""

    offload: jax.Array  # [K] part of each task sent [-]
    time: jax.Array  # [K] t [s]
    sends: jax.Array  # [K] bool: who sends all at this price
    log_mu: jax.Array  # [] logarithm of the slot price [ln W]
    bound: jax.Array  # [] the dual's value, the relaxed optimum; infinite if infeasible [J]


def link(system: System, h: jax.Array) -> Link:
    """Compute the terms of every uplink.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-]; any finite value is fine, 0 too.
    """
    gain = sy.power_gain(system, h)
    max_nats = jnp.log1p(system.max_power * gain)
    load = jnp.where(system.active, system.task_bits / sy.nat_rate(system), 0.0)
    heard = max_nats * (1e12 * system.slot) > load  # slower is as good as never, and overflows
    usable = heard & (load > 0)
    # 1 stands in where nothing is sent: values and gradients stay finite under the masks.
    used_load, used_nats = jnp.where(usable, load, 1.0), jnp.where(usable, max_nats, 1.0)
    out_of_reach = jnp.where(load > 0, jnp.inf, 0.0)
    return Link(
        usable=usable,
        load=used_load,
        gain=jnp.where(usable, gain, 1.0),
        weight=jnp.where(usable, system.weight, 1.0),
        max_power=jnp.asarray(system.max_power, gain.dtype),
        max_nats=used_nats,
        min_time=jnp.where(usable, used_load / used_nats, out_of_reach),
        local=jnp.where(system.active, sy.local_energy(system), 0.0),
        slot=jnp.asarray(system.slot, gain.dtype),
        exact=_exact(system, h, usable, used_load, jnp.where(usable, gain, 1.0), used_nats),
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
    # Computed once: in two places compilers may round the same number in two ways.
    load, gain, nats, log_base, system, h = jax.lax.optimization_barrier(given)
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


def least_shares(link: Link, offload: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the least part of the slot that each part ``offload`` takes, ``[K]`` [-].

    Returns:
        A multiple of ``SHARE_UNIT``, infinite out of reach, and the rest of it.
    """
    if offload.dtype == bool:
        return jnp.where(offload, link.exact.coarse, 0.0), jnp.where(offload, link.exact.fine, 0.0)
    sent = offload > 0
    coarse = jnp.where(sent & link.usable, link.exact.coarse, 0.0)
    share, rest = twofold.two_product(offload, coarse)
    whole = jnp.round(share / SHARE_UNIT) * SHARE_UNIT
    fine = (share - whole) + (rest + offload * link.exact.fine)
    whole, fine = jax.lax.stop_gradient((whole, jnp.where(sent, fine, 0.0)))
    return jnp.where(sent & ~link.usable, link.exact.coarse, whole), fine


def room(shares: tuple[jax.Array, jax.Array], members: jax.Array) -> jax.Array:
    """Compute what some of ``least_shares`` leave of the slot, less than 0 if they exceed it.

    Args:
        shares: of ``[K]``.
        members: which of them to count ``[K]`` bool.
    """
    coarse, fine = sums_of(*(jnp.where(members, share, 0.0) for share in shares))
    return (1 - coarse) - fine


def log_price(link: Link, nats: jax.Array) -> jax.Array:
    """Price at which x nats are best, ln(beta / g (e^x (x - 1) + 1)): ``[K]`` [ln W]."""
    return jnp.log(link.weight / link.gain) + nats + jnp.log(_excess(nats))


@jax.custom_jvp
def best_nats(link: Link, log_mu: jax.Array) -> jax.Array:
    """Nats a symbol that minimise E + mu t, at most x_max: ``[K]`` [nat].

    Solves ``e^x (x - 1) + 1 = y``, y = mu g / beta (a Lambert function), by Halley steps on
    its logarithm ``x + ln(x - 1 + e^-x) = ln y``, which is nearly straight.
    """
    log_y = jnp.maximum(log_mu - jnp.log(link.weight / link.gain), LEAST_LOG_Y)
    x = jax.nn.softplus((log_y + math.log(2)) / 2)  # ln(1 + sqrt(2 y)), exact for small y
    for _ in range(NATS_STEPS):
        excess = _excess(x)
        newton = (x + jnp.log(excess) - log_y) * excess / x
        bend = (1 + jnp.expm1(-x) * x / excess) / x
        x = x - newton / (1 - newton * bend / 2)
    return jnp.minimum(x, link.max_nats)


@best_nats.defjvp
def _best_nats_rule(
    primals: tuple[Link, jax.Array], tangents: tuple[Link, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """d(x + ln(x - 1 + e^-x)) = d ln y, and the left side is x / (x - 1 + e^-x) dx."""
    (link, log_mu), (d_link, d_log_mu) = primals, tangents
    nats = best_nats(link, log_mu)
    d_log_y = d_log_mu - d_link.weight / link.weight + d_link.gain / link.gain
    d_log_y = jnp.where(log_mu - jnp.log(link.weight / link.gain) > LEAST_LOG_Y, d_log_y, 0.0)
    return nats, jnp.where(nats < link.max_nats, _excess(nats) / nats * d_log_y, d_link.max_nats)


def priced_cost(link: Link, log_mu: jax.Array) -> jax.Array:
    """Least cost of sending each task at a price, c(mu) = min_t E(t) + mu t: ``[K]`` [J].

    Infinite out of reach. Its derivative in the price is the time.
    """
    return at_best(_cost, (link, log_mu), (best_nats(link, log_mu),))


def _cost(link: Link, log_mu: jax.Array, best: jax.Array) -> jax.Array:
    """Cost of sending each task at a price with ``best`` nats a symbol, or x_max: ``[K]`` [J]."""
    nats = jnp.where(best < link.max_nats, best, link.max_nats)
    power = link.weight * jnp.expm1(nats) / link.gain
    cost = link.load / nats * (power + jnp.exp(log_mu))
    return jnp.where(link.usable, cost, link.min_time)  # min_time is 0 or infinite there


def fits(link: Link, offload: jax.Array) -> jax.Array:
    """Tell whether a decision ``[K]`` can be sent within the slot, sum a t_min <= T: bool."""
    sent = offload if offload.dtype == bool else offload > 0
    return room(least_shares(link, offload), sent) >= -FIT_TOLERANCE


def slot_price(link: Link, offload: jax.Array) -> jax.Array:
    """Price at which a decision that fits just fills the slot, sum a t(mu) = T.

    The devices at full power leave room in the slot, the others share it: ln(sum a t / room)
    falls and is convex in ln mu, so Newton's method climbs from the left and never overshoots.
    It starts at the price of the device that needs the slot most.

    Args:
        link: the uplinks.
        offload: decision, or parts of tasks, ``[K]`` [-].

    Returns:
        ln mu ``[]`` [ln W]; any finite number for an empty set.
    """
    sends = link.usable & (offload > 0)
    given = link, jnp.where(sends, offload, 0.0)
    link, offload = jax.lax.stop_gradient(given)
    highest = jnp.max(jnp.where(sends, log_price(link, link.max_nats), -jnp.inf))
    lowest = jnp.asarray(-jnp.inf, highest.dtype)
    shares = least_shares(link, offload)
    log_mu = _climb(link, offload, shares, lowest, highest, NEWTON_STEPS)
    return _fill_slot(*given, log_mu, jnp.zeros_like(sends))[0]


def _climb(
    link: Link,
    offload: jax.Array,
    shares: tuple[jax.Array, jax.Array],
    low: jax.Array,
    high: jax.Array,
    steps: int,
) -> jax.Array:
    """Climb to the price ``[]`` [ln W] at which parts ``[K]`` fill the slot, from ``low`` or above.

    See ``slot_price``; the parts are 0 where nothing can be sent.
    """
    sends = offload > 0
    share = jnp.where(sends, offload * link.load / link.slot, 0.0)
    alone = log_price(link, jnp.where(sends, jnp.minimum(share, link.max_nats), 1.0))
    start = jnp.maximum(low, jnp.max(jnp.where(sends, alone, -jnp.inf)))

    def step(_: int, log_mu: jax.Array) -> jax.Array:
        nats = best_nats(link, log_mu)
        capped = nats >= link.max_nats
        used = jnp.where(capped, 0.0, share / nats)
        coarse, fine = (jnp.where(capped, each, 0.0) for each in shares)
        fall, total, whole, rest = sums_of(used * _excess(nats) / nats**2, used, coarse, fine)
        left = jnp.maximum((1 - whole) - rest, 1e-3 * total)
        climb = jnp.maximum(total * jnp.log(jnp.where(total > 0, total / left, 1.0)), 0.0)
        climb = jnp.where(fall > 0, climb / jnp.where(fall > 0, fall, 1.0), 0.0)
        return jnp.minimum(log_mu + climb, high)

    start = jnp.where(jnp.any(sends), jnp.minimum(start, high), 0.0)
    return jax.lax.fori_loop(0, steps, step, start)


@jax.custom_jvp
def _fill_slot(
    link: Link, offload: jax.Array, log_mu: jax.Array, split: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return a price and the parts that fill the slot at it, with their derivatives.

    Devices that are ``split``, ``[K]`` bool, are as well off sending as not: c(mu) = e moves
    the price, and their parts fill the slot. Where there are none, the price fills it. Of
    several, which happens to equal devices, all parts move alike.
    """
    del link, split
    return log_mu, offload


@_fill_slot.defjvp
def _fill_slot_rule(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    (link, _, _, split), (d_link, d_offload, _, _) = primals, tangents
    log_mu, offload = _fill_slot(*primals)
    d_offload = jnp.where(split, 0.0, d_offload)

    def residuals(link: Link, offload: jax.Array, log_mu: jax.Array) -> jax.Array:
        time = link.load / best_nats(link, log_mu)
        switch = jnp.where(split, priced_cost(link, log_mu) - link.local, 0.0)
        return jnp.stack([jnp.sum(offload * time) - link.slot, jnp.sum(switch)])

    at_price, along_price = partial(residuals, log_mu=log_mu), partial(residuals, link, offload)
    _, (d_used, d_switch) = jax.jvp(at_price, (link, offload), (d_link, d_offload))
    _, (used_slope, switch_slope) = jax.jvp(along_price, (log_mu,), (jnp.ones_like(log_mu),))
    splits = jnp.any(split)
    moved, slope = jnp.where(splits, d_switch, d_used), jnp.where(splits, switch_slope, used_slope)
    d_log_mu = jnp.where(slope != 0, -moved / jnp.where(slope != 0, slope, 1.0), 0.0)
    whole = jnp.sum(jnp.where(split, link.load / best_nats(link, log_mu), 0.0))
    d_part = -(d_used + used_slope * d_log_mu) / jnp.where(splits, whole, 1.0)
    return (log_mu, offload), (d_log_mu, jnp.where(split, d_part, d_offload))


def set_energy(link: Link, offload: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the least energy of a fixed decision, F(S) of THEORY.md, section 5, and its times.

    Args:
        link: the uplinks.
        offload: decision, or parts of tasks, ``[K]`` [-].

    Returns:
        Energy ``[]`` [J], infinite if the decision does not fit; times ``[K]`` [s].
    """
    energy, time, _ = priced_set(link, offload)
    return energy, time


def priced_set(link: Link, offload: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute a decision's energy and times, see ``set_energy``, and its slot price [ln W]."""
    fit = fits(link, offload)
    sends = link.usable & (offload > 0) & fit
    sent = jnp.where(sends, offload, 0.0)
    log_mu = slot_price(link, sent)
    nats = best_nats(link, log_mu)
    fastest, wanted = sent * link.load / link.max_nats, sent * link.load / nats
    # Exactly nothing at full power: a rounding of a long time is long beside short ones.
    longer = jnp.where(nats < link.max_nats, wanted - fastest, 0.0)
    # Blend in the fastest times, so that the slot is met however exact the price is.
    spare = link.slot * room(least_shares(link, sent), sends)
    extra = jnp.sum(longer)
    blend = jnp.clip(spare / jnp.where(extra > 0, extra, 1.0), 0.0, 2.0)
    time = with_derivative(fastest + blend * longer, wanted)
    given = link, jnp.where(fit, offload, 0.0)
    energy = with_derivative(
        energy_spent(link, offload, time), at_best(_lagrangian, given, (log_mu,))
    )
    # A set on the edge of fitting may fit here and not above, computed with other rounding.
    stranded = jnp.any(link.usable & (offload > 0) & (time <= 0))
    return jnp.where(fit & ~stranded, energy, jnp.inf), time, log_mu


def send_power(link: Link, offload: jax.Array, time: jax.Array) -> jax.Array:
    """Power that sends the parts ``offload`` in ``time`` [s], (e^x - 1) / g: ``[K]`` [W]."""
    sends = link.usable & (offload > 0) & (time > 0)
    nats = jnp.where(sends, offload * link.load / jnp.where(sends, time, 1.0), 0.0)
    power = jnp.maximum(jnp.expm1(nats) / link.gain, jnp.where(sends, LEAST_POWER, 0.0))
    return jnp.where(nats < link.max_nats, power, link.max_power)


def energy_spent(link: Link, offload: jax.Array, time: jax.Array) -> jax.Array:
    """Weighted energy of parts sent in times, sum beta p t + (1 - a) e: ``[]`` [J]."""
    return jnp.sum(device_energy(link, offload, send_power(link, offload, time), time))


def device_energy(link: Link, offload: jax.Array, power: jax.Array, time: jax.Array) -> jax.Array:
    """Weighted energy of each device, beta p t + (1 - a) e: ``[K]`` [J]."""
    return link.weight * power * time + (1 - offload) * link.local


def switch_price(link: Link) -> jax.Array:
    """Price at which sending a task costs as much as keeping it, c(mu) = e: ``[K]`` [ln W].

    Sending costs less below it, -inf where it never does. With x = ln(e / c(0)) nats a symbol
    both cost the same, c(mu) = c(0) e^x; above x_max the cost grows by t_min for each W.
    """
    never = ~link.usable | (link.local <= 0)
    free = link.load * link.weight / link.gain  # c(0), what sending costs where time is free
    nats = jnp.log(jnp.where(never, 1.0, link.local)) - jnp.log(free)
    never |= nats <= 0
    nats = jnp.where(never, link.max_nats, nats)
    reached = jnp.minimum(nats, link.max_nats)
    beyond = reached * jnp.expm1(jnp.minimum(nats - reached, 80.0))
    log_mu = jnp.log(link.weight / link.gain) + reached + jnp.log(_excess(reached) + beyond)
    return jnp.where(never, -jnp.inf, log_mu)


def relax(link: Link, must: jax.Array) -> Relaxed:
    """Solve the problem whose devices send any part of their task from ``must`` to 1.

    Maximises ``sum must c + (1 - must) min(c, e) - mu T`` over mu, THEORY.md, section 5:
    with ``must`` the forced devices it bounds P1, with m^+ it is the optimal PCOS. The
    sending time falls in mu, with a jump where a device turns local and a bend where its power
    caps. These prices are ranked, and bisected for the first at which the slot suffices. Either
    the devices that turn there send parts that fill the slot, or all that send does so at a
    price before, found by a few Newton steps.

    Args:
        link: the uplinks.
        must: part of each task that must be sent ``[K]`` [-].
    """
    feasible = fits(link, must)
    must = jnp.where(link.usable & feasible, must, 0.0)
    given = link, must
    link, must = jax.lax.stop_gradient(given)
    switch = jnp.where(feasible, switch_price(link), -jnp.inf)
    turns = jnp.where(must < 1, switch, jnp.inf)
    wanted = link.usable & feasible & ((must > 0) | (turns > -jnp.inf))
    breaks = jnp.concatenate([turns, log_price(link, link.max_nats)])
    breaks = jnp.where(jnp.tile(wanted, 2), breaks, jnp.inf)
    breaks = jnp.where(jnp.isfinite(breaks), breaks, jnp.inf)
    number = jnp.sum(jnp.isfinite(breaks))
    pick = _in_order(breaks)
    least, most = least_shares(link, must), (link.exact.coarse, link.exact.fine)

    def left(nats: jax.Array, more: jax.Array) -> jax.Array:
        """What is left of the slot, what is sent at full power counted exactly: ``[]`` [-]."""
        capped = nats >= link.max_nats
        shares = jax.tree.map(partial(jnp.where, more), most, least)
        taken = jnp.where(capped, 0.0, jnp.where(more, 1.0, must) * link.load / nats)
        coarse, fine = (jnp.where(capped, share, 0.0) for share in shares)
        coarse, fine, taken = sums_of(coarse, fine, taken / link.slot)
        return (1 - coarse) - fine - taken

    def halve(_: int, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, high, *ends = found
        middle = (low + high) // 2
        log_mu = pick(middle)
        nats = best_nats(link, log_mu)
        after, until = wanted & (turns > log_mu), wanted & (turns >= log_mu)
        rest = left(nats, after)
        suffices = (middle > low) & (rest >= 0)
        here = log_mu, rest, after, until, left(nats, until) < 0
        ends = [jnp.where(suffices, mine, other) for mine, other in zip(here, ends)]
        return jnp.where(suffices, low, middle), jnp.where(suffices, middle, high), *ends

    # Ranks of the prices at which the slot does not, and does suffice; the second's price, what
    # it leaves of the slot, who sends beyond and up to it, and whether these would be too many.
    # All goes through the loop: computed again, rounding might turn a comparison.
    always = wanted & (must >= 1)
    last = jnp.where(number > 0, pick(number - 1), 0.0)
    found = (jnp.full_like(number, -1), number, last, jnp.zeros_like(link.slot), always, always,
             jnp.array(False))  # fmt: skip
    rounds = max(1, math.ceil(math.log2(len(breaks) + 1)))
    low, _, last, spare, after, until, jumps = jax.lax.fori_loop(0, rounds, halve, found)
    before = jnp.where(low >= 0, pick(low), -jnp.inf)
    sends, split = jnp.where(jumps, after, until), jumps & until & ~after
    sent, shares = jnp.where(sends, 1.0, must), jax.tree.map(partial(jnp.where, sends), most, least)
    log_mu = _climb(link, sent, shares, before, last, LAST_STEPS)
    log_mu = jnp.where(jumps, last, log_mu)

    nats = best_nats(link, log_mu)
    time = link.load / nats
    fastest = jnp.where(nats < link.max_nats, link.load / link.max_nats, time)
    longer = jnp.where(jumps, jnp.where(split, (1 - must) * time, 0.0), sent * (time - fastest))
    spare = jnp.where(jumps, spare, room(shares, sent > 0))
    extra = jnp.sum(longer) / link.slot
    most_of = jnp.where(jumps, 1.0, 2.0)
    blend = jnp.clip(spare / jnp.where(extra > 0, extra, 1.0), 0.0, most_of)
    parts = jnp.where(split, must + blend * (1 - must), sent)
    time = jnp.where(jumps, sent * time, sent * fastest) + blend * longer
    bound = proven_dual(link, must, wanted, log_mu)

    # Who would rather stay sends what it must, all of it too.
    stays = jnp.where(must < 1, parts < 1, switch <= log_mu)
    link, must = given
    log_mu, offload = _fill_slot(
        link, with_derivative(parts, jnp.where(stays, must, parts)), log_mu, split
    )
    dual = at_best(_lagrangian, (link, offload), (log_mu,))
    return Relaxed(
        offload=offload,
        time=with_derivative(time, offload * link.load / best_nats(link, log_mu)),
        sends=sends,
        log_mu=log_mu,
        bound=jnp.where(feasible, with_derivative(bound, dual), jnp.inf),
    )


def _in_order(values: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Return what picks the n-th smallest of values ``[N]``."""
    places = jnp.arange(len(values))
    if len(values) > RANKED:
        ordered = jnp.sort(values)
        return lambda n: ordered[jnp.maximum(n, 0)]
    smaller = (values[None] < values[:, None]) | (
        (values[None] == values[:, None]) & (places[None] < places[:, None])
    )
    rank = jnp.sum(smaller, axis=1)
    return lambda n: jnp.sum(jnp.where(rank == n, values, 0.0))


def price_grid(link: Link, base: jax.Array, log_mu: jax.Array, num: int, width: float) -> Grid:
    """Price every device at ``num`` prices to ``width`` on either side, densest at ``log_mu``.

    Args:
        link: the uplinks.
        base: set ``[K]`` bool from which duals are counted, ``Relaxed.sends``: a result of a
            loop, since what XLA computes twice may differ in rounding.
        log_mu: the middle price ``[]`` [ln W].
        num: number of prices.
        width: half width of the grid [ln W].
    """
    prices = log_mu + width * jnp.linspace(-1, 1, num) ** 3
    nats = jax.lax.stop_gradient(jax.vmap(partial(best_nats, link), out_axes=1)(prices))
    load, gain, weight, usable, local, fastest, base_column = (
        x[:, None] for x in (link.load, link.gain, link.weight, link.usable, link.local,
                             link.load / link.max_nats, base)
    )  # fmt: skip
    mu, time = jnp.exp(prices)[None], load / nats
    sent = time * (weight * jnp.expm1(nats) / gain)
    cost = sent + time * mu
    # The fastest times of the base are counted exactly, in what is left of the slot.
    beyond = sent + jnp.where(nats < link.max_nats[:, None], mu * (time - fastest), 0.0)
    members = base & link.usable
    spare = mu[0] * link.slot * room(least_shares(link, members), members)
    slack = _rounding(link) * 4 * (4 + math.log2(len(base)))
    spent = pairwise_sum(jnp.where(base_column & usable, beyond, local))
    offset = spent - spare - slack * (spent + jnp.abs(spare))
    turn = jnp.where(base_column, local - cost, cost - local) - slack * (cost + local)
    return Grid(prices, base, offset, jnp.where(usable, turn, 0.0))


def allocate(system: System, h: jax.Array, offload: jax.Array) -> Solution:
    """Give a fixed decision its optimal powers and times: P1, (6), with a fixed.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: decision ``[K]``, 0 or 1 [-]; padding is ignored.

    Returns:
        A ``Solution`` for the channel. Infeasible where the set does not fit or a forced
        device stays. All numbers can be differentiated twice in ``system`` and ``h``.
    """
    uplinks, must = link(system, h), sy.forced(system).astype(h.dtype)
    offload = jnp.where(system.active, offload, 0.0).astype(h.dtype)
    energy, time = set_energy(uplinks, offload)
    bound = relax(uplinks, must).bound
    energy = jnp.where(jnp.all(offload >= must), energy, jnp.inf)
    return finish(uplinks, offload, time, energy, bound)


def finish(
    link: Link, offload: jax.Array, time: jax.Array, energy: jax.Array, bound: jax.Array
) -> Solution:
    """Make the ``Solution`` of parts and times ``[K]``: feasible if the energy is finite.

    An infeasible one sends nothing: whoever acts on it without looking stays silent.
    """
    feasible = jnp.isfinite(energy)
    power = send_power(link, offload, time)
    has_task = link.min_time > 0
    return Solution(
        offload=jnp.where(feasible, offload, 0.0),
        power=jnp.where(feasible, power, 0.0),
        time=jnp.where(feasible, time, 0.0),
        energy=energy,
        lower_bound=jnp.minimum(bound, energy),  # they may meet, and both are rounded
        feasible=feasible,
        energy_per_device=jnp.where(
            feasible, device_energy(link, offload, power, time), jnp.where(has_task, jnp.inf, 0.0)
        ),
    )


def proven_dual(link: Link, must: jax.Array, free: jax.Array, log_mu: jax.Array) -> jax.Array:
    """Bound from below by the dual at a price, sum a c + (1 - a) e - mu T: ``[]`` [J].

    For all ways to send the parts ``must``, and any more of the tasks of ``free`` devices. True
    of the exact problem whose numbers are the floats given. With times t that are best at mu it
    is sum a E(t) + (1 - a) e + mu (sum a t - T), and all but the last term are positive: times
    are taken as the floats they are, and those at full power count exactly, so that the last
    one is exact too. Other roundings are subtracted. Nats that are best but for an error of d
    cost d^2 / 2x more than the least, in relation.

    Args:
        link: the uplinks.
        must: part of each task that must be sent ``[K]`` [-].
        free: devices that may send all ``[K]`` bool.
        log_mu: price ``[]``, any [ln W].
    """
    unit = _rounding(link)
    tiny = 2.0**-35 if link.load.dtype == jnp.float32 else 2.0**-44
    nats = best_nats(link, log_mu)
    mu = jnp.where(jnp.any(link.usable & (free | (must > 0))), jnp.exp(log_mu), 0.0)
    given = (link, must, mu, link.exact.load / nats, nats >= link.max_nats)
    link, must, mu, time, capped = jax.lax.optimization_barrier(jax.lax.stop_gradient(given))
    exact = link.exact

    nats = exact.load / time
    grown = jnp.expm1(nats)
    energy = link.weight * grown / exact.gain * time
    energy = energy * (1 + exact.load_rest * nats * (1 + 1 / grown) - exact.gain_rest)
    least = link.slot * (exact.coarse + exact.fine)
    energy = jnp.where(capped, link.weight * link.max_power * least, energy)
    doubt = jnp.where(capped, 4.0, 6 + nats * (1 + 1 / grown)) * unit * energy
    time = jnp.where(capped, 0.0, time)
    whole = energy + mu * jnp.where(capped, least, time)
    sent = jnp.where(free & (whole < link.local), 1.0, must)
    sent = jnp.where(link.usable, sent, 0.0)

    shares = least_shares(link, sent)
    part, rest = twofold.two_product(sent, time)
    spent = jnp.where(sent > 0, sent * energy, 0.0) + (1 - sent) * link.local
    largest = jnp.maximum(jnp.max(spent), LEAST_POWER)
    unit_time, unit_energy = (SHARE_UNIT * twofold.power_of_two(x) for x in (link.slot, largest))
    steps = jnp.round(part / unit_time) * unit_time  # their sums are exact
    whole_steps = jnp.round(spent / unit_energy) * unit_energy
    coarse, fine, in_steps, between, value, rest_value = sums_of(
        *(jnp.where(capped, share, 0.0) for share in shares), steps, part - steps + rest,
        whole_steps, spent - whole_steps,
    )  # fmt: skip
    left, more = twofold.two_product(link.slot, 1 - coarse)
    spare = mu * ((left - in_steps) + (more - between - link.slot * fine))
    value += rest_value

    doubt = jnp.where(sent > 0, sent * doubt, 0.0) + 7 * unit * (1 - sent) * link.local
    tie = free & (jnp.abs(whole - link.local) <= 32 * unit * link.local)
    doubt += jnp.where(tie, 16 * unit * link.local, 0.0)
    split = (must > 0) & (must < 1) & (sent < 1)  # m is rounded
    doubt += jnp.where(split, 8 * unit * whole, 0.0)
    lost = jnp.where(capped, tiny / 8 + SMALLEST / link.max_nats, tiny) * shares[0]
    doubt = pairwise_sum(doubt + mu * link.slot * jnp.where(sent > 0, lost, 0.0))
    doubt += (3 + len(sent) * SHARE_UNIT) * unit * value + 4 * unit * jnp.abs(spare)
    bound = value - spare - doubt
    return jnp.where(bound > 0, bound, 0.0)  # and where it is not a number


def sums_of(*terms: jax.Array) -> jax.Array:
    """Sum each array ``[K]``: all of them at once, since each sum compiles what it depends on."""
    return jnp.sum(jnp.stack(terms), axis=1)


def pairwise_sum(terms: jax.Array) -> jax.Array:
    """Sum over the first axis by halves, which rounds least."""
    while len(terms) > 1:
        half = len(terms) // 2
        rest = terms[2 * half :]
        terms = jnp.concatenate([terms[:half] + terms[half : 2 * half], rest])
    return terms[0]


def _rounding(link: Link) -> float:
    """Largest relative error of one operation."""
    return float(jnp.finfo(link.load.dtype).eps) / 2


def _lagrangian(link: Link, offload: jax.Array, log_mu: jax.Array) -> jax.Array:
    """Cost of parts ``[K]`` at a price, sum a c + (1 - a) e - mu T: ``[]`` [J]."""
    sends = jnp.any(link.usable & (offload > 0))
    log_mu = jnp.where(sends, log_mu, FREE)
    cost = jnp.where(link.usable, priced_cost(link, log_mu), 0.0)
    return jnp.sum(offload * cost + (1 - offload) * link.local) - jnp.exp(log_mu) * link.slot


def _excess(nats: jax.Array) -> jax.Array:
    """x - 1 + e^-x for x > 0, without cancellation: ``[K]``."""
    small = jnp.where(nats < 1, nats, 0.0)
    series = jnp.zeros_like(small)
    for n in range(12, 1, -1):  # x^2 / 2 - x^3 / 6 + ...
        series = series * small + (-1) ** n / math.factorial(n)
    return jnp.where(nats < 1, small * small * series, nats + jnp.expm1(-nats))
