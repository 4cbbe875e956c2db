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
import numpy as np

from meco_jax import system as sy
from meco_jax.exact.allocation import finish, priced_set, relax
from meco_jax.exact.derivatives import with_derivative
from meco_jax.exact.duals import PriceGrid, least_dual, price_grid, proven_dual, saving
from meco_jax.exact.uplink import (
    FIT_TOLERANCE,
    least_shares,
    make_uplink,
    pairwise_sum,
)
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.system import System

COARSE = 33, 4.0  # prices of the grid, odd, so that mu* is one of them; half its width [ln W]
FINE = 17, 0.3


@short_repr
class Stage(NamedTuple):
    """How much to enumerate: shapes, so static."""

    num_enumerated: int  # devices whose sets are enumerated, 2^n patterns
    num_exact: int  # patterns allocated exactly


STAGES = (Stage(6, 4), Stage(8, 8), Stage(12, 64))  # each for channels that the last leaves open
ONLY_STAGE = STAGES[1]  # where no other can follow: under jit


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
    uplink, forced = make_uplink(system, h), sy.forced(system)
    relaxed = relax(uplink, forced.astype(h.dtype))
    coarse = price_grid(uplink, relaxed.sends, relaxed.log_mu, *COARSE)
    sent, kept = side_bounds(coarse, forced, uplink.usable)
    base = forced | (sent < kept)  # each device on the side that may be cheaper
    bounds_off_side = jnp.maximum(sent, kept)  # bounds the decisions in which it leaves that side
    order = jnp.argsort(bounds_off_side)
    undecided, clear = order[: stage.num_enumerated], order[stage.num_enumerated :]

    flips = jnp.asarray(_patterns(len(undecided)))  # [P, n] which of the undecided devices to flip
    sets = flips ^ coarse.base[undecided][None]  # and so which of them send
    impossible = sets & jnp.isinf(sent[undecided])[None] | ~sets & jnp.isinf(kept[undecided])[None]
    sending = base.at[undecided].set(coarse.base[undecided])
    least = jnp.stack(least_shares(uplink, uplink.usable), axis=1)  # [K, 2]
    more = jnp.where(coarse.base[:, None], -least, least)[undecided]
    # A product: jaxlib 0.10.2 sums flips * more wrongly, github.com/jax-ml/jax/issues/39103
    used = jnp.sum(jnp.where(sending[:, None], least, 0.0), axis=0)[None] + _product(flips, more)
    fitting = (1 - used[:, 0]) - used[:, 1] >= -FIT_TOLERANCE
    allowed = ~jnp.any(impossible, axis=1) & fitting
    bounds = jnp.where(allowed, set_bounds(coarse, base, undecided, flips), jnp.inf)
    likely = base.at[undecided].set(sets[jnp.argmin(bounds)])
    dual = coarse.base_dual + _product(likely ^ coarse.base, coarse.flip_cost)
    _, peak = jax.lax.top_k(dual, 1)  # never computed twice, unlike argmax
    fine = price_grid(uplink, relaxed.sends, coarse.log_mu[peak[0]], *FINE)
    bounds = jnp.maximum(bounds, set_bounds(fine, base, undecided, flips))

    lowest, picked = jax.lax.top_k(-bounds, min(stage.num_exact + 1, len(sets)))
    left_out = jnp.min(bounds_off_side[clear], initial=jnp.inf)
    if len(sets) > stage.num_exact:
        left_out = jnp.minimum(left_out, -lowest[-1])
        lowest, picked = lowest[:-1], picked[:-1]
    offload = jax.vmap(lambda s: base.at[undecided].set(s))(sets[picked]).astype(h.dtype)
    # Where none of the sets fits, the devices that save most at mu*, as many as fit.
    any_fits = jnp.isfinite(lowest[0])
    saved = jnp.where(forced, jnp.inf, saving(coarse)[:, COARSE[0] // 2])
    line = jnp.argsort(-saved)
    fitting = jnp.cumsum(jnp.sum(least, axis=1)[line]) <= 1
    greedy = forced.at[line].max(fitting & (saved[line] > 0)).astype(h.dtype)
    offload = offload.at[0].set(jnp.where(any_fits, offload[0], greedy))
    energies, times, prices = jax.vmap(partial(priced_set, uplink))(offload)
    energies = jnp.where(jnp.isfinite(lowest.at[0].set(0.0)), energies, jnp.inf)
    nobody = jnp.zeros(len(h), bool)
    duals = jax.vmap(lambda s, v: proven_dual(uplink, s, nobody, v))(offload, prices)
    # The dual of a set has the derivatives of its energy, which equals it but for rounding.
    duals = with_derivative(duals, energies)
    least_dual = jnp.min(jnp.where(jnp.isfinite(energies), duals, jnp.inf))
    best = jnp.argmin(energies)
    bound = jnp.maximum(jnp.minimum(left_out, least_dual), relaxed.bound)
    return finish(uplink, offload[best], times[best], energies[best], bound)


def set_bounds(
    grid: PriceGrid, base: jax.Array, undecided: jax.Array, flips: jax.Array
) -> jax.Array:
    """Bound the energy of sets from below by their best dual, THEORY.md, section 5: ``[P]`` [J].

    Args:
        grid: dual terms.
        base: set of the devices that are not undecided ``[K]`` bool.
        undecided: indices of the enumerated devices ``[n]``.
        flips: which of these are flipped from the grid's base, ``[P, n]`` bool.
    """
    flipped = (base ^ grid.base).at[undecided].set(False)
    fixed = grid.base_dual + pairwise_sum(jnp.where(flipped[:, None], grid.flip_cost, 0.0))
    return jnp.max(fixed[None] + _product(flips, grid.flip_cost[undecided]), axis=1)


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
    sent = jnp.max(least[None] + jnp.maximum(-saved, 0.0), axis=1)
    kept = jnp.max(least[None] + jnp.maximum(saved, 0.0), axis=1)
    return jnp.where(usable, sent, jnp.inf), jnp.where(forced, jnp.inf, kept)


def _product(sets: jax.Array, values: jax.Array) -> jax.Array:
    """Sum values ``[n, ...]`` over the members of sets ``[..., n]`` bool."""
    return jnp.matmul(sets.astype(values.dtype), values, precision=jax.lax.Precision.HIGHEST)


def _patterns(num: int) -> np.ndarray:
    """All 0/1 rows of length ``num``: ``[2^num, num]`` bool."""
    return (np.arange(2**num)[:, None] >> np.arange(num)) % 2 == 1
