"""The relaxed problem with the edge's cycles too, C6: a second price, nu [J].

Source: THEORY.md, section 10. All is for one channel, ``[K]``.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.exact import twofold
from meco_jax.exact.breakpoints import Found, relax_slot
from meco_jax.exact.pricing import lagrangian
from meco_jax.exact.shares import edge_shares
from meco_jax.exact.uplink import FREE, Uplink, cost_spent, local_at, priced_cost
from meco_jax.runtime.describe import short_repr

EDGE_STEPS = 15, 27  # prices of the edge's cycles that are tried, in float32 and float64


@short_repr
class Tangent(NamedTuple):
    """The dual at a price nu, which is concave in it."""

    price: jax.Array  # [] nu [J]
    dual: jax.Array  # [] [J]
    slope: jax.Array  # [] cycles that the answer takes, less 1 [-]
    found: Found  # the answer


def relax_edge(uplink: Uplink, must: jax.Array, feasible: jax.Array) -> tuple[Found, jax.Array]:
    """Solve the relaxed problem with C6 too, by a price nu on the edge's cycles.

    After both ends of the interval the next nu is where their tangents meet, and every third one in
    the middle. The problem is convex, so that between the answers at both ends lies one that takes
    all cycles.

    Returns:
        The answer, and nu ``[]`` [J].
    """
    tangent = partial(_tangent, uplink, must, feasible)
    # From here on nothing is sent that can stay: not even slot time for nothing pays.
    worth = uplink.local - priced_cost(uplink, jnp.full_like(uplink.slot, FREE))
    counts = uplink.usable & (uplink.edge_share > 0) & (must < 1)
    highest = worth / jnp.where(counts, uplink.edge_share, 1.0)
    highest = jnp.max(jnp.where(counts, highest, 0.0)) * 1.001

    def narrow(step: jax.Array, ends: tuple[Tangent, ...]) -> tuple[Tangent, ...]:
        low, high, _ = ends
        middle = jnp.where(step % 3 == 1, (low.price + high.price) / 2, _meeting(low, high))
        new = tangent(jnp.where(step == 0, 0.0, jnp.where(step == 1, highest, middle)))
        is_low = jnp.where(step < 2, step == 0, (new.slope > 0) & (low.slope > 0))
        keep = partial(jnp.where, is_low)
        return jax.tree.map(keep, new, low), jax.tree.map(keep, high, new), new

    none, nobody = jnp.zeros_like(uplink.load), jnp.zeros_like(uplink.usable)
    found = Found(none, none, nobody, nobody, nobody, nobody, highest)
    nothing = Tangent(highest, highest, highest, found)  # the first two steps replace it
    steps = EDGE_STEPS[uplink.load.dtype == jnp.float64]
    low, high, last = jax.lax.fori_loop(0, steps, narrow, (nothing,) * 3)
    part = jnp.clip(-high.slope / jnp.maximum(low.slope - high.slope, 1e-30), 0.0, 1.0)
    below, above, there = low.found, high.found, last.found
    between = above._replace(
        parts=above.parts + part * (below.parts - above.parts),
        time=above.time + part * (below.time - above.time),
        split=jnp.zeros_like(above.split),
        log_mu=jnp.where(jnp.any(there.wanted), there.log_mu, below.log_mu),
    )
    enough = low.slope <= 0  # at a price of nothing
    found = jax.tree.map(partial(jnp.where, enough), below, between)
    return found, jnp.where(enough, 0.0, last.price)


def _tangent(uplink: Uplink, must: jax.Array, feasible: jax.Array, price: jax.Array) -> Tangent:
    """The dual at a price ``[]`` [J], and its slope."""
    found = _relaxed_at(uplink, must, feasible, price)
    # Else the sums of both shares see parts of other roundings: cycles are off by 2e-6 of all.
    found = found._replace(parts=twofold.computed_once(found.parts))
    coarse, fine = edge_shares(uplink, found.parts)
    slope = -((1 - jnp.sum(coarse)) - jnp.sum(fine))
    dual = cost_spent(uplink, found.parts, found.time) + price * slope
    return Tangent(price, dual, slope, found)


def _relaxed_at(uplink: Uplink, must: jax.Array, feasible: jax.Array, price: jax.Array) -> Found:
    """The answer with C1 alone where cycles are paid for: e - nu z in the place of e."""
    charged = uplink._replace(local=local_at(uplink, price))
    return relax_slot(charged, must, feasible)


def _meeting(low: Tangent, high: Tangent) -> jax.Array:
    """Where the tangents of both ends meet: the peak, once no kink is left between."""
    fall = low.slope - high.slope
    rise = (high.dual - low.dual) - high.slope * (high.price - low.price)
    price = low.price + rise / jnp.where(fall > 0, fall, 1.0)
    return jnp.clip(jnp.where(fall > 0, price, low.price), low.price, high.price)


def edge_lagrangian(
    uplink: Uplink, offload: jax.Array, log_mu: jax.Array, edge_price: jax.Array
) -> jax.Array:
    """Cost of parts ``[K]`` at both prices, ``lagrangian`` + nu (sum a z - 1): ``[]`` [J]."""
    used = jnp.sum(offload * uplink.edge_share)
    return lagrangian(uplink, offload, log_mu) + edge_price * (used - 1)
