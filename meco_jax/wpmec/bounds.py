"""Bounds of all modes: intervals of the harvesting time, each at a price of its own.

At a fixed harvesting time a and price nu every device takes the better of L a^(1/3) and a v, so
that sum max(L a^(1/3), a v) + nu (1 - a) bounds all modes with that a. Prices are chosen first;
each gets the interval of a around the one at which it is best. Source: THEORY.md, section 11. All
is for one channel, ``[K]``; ``xp`` is jax.numpy or numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.exact.uplink import pairwise_sum
from meco_jax.runtime.describe import short_repr
from meco_jax.wpmec.devices import (
    Devices,
    alone_price,
    dual_value,
    inflate,
    offers,
    summing,
)

ZOOMS, ZOOM_PRICES = 4, 9  # grids that find the middle price, each within the last's steps
BISECTIONS = 16  # for the harvesting time of a price
RANKED = 16  # devices of which all pairs are compared instead, which is as quick and exact
LEAST_PRICE = 1e-30  # where nobody is heard [bit/s]
LOG_RANGE = 1.2  # half the range of prices, a little more than ln 3: beyond it no good mode is


@short_repr
class Path(NamedTuple):
    """Prices, and the interval of harvesting times that each one bounds, see ``price_path``.

    Over an interval the devices earn at most A a^(1/3) + V a + X t, t from 0 to 1 across it: those
    that compute all through it, or turn within it, A; those that send all through it, V; and X
    what those that turn gain by its end. All terms are high by what rounding can take.
    """

    nu: Any  # [J] prices [bit/s]
    low: Any  # [J] where the intervals begin, the first at 0: cube root of a [-]
    high: Any  # [J] where they end, the last at 1: cube root of a [-]
    local: Any  # [1, K] L [bit/s]
    worth: Any  # [J, K] v [bit/s]
    sends: Any  # [J, K] bool: better off sending all through the interval
    gained: Any  # [J, K] what a device that turns within it gains by its end, else 0 [bit/s]


def middle_price(devices: Devices, xp: ModuleType = jnp) -> Any:
    """Find a price near that of the relaxed problem's harvesting time: ``[]`` [bit/s].

    Of the optimum it is known that rate / 3 <= nu <= rate; grids of prices close in on the
    one whose best harvesting time earns most.
    """
    computing, alone = xp.sum(devices.local), alone_price(devices, xp)
    least = xp.maximum(xp.maximum(computing, xp.max(alone)) / 3, LEAST_PRICE)
    width = xp.log(xp.maximum(computing + xp.sum(alone), least) / least) / 2
    steps = xp.linspace(-1, 1, ZOOM_PRICES, dtype=width.dtype)

    def zoom(found: tuple[Any, Any]) -> tuple[Any, Any]:
        log_nu, width = found
        prices = xp.exp(log_nu + width * steps)
        worth, time, _ = offers(devices, prices, xp)
        root = _harvest_root(devices, worth, time, xp)
        best = xp.argmax(_relaxed(devices, worth, prices, root, xp))
        return log_nu + width * steps[best], width * 2 / (ZOOM_PRICES - 1)

    return xp.exp(_repeat(ZOOMS, zoom, (xp.log(least) + width, width), xp)[0])


def price_path(devices: Devices, nu: Any, num: int, xp: ModuleType = jnp) -> Path:
    """Lay ``num`` prices around one, densest there, and the intervals of 0 to 1 that they bound.

    Args:
        devices: the devices.
        nu: the middle price ``[]`` [bit/s].
        num: number of prices, odd.
        xp: jax.numpy, or numpy.
    """
    spread = xp.linspace(-1, 1, num, dtype=devices.local.dtype)
    prices = nu * xp.exp(LOG_RANGE * spread**3)
    worth, time, nats = offers(devices, prices, xp)
    roots = xp.sort(_harvest_root(devices, worth, time, xp))  # they rise but for rounding
    inner = xp.sqrt(roots[1:] * roots[:-1])
    ends = xp.zeros_like(inner[:1]), xp.ones_like(inner[:1])
    low, high = xp.concatenate([ends[0], inner]), xp.concatenate([inner, ends[1]])
    local, worth = inflate(devices, worth, nats, xp)
    local = local[None]
    sends = (_gain(local, worth, low) >= 0) & (low > 0)[:, None]
    gained = xp.where(sends, 0.0, xp.maximum(_gain(local, worth, high), 0.0))
    return Path(prices, low, high, local, worth, sends, gained)


def side_bounds(devices: Devices, path: Path, xp: ModuleType = jnp) -> tuple[Any, Any]:
    """Bound from above all modes in which a device sends, and all in which it computes.

    All others take their better side, so that the larger of the two bounds all modes.

    Returns:
        The bounds if the device sends and if it computes, ``[K]`` each [bit/s].
    """
    local, worth, gained = path_sums(path, xp)
    local, worth, gained = local[:, None], worth[:, None], gained[:, None] - path.gained
    moved = xp.where(path.sends, path.worth, 0.0)
    sent = interval_bound(
        path, local - xp.where(path.sends, 0.0, path.local), worth + path.worth - moved, gained, xp
    )
    kept = interval_bound(
        path, local + xp.where(path.sends, path.local, 0.0), worth - moved, gained, xp
    )
    slack = 1 + summing(devices)
    return xp.max(sent, axis=0) * slack, xp.max(kept, axis=0) * slack


def relaxed_bound(devices: Devices, sent: Any, kept: Any, xp: ModuleType = jnp) -> Any:
    """Bound all modes from above, by ``side_bounds`` of any one device: ``[]`` [bit/s]."""
    return xp.where(xp.any(devices.usable), xp.max(xp.maximum(sent, kept)), 0.0)


def path_sums(path: Path, xp: ModuleType = jnp) -> tuple[Any, Any, Any]:
    """Sums A, V and X of all devices over each interval, ``[J]`` each [bit/s]."""
    terms = (
        xp.where(path.sends, 0.0, path.local),
        xp.where(path.sends, path.worth, 0.0),
        path.gained,
    )
    total = pairwise_sum(xp.stack(terms).transpose(2, 0, 1), xp)
    return total[0], total[1], total[2]


def interval_bound(path: Path, local: Any, worth: Any, gained: Any, xp: ModuleType = jnp) -> Any:
    """Maximise A a^(1/3) + V a + X t + nu (1 - a) over each interval, ``[J, ...]`` [bit/s].

    Concave in a. Rounding is not allowed for; all terms are positive.

    Args:
        path: prices and intervals.
        local: A ``[J, ...]`` [bit/s].
        worth: V ``[J, ...]`` [bit/s].
        gained: X ``[J, ...]`` [bit/s].
        xp: jax.numpy, or numpy.
    """
    nu, low, high = (_column(x, local) for x in (path.nu, path.low, path.high))
    begin, end = low**3, high**3
    length = xp.maximum(end - begin, xp.finfo(nu.dtype).tiny)
    local, gained = xp.maximum(local, 0.0), xp.maximum(gained, 0.0)
    cost = 3 * (nu - worth - gained / length)
    inside = cost * high**2 > local
    y = xp.sqrt(xp.where(inside, local / xp.where(inside, cost, 1.0), 1.0))
    y = xp.where(inside, xp.clip(y, low, high), high)
    a = y**3
    part = xp.clip((a - begin) / length, 0.0, 1.0)
    return local * y + worth * a + gained * part + nu * (1 - a)


def set_bounds(nu: Any, local: Any, worth: Any, xp: ModuleType = jnp) -> tuple[Any, Any]:
    """Bound modes from above by the least of their duals at J prices.

    Args:
        nu: prices ``[J]`` [bit/s].
        local: A of each mode ``[P]`` [bit/s].
        worth: V of each mode at each price ``[P, J]`` [bit/s].
        xp: jax.numpy, or numpy.

    Returns:
        Bounds ``[P]`` [bit/s], and the places of their prices ``[P]``.
    """
    duals = dual_value(local[:, None], worth, nu[None], xp)
    return xp.min(duals, axis=1), xp.argmin(duals, axis=1)


def _column(x: Any, like: Any) -> Any:
    return x.reshape(x.shape + (1,) * (like.ndim - 1))


def _gain(local: Any, worth: Any, root: Any) -> Any:
    """What sending earns more than computing at times a = root^3: ``[J, K]`` [bit/s]."""
    return worth * root[:, None] ** 3 - local * root[:, None]


def _relaxed(devices: Devices, worth: Any, nu: Any, root: Any, xp: ModuleType) -> Any:
    """What all modes together earn at most at prices and harvesting times: ``[J]`` [bit/s]."""
    a = root**3
    each = xp.maximum(devices.local[None] * root[:, None], worth * a[:, None])
    return xp.sum(each, axis=1) + nu * (1 - a)


def _harvest_root(devices: Devices, worth: Any, time: Any, xp: ModuleType) -> Any:
    """Harvesting times at which prices are best: cube roots of a, ``[J]`` [-].

    The devices that send at a take sum s times a, which with a fills the frame. A device sends
    from the a on at which a^(2/3) is L / v: the sum rises in steps with a, and 1 / a - 1 falls.
    """
    turn = xp.where(worth > 0, devices.local[None] / xp.where(worth > 0, worth, 1.0), xp.inf)
    if xp is jnp and worth.shape[1] <= RANKED:
        # Where the devices up to one send, and no more than just that one turns.
        no_later = turn[:, None, :] <= turn[:, :, None]
        sent = xp.sum(xp.where(no_later, time[:, None, :], 0.0), axis=2)
        filled = xp.minimum(1 / xp.maximum(turn, 1e-30), xp.cbrt(1 + sent) ** 2)
        return 1 / xp.sqrt(xp.maximum(xp.max(filled, axis=1), 1.0))

    def halve(ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = (low + high) / 2
        sent = xp.sum(xp.where(turn < xp.exp(2 * middle)[:, None], time, 0.0), axis=1)
        less = xp.log1p(sent) < -3 * middle  # the frame is not full
        return xp.where(less, middle, low), xp.where(less, high, middle)

    low = -xp.log1p(xp.sum(time, axis=1)) / 3  # all send
    return xp.exp(_repeat(BISECTIONS, halve, (low, xp.zeros_like(low)), xp)[1])


def _repeat(number: int, step: Callable[[Any], Any], state: Any, xp: ModuleType) -> Any:
    """Apply a step some times, in a loop that compiles once."""
    if xp is jnp:
        return jax.lax.fori_loop(0, number, lambda _, x: step(x), state)
    for _ in range(number):
        state = step(state)
    return state
