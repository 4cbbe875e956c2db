"""Bounds from prices: grids that price every set at once, and duals that are proven.

They ask of a device what it costs and takes at a price, see ``uplink``. Source: THEORY.md,
sections 5-7. All is for one channel, ``[K]``.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.exact import twofold
from meco_jax.exact.equations import NEAR, near_efficiency
from meco_jax.exact.residuals import SHARE_UNIT
from meco_jax.exact.shares import edge_shares, fixed_shares, least_shares, room
from meco_jax.exact.uplink import (
    LEAST_LOG_Y,
    LEAST_POWER,
    SMALLEST,
    Uplink,
    best_efficiency,
    efficiency_at,
    own_price,
    pairwise_sum,
    raised_price,
    rounding,
)
from meco_jax.runtime.describe import short_repr

SHORT = 2.0**-18  # a part of the slot that loses digits beside another [-]


@short_repr
class PriceGrid(NamedTuple):
    """Dual terms at J prices: the dual of S is ``base_dual + sum_(S xor base) flip_cost``.

    THEORY.md, section 5.

    All terms are low by what rounding can take: every dual is a bound. Counted from a set that
    is good at these prices: from any other, such as that of nobody, the dual would be a small
    difference of large sums.
    """

    log_mu: jax.Array  # [J] prices [ln W]
    base: jax.Array  # [K] bool: who sends at the relaxed problem's price
    base_dual: jax.Array  # [J] dual of ``base`` [J]
    flip_cost: jax.Array  # [K, J] what flipping a device adds, 0 where it cannot send [J]


def price_grid(
    uplink: Uplink,
    base: jax.Array | None,
    log_mu: Any,
    num: int,
    width: float,
    xp: ModuleType = jnp,
) -> PriceGrid:
    """Price every device at ``num`` prices to ``width`` on either side, densest at ``log_mu``.

    Args:
        uplink: terms of every uplink ``[K]``.
        base: set ``[K]`` bool from which duals are counted, ``Relaxed.sends``: a result of a
            loop, since what XLA computes twice may differ in rounding. None for who saves at
            the middle price, on the host.
        log_mu: the middle price ``[]`` [ln W].
        num: number of prices, odd so that the middle is one of them.
        width: half width of the grid [ln W].
        xp: jax.numpy, or numpy in float64.
    """
    prices = raised_price(uplink, log_mu, width * xp.linspace(-1, 1, num) ** 3, xp)
    column = uplink._replace(**{
        name: x[:, None] for name, x in uplink._asdict().items() if getattr(x, "ndim", 0) == 1
    })  # fmt: skip
    nats, doubt = _grid_efficiency(column, prices[None], xp)
    mu, time = xp.exp(prices)[None], column.load / nats
    power, terms = column.weight * xp.expm1(nats) / column.gain, 4 + math.log2(len(uplink.load))
    if column.per_time is not None:
        power, terms = power + column.per_time, terms + 1
    sent = time * power
    cost, local = sent + time * mu, column.local
    if column.per_task is not None:
        sent, cost, terms = sent + column.per_task, cost + column.per_task, terms + 1
    if column.fixed_time is not None:
        cost, terms = cost + column.fixed_time * mu, terms + 1
    if base is None:
        base = uplink.usable & ((local - cost)[:, num // 2] > 0)
    # The fastest times of the base are counted exactly, in what is left of the slot.
    longer = time - column.load / column.max_efficiency
    beyond = sent + xp.where(nats < column.max_efficiency, mu * longer, 0.0)
    members = base & uplink.usable
    spare = mu[0] * uplink.slot * room(least_shares(uplink, members, xp), members, xp)
    slack, doubt = rounding(uplink) * 4 * terms, doubt * cost
    spent = pairwise_sum(xp.where(members[:, None], beyond - doubt, local), xp)
    base_dual = spent - spare - slack * (spent + abs(spare))
    flip_cost = xp.where(base[:, None], local - cost, cost - local)
    flip_cost = flip_cost - slack * (cost + local) - doubt
    return PriceGrid(prices, base, base_dual, xp.where(column.usable, flip_cost, 0.0))


def _grid_efficiency(uplink: Uplink, log_mu: Any, xp: ModuleType) -> tuple[Any, Any]:
    """Efficiency at prices, and how much more may be spent with it than with the best one [-].

    In float32 one from nearby will do: an error of d costs d^2 / 2x, in relation.
    """
    if xp is not jnp or uplink.load.dtype != jnp.float32:
        nats = efficiency_at(uplink, log_mu, xp)
        return (jax.lax.stop_gradient(nats) if xp is jnp else nats), xp.zeros_like(nats)
    log_y = jnp.maximum(own_price(uplink, log_mu) - uplink.log_scale, LEAST_LOG_Y)
    nats = near_efficiency(jax.lax.stop_gradient(log_y))
    surely_capped = nats * (1 - NEAR) >= uplink.max_efficiency
    nats = jnp.minimum(nats, jax.lax.stop_gradient(uplink.max_efficiency))
    return nats, jnp.where(surely_capped, 0.0, NEAR**2 / 2 * nats)


def saving(grid: PriceGrid, xp: ModuleType = jnp) -> jax.Array:
    """What sending saves at a grid's prices, e - c: ``[K, J]`` [J]."""
    return xp.where(grid.base[:, None], grid.flip_cost, -grid.flip_cost)


def least_dual(grid: PriceGrid, forced: Any, xp: ModuleType = jnp) -> jax.Array:
    """L(mu) at a grid's prices, each free device on its cheaper side: ``[J]`` [J]."""
    must_turn = forced & ~grid.base
    flipped = must_turn[:, None] | (~forced)[:, None] & (grid.flip_cost < 0)
    return grid.base_dual + pairwise_sum(xp.where(flipped, grid.flip_cost, 0.0), xp)


def with_edge_price(
    uplink: Uplink, grid: PriceGrid, edge_price: jax.Array | None, xp: ModuleType = jnp
) -> PriceGrid:
    """Charge for the edge's cycles too: L(mu, nu) in the place of L(mu), at one price nu.

    Of no use where a set is known: its cycles are there or not, and nu only lowers its dual.

    Args:
        uplink: the uplink.
        grid: from ``price_grid``.
        edge_price: nu of all cycles ``[]`` [J], or None without C6.
        xp: jax.numpy, or numpy.
    """
    if edge_price is None:
        return grid
    charged = edge_price * uplink.edge_share
    left = edge_price * room(edge_shares(uplink, grid.base, xp), grid.base, xp)
    slack = 8 * rounding(uplink)
    each = xp.where(grid.base, -charged, charged) - slack * charged
    base_dual = grid.base_dual - left - slack * (abs(left) + edge_price)
    return grid._replace(base_dual=base_dual, flip_cost=grid.flip_cost + each[:, None])


def proven_dual(
    uplink: Uplink,
    must: jax.Array,
    free: jax.Array,
    log_mu: jax.Array,
    edge_price: jax.Array | None = None,
) -> jax.Array:
    """Bound from below by the dual at a price, sum a c + (1 - a) e - mu T: ``[]`` [J].

    For all ways to send the parts ``must``, and any more of the tasks of ``free`` devices. True
    of the exact problem whose numbers are the floats given. With times t that are best at mu it
    is sum a E(t) + (1 - a) e + mu (sum a t - T), where E has all that sending costs and t the
    fixed times, and all but the last term are positive: times are taken as the floats they are,
    and those at full power count exactly, so that the last one is exact too. Other roundings are
    subtracted. Nats that are best but for an error of d cost d^2 / 2x more than the least, in
    relation.

    Args:
        uplink: terms of every uplink ``[K]``.
        must: part of each task that must be sent ``[K]`` [-].
        free: devices that may send all ``[K]`` bool.
        log_mu: price ``[]``, any [ln W].
        edge_price: nu ``[]``, any: + nu (sum a z - 1) [J]; None for 0.
    """
    unit = rounding(uplink)
    tiny = 2.0**-35 if uplink.load.dtype == jnp.float32 else 2.0**-44
    nats = best_efficiency(uplink, log_mu)
    mu = jnp.where(jnp.any(uplink.usable & (free | (must > 0))), jnp.exp(log_mu), 0.0)
    given = (uplink, must, mu, uplink.exact.load / nats, nats >= uplink.max_efficiency, edge_price)
    uplink, must, mu, time, capped, edge_price = jax.lax.stop_gradient(given)
    mu, time, capped = twofold.computed_once((mu, time, capped))

    energy, doubt, whole = _proven_terms(uplink, mu, time, capped)
    time = jnp.where(capped, 0.0, time)
    charged = whole if edge_price is None else whole + edge_price * uplink.edge_share
    sent = jnp.where(free & (charged < uplink.local), 1.0, must)
    sent = twofold.computed_once(jnp.where(uplink.usable, sent, 0.0))

    shares = least_shares(uplink, sent)
    value, spare = _proven_sums(uplink, mu, sent, time, energy, capped, shares)

    doubt = jnp.where(sent > 0, sent * doubt, 0.0) + 7 * unit * (1 - sent) * uplink.local
    tie = free & (jnp.abs(charged - uplink.local) <= 32 * unit * uplink.local)
    doubt += jnp.where(tie, 16 * unit * uplink.local, 0.0)
    split = (must > 0) & (must < 1) & (sent < 1)  # m is rounded
    doubt += jnp.where(split, 8 * unit * whole, 0.0)
    lost = jnp.where(capped, tiny / 8 + SMALLEST / uplink.max_efficiency, tiny) * shares[0]
    doubt = pairwise_sum(doubt + mu * uplink.slot * jnp.where(sent > 0, lost, 0.0))
    doubt += (3 + len(sent) * SHARE_UNIT) * unit * value + 4 * unit * jnp.abs(spare)
    bound = value - spare - doubt
    if edge_price is not None:
        edge = edge_shares(uplink, sent)
        left = edge_price * ((1 - jnp.sum(edge[0])) - jnp.sum(edge[1]))
        bound = bound - left - edge_price * tiny * jnp.sum(edge[0]) - 4 * unit * jnp.abs(left)
    return jnp.where(bound > 0, bound, 0.0)  # and where it is not a number


def _proven_terms(
    uplink: Uplink, mu: jax.Array, time: jax.Array, capped: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What sending each task costs in times that are best at a price, see ``proven_dual``.

    Args:
        uplink: terms of every uplink ``[K]``.
        mu: price ``[]`` [W].
        time: the times ``[K]`` [s].
        capped: who sends at full power, in the fastest time instead, ``[K]`` bool.

    Returns:
        Cost but for the price, what rounding may have added to it, and cost ``[K]`` [J].
    """
    unit, exact = rounding(uplink), uplink.exact
    nats = exact.load / time
    grown = jnp.expm1(nats)
    energy = uplink.weight * grown / exact.gain * time
    energy = energy * (1 + exact.load_rest * nats * (1 + 1 / grown) - exact.gain_rest)
    least = uplink.slot * (exact.coarse + exact.fine)
    fastest, taken = least, time
    at_cap: Any = 4.0 if uplink.band_power is None else 8.0  # p_max T / t_min is rounded
    if exact.fixed is not None:
        fixed = uplink.slot * (exact.fixed[0] + exact.fixed[1])
        rest = (exact.coarse - exact.fixed[0]) + (exact.fine - exact.fixed[1])
        short = rest < SHORT  # beside a long fixed time it is known better by itself
        fastest, taken = jnp.where(short, time, uplink.slot * rest), time + fixed
        at_cap = jnp.where(short, at_cap + 16, at_cap)
    energy = jnp.where(capped, uplink.weight * uplink.max_power * fastest, energy)
    doubt = jnp.where(capped, at_cap, 6 + nats * (1 + 1 / grown)) * unit * energy
    if uplink.per_time is not None:
        added = uplink.per_time * jnp.where(capped, fastest, time)
        energy, doubt = energy + added, doubt + (6 * added + energy) * unit
    if uplink.per_task is not None:
        energy = energy + uplink.per_task
        doubt += (6 * uplink.per_task + energy) * unit
    return energy, doubt, energy + mu * jnp.where(capped, least, taken)


def _proven_sums(
    uplink: Uplink,
    mu: jax.Array,
    sent: jax.Array,
    time: jax.Array,
    energy: jax.Array,
    capped: jax.Array,
    shares: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Sum costs and times in steps whose sums are exact, see ``proven_dual``.

    Args:
        uplink: terms of every uplink ``[K]``.
        mu: price ``[]`` [W].
        sent: parts ``[K]`` [-].
        time: times of whole tasks ``[K]``, 0 at full power [s].
        energy: costs of whole tasks but for the price ``[K]`` [J].
        capped: who sends at full power ``[K]`` bool.
        shares: ``least_shares`` of the parts.

    Returns:
        sum a E + (1 - a) e, and the price of what is left of the slot, ``[]`` [J].
    """
    others = fixed_shares(uplink, sent)
    part, rest = twofold.two_product(sent, time)
    spent = jnp.where(sent > 0, sent * energy, 0.0) + (1 - sent) * uplink.local
    largest = jnp.maximum(jnp.max(spent), LEAST_POWER)
    unit_time, unit_energy = (SHARE_UNIT * twofold.power_of_two(x) for x in (uplink.slot, largest))
    steps = jnp.round(part / unit_time) * unit_time
    whole_steps = jnp.round(spent / unit_energy) * unit_energy
    coarse, fine = (jnp.sum(jnp.where(capped, *both)) for both in zip(shares, others))
    in_steps, between = jnp.sum(steps), jnp.sum(part - steps + rest)
    value, rest_value = jnp.sum(whole_steps), jnp.sum(spent - whole_steps)
    left, more = twofold.two_product(uplink.slot, 1 - coarse)
    spare = mu * ((left - in_steps) + (more - between - uplink.slot * fine))
    return value + rest_value, spare
