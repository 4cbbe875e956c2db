"""The certified optimum of P1 with fixed shapes, for jit, vmap and accelerators.

At the slot price mu* of the relaxed problem most devices have a clear answer. The few
unclear ones are enumerated; a grid of prices gives every set of them a lower bound, the
best sets are allocated exactly, and what was left out is bounded: the answer comes with
a proof. Source: math note 3-4, derived from P1, (6). All is for one channel, ``[K]``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import system as sy
from meco_jax.allocation import (
    FIT_TOLERANCE,
    Grid,
    Link,
    Solution,
    finish,
    link,
    price_grid,
    relax,
    set_energy,
)
from meco_jax.describe import short_repr
from meco_jax.system import System

COARSE = 33, 4.0  # prices of the grid, odd, so that mu* is one of them; half its width [ln W]
FINE = 17, 0.3
SEARCH_NODES = 200_000  # most sets that the exact search holds at once
SEARCH_EXACT = 2_000  # most of them that it allocates exactly


@short_repr
class Stage(NamedTuple):
    """How much to enumerate: shapes, so static."""

    unclear: int  # devices whose sets are enumerated, 2^n patterns
    exact: int  # patterns allocated exactly


STAGES = (Stage(6, 4), Stage(8, 8), Stage(12, 64))  # each for channels that the last leaves open
ONLY_STAGE = STAGES[1]  # where no other can follow: under jit


def optimal(system: System, h: jax.Array, stage: Stage = ONLY_STAGE) -> Solution:
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
    coarse = price_grid(uplinks, relaxed.sends, relaxed.log_mu, *COARSE)
    sent, kept = side_bounds(coarse, forced, uplinks.usable)
    base = forced | (sent < kept)  # each device on the side that may be cheaper
    leaving = jnp.maximum(sent, kept)  # bounds the decisions in which it leaves that side
    order = jnp.argsort(leaving)
    unclear, clear = order[: stage.unclear], order[stage.unclear :]

    turns = jnp.asarray(_patterns(len(unclear)))  # [P, n] which of the unclear devices to turn
    sets = turns ^ coarse.base[unclear][None]  # and so which of them send
    stuck = sets & jnp.isinf(sent[unclear])[None] | ~sets & jnp.isinf(kept[unclear])[None]
    sending = base.at[unclear].set(coarse.base[unclear])
    least = jnp.where(uplinks.usable, uplinks.min_time, 0.0)
    more = jnp.where(coarse.base, -least, least)[unclear]
    # A product: jaxlib 0.10.2 sums turns * more wrongly, github.com/jax-ml/jax/issues/39103
    used = jnp.sum(jnp.where(sending, least, 0.0)) + _product(turns, more)
    allowed = ~jnp.any(stuck, axis=1) & (used <= uplinks.slot * (1 + FIT_TOLERANCE))
    bounds = jnp.where(allowed, set_bounds(coarse, base, unclear, turns), jnp.inf)
    likely = base.at[unclear].set(sets[jnp.argmin(bounds)])
    dual = coarse.offset + _product(likely ^ coarse.base, coarse.turn)
    _, peak = jax.lax.top_k(dual, 1)  # never computed twice, unlike argmax
    fine = price_grid(uplinks, relaxed.sends, coarse.log_mu[peak[0]], *FINE)
    bounds = jnp.maximum(bounds, set_bounds(fine, base, unclear, turns))

    lowest, picked = jax.lax.top_k(-bounds, min(stage.exact + 1, len(sets)))
    left_out = jnp.min(leaving[clear], initial=jnp.inf)
    if len(sets) > stage.exact:
        left_out = jnp.minimum(left_out, -lowest[-1])
        lowest, picked = lowest[:-1], picked[:-1]
    offload = jax.vmap(lambda s: base.at[unclear].set(s))(sets[picked]).astype(h.dtype)
    # Where none of the sets fits, the devices that save most at mu*, as many as fit.
    any_fits = jnp.isfinite(lowest[0])
    saving = jnp.where(forced, jnp.inf, _saving(coarse)[:, COARSE[0] // 2])
    line = jnp.argsort(-saving)
    fitting = jnp.cumsum(least[line]) <= uplinks.slot
    greedy = forced.at[line].max(fitting & (saving[line] > 0)).astype(h.dtype)
    offload = offload.at[0].set(jnp.where(any_fits, offload[0], greedy))
    energies, times = jax.vmap(partial(set_energy, uplinks))(offload)
    energies = jnp.where(jnp.isfinite(lowest.at[0].set(0.0)), energies, jnp.inf)
    best = jnp.argmin(energies)
    bound = jnp.maximum(jnp.minimum(left_out, energies[best]), relaxed.bound)
    return finish(uplinks, offload[best], times[best], energies[best], bound)


def set_bounds(grid: Grid, base: jax.Array, unclear: jax.Array, turns: jax.Array) -> jax.Array:
    """Bound the energy of sets from below by their best dual value, math note 3b: ``[P]`` [J].

    Args:
        grid: dual terms.
        base: set of the devices that are not unclear ``[K]`` bool.
        unclear: indices of the enumerated devices ``[n]``.
        turns: which of these are turned over from the grid's base, ``[P, n]`` bool.
    """
    turned = (base ^ grid.base).at[unclear].set(False)
    fixed = grid.offset + jnp.sum(jnp.where(turned[:, None], grid.turn, 0.0), axis=0)
    return jnp.max(fixed[None] + _product(turns, grid.turn[unclear]), axis=1)


def side_bounds(grid: Grid, forced: jax.Array, usable: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bound from below every decision in which a device sends, and in which it does not.

    All other devices take their cheaper side: the maximum over prices of math note 3c, taken
    device by device. Infinite where the device cannot be on that side.

    Returns:
        The bounds ``[K]`` [J] if the device sends, and if it stays local.
    """
    least, saving = _least_dual(grid, forced), _saving(grid)
    sent = jnp.max(least[None] + jnp.maximum(-saving, 0.0), axis=1)
    kept = jnp.max(least[None] + jnp.maximum(saving, 0.0), axis=1)
    return jnp.where(usable, sent, jnp.inf), jnp.where(forced, jnp.inf, kept)


def search(
    system: System, h: np.ndarray, energy: float, tolerance: float
) -> tuple[np.ndarray | None, float]:
    """Search all decisions of one channel on the host, in float64, device by device.

    A node fixes some devices; its dual values at a grid of prices bound all decisions below
    it. The unclear devices come first, so that nearly all nodes are cut early.

    Args:
        system: the physics of the channel, ``[K]`` and ``[]`` leaves.
        h: amplitude gains ``[K]`` [-].
        energy: of the best decision known [J].
        tolerance: nodes that cannot save this part of ``energy`` are cut [-].

    Returns:
        A better decision ``[K]`` bool, or None if there is none within the tolerance, and a
        lower bound on the optimum [J]: ``energy`` less the tolerance, unless there were more
        than ``SEARCH_NODES`` nodes.
    """
    p = _host_link(system, h)
    forced = np.asarray(sy.forced(system))
    free = np.flatnonzero(p.usable & ~forced)

    grid = _host_grid(p, _zoom(p, partial(_least_dual, forced=forced))[0], COARSE[1])
    base = forced | grid.base
    least = _least_dual(grid, forced)
    turn = np.where((base ^ grid.base)[:, None], -grid.turn, grid.turn)
    leave, stay = np.maximum(turn, 0), np.maximum(-turn, 0)
    free = free[np.argsort((least + leave[free]).max(axis=1), kind="stable")]
    twins = _twins(p, free)

    cut = energy * (1 - tolerance)
    duals, sets = least[None], base[None]
    used = np.where(forced, p.min_time, 0.0).sum() + np.zeros(1)
    bound = np.inf
    for k in free:
        duals = np.concatenate([duals + stay[k], duals + leave[k]])
        sets = np.concatenate([sets, sets])
        sets[len(sets) // 2 :, k] ^= True
        used = np.concatenate([used, used]) + sets[:, k] * p.min_time[k]
        low = duals.max(axis=1)
        keep = (low < cut) & (used <= p.slot * (1 + FIT_TOLERANCE))
        if k in twins:  # which of two equal devices sends is all the same
            keep &= sets[:, k] <= sets[:, twins[k]]
        order = np.flatnonzero(keep)[np.argsort(low[keep], kind="stable")]
        if len(order) > SEARCH_NODES:
            bound = min(bound, low[order[SEARCH_NODES]])
            order = order[:SEARCH_NODES]
        duals, sets, used = duals[order], sets[order], used[order]
    better = None
    for number, (low, candidate) in enumerate(zip(duals.max(axis=1), sets)):
        if low >= cut:
            break
        if number == SEARCH_EXACT:
            bound = min(bound, low)
            break
        value = _zoom(p, partial(_set_dual, candidate))[1]
        if value < cut:
            better, energy, cut = candidate, value, value * (1 - tolerance)
    return better, min(bound, cut)


def _twins(p: Link, free: np.ndarray) -> dict[Any, Any]:
    """Give each free device the one before it in the order that equals it, if there is one."""
    last: dict[Any, Any] = {}
    found: dict[Any, Any] = {}
    for k in free:
        own = tuple(terms[k] for terms in (p.load, p.gain, p.weight, p.local))
        if own in last:
            found[k] = last[own]
        last[own] = k
    return found


def _host_link(system: System, h: np.ndarray) -> Link:
    """The float64 NumPy twin of ``allocation.link``, for what can be sent at all."""
    value: dict[str, Any] = {
        name: np.asarray(getattr(system, name), np.float64) for name in sy.SYSTEM_RANGES
    }
    active = np.asarray(system.active)
    gain = np.asarray(h, np.float64) ** 2 / value["noise_power"]
    load = np.where(active, value["task_bits"] * np.log(value["log_base"]) / value["bandwidth"], 0)
    nats = np.log1p(value["max_power"] * gain)
    usable = (load > 0) & (nats * value["slot"] > load * (1 - FIT_TOLERANCE))
    work = value["cycles_per_bit"] * value["task_bits"] * value["cpu_hz"] ** 2
    terms: dict[str, Any] = {
        "usable": usable,
        "load": np.where(usable, load, 1.0),
        "gain": np.where(usable, gain, 1.0),
        "weight": np.where(usable, value["weight"], 1.0),
        "max_power": value["max_power"],
        "max_nats": np.where(usable, nats, 1.0),
        "min_time": np.where(usable, load / np.where(usable, nats, 1.0), 0.0),
        "local": np.where(active, value["weight"] * value["chip"] * work, 0.0),
        "slot": value["slot"],
    }
    return Link(**terms)


def _host_grid(p: Link, log_mu: float, width: float) -> Grid:
    """The float64 NumPy twin of ``price_grid``."""
    prices = log_mu + width * np.linspace(-1, 1, 2 * COARSE[0] - 1) ** 3
    target = prices[None] - np.log(p.weight / p.gain)[:, None]
    x = np.log1p(np.exp((target + np.log(2)) / 2))
    for _ in range(5):  # Newton on x + ln(x - 1 + e^-x), as in allocation.best_nats
        excess = np.where(x < 1e-3, x * x / 2 - x**3 / 6 + x**4 / 24, x + np.expm1(-x))
        x = x - (x + np.log(excess) - target) * excess / x
    x = np.minimum(x, p.max_nats[:, None])
    power = (p.weight / p.gain)[:, None] * np.expm1(x)
    cost = p.load[:, None] / x * (power + np.exp(prices))
    saving = p.local[:, None] - cost
    saving = np.where(p.usable[:, None], saving, 0.0)
    base = saving[:, len(prices) // 2] > 0
    spent = np.where(base[:, None], cost, p.local[:, None]).sum(axis=0)
    turn = np.where(base[:, None], saving, -saving)
    terms: tuple[Any, ...] = (prices, base, spent - np.exp(prices) * p.slot, turn)
    return Grid(*terms)


def _set_dual(chosen: np.ndarray, grid: Grid) -> np.ndarray:
    """Dual values of a set ``[K]`` at a grid's prices: ``[J]`` [J]."""
    return np.asarray(grid.offset + grid.turn[chosen ^ grid.base].sum(axis=0))


def _zoom(p: Link, dual: Callable[[Grid], np.ndarray]) -> tuple[float, float]:
    """Maximise a concave dual over the price by ever narrower grids: ln mu and the value."""
    log_mu, width = -30.0, 90.0
    for _ in range(7):
        grid = _host_grid(p, log_mu, width)
        values = dual(grid)
        best = int(np.argmax(values))
        log_mu = float(grid.log_mu[best])
        left, right = grid.log_mu[max(best - 1, 0)], grid.log_mu[min(best + 1, len(values) - 1)]
        width = float(max(log_mu - left, right - log_mu))
    return log_mu, float(values[best])


def _least_dual(grid: Grid, forced: Any) -> Any:
    """L(mu) of math note 3a at a grid's prices, JAX's or NumPy's: ``[J]`` [J]."""
    must_turn = forced & ~grid.base
    may_turn = (~forced)[:, None] & (grid.turn < 0)
    return grid.offset + ((must_turn[:, None] | may_turn).astype(grid.turn.dtype) * grid.turn).sum(
        axis=0
    )


def _saving(grid: Grid) -> jax.Array:
    """What sending saves at a grid's prices, e - c: ``[K, J]`` [J]."""
    return jnp.where(grid.base[:, None], grid.turn, -grid.turn)


def _product(sets: jax.Array, values: jax.Array) -> jax.Array:
    """Sum values ``[n, ...]`` over the members of sets ``[..., n]`` bool."""
    return jnp.matmul(sets.astype(values.dtype), values, precision=jax.lax.Precision.HIGHEST)


def _patterns(num: int) -> np.ndarray:
    """All 0/1 rows of length ``num``: ``[2^num, num]`` bool."""
    return (np.arange(2**num)[:, None] >> np.arange(num)) % 2 == 1
