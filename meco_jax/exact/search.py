"""The exact search of one channel on the host, in float64, for what enumeration leaves open.

Source: THEORY.md, section 6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from meco_jax import system as sy
from meco_jax.engine import BestFirst
from meco_jax.exact.duals import PriceGrid, price_grid, saving
from meco_jax.exact.enumeration import COARSE
from meco_jax.exact.equations import excess
from meco_jax.exact.shares import FIT_TOLERANCE
from meco_jax.exact.uplink import (
    FREE,
    LEAST_POWER,
    Uplink,
    device_energy,
    efficiency_at,
    local_at,
    log_price,
    make_uplink,
    moved_price,
    own_price,
    sum_terms,
    switch_price,
)
from meco_jax.solution import Solution
from meco_jax.system import System

MAX_NODES = 200_000  # of the exact search: about a second a channel
EXACT_NODES = 50  # what an exact allocation there counts as
FIRST_COUNTS = 8  # numbers of senders whose likeliest set is tried before the search
LEAST_WIDTH = 32  # nodes that go on where the others run out
HOST_STEPS = 60  # Newton's for a price, at most
PRICES = 65  # of a grid
EDGE_PRICES = 0.0, 0.5, 0.8, 1.0, 1.25  # of the edge's cycles, over the relaxed problem's
EDGE_STEPS = 40  # for that one


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
    p = host_uplink(system, h)
    forced = np.asarray(sy.forced(system))
    state = _Search(p, forced, energy, tolerance, max_nodes)
    middle = _middle_price(p, forced)
    if p.edge_share is not None:
        state.edge_price = _edge_price(state, host_grid(p, middle, COARSE[1]))
        middle = _middle_price(p._replace(local=local_at(p, state.edge_price)), forced)
    bounds, centres = _count_bounds(state, host_grid(p, middle, COARSE[1]))
    counts = [(bounds[n], n, n) for n in np.argsort(bounds, kind="stable").tolist()]  # a heap
    for bound, _, count in counts[:FIRST_COUNTS]:  # a good answer first
        if bound < state.cut:
            state.try_set(_prefixes(state, host_grid(p, centres[count], 0.0), count)[0])
    for count in state.take(counts):
        _search_count(state, count, centres[count])
    return state.better, state.bound


class _Search(BestFirst):
    """What is known while a channel is searched: costs in [J]."""

    def __init__(
        self, p: Uplink, forced: np.ndarray, energy: float, tolerance: float, nodes: int
    ) -> None:
        super().__init__(energy, tolerance, nodes)
        self.p, self.forced = p, forced
        within = least_time(p) <= p.slot * (1 + FIT_TOLERANCE)
        self.free = np.flatnonzero(p.usable & ~forced & within)
        self.edge_price: Any = None  # nu of the relaxed problem [J]

    def try_set(self, chosen: np.ndarray) -> None:
        """Allocate a set ``[K]`` bool exactly, and keep it if it is better."""
        self.nodes -= EXACT_NODES
        value = allocate_on_host(self.p, chosen)[0]
        if value < self.cut:
            self.better, self.cost = chosen, value


def _count_bounds(state: _Search, grid: PriceGrid) -> tuple[np.ndarray, np.ndarray]:
    """Bound the decisions with n free senders, n = 0, 1, ...: ``[F + 1]`` [J], and at which ln mu.

    At each price the n that save most are sent; infinite where no n of them fit.
    """
    base_dual, saving = _from_forced(state, grid)
    prefixes = np.cumsum(-np.sort(-saving, axis=0), axis=0)
    duals = base_dual - np.concatenate([np.zeros_like(base_dual)[None], prefixes])
    each = least_time(state.p)
    least = np.cumsum(np.append(0.0, np.sort(each[state.free])))
    least += each[state.forced].sum()
    fits = least <= state.p.slot * (1 + FIT_TOLERANCE)
    if state.p.edge_share is not None:
        cycles = np.cumsum(np.append(0.0, np.sort(state.p.edge_share[state.free])))
        fits &= cycles + state.p.edge_share[state.forced].sum() <= 1 + FIT_TOLERANCE
    best = np.argmax(duals, axis=1)
    log_mu = np.resize(grid.log_mu, duals.shape[1])
    return np.where(fits, duals[np.arange(len(best)), best], np.inf), log_mu[best]


def _from_forced(state: _Search, grid: PriceGrid) -> tuple[np.ndarray, np.ndarray]:
    """Dual values of the forced devices alone ``[J]``, and the savings ``[F, J]`` [J].

    With C6 at ``EDGE_PRICES`` of its cycles for each price of the slot, 0 first: ``[5 J]``.
    """
    flipped = (state.forced & state.p.usable) ^ grid.base
    base_dual = np.asarray(grid.base_dual + grid.flip_cost[flipped].sum(axis=0))
    saved = np.asarray(saving(grid, np))[state.free]
    if not state.edge_price:
        return base_dual, saved
    share = state.p.edge_share
    prices = state.edge_price * np.asarray(EDGE_PRICES)
    base_dual = base_dual + prices[:, None] * (share[state.forced].sum() - 1)
    saved = saved[:, None] - prices[:, None] * share[state.free][:, None, None]
    return base_dual.reshape(-1), saved.reshape(len(saved), -1)


def _edge_price(state: _Search, grid: PriceGrid) -> float:
    """Find the price nu [J] of the edge's cycles where the dual is largest, concave in it."""
    base_dual, saved = _from_forced(state, grid)
    share = state.p.edge_share[state.free][:, None]
    forced = state.p.edge_share[state.forced].sum()
    if not len(saved):
        return 0.0

    def dual(price: float) -> float:
        kept = np.maximum(saved - price * share, 0.0).sum(axis=0)
        return float(np.max(base_dual + price * (forced - 1) - kept))

    low, high = 0.0, float(np.max(saved / np.maximum(share, 1e-30)))
    for _ in range(EDGE_STEPS):
        thirds = low + (high - low) / 3, high - (high - low) / 3
        low, high = (thirds[0], high) if dual(thirds[0]) < dual(thirds[1]) else (low, thirds[1])
    return max(high, 0.0) if dual(high) > dual(0.0) else 0.0


def _prefixes(state: _Search, grid: PriceGrid, count: int) -> np.ndarray:
    """The forced devices and the ``count`` that save most, at each price: ``[J, K]`` bool."""
    saving = _from_forced(state, grid)[1]
    first = np.argsort(-saving, axis=0, kind="stable")[:count]
    sets = np.repeat(state.forced[None], saving.shape[1], axis=0)
    sets[np.arange(len(sets))[:, None], state.free[first].T] = True
    return sets


def _search_count(state: _Search, count: int, log_mu: float) -> None:
    """Search the decisions with ``count`` free senders, device by device."""
    free = state.free
    if count in (0, len(free)):  # one set
        whole = state.forced.copy()
        whole[free] |= count > 0
        state.try_set(whole)
        return
    state.nodes -= EXACT_NODES
    grid = host_grid(state.p, log_mu, COARSE[1])
    base_dual, saving = _from_forced(state, grid)
    order = -np.sort(-saving, axis=0)
    least = base_dual - order[:count].sum(axis=0)
    extra = saving - (order[count - 1] + order[count]) / 2  # and the price of sending
    stay, send = np.maximum(extra, 0), np.maximum(-extra, 0)  # what the other side costs
    if least.max() >= state.cut:
        return
    kept, sent = (least + stay).max(axis=1), (least + send).max(axis=1)
    if np.any((kept >= state.cut) & (sent >= state.cut)):
        return
    undecided = np.flatnonzero((kept < state.cut) & (sent < state.cut))
    undecided = undecided[np.argsort(-np.maximum(kept, sent)[undecided], kind="stable")]
    whole = state.forced.copy()
    whole[free[kept >= state.cut]] = True  # who surely sends
    number = count - int((kept >= state.cut).sum())
    bounds, sets = _decide_in_turn(
        state, whole, free[undecided], number, least, stay[undecided], send[undecided]
    )
    for i in state.take([(low, i, i) for i, low in enumerate(bounds.tolist())]):
        candidate = whole.copy()
        candidate[free[undecided[sets[i]]]] = True
        state.try_set(candidate)


def _decide_in_turn(
    state: _Search,
    whole: np.ndarray,
    undecided: np.ndarray,
    number: int,
    least: np.ndarray,
    stay: np.ndarray,
    send: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Branch on one undecided device after the other, and cut what cannot be better.

    Args:
        state: what is known.
        whole: who sends in all of these decisions ``[K]`` bool.
        undecided: devices to branch on ``[n]``.
        number: how many of them send.
        least: dual values of all these decisions ``[J]`` [J].
        stay: what is added where a device stays ``[n, J]`` [J].
        send: what is added where it sends ``[n, J]`` [J].

    Returns:
        Bounds, ascending ``[M]`` [J], and who of the undecided sends ``[M, n]`` bool.
    """
    p, least_times = state.p, least_time(state.p)
    before = _dominance(p, undecided)
    used = np.full(1, least_times[whole].sum())
    share = p.edge_share if p.edge_share is not None else np.zeros(len(least_times))
    cycles = np.full(1, share[whole].sum())
    duals, sets = least[None], np.zeros((1, len(undecided)), bool)
    for place, k in enumerate(undecided):
        width = max(LEAST_WIDTH, state.nodes // (len(undecided) - place))
        better, worse = (np.flatnonzero(x[:place]) for x in (before[:, place], before[place]))
        sums = sets[:, :place].sum(axis=1)
        may_send = (sums < number) & sets[:, better].all(axis=1)
        may_send &= used + least_times[k] <= p.slot * (1 + FIT_TOLERANCE)
        may_send &= cycles + share[k] <= 1 + FIT_TOLERANCE
        may_stay = (sums + len(undecided) - place > number) & ~sets[:, worse].any(axis=1)
        rows = np.concatenate([np.flatnonzero(may_stay), np.flatnonzero(may_send)])
        sends = np.arange(len(rows)) >= may_stay.sum()
        duals = duals[rows] + np.where(sends[:, None], send[place], stay[place])
        low = duals.max(axis=1)
        state.nodes -= len(low)
        keep = np.flatnonzero(low < state.cut)
        keep = keep[np.argsort(low[keep], kind="stable")]
        if len(keep) > width:
            state.give_up(low[keep[width]])
            keep = keep[:width]
        rows, duals = rows[keep], duals[keep]
        sets = sets[rows]
        sets[:, place] = sends[keep]
        used = used[rows] + sets[:, place] * least_times[k]
        cycles = cycles[rows] + sets[:, place] * share[k]
    return duals.max(axis=1), sets


def _dominance(p: Uplink, devices: np.ndarray) -> np.ndarray:
    """Tell which device i sends wherever j does: it costs less to send, and more to keep.

    To change places with j then saves energy. Returns ``[n, n]`` bool, [i, j].
    """
    saved = p.local if p.per_task is None else p.local - p.per_task
    added = [x for x in (p.per_time, p.fixed_time, p.edge_share) if x is not None]
    fields = (p.load, p.weight / p.gain, p.min_time, -saved, *added)
    terms = [x[devices] for x in fields]
    lower = np.logical_and.reduce([x[:, None] <= x[None] for x in terms])
    equal = lower & lower.T
    return lower & (~equal | np.triu(np.ones_like(equal), 1))


def allocate_on_host(p: Uplink, chosen: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Allocate a set ``[K]`` bool in float64: cost [J], infinite if it does not fit, p, t."""
    time, power = np.zeros(len(chosen)), np.zeros(len(chosen))
    kept = np.where(chosen, 0.0, p.local).sum()
    sends = chosen & p.usable
    arrays = {n: x for n, x in p._asdict().items() if isinstance(x, np.ndarray)}
    fields: Any = {n: x[sends] for n, x in arrays.items() if x.shape == sends.shape}
    q: Any = p._replace(**fields)
    spare = p.slot - least_time(q).sum()
    beyond = q.edge_share is not None and q.edge_share.sum() > 1 + FIT_TOLERANCE
    if beyond or spare < -FIT_TOLERANCE * p.slot:
        return np.inf, power, time
    if len(q.load):
        high = float(np.max(log_price(q, q.max_efficiency, np)))
        own = p.slot if q.fixed_time is None else np.maximum(p.slot - q.fixed_time, 1e-6 * p.slot)
        low = float(np.max(log_price(q, np.minimum(q.load / own, q.max_efficiency), np)))
        shift = None if q.per_time is None else q.per_time.max()
        for _ in range(HOST_STEPS):  # as in pricing.slot_price
            nats = efficiency_at(q, low, np)
            slow = nats < q.max_efficiency
            used = (q.load / nats)[slow]
            room = max(spare + q.min_time[slow].sum(), 1e-3 * used.sum())
            if not slow.any() or used.sum() <= room:
                break
            slope = used * excess(nats[slow], np) / nats[slow] ** 2
            if shift is not None:
                slope *= (np.exp(low) + shift) / np.exp(own_price(q, low, np)[slow])
            climb = used.sum() * np.log(used.sum() / room) / np.sum(slope)
            low = min(float(moved_price(low, climb, shift, np)), high)
        wanted = np.where(slow, q.load / nats, q.min_time)
        extra = np.sum(wanted - q.min_time)
        longest = 1.0 if shift is not None and low <= FREE else 2.0
        blend = min(max(spare, 0) / extra, longest) if extra > 0 else 0.0
        time[sends] = q.min_time + blend * (wanted - q.min_time)
        nats = np.minimum(q.load / time[sends], q.max_efficiency)
        power[sends] = np.minimum(np.expm1(nats) / q.gain, q.max_power)
    cost = kept + np.sum(p.weight * power * time)
    if p.per_time is not None:
        cost += np.sum(p.per_time * time)
    if p.per_task is not None:
        cost += np.sum(p.per_task[chosen])
    return float(cost), power, time


def solution_on_host(system: System, h: np.ndarray, chosen: np.ndarray) -> Solution:
    """Allocate a fitting set ``[K]`` bool of one channel in float64, in the gains' precision."""
    uplink: Any = host_uplink(system, h)
    cost, power, time = allocate_on_host(uplink, chosen)
    each: Any = device_energy(uplink, chosen, power, time)  # type: ignore[arg-type]
    energy, delay = cost, {}
    if uplink.delays is not None:
        energy = each.sum()
        delay = {"delay_cost": np.sum(sum_terms(uplink.delays, chosen, time))}  # type: ignore[arg-type]
    if uplink.band_power is not None:  # as in allocation.finish
        power = np.minimum(power * time / uplink.slot, uplink.band_power)
    values: dict[str, Any] = delay | {
        "offload": chosen,
        "power": np.maximum(power, np.where(time > 0, LEAST_POWER, 0.0)),
        "time": time,
        "energy": energy,
        "lower_bound": 0.0,
        "energy_per_device": each,
    }
    floats: dict[str, Any] = {name: np.asarray(x, h.dtype) for name, x in values.items()}
    return Solution(**floats, feasible=np.isfinite(energy))  # type: ignore[arg-type]


def _middle_price(p: Uplink, forced: np.ndarray) -> float:
    """Find about where L(mu) is largest: ln mu [ln W].

    The first price, of those where a device turns local or caps, at which the slot suffices, as
    in ``relaxation.relax``.
    """
    turns = np.where(forced, np.inf, switch_price(p, np))
    wanted = p.usable & (turns > -np.inf)
    breaks = np.concatenate([turns[wanted], log_price(p, p.max_efficiency, np)[wanted]])
    breaks = np.sort(breaks[np.isfinite(breaks)])
    if p.per_time is not None:  # the slot may suffice for nothing
        breaks = np.append(FREE, breaks)
    low, high = -1, len(breaks) - 1
    while high - low > 1:
        middle = (low + high) // 2
        nats = efficiency_at(p, breaks[middle], np)
        time = p.load / nats if p.fixed_time is None else p.load / nats + p.fixed_time
        suffices = np.sum(time[wanted & (turns > breaks[middle])]) <= p.slot
        low, high = (low, middle) if suffices else (middle, high)
    return float(breaks[high]) if len(breaks) else 0.0


def host_uplink(system: System, h: np.ndarray) -> Uplink:
    """Compute the uplink in NumPy's float64."""
    fields = {name: np.asarray(x, np.float64) for name, x in sy.leaves(system).items()}
    fields["active"] = np.asarray(system.active)
    exact = System(**fields, access=system.access)
    with np.errstate(invalid="ignore", divide="ignore"):
        return make_uplink(exact, np.asarray(h, np.float64), np)


def least_time(p: Uplink) -> Any:
    """What a device takes at least of the slot if it sends, t_min + d: ``[K]`` [s]."""
    return p.min_time if p.fixed_time is None else p.min_time + p.fixed_time


def host_grid(p: Uplink, log_mu: float, width: float) -> PriceGrid:
    """Price every device in NumPy's float64, counted from who saves at the middle price."""
    with np.errstate(over="ignore", invalid="ignore"):
        return price_grid(p, None, np.float64(log_mu), PRICES, width, np)
