"""What needs no training: MCOS in both readings, the optimal PCOS, and what a decision is made of.

Each is a pure function of one channel, ``h: [K]``, that returns a ``Solution``.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.exact import sets
from meco_jax.exact.allocation import finish, prepare
from meco_jax.exact.duals import PriceGrid, price_grid
from meco_jax.exact.pricing import priced_set, set_energy
from meco_jax.exact.projection import project
from meco_jax.exact.shares import FIT_TOLERANCE, fits, resources, within
from meco_jax.exact.uplink import Uplink, cost_spent, local_at, priced_cost
from meco_jax.solution import Solution
from meco_jax.system import System

COMPARING = 33, 4.0  # prices and half width [ln W] of the grid that compares decisions
EXACT = 3  # decisions worth an exact allocation
MOVED = 8  # devices that are moved in a ranking where the edge's cycles are limited


def mcos(system: System, h: jax.Array) -> Solution:
    """Offload only the tasks that miss the deadline locally, whole, at full power.

    Minimum computation offloading, paper section 5, its "remainder" read as devices.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].

    Returns:
        A ``Solution``; infeasible where the forced devices do not fit. ``lower_bound`` is P1's.
    """
    uplink, forced, relaxed = prepare(system, h)
    return _full_power(uplink, forced.astype(h.dtype), relaxed.bound)


def mcos_partial(system: System, h: jax.Array) -> Solution:
    """Offload only the part m^+ of each task that misses the deadline, at full power.

    Minimum computation offloading, paper section 5, its "remainder" read as bits.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].

    Returns:
        A ``Solution`` with ``offload`` = m^+. ``lower_bound`` is that of partial offloading.
    """
    must = sy.required_ratio(system)
    uplink, _, relaxed = prepare(system, h, must)
    return _full_power(uplink, must, relaxed.bound)


def pcos(system: System, h: jax.Array) -> Solution:
    """Offload any part of each task optimally: the convex relaxation of P1.

    THEORY.md, section 5.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].

    Returns:
        A ``Solution`` with ``offload`` in [m^+, 1]. ``lower_bound`` is the dual's value:
        the same number but for rounding.
    """
    uplink, _, relaxed = prepare(system, h, sy.required_ratio(system))
    cost = cost_spent(uplink, relaxed.offload, relaxed.time)
    feasible = jnp.isfinite(relaxed.bound)
    dual = jnp.where(feasible, relaxed.bound, 0.0)
    cost = dual + jax.lax.stop_gradient(cost - dual)  # its derivative: strong duality
    cost = jnp.where(feasible, cost, jnp.inf)
    return finish(uplink, relaxed.offload, relaxed.time, cost, relaxed.bound)


def repair(system: System, h: jax.Array, offload: jax.Array) -> Solution:
    """Change a decision as little as makes it feasible, and give it its optimal powers and times.

    See ``projection.project``: the forced devices are added, and devices leave until the rest
    fits. Nobody is added because sending saves energy.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: decision ``[K]``, 0 to 1; a device is chosen to send above 1/2 [-].

    Returns:
        A ``Solution``; infeasible where the forced devices do not fit.
    """
    uplink, forced, relaxed = prepare(system, h)
    sends = project(system, uplink, forced, offload).astype(h.dtype)
    cost, time = set_energy(uplink, sends)
    return finish(uplink, sends, time, cost, relaxed.bound)


def improve(system: System, h: jax.Array, offload: jax.Array) -> Solution:
    """Search for a better decision from a given one, and give it its optimal powers and times.

    The devices are ranked: the forced ones, then those chosen to offload, then the
    others, each group by the energy that offloading saves at the price mu* of the slot,
    e - c(mu*). The best prefix of the ranking is taken, and then the best change of one device,
    if it saves more. What ``repair`` makes of the decision and the forced devices alone are
    allocated exactly, so the answer costs no more than either.

    The answer says little of the decision that the search starts from: without any it comes
    close to the optimum.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: decision ``[K]``, 0 to 1; a device is chosen to send above 1/2 [-].

    Returns:
        A ``Solution``; infeasible where the forced devices do not fit.
    """
    uplink, forced, relaxed = prepare(system, h)
    cost, local = priced_cost(uplink, relaxed.log_mu), local_at(uplink, relaxed.edge_price)
    saved = jnp.where(uplink.usable, local - cost, -jnp.inf)
    group = jnp.where(forced, 0, jnp.where(offload > 0.5, 1, 2))
    grid = price_grid(uplink, relaxed.sends, relaxed.log_mu, *COMPARING)
    order = jnp.lexsort((-saved, group))
    free = uplink.usable & ~forced
    certainty = jnp.where(free, jnp.abs(saved), jnp.inf)
    prefixes = prefixes_of(uplink, sets.inverse(order), free, forced, certainty)
    known = jnp.stack([forced, project(system, uplink, forced, offload)])
    best, _, _ = cheapest(uplink, grid, prefixes, EXACT, known)
    best, time, energy = cheapest(uplink, grid, sets.Neighbours(best, free), EXACT, best[None])
    return finish(uplink, best.astype(h.dtype), time, energy, relaxed.bound)


def prefixes_of(
    uplink: Uplink, ranks: jax.Array, free: jax.Array, forced: jax.Array, certainty: jax.Array
) -> sets.Family:
    """Send the forced devices and 0, 1, ... K others by rank: K + 1 sets.

    Where the edge's cycles are limited, C6, they are filled by rank, see ``fitting``. As a knapsack
    is often filled better without the next device, the rankings count too in which one of
    the ``MOVED`` least certain devices comes first, or last: 17 (K + 1) sets.

    Args:
        uplink: terms of every uplink ``[K]``.
        ranks: of all devices ``[K]``.
        free: who may send or stay ``[K]`` bool.
        forced: C2, ``[K]`` bool.
        certainty: the lower, the sooner moved; infinite where not free ``[K]``.
    """
    share = uplink.edge_share
    if share is None:
        return sets.Prefixes(ranks, free, forced)
    number = min(MOVED, len(ranks))
    moved = sets.rank(certainty)[None] == jnp.arange(number)[:, None]
    places = (jnp.where(moved, place, ranks[None]) for place in (-1, len(ranks)))
    every = jax.vmap(sets.rank)(jnp.concatenate([ranks[None], *places]))
    each = jax.vmap(fitting, (None, 0, None, None))(share, every, free, forced)
    return sets.Rankings(every, each, forced)


def fitting(share: jax.Array, ranks: jax.Array, free: jax.Array, forced: jax.Array) -> jax.Array:
    """Fill the edge by rank: free devices without those too large for what is left, ``[K]`` bool.

    Args:
        share: of the edge's cycles ``[K]`` [-].
        ranks: of all devices ``[K]``.
        free: who may send or stay ``[K]`` bool.
        forced: who sends in any case ``[K]`` bool.
    """
    left = 1 + FIT_TOLERANCE - jnp.sum(jnp.where(forced, share, 0.0))
    return sets.fill(ranks, jnp.where(free, share, jnp.inf), left)


def cheapest(
    uplink: Uplink,
    grid: PriceGrid,
    candidates: sets.Family,
    exact: int,
    known: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pick the set of least energy out of ``candidates``, and ``known`` ``[n, K]`` bool.

    The grid's dual values, THEORY.md, section 5, tell the ``exact`` ones that are worth an exact
    allocation.

    Returns:
        The set ``[K]`` bool, its times ``[K]`` [s] and its energy ``[]`` [J], infinite if none
        fits.
    """
    least = resources(uplink).T  # [K, 2], or [K, 4] with C6
    number = least.shape[1]
    more = jnp.where(grid.base[:, None], -least, least)
    sums = candidates.flipped(grid.base, jnp.concatenate([more, grid.flip_cost], axis=1))
    duals = grid.base_dual[None] + sums[:, number:]
    used = jnp.sum(jnp.where(grid.base[:, None], least, 0.0), axis=0)[None] + sums[:, :number]
    fitting = within(used.T)
    bounds = jnp.where(fitting, jnp.max(duals, axis=1), jnp.inf)
    _, likely = sets.smallest(bounds, min(exact, len(bounds)))
    few, guesses = candidates.take(likely), guess_prices(grid.log_mu, duals[likely])
    if known is not None:
        few = jnp.concatenate([few, known])
        guesses = jnp.append(guesses, jnp.full(len(known), -jnp.inf, guesses.dtype))
    few = few.astype(grid.flip_cost.dtype)
    energies, times, _ = jax.vmap(partial(priced_set, uplink))(few, guesses)
    best = jnp.argmin(energies)
    return few[best] > 0, times[best], energies[best]


def guess_prices(log_mu: jax.Array, duals: jax.Array) -> jax.Array:
    """Prices at which sets' duals ``[M, J]`` are largest: ``[M]`` [ln W], or -inf at the ends."""
    place = jnp.argmax(duals, axis=1)
    inside = (place > 0) & (place < len(log_mu) - 1)
    return jnp.where(inside, log_mu[place], -jnp.inf)


def _full_power(uplink: Uplink, offload: jax.Array, bound: jax.Array) -> Solution:
    """Send the parts ``offload`` as fast as possible."""
    fit = fits(uplink, offload)
    time = jnp.where(uplink.usable & fit, offload * uplink.load / uplink.max_efficiency, 0.0)
    cost = jnp.where(fit, cost_spent(uplink, offload, time), jnp.inf)
    return finish(uplink, offload, time, cost, bound)
