"""The certified optimum of P1 with fixed shapes, for jit, vmap and accelerators.

At the slot price mu* of the relaxed problem most devices have a clear answer. The few
undecided ones are enumerated; a grid of prices gives every set of them a lower bound, the
best sets are allocated exactly, and what was left out is bounded: the answer comes with
a proof. Derived from P1, (6), in THEORY.md, sections 5 and 6. All is for one channel, ``[K]``.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.exact import sets, twofold
from meco_jax.exact.allocation import finish, prepare
from meco_jax.exact.derivatives import largest, smallest, with_derivative
from meco_jax.exact.duals import (
    PriceGrid,
    least_dual,
    price_grid,
    proven_dual,
    saving,
    with_edge_price,
)
from meco_jax.exact.pricing import priced_set
from meco_jax.exact.shares import resources, within
from meco_jax.exact.uplink import Uplink, pairwise_sum
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.system import System

COARSE = 17, 4.0  # prices of the grid, odd, so that mu* is one of them; half its width [ln W]
FINE = 9, 0.3
subset_sums = jax.vmap(sets.subset_sums)  # of each row


@short_repr
class Stage(NamedTuple):
    """How much to enumerate: shapes, so static."""

    num_enumerated: int  # devices whose sets are enumerated, 2^n patterns
    num_exact: int  # patterns allocated exactly


STAGES = (Stage(6, 2), Stage(9, 4), Stage(12, 16))  # each for channels that the last leaves open
ONLY_STAGE = STAGES[1]  # where no other can follow: under jit


@short_repr
class Sides(NamedTuple):
    """On which side each device may be cheaper, ``[K]`` each."""

    sends: jax.Array  # bool
    off_side: jax.Array  # bounds the decisions in which it is on the other side [J]
    ranks: jax.Array  # int, in ascending order of this bound: the least decided device is 0


@short_repr
class Patterns(NamedTuple):
    """The sets of the n least decided devices, P = 2^n, and what they cost at least."""

    start: jax.Array  # [K] bool: the set from which devices are flipped
    flips: jax.Array  # [P, n] bool: which undecided devices, in the order of their ranks
    bounds: jax.Array  # [P] infinite where a set is impossible [J]
    log_mu: jax.Array  # [Q] prices [ln W]
    duals: jax.Array  # [Q, P] of the sets at these prices [J]


def optimal(system: System, h: jax.Array, stage: Stage = ONLY_STAGE) -> Solution:
    """Find the best decision among the undecided devices' sets, and prove how good it is.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        stage: how much to enumerate.

    Returns:
        A ``Solution``. No decision spends less than ``lower_bound``; where the two are equal
        to rounding, the answer is the optimum.
    """
    uplink, forced, relaxed = prepare(system, h)
    grid = price_grid(uplink, relaxed.sends, relaxed.log_mu, *COARSE)
    priced = with_edge_price(uplink, grid, relaxed.edge_price)
    sides = choose_sides(priced, forced, uplink.usable)
    patterns = bound_patterns(uplink, grid, forced, sides, stage.num_enumerated)

    number = min(stage.num_exact, len(patterns.bounds))
    lowest, picked = sets.smallest(patterns.bounds, min(number + 1, len(patterns.bounds)))
    left_out = smallest(jnp.where(sides.ranks < stage.num_enumerated, jnp.inf, sides.off_side))
    if number < len(patterns.bounds):
        left_out = jnp.minimum(left_out, lowest[-1])
    lowest, picked = lowest[:number], picked[:number]
    offload = sets.flip(patterns.start, sides.ranks, patterns.flips[picked])
    guess = patterns.log_mu[jnp.argmax(patterns.duals[:, picked], axis=0)]
    # Where none of them is possible, those send who send all in the relaxed problem.
    counts = jnp.isfinite(lowest) | (jnp.arange(number) == 0)
    offload = jnp.where(jnp.isfinite(lowest)[:, None], offload, (forced | relaxed.sends)[None])
    offload = offload.astype(h.dtype)
    energies, times, prices = jax.vmap(partial(priced_set, uplink))(offload, guess)
    energies = jnp.where(counts, energies, jnp.inf)
    nobody = jnp.zeros(len(h), bool)
    duals = jax.vmap(lambda s, v: proven_dual(uplink, s, nobody, v))(offload, prices)
    # The dual of a set has the derivatives of its energy, which equals it but for rounding.
    duals = with_derivative(duals, energies)
    proven = smallest(jnp.where(jnp.isfinite(energies), duals, jnp.inf))
    best = jnp.argmin(energies)
    bound = jnp.maximum(jnp.minimum(left_out, proven), relaxed.bound)
    return finish(uplink, offload[best], times[best], energies[best], bound)


def choose_sides(grid: PriceGrid, forced: jax.Array, usable: jax.Array) -> Sides:
    """Put each device on the side that may be cheaper, see ``side_bounds``.

    Args:
        grid: dual terms.
        forced: C2, ``[K]`` bool.
        usable: who can send ``[K]`` bool.
    """
    sent, kept = side_bounds(grid, forced, usable)
    off_side = jnp.maximum(sent, kept)
    sends, ranks = twofold.computed_once((forced | (sent < kept), sets.rank(off_side)))
    return Sides(sends, off_side, ranks)


def side_bounds(
    grid: PriceGrid, forced: jax.Array, usable: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Bound from below every decision in which a device sends, and in which it does not.

    All other devices take their cheaper side, THEORY.md, section 6: the maximum over prices of
    what a flip costs, device by device. Infinite where the device cannot be on that side.

    Returns:
        The bounds ``[K]`` [J] if the device sends, and if it stays local. Of a forced device only
        the second one, infinite, is of use: it sends in all decisions.
    """
    least, saved = least_dual(grid, forced), saving(grid)
    sent = largest(least[None] + jnp.maximum(-saved, 0.0), axis=1)
    kept = largest(least[None] + jnp.maximum(saved, 0.0), axis=1)
    return jnp.where(usable, sent, jnp.inf), jnp.where(forced, jnp.inf, kept)


def bound_patterns(
    uplink: Uplink, grid: PriceGrid, forced: jax.Array, sides: Sides, number: int
) -> Patterns:
    """Bound all sets of the ``number`` least decided devices from below by their best dual.

    At the prices of a coarse grid, and of a fine one around the best price of the set whose
    bound is the lowest by then. THEORY.md, sections 5 and 6.

    Args:
        uplink: terms of every uplink ``[K]``.
        grid: the coarse grid.
        forced: C2, ``[K]`` bool.
        sides: of all devices.
        number: n, at most K of them count.
    """
    number = min(number, len(sides.ranks))
    undecided = sets.members(sides.ranks, number)
    start = jnp.where(sides.ranks < number, grid.base, sides.sends)
    least = resources(uplink)  # [2, K], or [4, K] with C6
    more = jnp.where(grid.base[None], -least, least)[:, undecided]
    used = jnp.sum(jnp.where(start[None], least, 0.0), axis=1)[:, None] + subset_sums(more)
    here = start[undecided]
    cannot = jnp.where(here, ~uplink.usable[undecided], forced[undecided])
    must = jnp.where(here, forced[undecided], ~uplink.usable[undecided])
    stuck = jnp.any(cannot) | (subset_sums(must[None].astype(least.dtype))[0] > 0)
    possible = ~stuck & within(used)

    def duals_at(grid: PriceGrid) -> jax.Array:
        flipped = start ^ grid.base
        fixed = grid.base_dual + pairwise_sum(jnp.where(flipped[:, None], grid.flip_cost, 0.0))
        return fixed[:, None] + subset_sums(grid.flip_cost[undecided].T)

    coarse = duals_at(grid)
    _, likely = sets.smallest(jnp.where(possible, jnp.max(coarse, axis=0), jnp.inf), 1)
    _, peak = sets.smallest(-coarse[:, likely[0]], 1)
    fine = price_grid(uplink, grid.base, grid.log_mu[peak[0]], *FINE)
    duals = jnp.concatenate([coarse, duals_at(fine)])
    return Patterns(
        start=start,
        flips=jnp.asarray(sets.subsets(number)),
        bounds=jnp.where(possible, largest(duals), jnp.inf),
        log_mu=jnp.concatenate([grid.log_mu, fine.log_mu]),
        duals=duals,
    )
