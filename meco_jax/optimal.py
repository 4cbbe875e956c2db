"""The certified optimum of P1 with fixed shapes, for jit, vmap and accelerators.

At the slot price mu* of the relaxed problem most devices have a clear answer. The few
unclear ones are enumerated; a grid of prices gives every set of them a lower bound, the
best sets are allocated exactly, and what was left out is bounded: the answer comes with
a proof. Derived from P1, (6), in THEORY.md, sections 5 and 6. All is for one channel, ``[K]``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import system as sy
from meco_jax.allocation import (
    FIT_TOLERANCE,
    LEAST_POWER,
    Grid,
    Link,
    Solution,
    device_energy,
    finish,
    least_shares,
    link,
    pairwise_sum,
    price_grid,
    priced_set,
    proven_dual,
    relax,
)
from meco_jax.derivatives import with_derivative
from meco_jax.describe import short_repr
from meco_jax.system import System

COARSE = 33, 4.0  # prices of the grid, odd, so that mu* is one of them; half its width [ln W]
FINE = 17, 0.3
MAX_NODES = 200_000  # of the exact search: about a second a channel
EXACT_NODES = 50  # what an exact allocation there counts as
FIRST_COUNTS = 8  # numbers of senders whose likeliest set is tried before the search
LEAST_WIDTH = 32  # nodes that go on where the others run out
HOST_STEPS = 60  # Newton's for a price, at most
HOST_ROUNDING = 2.0**-45  # of float64's terms, and to spare


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
    least = jnp.stack(least_shares(uplinks, uplinks.usable), axis=1)  # [K, 2]
    more = jnp.where(coarse.base[:, None], -least, least)[unclear]
    # A product: jaxlib 0.10.2 sums turns * more wrongly, github.com/jax-ml/jax/issues/39103
    used = jnp.sum(jnp.where(sending[:, None], least, 0.0), axis=0)[None] + _product(turns, more)
    fitting = (1 - used[:, 0]) - used[:, 1] >= -FIT_TOLERANCE
    allowed = ~jnp.any(stuck, axis=1) & fitting
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
    fitting = jnp.cumsum(jnp.sum(least, axis=1)[line]) <= 1
    greedy = forced.at[line].max(fitting & (saving[line] > 0)).astype(h.dtype)
    offload = offload.at[0].set(jnp.where(any_fits, offload[0], greedy))
    energies, times, prices = jax.vmap(partial(priced_set, uplinks))(offload)
    energies = jnp.where(jnp.isfinite(lowest.at[0].set(0.0)), energies, jnp.inf)
    nobody = jnp.zeros(len(h), bool)
    duals = jax.vmap(lambda s, v: proven_dual(uplinks, s, nobody, v))(offload, prices)
    # The dual of a set has the derivatives of its energy, which equals it but for rounding.
    duals = with_derivative(duals, energies)
    least_dual = jnp.min(jnp.where(jnp.isfinite(energies), duals, jnp.inf))
    best = jnp.argmin(energies)
    bound = jnp.maximum(jnp.minimum(left_out, least_dual), relaxed.bound)
    return finish(uplinks, offload[best], times[best], energies[best], bound)


def set_bounds(grid: Grid, base: jax.Array, unclear: jax.Array, turns: jax.Array) -> jax.Array:
    """Bound the energy of sets from below by their best dual, THEORY.md, section 5: ``[P]`` [J].

    Args:
        grid: dual terms.
        base: set of the devices that are not unclear ``[K]`` bool.
        unclear: indices of the enumerated devices ``[n]``.
        turns: which of these are turned over from the grid's base, ``[P, n]`` bool.
    """
    turned = (base ^ grid.base).at[unclear].set(False)
    fixed = grid.offset + pairwise_sum(jnp.where(turned[:, None], grid.turn, 0.0))
    return jnp.max(fixed[None] + _product(turns, grid.turn[unclear]), axis=1)


def side_bounds(grid: Grid, forced: jax.Array, usable: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bound from below every decision in which a device sends, and in which it does not.

    All other devices take their cheaper side, THEORY.md, section 6: the maximum over prices of
    what a flip costs, device by device. Infinite where the device cannot be on that side.

    Returns:
        The bounds ``[K]`` [J] if the device sends, and if it stays local. Of a forced device only
        the second one, infinite, is of use: it sends in all decisions.
    """
    least, saving = _least_dual(grid, forced), _saving(grid)
    sent = jnp.max(least[None] + jnp.maximum(-saving, 0.0), axis=1)
    kept = jnp.max(least[None] + jnp.maximum(saving, 0.0), axis=1)
    return jnp.where(usable, sent, jnp.inf), jnp.where(forced, jnp.inf, kept)


def search(
    system: System, h: np.ndarray, energy: float, tolerance: float, max_nodes: int = MAX_NODES
) -> tuple[np.ndarray | None, float]:
    """Search all decisions of one channel on the host, in float64.

    The number of senders is branched on first: at a price the best n of them are those that
    save most, so that near-equal devices cost nothing. What is left open of a number is
    searched device by device: a node fixes some of them, and its dual values at a grid of
    prices, with the gap between the n-th and the next saving as the price of sending, bound
    all decisions below it.

    Args:
        system: the physics of the channel, ``[K]`` and ``[]`` leaves.
        h: amplitude gains ``[K]`` [-].
        energy: of the best decision known [J].
        tolerance: nodes that cannot save this part of ``energy`` are cut [-].
        max_nodes: work, in nodes that are bounded; the same number gives the same answer.

    Returns:
        A better decision ``[K]`` bool, or None if there is none within the tolerance, and a
        lower bound on the optimum [J]: ``energy`` less the tolerance, unless the nodes ran out.
    """
    p = _host_link(system, h)
    forced = np.asarray(sy.forced(system))
    state = _Search(p, forced, energy, tolerance, max_nodes)
    middle = _zoom(p, partial(_least_dual, forced=forced))[0]
    bounds, centres = _count_bounds(state, _host_grid(p, middle, COARSE[1]))
    for count in np.argsort(bounds, kind="stable")[:FIRST_COUNTS]:  # a good answer first
        if bounds[count] < state.cut:
            state.try_set(_heads(state, _host_grid(p, centres[count], 0.0), count)[0])
    for count in np.argsort(bounds, kind="stable"):
        if bounds[count] >= state.cut:
            break
        if state.nodes <= 0:
            state.bound = min(state.bound, bounds[count])
            break
        _search_count(state, int(count), centres[count])
    return state.better, min(state.bound, state.cut)


class _Search:
    """What is known while a channel is searched."""

    def __init__(
        self, p: Link, forced: np.ndarray, energy: float, tolerance: float, nodes: int
    ) -> None:
        self.p, self.forced, self.tolerance, self.nodes = p, forced, tolerance, nodes
        self.free = np.flatnonzero(p.usable & ~forced)
        self.better: np.ndarray | None = None
        self.energy, self.bound = energy, np.inf

    @property
    def cut(self) -> float:
        """What a decision must stay below to be worth finding [J]."""
        return self.energy * (1 - self.tolerance)

    def try_set(self, chosen: np.ndarray) -> None:
        """Allocate a set ``[K]`` bool exactly, and keep it if it is better."""
        self.nodes -= EXACT_NODES
        value = allocate_on_host(self.p, chosen)[0]
        if value < self.cut:
            self.better, self.energy = chosen, value


def _count_bounds(state: _Search, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Bound the decisions with n free senders, n = 0, 1, ...: ``[F + 1]`` [J], and at which ln mu.

    At each price the n that save most are sent; infinite where no n of them fit.
    """
    offset, saving = _from_forced(state, grid)
    heads = np.cumsum(-np.sort(-saving, axis=0), axis=0)
    duals = offset - np.concatenate([np.zeros_like(offset)[None], heads])
    least = np.cumsum(np.append(0.0, np.sort(state.p.min_time[state.free])))
    least += state.p.min_time[state.forced].sum()
    fits = least <= state.p.slot * (1 + FIT_TOLERANCE)
    best = np.argmax(duals, axis=1)
    return np.where(fits, duals[np.arange(len(best)), best], np.inf), np.asarray(grid.log_mu)[best]


def _from_forced(state: _Search, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Dual values of the forced devices alone ``[J]``, and the savings ``[F, J]`` [J]."""
    offset = _set_dual(state.forced & state.p.usable, grid)
    return offset, np.where(grid.base[:, None], grid.turn, -grid.turn)[state.free]


def _heads(state: _Search, grid: Grid, count: int) -> np.ndarray:
    """The forced devices and the ``count`` that save most, at each price: ``[J, K]`` bool."""
    saving = _from_forced(state, grid)[1]
    first = np.argsort(-saving, axis=0, kind="stable")[:count]
    sets = np.repeat(state.forced[None], saving.shape[1], axis=0)
    sets[np.arange(len(sets))[:, None], state.free[first].T] = True
    return sets


def _search_count(state: _Search, count: int, log_mu: float) -> None:
    """Search the decisions with ``count`` free senders, device by device."""
    p, free = state.p, state.free
    if count in (0, len(free)):  # one set
        whole = state.forced.copy()
        whole[free] |= count > 0
        state.try_set(whole)
        return
    state.nodes -= EXACT_NODES
    grid = _host_grid(p, log_mu, COARSE[1])
    offset, saving = _from_forced(state, grid)
    order = -np.sort(-saving, axis=0)
    least = offset - order[:count].sum(axis=0)
    extra = saving - (order[count - 1] + order[count]) / 2  # and the price of sending
    stay, send = np.maximum(extra, 0), np.maximum(-extra, 0)  # what the other side costs
    if least.max() >= state.cut:
        return
    kept, sent = (least + stay).max(axis=1), (least + send).max(axis=1)
    if np.any((kept >= state.cut) & (sent >= state.cut)):
        return
    unclear = np.flatnonzero((kept < state.cut) & (sent < state.cut))
    unclear = unclear[np.argsort(-np.maximum(kept, sent)[unclear], kind="stable")]
    base = kept >= state.cut  # who surely sends
    before = _dominance(p, free[unclear])
    number = count - base.sum()
    used = np.full(1, p.min_time[state.forced].sum() + p.min_time[free[base]].sum())
    duals, sets = least[None], np.zeros((1, len(unclear)), bool)
    for place, k in enumerate(unclear):
        width = max(LEAST_WIDTH, state.nodes // (len(unclear) - place))
        better, worse = (np.flatnonzero(x[:place]) for x in (before[:, place], before[place]))
        sums = sets[:, :place].sum(axis=1)
        may_send = (sums < number) & sets[:, better].all(axis=1)
        may_send &= used + p.min_time[free[k]] <= p.slot * (1 + FIT_TOLERANCE)
        may_stay = (sums + len(unclear) - place > number) & ~sets[:, worse].any(axis=1)
        rows = np.concatenate([np.flatnonzero(may_stay), np.flatnonzero(may_send)])
        turned = np.arange(len(rows)) >= may_stay.sum()
        duals = duals[rows] + np.where(turned[:, None], send[k], stay[k])
        low = duals.max(axis=1)
        state.nodes -= len(low)
        keep = np.flatnonzero(low < state.cut)
        keep = keep[np.argsort(low[keep], kind="stable")]
        if len(keep) > width:
            state.bound = min(state.bound, low[keep[width]])
            keep = keep[:width]
        rows, duals = rows[keep], duals[keep]
        sets = sets[rows]
        sets[:, place] = turned[keep]
        used = used[rows] + sets[:, place] * p.min_time[free[k]]
    for low, chosen in zip(duals.max(axis=1), sets):
        if low >= state.cut:
            break
        if state.nodes <= 0:
            state.bound = min(state.bound, low)
            break
        whole = state.forced.copy()
        whole[free[base]] = True
        whole[free[unclear[chosen]]] = True
        state.try_set(whole)


def _dominance(p: Link, devices: np.ndarray) -> np.ndarray:
    """Tell which device i sends wherever j does: it costs less to send, and more to keep.

    To change places with j then saves energy. Returns ``[n, n]`` bool, [i, j].
    """
    slope = p.weight[devices] / p.gain[devices]
    terms = (p.load[devices], slope, p.min_time[devices], -p.local[devices])
    lower = np.logical_and.reduce([x[:, None] <= x[None] for x in terms])
    equal = lower & lower.T
    return lower & (~equal | np.triu(np.ones_like(equal), 1))


def allocate_on_host(p: Link, chosen: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Allocate a set ``[K]`` bool in float64: energy [J], infinite if it does not fit, p, t."""
    time, power = np.zeros(len(chosen)), np.zeros(len(chosen))
    kept = np.where(chosen, 0.0, p.local).sum()
    sends = chosen & p.usable
    q: Any = SimpleNamespace(**{n: x[sends] if np.ndim(x) else x for n, x in p._asdict().items()})
    spare = p.slot - q.min_time.sum()
    if spare < -FIT_TOLERANCE * p.slot:
        return np.inf, power, time
    if len(q.load):
        scale = np.log(q.weight / q.gain)
        high = float(np.max(scale + q.max_nats + np.log(_host_excess(q.max_nats))))
        low = np.minimum(q.load / p.slot, q.max_nats)
        low = float(np.max(scale + low + np.log(_host_excess(low))))
        for _ in range(HOST_STEPS):  # as in allocation.slot_price
            nats = np.minimum(_host_nats(low - scale), q.max_nats)
            slow = nats < q.max_nats
            used = (q.load / nats)[slow]
            room = max(spare + q.min_time[slow].sum(), 1e-3 * used.sum())
            if not slow.any() or used.sum() <= room:
                break
            fall = np.sum(used * _host_excess(nats[slow]) / nats[slow] ** 2)
            low = min(low + used.sum() * np.log(used.sum() / room) / fall, high)
        wanted = np.where(slow, q.load / nats, q.min_time)
        extra = np.sum(wanted - q.min_time)
        blend = min(max(spare, 0) / extra, 2.0) if extra > 0 else 0.0
        time[sends] = q.min_time + blend * (wanted - q.min_time)
        nats = np.minimum(q.load / time[sends], q.max_nats)
        power[sends] = np.minimum(np.expm1(nats) / q.gain, p.max_power)
    return float(kept + np.sum(p.weight * power * time)), power, time


def solution_on_host(system: System, h: np.ndarray, chosen: np.ndarray) -> Solution:
    """Allocate a fitting set ``[K]`` bool of one channel in float64, in the gains' precision."""
    uplinks: Any = _host_link(system, h)
    energy, power, time = allocate_on_host(uplinks, chosen)
    each: Any = device_energy(uplinks, chosen, power, time)  # type: ignore[arg-type]
    values: dict[str, Any] = {
        "offload": chosen,
        "power": np.maximum(power, np.where(time > 0, LEAST_POWER, 0.0)),
        "time": time,
        "energy": energy,
        "lower_bound": 0.0,
        "energy_per_device": each,
    }
    floats: dict[str, Any] = {name: np.asarray(x, h.dtype) for name, x in values.items()}
    return Solution(**floats, feasible=np.isfinite(energy))  # type: ignore[arg-type]


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
        "exact": None,
    }
    return Link(**terms)


def _host_grid(p: Link, log_mu: float, width: float) -> Grid:
    """The float64 NumPy twin of ``price_grid``."""
    prices = log_mu + width * np.linspace(-1, 1, 2 * COARSE[0] - 1) ** 3
    target = prices[None] - np.log(p.weight / p.gain)[:, None]
    x = np.minimum(_host_nats(target), p.max_nats[:, None])
    power = (p.weight / p.gain)[:, None] * np.expm1(x)
    cost = p.load[:, None] / x * (power + np.exp(prices))
    saving = p.local[:, None] - cost
    saving = np.where(p.usable[:, None], saving, 0.0)
    base = saving[:, len(prices) // 2] > 0
    spent = np.where(base[:, None], cost, p.local[:, None]).sum(axis=0)
    turn = np.where(base[:, None], saving, -saving)
    slot = np.exp(prices) * p.slot
    terms: tuple[Any, ...] = (prices, base, spent - slot - HOST_ROUNDING * (spent + slot), turn)
    return Grid(*terms)


def _host_nats(log_y: np.ndarray) -> np.ndarray:
    """The float64 NumPy twin of ``allocation.best_nats``, without a cap."""
    x = np.log1p(np.exp((log_y + np.log(2)) / 2))
    for _ in range(3):  # Halley on x + ln(x - 1 + e^-x)
        excess = _host_excess(x)
        newton = (x + np.log(excess) - log_y) * excess / x
        bend = (1 + np.expm1(-x) * x / excess) / x
        x = x - newton / (1 - newton * bend / 2)
    return x


def _host_excess(x: Any) -> np.ndarray:
    """The float64 NumPy twin of ``allocation._excess``."""
    return np.where(x < 1e-3, x * x / 2 - x**3 / 6 + x**4 / 24, x + np.expm1(-x))


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
    """L(mu) of THEORY.md, section 5, at a grid's prices, JAX's or NumPy's: ``[J]`` [J]."""
    must_turn = forced & ~grid.base
    may_turn = (~forced)[:, None] & (grid.turn < 0)
    turned = (must_turn[:, None] | may_turn).astype(grid.turn.dtype) * grid.turn
    on_host = isinstance(turned, np.ndarray)  # float64 rounds little as it is
    return grid.offset + (turned.sum(axis=0) if on_host else pairwise_sum(turned))


def _saving(grid: Grid) -> jax.Array:
    """What sending saves at a grid's prices, e - c: ``[K, J]`` [J]."""
    return jnp.where(grid.base[:, None], grid.turn, -grid.turn)


def _product(sets: jax.Array, values: jax.Array) -> jax.Array:
    """Sum values ``[n, ...]`` over the members of sets ``[..., n]`` bool."""
    return jnp.matmul(sets.astype(values.dtype), values, precision=jax.lax.Precision.HIGHEST)


def _patterns(num: int) -> np.ndarray:
    """All 0/1 rows of length ``num``: ``[2^num, num]`` bool."""
    return (np.arange(2**num)[:, None] >> np.arange(num)) % 2 == 1
