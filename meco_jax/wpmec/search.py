"""The exact search of one channel on the host, in float64, for what enumeration leaves open.

Branch and bound: a node fixes the sides of some devices and has prices of its own; it branches
on the most critical device until few are undecided, and enumerates those. Source: THEORY.md,
section 11.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from meco_jax.engine import BestFirst, rounded
from meco_jax.exact.sets import subsets
from meco_jax.wpmec.bounds import Path, middle_price, price_path, set_bounds, side_bounds
from meco_jax.wpmec.devices import (
    PRICE_STEPS,
    Devices,
    dual_value,
    inflate,
    least_price,
    make_devices,
    offers,
    residual,
    summing,
)
from meco_jax.wpmec.enumeration import criticality
from meco_jax.wpmec.system import RANGES, WPMEC, Solution

MAX_NODES = 2000  # of the search: a few seconds a channel
NUM_PRICES = 65  # of a node's intervals
MOST_ENUMERATED = 8  # undecided devices of a node that is not branched


def search(
    devices: Devices, rate: float, tolerance: float, max_nodes: int = MAX_NODES
) -> tuple[np.ndarray | None, float]:
    """Search all modes of one channel on the host.

    Args:
        devices: of ``host_devices``.
        rate: of the best mode known [bit/s].
        tolerance: nodes that cannot gain this part of the rate are cut [-].
        max_nodes: nodes that are bounded; the same number gives the same answer.

    Returns:
        A better mode ``[K]`` bool, or None if there is none within the tolerance, and an upper
        bound on the optimum [bit/s].
    """
    state = BestFirst(-rate, tolerance, max_nodes)
    # Who must send has no local rate, who must not is not usable.
    queue: list[tuple[float, int, Devices]] = [(-np.inf, 0, devices)]
    for node in state.take(queue):
        state.nodes -= 1
        path = price_path(node, middle_price(node, np), NUM_PRICES, np)
        sent, kept = side_bounds(node, path, np)
        sent = np.where(node.usable, sent, -np.inf)
        must = node.usable & (node.local <= 0)
        base = must | (sent > kept)
        low = np.where(must, -np.inf, np.minimum(sent, kept))
        undecided = np.flatnonzero(low > -state.cut)
        if len(undecided) <= MOST_ENUMERATED:
            _enumerate(state, devices, node, path, base, undecided)
            continue
        _try_mode(state, devices, base)  # a good answer first
        critical = np.maximum(criticality(path, sent, kept, np), -np.finfo(float).max)
        critical = np.where(low > -state.cut, critical, -np.inf)
        here = np.arange(len(base)) == np.argmax(critical)
        for limit, child in (
            (sent, node._replace(local=node.local * ~here)),
            (kept, node._replace(usable=node.usable & ~here)),
        ):
            state.push(queue, -float(limit[here][0]), child)
    return state.better, -state.bound


def _enumerate(
    state: BestFirst,
    devices: Devices,
    node: Devices,
    path: Path,
    base: np.ndarray,
    undecided: np.ndarray,
) -> None:
    """Try all modes of a node's undecided devices that may be better, the likeliest first."""
    flips = subsets(len(undecided))
    sets = np.repeat(base[None], len(flips), axis=0)
    sets[:, undecided] = flips
    worth = inflate(node, path.worth, 0.0, np)[1]
    local = np.where(sets, 0.0, path.local).sum(axis=1)
    bounds = set_bounds(path.nu, local, sets @ worth.T, np)[0] * (1 + summing(node))
    for place in np.argsort(-bounds, kind="stable"):
        if -bounds[place] >= state.cut:
            break
        state.give_up(-_try_mode(state, devices, sets[place]))


def _try_mode(state: BestFirst, devices: Devices, offload: np.ndarray) -> float:
    """Allocate a mode ``[K]`` bool, keep it if it is better, and return its bound [bit/s]."""
    rate, proven = allocate_on_host(devices, offload)[:2]
    if -rate < state.cost:
        state.better, state.cost = offload, -rate
    return proven


def allocate_on_host(
    devices: Devices, offload: np.ndarray
) -> tuple[float, float, float, np.ndarray]:
    """Allocate a mode ``[K]`` bool in float64.

    Returns:
        Rate and its dual's bound [bit/s], the harvesting time and the sending times ``[K]``.
    """
    offload = offload & devices.usable
    nu = low = np.maximum(least_price(devices, offload, np), np.finfo(float).tiny)
    for _ in range(PRICE_STEPS):
        rest, slope = residual(devices, offload, nu, np)
        nu = np.maximum(nu - rest / slope, low)
    _, time, nats = offers(devices, nu, np)
    time = np.where(offload, time, 0.0)
    harvest = 1 / (1 + np.sum(time))
    local = np.where(offload, 0.0, devices.local)
    rate = np.sum(local) * np.cbrt(harvest) + np.sum(devices.speed * nats * time) * harvest
    return float(rate), proven_on_host(devices, offload, nu), float(harvest), harvest * time


def proven_on_host(devices: Devices, offload: Any, nu: Any) -> Any:
    """Bound the rates of modes ``[..., K]`` by their duals at prices ``[...]`` [bit/s]."""
    worth, _, nats = offers(devices, nu, np)
    local, worth = inflate(devices, worth, nats, np)
    local = np.where(offload, 0.0, local).sum(axis=-1)
    worth = np.where(offload, worth, 0.0).sum(axis=-1)
    return dual_value(local, worth, nu, np) * (1 + summing(devices))


def host_devices(system: WPMEC, h: np.ndarray) -> Devices:
    """Compute the devices' terms in NumPy's float64."""
    fields = {name: np.asarray(getattr(system, name), np.float64) for name in RANGES}
    exact = WPMEC(**fields, active=np.asarray(system.active))
    with np.errstate(invalid="ignore", divide="ignore"):
        return make_devices(exact, np.asarray(h, np.float64), np)


def solution_on_host(
    devices: Devices, offload: np.ndarray, bound: float, kind: type[np.floating]
) -> Solution:
    """Allocate a mode ``[K]`` bool in float64: a ``Solution`` in the gains' precision."""
    rate, _, harvest, time = allocate_on_host(devices, offload)
    values: dict[str, Any] = {"offload": offload, "harvest": harvest, "time": time, "rate": rate}
    floats: dict[str, Any] = {name: np.asarray(x, kind) for name, x in values.items()}
    return Solution(**floats, upper_bound=rounded(bound, kind, up=True), feasible=np.asarray(True))  # type: ignore[arg-type]
