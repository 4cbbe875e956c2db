"""The exact search of one channel on the host, in float64, for what enumeration leaves open.

Branch and bound: a node fixes the sides of some devices and has prices of its own; it branches
on the most critical device until few are undecided, and enumerates those. Source: THEORY.md,
section 11.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import numpy as np

from meco_jax.runtime.describe import short_repr
from meco_jax.wpmec.bounds import (
    middle_price,
    price_path,
    set_bounds,
    side_bounds,
)
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
from meco_jax.wpmec.enumeration import criticality, patterns
from meco_jax.wpmec.system import RANGES, WPMEC, Solution

MAX_NODES = 2000  # of the search: a few seconds a channel
NUM_PRICES = 65  # of a node's intervals
MOST_ENUMERATED = 8  # undecided devices of a node that is not branched


@short_repr
class _Node(NamedTuple):
    """Modes that agree on the sides of some devices: what is left to decide."""

    bound: float  # no mode below has a higher rate [bit/s]
    devices: Devices  # who must send has no local rate, who must not is not usable


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
    better, cut = None, rate * (1 + tolerance)
    bound = rate  # of what is settled
    queue: list[tuple[float, int, _Node]] = [(-np.inf, 0, _Node(np.inf, devices))]
    for number in range(1, max_nodes + 1):
        if not queue or -queue[0][0] <= cut:
            break
        node = heapq.heappop(queue)[2].devices
        path = price_path(node, middle_price(node, np), NUM_PRICES, np)
        sent, kept = side_bounds(node, path, np)
        sent = np.where(node.usable, sent, -np.inf)
        must = node.usable & (node.local <= 0)
        base = must | (sent > kept)
        low = np.where(must, -np.inf, np.minimum(sent, kept))
        sets = base[None]
        undecided = np.flatnonzero(low > cut)
        bounds = np.array([np.inf])
        if len(undecided) <= MOST_ENUMERATED:
            flips = patterns(len(undecided))
            sets = np.repeat(sets, len(flips), axis=0)
            sets[:, undecided] = flips
            worth = inflate(node, path.worth, 0.0, np)[1]
            local = np.where(sets, 0.0, path.local).sum(axis=1)
            bounds = set_bounds(path.nu, local, sets @ worth.T, np)[0] * (1 + summing(node))
        order = np.argsort(-bounds, kind="stable")
        for place in order:
            if bounds[place] <= cut:
                break
            found, proven = allocate_on_host(devices, sets[place])[:2]
            if found > rate:
                better, rate, cut = sets[place], found, found * (1 + tolerance)
            bound = max(bound, proven) if len(undecided) <= MOST_ENUMERATED else bound
        if len(undecided) > MOST_ENUMERATED:
            critical = np.maximum(criticality(path, sent, kept, np), -np.finfo(float).max)
            critical = np.where(low > cut, critical, -np.inf)
            here = np.arange(len(base)) == np.argmax(critical)
            for limit, child in (
                (sent, node._replace(local=node.local * ~here)),
                (kept, node._replace(usable=node.usable & ~here)),
            ):
                if limit[here][0] > cut:
                    item = _Node(float(limit[here][0]), child)
                    heapq.heappush(queue, (-item.bound, number * 2 + len(queue), item))
    return better, max(bound, cut, -queue[0][0] if queue else 0.0)


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
    return Solution(**floats, upper_bound=rounded_up(bound, kind), feasible=np.asarray(True))  # type: ignore[arg-type]


def rounded_up(bound: Any, kind: type[np.floating]) -> Any:
    """Round bounds to a precision, upwards."""
    rounded = np.asarray(bound, kind)
    return np.where(rounded < bound, np.nextafter(rounded, kind(np.inf)), rounded)
