"""The relaxed problem with the slot alone, C1: where its price makes devices change.

The sending time falls in the price mu, with a jump where a device turns local and a bend where its
power caps. These prices are ranked, and bisected for the first at which the slot suffices. Either
the devices that turn there send parts that fill the slot, or all that send does so at a price
before, found by a few Newton steps. Source: THEORY.md, section 5; for rounding see section 7. All
is for one channel, ``[K]``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.exact import sets
from meco_jax.exact.pricing import climb, longest
from meco_jax.exact.shares import fixed_shares, least_shares, room
from meco_jax.exact.uplink import Uplink, best_efficiency, log_price, switch_price
from meco_jax.runtime.describe import short_repr

LAST_STEPS = 6  # for the price between two breakpoints, where no more powers cap


@short_repr
class Found(NamedTuple):
    """A relaxed answer without its bound and derivatives: see ``Relaxed``."""

    parts: jax.Array  # [K] [-]
    time: jax.Array  # [K] [s]
    sends: jax.Array  # [K] bool
    split: jax.Array  # [K] bool: who is as well off either way
    stays: jax.Array  # [K] bool: who would rather stay, if it could
    wanted: jax.Array  # [K] bool: who sends at any price
    log_mu: jax.Array  # [] [ln W]


def relax_slot(uplink: Uplink, must: jax.Array, feasible: jax.Array) -> Found:
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
    log_mu = climb(uplink, sent, shares, found.before, last, LAST_STEPS)
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
    return Found(parts, time, sends, split, switch <= log_mu, wanted, log_mu)


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
