"""The slot price of a decision, its times, and what it costs.

Only the slot (C1) couples the devices, so one price mu [W] on slot time decides all: see
``uplink`` for what a device does at a price. Source: THEORY.md, section 4; what is done about
rounding is in section 7. All is for one channel, ``[K]``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from meco_jax.exact.derivatives import at_best, with_derivative
from meco_jax.exact.equations import excess
from meco_jax.exact.shares import fits, fixed_shares, least_shares, room
from meco_jax.exact.uplink import (
    FREE,
    SMALLEST,
    Uplink,
    best_efficiency,
    cost_spent,
    log_price,
    moved_price,
    own_price,
    priced_cost,
)

NEWTON_STEPS = 10  # for the price of a fixed set; 6 reach float32 save where many powers cap
GUESS_STEPS = 5  # from a price that is nearly right
SHIFT_STEPS = 3  # more of each, where devices have costs of time of their own


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
    cost = with_derivative(cost_spent(uplink, offload, time), at_best(lagrangian, given, (log_mu,)))
    # A set on the edge of fitting may fit here and not above, computed with other rounding.
    stranded = jnp.any(uplink.usable & (offload > 0) & (time <= 0))
    return jnp.where(fit & ~stranded, cost, jnp.inf), time, log_mu


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
    log_mu = climb(uplink, offload, shares, start, highest, steps)
    return fill_slot(*given, log_mu, jnp.zeros_like(sends))[0]


def climb(
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
def fill_slot(
    uplink: Uplink, offload: jax.Array, log_mu: jax.Array, split: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return a price and the parts that fill the slot at it, with their derivatives.

    Devices that are ``split``, ``[K]`` bool, are as well off sending as not: c(mu) = e moves
    the price, and their parts fill the slot. Where there are none, the price fills it. Of
    several, which happens to equal devices, all parts move alike.
    """
    del uplink, split
    return log_mu, offload


@fill_slot.defjvp
def _fill_slot_rule(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    (uplink, _, _, split), (d_uplink, d_offload, _, _) = primals, tangents
    log_mu, offload = fill_slot(*primals)
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


def longest(uplink: Uplink, log_mu: jax.Array) -> Any:
    """How far times may be stretched, over those at the price: no further where it is nothing."""
    return 2.0 if uplink.per_time is None else jnp.where(log_mu <= FREE, 1.0, 2.0)


def lagrangian(uplink: Uplink, offload: jax.Array, log_mu: jax.Array) -> jax.Array:
    """Cost of parts ``[K]`` at a price, sum a c + (1 - a) e - mu T: ``[]`` [J]."""
    sends = jnp.any(uplink.usable & (offload > 0))
    log_mu = jnp.where(sends, log_mu, FREE)
    cost = jnp.where(uplink.usable, priced_cost(uplink, log_mu), 0.0)
    return jnp.sum(offload * cost + (1 - offload) * uplink.local) - jnp.exp(log_mu) * uplink.slot
