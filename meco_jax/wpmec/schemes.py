"""Modes by rule, each allocated exactly: nobody sends, all do, or those of largest gain.

All is for one channel, ``[K]``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from meco_jax.wpmec.bounds import middle_price, price_path, relaxed_bound, side_bounds
from meco_jax.wpmec.devices import Devices, allocate_set, make_devices
from meco_jax.wpmec.system import WPMEC, Solution

PRICES = 17  # of the bound of all modes


def allocate(system: WPMEC, h: jax.Array, offload: jax.Array) -> Solution:
    """Allocate the time of a mode.

    Args:
        system: the physics.
        h: power gains ``[K]`` [-].
        offload: who sends ``[K]`` bool.
    """
    return _answer(make_devices(system, h), offload)


def local(system: WPMEC, h: jax.Array) -> Solution:
    """All compute what they harvest all the time."""
    return allocate(system, h, jnp.zeros(h.shape, bool))


def offload(system: WPMEC, h: jax.Array) -> Solution:
    """All send."""
    return allocate(system, h, jnp.broadcast_to(system.active, h.shape))


def prefix(system: WPMEC, h: jax.Array) -> Solution:
    """The devices of largest gain send, the best number of them, each number allocated exactly."""
    devices = make_devices(system, h)
    ranks = jnp.argsort(jnp.argsort(-jnp.where(devices.usable, h, -1.0)))
    sets = ranks[None] < jnp.arange(len(h) + 1)[:, None]
    sets &= devices.usable[None]
    rates = jax.lax.map(lambda s: allocate_set(devices, s).rate, sets)
    return _answer(devices, sets[jnp.argmax(rates)])


def _answer(devices: Devices, offload: jax.Array) -> Solution:
    """Allocate a mode ``[K]`` bool, and bound all modes from above."""
    found = allocate_set(devices, offload)
    held = jax.lax.stop_gradient(devices)
    path = price_path(held, middle_price(held), PRICES)
    relaxed = relaxed_bound(held, *side_bounds(held, path))
    return Solution(
        offload=offload.astype(found.time.dtype),
        harvest=found.harvest,
        time=found.time,
        rate=found.rate,
        upper_bound=jnp.maximum(relaxed, found.rate),
        feasible=jnp.isfinite(found.rate),
    )
