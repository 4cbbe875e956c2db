"""What needs no training: MCOS in both readings, the optimal PCOS, the repair of a decision.

Each is a pure function of one channel, ``h: [K]``, that returns a ``Solution``.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.exact.allocation import finish, relax, set_energy
from meco_jax.exact.duals import PriceGrid, price_grid
from meco_jax.exact.uplink import (
    Uplink,
    energy_spent,
    fits,
    make_uplink,
    priced_cost,
)
from meco_jax.solution import Solution
from meco_jax.system import System

COMPARING = 33, 4.0  # prices and half width [ln W] of the grid that compares decisions
EXACT = 3  # decisions worth an exact allocation
HIGHEST = jax.lax.Precision.HIGHEST


def mcos(system: System, h: jax.Array) -> Solution:
    """Offload only the tasks that miss the deadline locally, whole, at full power.

    Minimum computation offloading, paper section 5, its "remainder" read as devices.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].

    Returns:
        A ``Solution``; infeasible where the forced devices do not fit. ``lower_bound`` is P1's.
    """
    uplink, must = make_uplink(system, h), sy.forced(system).astype(h.dtype)
    return _full_power(uplink, must, relax(uplink, must).bound)


def mcos_partial(system: System, h: jax.Array) -> Solution:
    """Offload only the part m^+ of each task that misses the deadline, at full power.

    Minimum computation offloading, paper section 5, its "remainder" read as bits.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].

    Returns:
        A ``Solution`` with ``offload`` = m^+. ``lower_bound`` is that of partial offloading.
    """
    uplink, must = make_uplink(system, h), sy.required_ratio(system)
    return _full_power(uplink, must, relax(uplink, must).bound)


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
    uplink = make_uplink(system, h)
    relaxed = relax(uplink, sy.required_ratio(system))
    energy = energy_spent(uplink, relaxed.offload, relaxed.time)
    feasible = jnp.isfinite(relaxed.bound)
    dual = jnp.where(feasible, relaxed.bound, 0.0)
    energy = dual + jax.lax.stop_gradient(energy - dual)  # its derivative: strong duality
    energy = jnp.where(feasible, energy, jnp.inf)
    return finish(uplink, relaxed.offload, relaxed.time, energy, relaxed.bound)


def repair(system: System, h: jax.Array, offload: jax.Array) -> Solution:
    """Make a decision feasible and give it its optimal powers and times.

    The devices are ranked: the forced ones, then those chosen to offload, then the
    others, each group by the energy that offloading saves at the price mu* of the slot,
    e - c(mu*). The best prefix of the ranking is taken, and then the best change of one device,
    if it saves more. The forced devices alone are among the prefixes and allocated exactly, so
    bounds_off_side all others local is never better.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: decision ``[K]``, 0 or 1 [-].

    Returns:
        A ``Solution``; infeasible where the forced devices do not fit.
    """
    uplink, forced = make_uplink(system, h), sy.forced(system)
    relaxed = relax(uplink, forced.astype(h.dtype))
    saved = jnp.where(uplink.usable, uplink.local - priced_cost(uplink, relaxed.log_mu), -jnp.inf)
    group = jnp.where(forced, 0, jnp.where(offload > 0.5, 1, 2))
    grid = price_grid(uplink, relaxed.sends, relaxed.log_mu, *COMPARING)
    best, _, _ = best_prefix(uplink, grid, forced, jnp.lexsort((-saved, group)), EXACT)
    changes = jnp.logical_xor(best[None], jnp.eye(h.shape[-1], dtype=bool))
    changes = jnp.where((uplink.usable & ~forced)[None], changes, best[None])
    best, time, energy = cheapest(uplink, grid, changes, best, EXACT)
    return finish(uplink, best.astype(h.dtype), time, energy, relaxed.bound)


def best_prefix(
    uplink: Uplink, grid: PriceGrid, forced: jax.Array, ranking: jax.Array, exact: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Send the forced devices and the best number of others from the head of a ranking.

    Args:
        uplink: of the channel.
        grid: dual terms that compare the prefixes.
        forced: C2, ``[K]`` bool.
        ranking: indices of all devices, the first ones sent first, ``[K]``.
        exact: prefixes that are allocated exactly; the forced devices alone are another.

    Returns:
        The set ``[K]`` bool, its times ``[K]`` [s] and energy ``[]`` [J], see ``cheapest``.
    """
    place = jnp.argsort(ranking)
    prefixes = place[None] < jnp.arange(len(ranking) + 1)[:, None]  # [K + 1, K]
    prefixes = jnp.where((uplink.usable & ~forced)[None], prefixes, forced[None])
    return cheapest(uplink, grid, prefixes, forced, exact)


def cheapest(
    uplink: Uplink, grid: PriceGrid, sets: jax.Array, known: jax.Array, exact: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pick the set of least energy out of ``[M, K]`` and ``known`` ``[K]``, with its times.

    The grid's dual values, THEORY.md, section 5, tell the ``exact`` ones that are worth an exact
    allocation. The energy is infinite if none fits.
    """
    flipped = (sets ^ grid.base[None]).astype(grid.flip_cost.dtype)
    duals = grid.base_dual[None] + jnp.matmul(flipped, grid.flip_cost, precision=HIGHEST)
    bounds = jnp.max(duals, axis=1)
    fitting = jax.vmap(partial(fits, uplink))(sets.astype(grid.flip_cost.dtype))
    bounds = jnp.where(fitting, bounds, jnp.inf)
    _, likely = jax.lax.top_k(-bounds, min(exact, len(sets)))
    few = jnp.concatenate([sets[likely], known[None]]).astype(grid.flip_cost.dtype)
    energies, times = jax.vmap(partial(set_energy, uplink))(few)
    best = jnp.argmin(energies)
    return few[best] > 0, times[best], energies[best]


def _full_power(uplink: Uplink, offload: jax.Array, bound: jax.Array) -> Solution:
    """Send the parts ``offload`` as fast as possible."""
    fit = fits(uplink, offload)
    time = jnp.where(uplink.usable & fit, offload * uplink.load / uplink.max_efficiency, 0.0)
    energy = jnp.where(fit, energy_spent(uplink, offload, time), jnp.inf)
    return finish(uplink, offload, time, energy, bound)
