"""Given who offloads: the optimal powers and times, the slot price, the Lagrangian bound.

Only the slot (C1) couples the devices, so one price mu [W] on slot time decides all. At
x nats a symbol device k sends its task in t = D / (w x) with power p = (e^x - 1) / g and
pays t (beta p + mu); the best x solves e^x (x - 1) + 1 = mu g / beta. Prices are kept as
their logarithm. Source: math note 2-3, derived from P1, (6). All is for one channel, ``[K]``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from meco_jax import system as sy
from meco_jax.derivatives import at_best, with_derivative
from meco_jax.describe import short_repr
from meco_jax.system import System

FIT_TOLERANCE = 5e-7  # a set whose fastest times exceed the slot by less still fits [-]
NATS_STEPS = 2  # Halley, to float32's last digits from any price; 5e-9 in float64
NEWTON_STEPS = 10  # for the price of a fixed set; 6 reach float32 save where many powers cap
LEAST_POWER = 1e-37  # less has no digits in float32; a task is through sooner with it [W]
FREE = -200.0  # logarithm of a price of nothing [ln W]
LEAST_LOG_Y = -80.0  # x^2 must not underflow; at x = 6e-18 and below energies are the same
BISECTION_STEPS = 30  # for the relaxed price: halves a bracket of e^10 to float32's last digits


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
class Link(NamedTuple):
    """The uplinks of one channel in the math note's terms, ``[K]`` each."""

    usable: jax.Array  # bool: real, with bits to send, and heard at all
    load: jax.Array  # D / w [s nat]
    gain: jax.Array  # g = h^2 / N0 [1/W]
    weight: jax.Array  # beta [-]
    max_power: jax.Array  # p_max [W], []
    max_nats: jax.Array  # x_max = ln(1 + p_max g) [nat]
    min_time: jax.Array  # t_min = D / (w x_max), infinite out of reach [s]
    local: jax.Array  # e: weighted local energy, 0 for padding [J]
    slot: jax.Array  # T [s], []


@short_repr
class Grid(NamedTuple):
    """Dual terms at J prices, math note 3b: the dual of S is ``offset + sum_(S xor base) turn``.

    Counted from a set that is good at these prices: from any other, such as that of nobody,
    the dual would be a small difference of large sums.
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
    )


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
    used = jnp.sum(jnp.where(offload > 0, offload * link.min_time, 0.0))
    return used <= link.slot * (1 + FIT_TOLERANCE)


def slot_price(link: Link, offload: jax.Array) -> jax.Array:
    """Price at which a decision that fits just fills the slot, sum a t(mu) = T.

    ln(sum a t / T) falls and is convex in ln mu, so Newton's method climbs from the left
    and never overshoots. It starts at the price of the device that needs the slot most.

    Args:
        link: the uplinks.
        offload: decision, or parts of tasks, ``[K]`` [-].

    Returns:
        ln mu ``[]`` [ln W]; any finite number for an empty set.
    """
    sends = link.usable & (offload > 0)
    given = link, jnp.where(sends, offload, 0.0)
    link, offload = jax.lax.stop_gradient((link, offload))
    share = jnp.where(sends, offload * link.load / link.slot, 0.0)
    alone = log_price(link, jnp.where(sends, jnp.minimum(share, link.max_nats), 1.0))
    start = jnp.max(jnp.where(sends, alone, -jnp.inf))

    def step(_: int, log_mu: jax.Array) -> jax.Array:
        nats = best_nats(link, log_mu)
        used = share / nats
        fall = jnp.sum(jnp.where(nats < link.max_nats, used * _excess(nats) / nats**2, 0.0))
        total = jnp.sum(used)
        climb = jnp.maximum(total * jnp.log(jnp.where(total > 0, total, 1.0)), 0.0)
        return log_mu + jnp.where(fall > 0, climb / jnp.where(fall > 0, fall, 1.0), 0.0)

    log_mu = jax.lax.fori_loop(0, NEWTON_STEPS, step, jnp.where(jnp.any(sends), start, 0.0))
    return _fill_slot(*given, log_mu, jnp.zeros_like(sends))[0]


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
    """Compute the least energy of a fixed decision, F(S) of math note 3b, and its times.

    Args:
        link: the uplinks.
        offload: decision, or parts of tasks, ``[K]`` [-].

    Returns:
        Energy ``[]`` [J], infinite if the decision does not fit; times ``[K]`` [s].
    """
    fit = fits(link, offload)
    sends = link.usable & (offload > 0) & fit
    sent = jnp.where(sends, offload, 0.0)
    log_mu = slot_price(link, sent)
    fastest, wanted = sent * link.load / link.max_nats, sent * link.load / best_nats(link, log_mu)
    # Blend in the fastest times, so that the slot is met however exact the price is.
    spare, extra = link.slot - jnp.sum(fastest), jnp.sum(wanted - fastest)
    blend = jnp.clip(spare / jnp.where(extra > 0, extra, 1.0), 0.0, 1.0)
    time = with_derivative(fastest + blend * (wanted - fastest), wanted)
    given = link, jnp.where(fit, offload, 0.0)
    energy = with_derivative(
        energy_spent(link, offload, time), at_best(_lagrangian, given, (log_mu,))
    )
    # A set on the edge of fitting may fit here and not above, computed with other rounding.
    stranded = jnp.any(link.usable & (offload > 0) & (time <= 0))
    return jnp.where(fit & ~stranded, energy, jnp.inf), time


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


def relax(link: Link, must: jax.Array) -> Relaxed:
    """Solve the problem whose devices send any part of their task from ``must`` to 1.

    Maximises ``sum must c + (1 - must) min(c, e) - mu T`` over mu, math note 3a and 3d:
    with ``must`` the forced devices it bounds P1, with m^+ it is the optimal PCOS. The
    sending time falls in mu, with jumps where a device turns local, so the price is
    bisected; the answer blends both ends of the last bracket so that the slot is full.

    Args:
        link: the uplinks.
        must: part of each task that must be sent ``[K]`` [-].
    """
    feasible = fits(link, must)
    must = jnp.where(link.usable & feasible, must, 0.0)
    given = link, must
    link, must = jax.lax.stop_gradient(given)
    wanted = link.usable & feasible & ((must > 0) | (_free_cost(link) < link.local))
    low, high = _price_bracket(link, must, wanted)

    def demand(log_mu: jax.Array) -> jax.Array:
        return jnp.where(wanted & (priced_cost(link, log_mu) < link.local), 1.0, must)

    def times(log_mu: jax.Array, offload: jax.Array) -> jax.Array:
        return offload * link.load / best_nats(link, log_mu)

    def halve(_: int, bracket: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, high, offload_low, offload_high = bracket
        middle = (low + high) / 2
        offload = demand(middle)
        full = jnp.sum(times(middle, offload)) >= link.slot
        return (
            jnp.where(full, middle, low), jnp.where(full, high, middle),
            jnp.where(full, offload, offload_low), jnp.where(full, offload_high, offload),
        )  # fmt: skip

    # The offloading goes through the loop: computed again, rounding might turn it.
    bracket = low, high, demand(low), demand(high)
    bracket = jax.lax.fori_loop(0, BISECTION_STEPS, halve, bracket)
    low, high, offload_low, offload_high = bracket
    time_low, time_high = times(low, offload_low), times(high, offload_high)
    spare, extra = link.slot - jnp.sum(time_high), jnp.sum(time_low - time_high)
    blend = jnp.clip(spare / jnp.where(extra > 0, extra, 1.0), 0.0, 1.0)
    bound = jnp.maximum(_dual(link, must, low), _dual(link, must, high))
    bound = jnp.where(jnp.any(wanted), bound, jnp.sum(link.local))

    parts = offload_high + blend * (offload_low - offload_high)
    time = time_high + blend * (time_low - time_high)
    # Who would rather stay sends what it must, all of it too.
    least = jnp.where(must < 1, parts < 1, priced_cost(link, high) >= link.local)
    split = offload_low != offload_high
    link, must = given
    log_mu, offload = _fill_slot(
        link, with_derivative(parts, jnp.where(least, must, parts)), high, split
    )
    dual = at_best(_lagrangian, (link, offload), (log_mu,))
    return Relaxed(
        offload=offload,
        time=with_derivative(time, offload * link.load / best_nats(link, log_mu)),
        sends=offload_high >= 1,
        log_mu=log_mu,
        bound=jnp.where(feasible, with_derivative(bound, dual), jnp.inf),
    )


def _free_cost(link: Link) -> jax.Array:
    """What sending costs where time is free, c(0) = beta D / (w g): ``[K]`` [J]."""
    return link.load * link.weight / link.gain


def _price_bracket(link: Link, must: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bracket the relaxed price, ``[]`` [ln W] each.

    At the low end one wanted device alone fills the slot, at the high end all leave it.
    """
    switch = jnp.log(jnp.where(wanted, jnp.maximum(link.local / _free_cost(link), 1e-30), 1.0))
    share = link.load / link.slot
    nats = jnp.where(must > 0, must * share, jnp.minimum(share, switch))
    nats = jnp.where(wanted, jnp.minimum(nats, link.max_nats), 1.0)
    low = jnp.min(jnp.where(wanted, log_price(link, nats), jnp.inf)) - 0.1
    leave = jnp.log(jnp.where(link.local > 0, link.local * link.max_nats / link.load, 1.0))
    leave = jnp.where((must < 1) & (link.local > 0), leave, -jnp.inf)
    cap = jnp.where(must > 0, log_price(link, link.max_nats), -jnp.inf)
    high = jnp.max(jnp.where(wanted, jnp.maximum(leave, cap), -jnp.inf)) + 0.1
    any_wanted = jnp.any(wanted)
    return jnp.where(any_wanted, low, 0.0), jnp.where(any_wanted, high, 0.0)


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
    cost = jax.vmap(partial(priced_cost, link), out_axes=1)(prices)
    local, base_column = link.local[:, None], base[:, None]
    saving = jnp.where(link.usable[:, None], local - cost, 0.0)
    spent = jnp.sum(jnp.where(base_column, cost, local), axis=0) - jnp.exp(prices) * link.slot
    return Grid(prices, base, spent, jnp.where(base_column, saving, -saving))


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


def _dual(link: Link, must: jax.Array, log_mu: jax.Array) -> jax.Array:
    """L(mu) of math note 3: a lower bound at any price ``[]`` [J]."""
    cost = priced_cost(link, log_mu)
    priced = jnp.where(must > 0, must * cost, 0.0) + (1 - must) * jnp.minimum(cost, link.local)
    return jnp.sum(priced) - jnp.exp(log_mu) * link.slot


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
