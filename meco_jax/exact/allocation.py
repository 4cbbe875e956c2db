"""Given who offloads: the optimal powers and times, the slot price, the Lagrangian bound.

Only the slot (C1) couples the devices, so one price mu [W] on slot time decides all. At
x nats a symbol device k sends its task in t = D / (w x) with power p = (e^x - 1) / g and
pays t (beta p + mu); the best x solves e^x (x - 1) + 1 = mu g / beta. Prices are kept as
their logarithm. Derived from P1, (6), in THEORY.md, sections 4 and 5; what is done about rounding
is in THEORY.md, section 7. All is for one channel, ``[K]``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.exact import sets
from meco_jax.exact.derivatives import at_best, with_derivative
from meco_jax.exact.duals import proven_dual
from meco_jax.exact.uplink import (
    FREE,
    SMALLEST,
    Uplink,
    best_efficiency,
    cost_spent,
    device_energy,
    edge_shares,
    excess,
    fits,
    fixed_shares,
    least_shares,
    log_price,
    make_uplink,
    moved_price,
    own_price,
    priced_cost,
    room,
    send_power,
    sum_terms,
    switch_price,
)
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.system import System

NEWTON_STEPS = 10  # for the price of a fixed set; 6 reach float32 save where many powers cap
LAST_STEPS = 6  # the same between two breakpoints, where no more powers cap
GUESS_STEPS = 5  # from a price that is nearly right
SHIFT_STEPS = 3  # more of each, where devices have costs of time of their own
EDGE_STEPS = 12, 24  # for the price of the edge's cycles, in float32 and float64


@short_repr
class Relaxed(NamedTuple):
    """The answer of a relaxed problem, see ``relax``."""

    offload: jax.Array  # [K] part of each task sent [-]
    time: jax.Array  # [K] t [s]
    sends: jax.Array  # [K] bool: who sends all at this price
    log_mu: jax.Array  # [] logarithm of the slot price [ln W]
    bound: jax.Array  # [] the dual's value, the relaxed optimum; infinite if infeasible [J]
    edge_price: jax.Array | None = None  # [] nu, of all the edge's cycles, None without C6 [J]


@short_repr
class Channel(NamedTuple):
    """What every method starts from: a channel, and what the relaxation says of it."""

    uplink: Uplink
    forced: jax.Array  # [K] bool: C2
    relaxed: Relaxed


def prepare(system: System, h: jax.Array, must: jax.Array | None = None) -> Channel:
    """Compute the uplinks of a channel, and solve its relaxation: THEORY.md, section 5.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        must: part of each task that must be sent ``[K]`` [-]; by default all or nothing of it,
            as P1 asks.
    """
    uplink, forced = make_uplink(system, h), sy.forced(system)
    return Channel(uplink, forced, relax(uplink, forced.astype(h.dtype) if must is None else must))


def slot_price(uplink: Uplink, offload: jax.Array, guess: jax.Array | None = None) -> jax.Array:
    """Price at which a decision that fits just fills the slot, sum a t(mu) = T.

    The devices at full power leave room in the slot, the others share it: ln(sum a t / room)
    falls and is convex in ln mu, so Newton's method climbs from the left and never overshoots.
    It starts at the price of the device that needs the slot most, or at a guess. Where sending
    has costs of its own the slot need not be full: then the price is ``FREE``.

    Args:
        uplink: terms of every uplink ``[K]``.
        offload: decision, or parts of tasks, ``[K]`` [-].
        guess: the price to within half of it, which saves steps ``[]`` [ln W].

    Returns:
        ln mu ``[]`` [ln W]; any finite number for an empty set.
    """
    sends = uplink.usable & (offload > 0)
    given = uplink, jnp.where(sends, offload, 0.0)
    uplink, offload = jax.lax.stop_gradient(given)
    highest = jnp.max(jnp.where(sends, log_price(uplink, uplink.max_efficiency), -jnp.inf))
    shares = least_shares(uplink, offload)
    start = jnp.full_like(highest, -jnp.inf)
    # Where all powers cap there is no slope: a guess starts before.
    start = start if guess is None else jnp.minimum(guess, highest) - 0.01
    steps = NEWTON_STEPS if guess is None else GUESS_STEPS
    log_mu = _climb(uplink, offload, shares, start, highest, steps)
    return _fill_slot(*given, log_mu, jnp.zeros_like(sends))[0]


def _climb(
    uplink: Uplink,
    offload: jax.Array,
    shares: tuple[jax.Array, jax.Array],
    start: jax.Array,
    high: jax.Array,
    steps: int,
) -> jax.Array:
    """Find the price ``[]`` [ln W] at which parts ``[K]`` fill the slot, by Newton steps.

    See ``slot_price``; the parts are 0 where nothing can be sent.
    """
    sends = offload > 0
    share = jnp.where(sends, offload * uplink.load / uplink.slot, 0.0)
    fixed, most = fixed_shares(uplink, offload), share
    if uplink.fixed_time is not None:
        most = share / jnp.maximum(1 - offload * uplink.fixed_time / uplink.slot, 1e-6)
    alone = log_price(uplink, jnp.where(sends, jnp.minimum(most, uplink.max_efficiency), 1.0))
    low = jnp.minimum(jnp.max(jnp.where(sends, alone, -jnp.inf)), high)
    shift = None if uplink.per_time is None else jnp.max(jnp.where(sends, uplink.per_time, 0.0))

    def step(_: int, log_mu: jax.Array) -> jax.Array:
        nats = best_efficiency(uplink, log_mu)
        capped = nats >= uplink.max_efficiency
        used = jnp.where(capped, 0.0, share / nats)
        coarse, fine = (jnp.where(capped, *both) for both in zip(shares, fixed))
        slope = used * excess(nats) / nats**2
        if shift is not None:  # in ln(mu + s), s the largest: in it all times are log-convex
            own = jnp.maximum(jnp.exp(own_price(uplink, log_mu)), SMALLEST)
            slope = jnp.where(used > 0, slope * ((jnp.exp(log_mu) + shift) / own), 0.0)
        fall, total = jnp.sum(slope), jnp.sum(used)
        left = jnp.maximum((1 - jnp.sum(coarse)) - jnp.sum(fine), 1e-3 * total)
        climb = total * jnp.log(jnp.where(total > 0, total / left, 1.0))
        climb = jnp.where(fall > 0, climb / jnp.where(fall > 0, fall, 1.0), 0.0)
        return jnp.clip(moved_price(log_mu, climb, shift), low, high)

    if shift is not None:
        steps += SHIFT_STEPS
    start = jnp.where(jnp.any(sends), jnp.clip(start, low, high), 0.0)
    return jax.lax.fori_loop(0, steps, step, start)


@jax.custom_jvp
def _fill_slot(
    uplink: Uplink, offload: jax.Array, log_mu: jax.Array, split: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return a price and the parts that fill the slot at it, with their derivatives.

    Devices that are ``split``, ``[K]`` bool, are as well off sending as not: c(mu) = e moves
    the price, and their parts fill the slot. Where there are none, the price fills it. Of
    several, which happens to equal devices, all parts move alike.
    """
    del uplink, split
    return log_mu, offload


@_fill_slot.defjvp
def _fill_slot_rule(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    (uplink, _, _, split), (d_uplink, d_offload, _, _) = primals, tangents
    log_mu, offload = _fill_slot(*primals)
    d_offload = jnp.where(split, 0.0, d_offload)

    def residuals(uplink: Uplink, offload: jax.Array, log_mu: jax.Array) -> jax.Array:
        time = slot_time(uplink, log_mu)
        switch = jnp.where(split, priced_cost(uplink, log_mu) - uplink.local, 0.0)
        return jnp.stack([jnp.sum(offload * time) - uplink.slot, jnp.sum(switch)])

    at_price, along_price = partial(residuals, log_mu=log_mu), partial(residuals, uplink, offload)
    _, (d_used, d_switch) = jax.jvp(at_price, (uplink, offload), (d_uplink, d_offload))
    _, (used_slope, switch_slope) = jax.jvp(along_price, (log_mu,), (jnp.ones_like(log_mu),))
    splits = jnp.any(split)
    moved, slope = jnp.where(splits, d_switch, d_used), jnp.where(splits, switch_slope, used_slope)
    slope = jnp.where(log_mu <= FREE, 0.0, slope)  # the slot is not full
    d_log_mu = jnp.where(slope != 0, -moved / jnp.where(slope != 0, slope, 1.0), 0.0)
    whole = jnp.sum(jnp.where(split, slot_time(uplink, log_mu), 0.0))
    d_part = -(d_used + used_slope * d_log_mu) / jnp.where(splits, whole, 1.0)
    return (log_mu, offload), (d_log_mu, jnp.where(split, d_part, d_offload))


def slot_time(uplink: Uplink, log_mu: jax.Array) -> jax.Array:
    """What a sent task takes of the slot at a price, t(mu) + d: ``[K]`` [s]."""
    time = uplink.load / best_efficiency(uplink, log_mu)
    return time if uplink.fixed_time is None else time + uplink.fixed_time


def set_energy(uplink: Uplink, offload: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the least cost of a fixed decision, F(S) of THEORY.md, section 5, and its times.

    Args:
        uplink: terms of every uplink ``[K]``.
        offload: decision, or parts of tasks, ``[K]`` [-].

    Returns:
        Cost ``[]`` [J], infinite if the decision does not fit; times ``[K]`` [s].
    """
    cost, time, _ = priced_set(uplink, offload)
    return cost, time


def priced_set(
    uplink: Uplink, offload: jax.Array, guess: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute a decision's cost and times, see ``set_energy``, and its slot price [ln W].

    With a ``guess`` of this price few steps will do, see ``slot_price``.
    """
    fit = fits(uplink, offload)
    sends = uplink.usable & (offload > 0) & fit
    sent = jnp.where(sends, offload, 0.0)
    log_mu = slot_price(uplink, sent, guess)
    nats = best_efficiency(uplink, log_mu)
    fastest, wanted = sent * uplink.load / uplink.max_efficiency, sent * uplink.load / nats
    # Exactly nothing at full power: a rounding of a long time is long beside short ones.
    longer = jnp.where(nats < uplink.max_efficiency, wanted - fastest, 0.0)
    # Blend in the fastest times, so that the slot is met however exact the price is.
    spare = uplink.slot * room(least_shares(uplink, sent), sends)
    extra = jnp.sum(longer)
    blend = jnp.clip(spare / jnp.where(extra > 0, extra, 1.0), 0.0, longest(uplink, log_mu))
    time = with_derivative(fastest + blend * longer, wanted)
    given = uplink, jnp.where(fit, offload, 0.0)
    cost = with_derivative(
        cost_spent(uplink, offload, time), at_best(_lagrangian, given, (log_mu,))
    )
    # A set on the edge of fitting may fit here and not above, computed with other rounding.
    stranded = jnp.any(uplink.usable & (offload > 0) & (time <= 0))
    return jnp.where(fit & ~stranded, cost, jnp.inf), time, log_mu


def longest(uplink: Uplink, log_mu: jax.Array) -> Any:
    """How far times may be stretched, over those at the price: no further where it is nothing."""
    return 2.0 if uplink.per_time is None else jnp.where(log_mu <= FREE, 1.0, 2.0)


def relax(uplink: Uplink, must: jax.Array) -> Relaxed:
    """Solve the problem whose devices send any part of their task from ``must`` to 1.

    Maximises ``sum must c + (1 - must) min(c, e) - mu T`` over mu, THEORY.md, section 5:
    with ``must`` the forced devices it bounds P1, with m^+ it is the optimal PCOS. The
    sending time falls in mu, with a jump where a device turns local and a bend where its power
    caps. These prices are ranked, and bisected for the first at which the slot suffices. Either
    the devices that turn there send parts that fill the slot, or all that send does so at a
    price before, found by a few Newton steps. With C6 see ``_relax_edge``.

    Args:
        uplink: terms of every uplink ``[K]``.
        must: part of each task that must be sent ``[K]`` [-].
    """
    feasible = fits(uplink, must)
    must = jnp.where(uplink.usable & feasible, must, 0.0)
    given = uplink, must
    uplink, must = jax.lax.stop_gradient(given)
    if uplink.exact.edge is None:
        found, edge_price = _relax_slot(uplink, must, feasible), None
    else:
        found, edge_price = _relax_edge(uplink, must, feasible)
    bound = proven_dual(uplink, must, found.wanted, found.log_mu, edge_price)

    # Who would rather stay sends what it must, all of it too.
    stays = jnp.where(must < 1, found.parts < 1, found.stays)
    uplink, must = given
    parts = with_derivative(found.parts, jnp.where(stays, must, found.parts))
    log_mu, offload = _fill_slot(uplink, parts, found.log_mu, found.split)
    if edge_price is None:
        dual = at_best(_lagrangian, (uplink, offload), (log_mu,))
    else:
        dual = at_best(_edge_lagrangian, (uplink, offload), (log_mu, edge_price))
    times = offload * uplink.load / best_efficiency(uplink, log_mu)
    return Relaxed(
        offload=offload,
        time=with_derivative(found.time, times),
        sends=found.sends,
        log_mu=log_mu,
        bound=jnp.where(feasible, with_derivative(bound, dual), jnp.inf),
        edge_price=edge_price,
    )


@short_repr
class _Found(NamedTuple):
    """A relaxed answer without its bound and derivatives: see ``Relaxed``."""

    parts: jax.Array  # [K] [-]
    time: jax.Array  # [K] [s]
    sends: jax.Array  # [K] bool
    split: jax.Array  # [K] bool: who is as well off either way
    stays: jax.Array  # [K] bool: who would rather stay, if it could
    wanted: jax.Array  # [K] bool: who sends at any price
    log_mu: jax.Array  # [] [ln W]


def _relax_edge(uplink: Uplink, must: jax.Array, feasible: jax.Array) -> tuple[_Found, jax.Array]:
    """Solve the relaxed problem with C6 too, by a price nu on the edge's cycles.

    The dual is concave in nu, and the cycles of the answer at nu, ``_relax_slot`` with e - nu z in
    the place of e, less 1 are its slope. The next nu is where the tangents of both ends of the
    interval meet, and every third one in its middle. The problem is convex, so that between
    the answers at both ends lies one that takes all cycles. THEORY.md, section 10.

    Returns:
        The answer, and nu ``[]`` [J].
    """
    share = uplink.edge_share

    def at(price: jax.Array) -> _Found:
        local = uplink.local - price * share
        return _relax_slot(uplink._replace(local=local), must, feasible)

    def left(found: _Found) -> jax.Array:
        coarse, fine = edge_shares(uplink, found.parts)
        return (1 - jnp.sum(coarse)) - jnp.sum(fine)

    # From here on nothing is sent that can stay: not even slot time for nothing pays.
    worth = uplink.local - priced_cost(uplink, jnp.full_like(uplink.slot, FREE))
    counts = uplink.usable & (share > 0) & (must < 1)
    highest = jnp.max(jnp.where(counts, worth / jnp.where(counts, share, 1.0), 0.0)) * 1.001

    def judged(price: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, _Found]:
        """The price, the dual there, its slope, and the answer."""
        found = at(price)
        slope = -left(found)
        return price, cost_spent(uplink, found.parts, found.time) + price * slope, slope, found

    def meeting(low: tuple[Any, ...], high: tuple[Any, ...]) -> jax.Array:
        """Where the tangents of both ends meet: the peak, once no kink is left between."""
        fall = low[2] - high[2]
        rise = (high[1] - low[1]) - high[2] * (high[0] - low[0])
        price = low[0] + rise / jnp.where(fall > 0, fall, 1.0)
        return jnp.clip(jnp.where(fall > 0, price, low[0]), low[0], high[0])

    def narrow(step: int, ends: tuple[Any, ...]) -> tuple[Any, ...]:
        low, high = ends
        middle = jnp.where(step % 3 == 2, (low[0] + high[0]) / 2, meeting(low, high))
        new = judged(middle)
        enough = new[2] <= 0
        keep = partial(jnp.where, enough)
        return (
            jax.tree.map(keep, low, new),
            jax.tree.map(lambda old, new: keep(new, old), high, new),
        )

    first = judged(jnp.zeros_like(highest))
    steps = EDGE_STEPS[uplink.load.dtype == jnp.float64]
    low, high = jax.lax.fori_loop(0, steps, narrow, (first, judged(highest)))
    price, share_below = meeting(low, high), -high[2] / jnp.maximum(low[2] - high[2], 1e-30)
    below, above = low[3], high[3]
    share_below = jnp.clip(share_below, 0.0, 1.0)
    between = above._replace(
        parts=above.parts + share_below * (below.parts - above.parts),
        time=above.time + share_below * (below.time - above.time),
        split=jnp.zeros_like(above.split),
        log_mu=at(price).log_mu,
    )
    enough = first[2] <= 0
    found = jax.tree.map(partial(jnp.where, enough), first[3], between)
    return found, jnp.where(enough, 0.0, price)


def _relax_slot(uplink: Uplink, must: jax.Array, feasible: jax.Array) -> _Found:
    """Find the price of the slot in the relaxed problem, and its answer."""
    switch = jnp.where(feasible, switch_price(uplink), -jnp.inf)
    turns = jnp.where(must < 1, switch, jnp.inf)
    wanted = uplink.usable & feasible & ((must > 0) | (turns > -jnp.inf))
    found = _find_break(uplink, must, turns, wanted)
    last, jumps = found.log_mu, found.jumps
    sends = jnp.where(jumps, found.after, found.until)
    split = jumps & found.until & ~found.after
    least, most = least_shares(uplink, must), (uplink.exact.coarse, uplink.exact.fine)
    sent, shares = jnp.where(sends, 1.0, must), jax.tree.map(partial(jnp.where, sends), most, least)
    log_mu = _climb(uplink, sent, shares, found.before, last, LAST_STEPS)
    log_mu = jnp.where(jumps, last, log_mu)

    nats = best_efficiency(uplink, log_mu)
    time = uplink.load / nats
    fastest = jnp.where(nats < uplink.max_efficiency, uplink.load / uplink.max_efficiency, time)
    longer = jnp.where(jumps, jnp.where(split, (1 - must) * time, 0.0), sent * (time - fastest))
    spare = jnp.where(jumps, found.spare, room(shares, sent > 0))
    extra = jnp.sum(longer) / uplink.slot
    if uplink.fixed_time is not None:
        added = jnp.where(jumps & split, (1 - must) * uplink.fixed_time, 0.0)
        extra += jnp.sum(added) / uplink.slot
    most_of = jnp.where(jumps, 1.0, longest(uplink, log_mu))
    blend = jnp.clip(spare / jnp.where(extra > 0, extra, 1.0), 0.0, most_of)
    parts = jnp.where(split, must + blend * (1 - must), sent)
    time = jnp.where(jumps, sent * time, sent * fastest) + blend * longer
    return _Found(parts, time, sends, split, switch <= log_mu, wanted, log_mu)


@short_repr
class _Break(NamedTuple):
    """The first of the prices where something changes at which the slot suffices."""

    before: jax.Array  # [] the one before, -inf for none [ln W]
    log_mu: jax.Array  # [] this one [ln W]
    spare: jax.Array  # [] what it leaves of the slot [-]
    after: jax.Array  # [K] bool: who sends all beyond this price
    until: jax.Array  # [K] bool: who sends all up to it
    jumps: jax.Array  # [] bool: whether these would be too many


def _find_break(uplink: Uplink, must: jax.Array, turns: jax.Array, wanted: jax.Array) -> _Break:
    """Rank the prices at which devices turn local or cap, and bisect them.

    Args:
        uplink: terms of every uplink ``[K]``.
        must: part of each task that must be sent ``[K]`` [-].
        turns: price beyond which a device sends no more than that ``[K]`` [ln W].
        wanted: who sends at any price ``[K]`` bool.
    """
    breaks = jnp.concatenate([turns, log_price(uplink, uplink.max_efficiency)])
    breaks = jnp.where(jnp.tile(wanted, 2), breaks, jnp.inf)
    breaks = jnp.where(jnp.isfinite(breaks), breaks, jnp.inf)
    number = jnp.sum(jnp.isfinite(breaks))
    pick = sets.in_order(breaks)
    least, most = least_shares(uplink, must), (uplink.exact.coarse, uplink.exact.fine)

    def left(nats: jax.Array, more: jax.Array) -> jax.Array:
        """What is left of the slot, what is sent at full power counted exactly: ``[]`` [-]."""
        capped = nats >= uplink.max_efficiency
        shares = jax.tree.map(partial(jnp.where, more), most, least)
        taken = jnp.where(capped, 0.0, jnp.where(more, 1.0, must) * uplink.load / nats)
        coarse, fine = (jnp.where(capped, *both) for both in zip(shares, others(more)))
        return (1 - jnp.sum(coarse)) - jnp.sum(fine) - jnp.sum(taken / uplink.slot)

    def others(more: jax.Array) -> tuple[Any, Any]:
        """What devices take that do not send at full power, beside their sending times."""
        if uplink.exact.fixed is None:
            return 0.0, 0.0
        part = fixed_shares(uplink, must)
        return jax.tree.map(partial(jnp.where, more), uplink.exact.fixed, part)  # type: ignore[no-any-return]

    def halve(_: int, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, high, *ends = found
        middle = (low + high) // 2
        log_mu = pick(middle)
        nats = best_efficiency(uplink, log_mu)
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
    found = (jnp.full_like(number, -1), number, last, jnp.zeros_like(uplink.slot), always, always,
             jnp.array(False))  # fmt: skip
    rounds = max(1, math.ceil(math.log2(len(breaks) + 1)))
    low, _, *ends = jax.lax.fori_loop(0, rounds, halve, found)
    return _Break(jnp.where(low >= 0, pick(low), -jnp.inf), *ends)


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
    uplink, forced, relaxed = prepare(system, h)
    offload = jnp.where(system.active, offload, 0.0).astype(h.dtype)
    cost, time = set_energy(uplink, offload)
    cost = jnp.where(jnp.all((offload > 0) | ~forced), cost, jnp.inf)
    return finish(uplink, offload, time, cost, relaxed.bound)


def finish(
    uplink: Uplink, offload: jax.Array, time: jax.Array, cost: jax.Array, bound: jax.Array
) -> Solution:
    """Make the ``Solution`` of parts and times ``[K]``: feasible if the cost is finite.

    An infeasible one sends nothing: whoever acts on it without looking stays silent.
    """
    feasible = jnp.isfinite(cost)
    power = send_power(uplink, offload, time)
    has_task = uplink.min_time > 0
    each = device_energy(uplink, offload, power, time)
    energy, delay_cost = cost, None
    if uplink.delays is not None:
        delay_cost = jnp.sum(sum_terms(uplink.delays, offload, time))
        energy = with_derivative(jnp.sum(each), jnp.where(feasible, cost, 0.0) - delay_cost)
        energy, delay_cost = (jnp.where(feasible, x, jnp.inf) for x in (energy, delay_cost))
        cost = energy + delay_cost
    if uplink.band_power is not None:  # from that in a share of the slot to that in one of the band
        power = jnp.minimum(power * (time / uplink.slot), uplink.band_power)
    return Solution(
        offload=jnp.where(feasible, offload, 0.0),
        power=jnp.where(feasible, power, 0.0),
        time=jnp.where(feasible, time, 0.0),
        energy=energy,
        lower_bound=jnp.minimum(bound, cost),  # they may meet, and both are rounded
        feasible=feasible,
        energy_per_device=jnp.where(feasible, each, jnp.where(has_task, jnp.inf, 0.0)),
        delay_cost=delay_cost,
    )


def _lagrangian(uplink: Uplink, offload: jax.Array, log_mu: jax.Array) -> jax.Array:
    """Cost of parts ``[K]`` at a price, sum a c + (1 - a) e - mu T: ``[]`` [J]."""
    sends = jnp.any(uplink.usable & (offload > 0))
    log_mu = jnp.where(sends, log_mu, FREE)
    cost = jnp.where(uplink.usable, priced_cost(uplink, log_mu), 0.0)
    return jnp.sum(offload * cost + (1 - offload) * uplink.local) - jnp.exp(log_mu) * uplink.slot


def _edge_lagrangian(
    uplink: Uplink, offload: jax.Array, log_mu: jax.Array, edge_price: jax.Array
) -> jax.Array:
    """The same with cycles of the edge at a price too, + nu (sum a z - 1): ``[]`` [J]."""
    used = jnp.sum(offload * uplink.edge_share)
    return _lagrangian(uplink, offload, log_mu) + edge_price * (used - 1)
