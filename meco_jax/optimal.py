"""The certified optimum of P1 with fixed shapes, for jit, vmap and accelerators.

At the slot price mu* of the relaxed problem most devices have a clear answer. The few
unclear ones are enumerated; a grid of prices gives every set of them a lower bound, the
best sets are allocated exactly, and what was left out is bounded: the answer comes with
a proof. Source: math note 3-4, derived from P1, (6). All is for one channel, ``[K]``.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import system as sy
from meco_jax.allocation import (
    FIT_TOLERANCE,
    Link,
    Solution,
    finish,
    link,
    priced_cost,
    relax,
    set_energy,
)
from meco_jax.system import System

COARSE_PRICES, COARSE_WIDTH = 33, 4.0  # odd, so that mu* is one of them; [-], [ln W]
FINE_PRICES, FINE_WIDTH = 17, 0.25


class Stage(NamedTuple):
    """How much to enumerate: shapes, so static."""

    unclear: int  # devices whose sets are enumerated, 2^n patterns
    exact: int  # patterns allocated exactly


STAGES = (Stage(8, 8), Stage(12, 64))  # the second for channels that the first leaves open


class Grid(NamedTuple):
    """Dual terms at J prices: the dual of a set S is ``offset - sum_S saving``, math note 3b."""

    log_mu: jax.Array  # [J] prices [ln W]
    saving: jax.Array  # [K, J] e - c, what sending saves at a price, 0 where it cannot be [J]
    offset: jax.Array  # [J] sum e - mu T [J]


def optimal(system: System, h: jax.Array, stage: Stage = STAGES[0]) -> Solution:
    """Find the best decision among the unclear devices' sets, and prove how good it is.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        stage: how much to enumerate.

    Returns:
        A ``Solution``. No decision spends less than ``lower_bound``; where the two are equal
        to rounding, the answer is the optimum.
    """
    uplinks, forced = link(system, h), sy.forced(system)
    relaxed = relax(uplinks, forced.astype(h.dtype))
    coarse = price_grid(uplinks, relaxed.log_mu, COARSE_PRICES, COARSE_WIDTH)
    base = forced | (coarse.saving[:, COARSE_PRICES // 2] > 0)
    flips = flip_bounds(coarse, base, forced, uplinks.usable)
    order = jnp.argsort(flips)
    unclear, clear = order[: stage.unclear], order[stage.unclear :]

    patterns = _patterns(len(unclear))  # [P, n] which of the unclear devices change sides
    sets = patterns ^ base[unclear][None]  # [P, n] which of them send
    allowed = ~jnp.any(patterns & jnp.isinf(flips[unclear])[None], axis=1)
    sending = base.at[unclear].set(False)
    least = jnp.where(uplinks.usable, uplinks.min_time, 0.0)
    used = jnp.sum(jnp.where(sending, least, 0.0)) + jnp.sum(sets * least[unclear][None], axis=1)
    allowed &= used <= uplinks.slot * (1 + FIT_TOLERANCE)
    bounds = jnp.where(allowed, set_bounds(coarse, base, unclear, sets), jnp.inf)
    likely = base.at[unclear].set(sets[jnp.argmin(bounds)])
    dual = coarse.offset - likely.astype(h.dtype) @ coarse.saving
    fine = price_grid(uplinks, coarse.log_mu[jnp.argmax(dual)], FINE_PRICES, FINE_WIDTH)
    bounds = jnp.maximum(bounds, set_bounds(fine, base, unclear, sets))

    lowest, picked = jax.lax.top_k(-bounds, min(stage.exact + 1, len(patterns)))
    left_out = jnp.min(flips[clear], initial=jnp.inf)
    if len(patterns) > stage.exact:
        left_out = jnp.minimum(left_out, -lowest[-1])
        lowest, picked = lowest[:-1], picked[:-1]
    offload = jax.vmap(lambda s: base.at[unclear].set(s))(sets[picked]).astype(h.dtype)
    energies, times = jax.vmap(partial(set_energy, uplinks))(offload)
    energies = jnp.where(jnp.isfinite(lowest), energies, jnp.inf)
    best = jnp.argmin(energies)
    bound = jnp.maximum(jnp.minimum(left_out, energies[best]), relaxed.bound)
    return finish(uplinks, offload[best], times[best], energies[best], bound)


def price_grid(uplinks: Link, log_mu: jax.Array, num: int, width: float) -> Grid:
    """Price every device at ``num`` prices, ``width`` to either side of ``log_mu`` [ln W]."""
    prices = log_mu + jnp.linspace(-width, width, num)
    cost = jax.vmap(partial(priced_cost, uplinks), out_axes=1)(prices)
    saving = jnp.where(uplinks.usable[:, None], uplinks.local[:, None] - cost, 0.0)
    return Grid(prices, saving, jnp.sum(uplinks.local) - jnp.exp(prices) * uplinks.slot)


def set_bounds(grid: Grid, base: jax.Array, unclear: jax.Array, sets: jax.Array) -> jax.Array:
    """Bound the energy of sets from below by their best dual value, math note 3b: ``[P]`` [J].

    Args:
        grid: dual terms.
        base: set of the devices that are not unclear ``[K]`` bool.
        unclear: indices of the enumerated devices ``[n]``.
        sets: which of these send, ``[P, n]`` bool.
    """
    saving = grid.saving[unclear]  # [n, J]
    fixed = jnp.sum(jnp.where(base.at[unclear].set(False)[:, None], grid.saving, 0.0), axis=0)
    saved = jnp.matmul(sets.astype(saving.dtype), saving, precision=jax.lax.Precision.HIGHEST)
    return jnp.max((grid.offset - fixed)[None] - saved, axis=1)


def flip_bounds(grid: Grid, base: jax.Array, forced: jax.Array, usable: jax.Array) -> jax.Array:
    """Bound from below every decision in which a device leaves its side in ``base``: ``[K]`` [J].

    All other devices take their cheaper side: the maximum over prices of math note 3c, taken
    device by device. Infinite where the device has no other side.
    """
    chosen = jnp.where(forced[:, None], grid.saving, jnp.maximum(grid.saving, 0.0))
    least = grid.offset - jnp.sum(chosen, axis=0)  # [J] L(mu)
    loss = jnp.maximum(jnp.where(base[:, None], grid.saving, -grid.saving), 0.0)
    return jnp.where(forced | ~usable, jnp.inf, jnp.max(least[None] + loss, axis=1))


def _patterns(num: int) -> np.ndarray:
    """All 0/1 rows of length ``num``: ``[2^num, num]`` bool."""
    return (np.arange(2**num)[:, None] >> np.arange(num)) % 2 == 1
