"""The relaxed problem, whose devices send any part of their task: its answer and its bound.

Derived from P1, (6), in THEORY.md, section 5. All is for one channel, ``[K]``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.exact.breakpoints import relax_slot
from meco_jax.exact.derivatives import at_best, with_derivative
from meco_jax.exact.duals import proven_dual
from meco_jax.exact.edge import edge_lagrangian, relax_edge
from meco_jax.exact.pricing import fill_slot, lagrangian
from meco_jax.exact.shares import fits
from meco_jax.exact.uplink import Uplink, best_efficiency
from meco_jax.runtime.describe import short_repr


@short_repr
class Relaxed(NamedTuple):
    """The answer of a relaxed problem, see ``relax``."""

    offload: jax.Array  # [K] part of each task sent [-]
    time: jax.Array  # [K] t [s]
    sends: jax.Array  # [K] bool: who sends all at this price
    log_mu: jax.Array  # [] logarithm of the slot price [ln W]
    bound: jax.Array  # [] the dual's value, the relaxed optimum; infinite if infeasible [J]
    edge_price: jax.Array | None = None  # [] nu, of all the edge's cycles, None without C6 [J]


def relax(uplink: Uplink, must: jax.Array) -> Relaxed:
    """Solve the problem whose devices send any part of their task from ``must`` to 1.

    Maximises ``sum must c + (1 - must) min(c, e) - mu T`` over mu, THEORY.md, section 5:
    with ``must`` the forced devices it bounds P1, with m^+ it is the optimal PCOS. How mu is
    found: ``breakpoints``; with C6 nu too: ``edge``.

    Args:
        uplink: terms of every uplink ``[K]``.
        must: part of each task that must be sent ``[K]`` [-].
    """
    feasible = fits(uplink, must)
    must = jnp.where(uplink.usable & feasible, must, 0.0)
    given = uplink, must
    uplink, must = jax.lax.stop_gradient(given)
    if uplink.exact.edge is None:
        found, edge_price = relax_slot(uplink, must, feasible), None
    else:
        found, edge_price = relax_edge(uplink, must, feasible)
    bound = proven_dual(uplink, must, found.wanted, found.log_mu, edge_price)

    # Who would rather stay sends what it must, all of it too.
    stays = jnp.where(must < 1, found.parts < 1, found.stays)
    uplink, must = given
    parts = with_derivative(found.parts, jnp.where(stays, must, found.parts))
    log_mu, offload = fill_slot(uplink, parts, found.log_mu, found.split)
    if edge_price is None:
        dual = at_best(lagrangian, (uplink, offload), (log_mu,))
    else:
        dual = at_best(edge_lagrangian, (uplink, offload), (log_mu, edge_price))
    times = offload * uplink.load / best_efficiency(uplink, log_mu)
    return Relaxed(
        offload=offload,
        time=with_derivative(found.time, times),
        sends=found.sends,
        log_mu=log_mu,
        bound=jnp.where(feasible, with_derivative(bound, dual), jnp.inf),
        edge_price=edge_price,
    )
