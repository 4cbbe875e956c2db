"""What each device offers at a price of time: everything with e^u, and the rate of a fixed mode.

A device that sends for s times as long as it harvests, at u = ln(1 + rho / s) nats per symbol,
earns w eps s u; at a price nu [bit/s] on time the best u solves u - 1 + e^-u = nu / (w eps), and
the device is worth a v, v = w eps rho e^-u, where a is the harvesting time. Source: THEORY.md,
section 11. All is for one channel, ``[K]``. Where a function takes ``xp``, it is that of JAX or
of NumPy: the float64 search on the host uses the same formulas.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax.exact.derivatives import at_best, with_derivative
from meco_jax.exact.equations import excess
from meco_jax.exact.uplink import efficiency_at as efficiency_of_uplink
from meco_jax.exact.uplink import pairwise_sum
from meco_jax.runtime.describe import short_repr
from meco_jax.wpmec.system import WPMEC

EFFICIENCY_STEPS = 2  # Halley, to the last digits of float32; one more for float64
PRICE_STEPS = 8  # Newton for the price of a set, from the left; 6 reach float64 for K = 200
EXCESS_ERROR = 3e-10  # of the nats per symbol by the series of ``excess``, felt in float64 alone
MOST_NATS = 85.0  # who would send at more is worth nothing, e^-85, which float32 still holds


@short_repr
class Devices(NamedTuple):
    """The devices of one channel in the symbols of THEORY.md, section 11: ``[K]`` each."""

    usable: jax.Array  # bool: real, and heard at all
    local: jax.Array  # L: weighted rate of computing after harvesting all the time [bit/s]
    gain: jax.Array  # rho: signal over noise where sending takes as long as harvesting [-]
    speed: jax.Array  # w eps: weighted rate of one nat per symbol [bit/s]


def make_devices(system: WPMEC, h: Any, xp: ModuleType = jnp) -> Devices:
    """Compute the terms of every device.

    Args:
        system: the physics.
        h: power gains ``[K]`` [-]; any finite value is fine, 0 too.
        xp: jax.numpy, or numpy with all of float64.
    """
    # The root of each factor: squares of small gains underflow float32.
    root = h * xp.sqrt(system.harvest_efficiency * system.power / system.noise_power)
    usable = system.active & (root > 1e-15)
    heard = xp.where(usable, h, 1.0)  # no derivative is infinite under the masks
    harvested = xp.cbrt(system.harvest_efficiency * system.power * heard)
    computed = harvested / (system.cycles_per_bit * xp.cbrt(system.chip))
    nat_rate = system.bandwidth / (system.overhead * xp.log(xp.asarray(2.0, heard.dtype)))
    return Devices(
        usable=usable,
        local=xp.where(usable, system.weight * computed, 0.0),
        gain=xp.where(usable, xp.where(usable, root, 1.0) ** 2, 1.0),
        speed=xp.where(usable, system.weight * nat_rate, 1.0),
    )


@short_repr
class _Sender(NamedTuple):
    """What ``uplink.efficiency_at`` asks of an uplink, ``[K]`` each."""

    log_scale: jax.Array
    max_efficiency: jax.Array
    per_time: None = None


@jax.custom_jvp
def efficiency(price: jax.Array) -> jax.Array:
    """Solve u - 1 + e^-u = y for the best nats per symbol at a price y = nu / (w eps), any shape.

    Its derivative is 1 / (1 - e^-u), by the equation.
    """
    return efficiency_at(price)


@efficiency.defjvp
def _efficiency_rule(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    nats = efficiency(*primals)
    return nats, tangents[0] / -jnp.expm1(-nats)


def efficiency_at(price: Any, xp: ModuleType = jnp) -> Any:
    """Compute ``efficiency`` by Halley's method, y > 0, without its derivatives."""
    root = xp.sqrt(2 * price)
    nats = price - xp.expm1(-(root + price / 3))  # exact in both limits
    for _ in range(EFFICIENCY_STEPS if xp is jnp else EFFICIENCY_STEPS + 1):
        slope = -xp.expm1(-nats)
        newton = (excess(nats, xp) - price) / slope
        nats = nats - newton / (1 - newton * (1 - slope) / (2 * slope))
    return nats


def offers(devices: Devices, nu: Any, xp: ModuleType = jnp) -> tuple[Any, Any, Any]:
    """Compute what sending is worth at prices ``[...]`` [bit/s], per harvesting time.

    Returns:
        The worth v [bit/s], the time s [-] and the nats per symbol u of each device
        ``[..., K]``. Where nothing can be sent v and s are 0.
    """
    missing = nu.ndim + 1 - devices.speed.ndim
    devices = Devices(*(x[(None,) * missing] for x in devices))
    y = nu[..., None] / devices.speed
    return _offers(devices, efficiency(y) if xp is jnp else efficiency_at(y, xp), xp)


def _offers(devices: Any, nats: Any, xp: ModuleType) -> tuple[Any, Any, Any]:
    """Compute ``offers`` from the nats per symbol, of any shape that broadcasts."""
    nats = xp.minimum(nats, MOST_NATS)
    fall = xp.exp(-nats)
    sends = devices.usable & (nats < MOST_NATS)
    time = xp.where(sends, devices.gain * fall / -xp.expm1(-nats), 0.0)
    return xp.where(sends, devices.speed * devices.gain * fall, 0.0), time, nats


def alone_price(devices: Devices, xp: ModuleType = jnp) -> Any:
    """Best rate of each device if it alone sends and nobody computes, ``[K]`` [bit/s].

    It is the price of time as well. Its u solves e^u (u - 1) + 1 = rho, the equation of an uplink
    at a price of 1; at an inexact u the rate is that of an allocation still.
    """
    one = xp.ones_like(devices.gain)
    uplink: Any = _Sender(-xp.log(devices.gain), one * MOST_NATS)
    nats = efficiency_of_uplink(uplink, xp.zeros_like(one), xp)
    time = devices.gain / xp.expm1(nats)
    return xp.where(devices.usable, devices.speed * nats * time / (1 + time), 0.0)


def set_price(devices: Devices, offload: Any, start: Any, steps: int) -> jax.Array:
    """Price of time of a fixed mode: (1 + sum s)^(2/3) A / 3 + V = nu.

    nu - V - A / 3 (1 + sum s)^(2/3) rises and is concave in nu: Newton's method climbs from the
    left of the root, and from the right it lands on the left.

    Args:
        devices: the devices.
        offload: who sends ``[K]`` bool.
        start: any price above 0 ``[]`` [bit/s].
        steps: of Newton's method.

    Returns:
        nu ``[]`` [bit/s], with its derivatives in ``devices``; 0 where nothing is earned.
    """
    held = jax.lax.stop_gradient(devices)
    low = least_price(held, offload)
    start = jnp.maximum(jax.lax.stop_gradient(start), low)

    def step(_: int, nu: jax.Array) -> jax.Array:
        rest, slope = residual(held, offload, nu)
        return jnp.maximum(nu - rest / slope, low)

    nu = jax.lax.fori_loop(0, steps, step, start)
    return _at_root(devices, offload, jnp.where(low > 0, nu, 0.0))


def least_price(devices: Devices, offload: Any, xp: ModuleType = jnp) -> Any:
    """Price that no mode ``[..., K]`` goes below: A / 3, or that of a sender alone ``[...]``."""
    local = xp.sum(xp.where(offload, 0.0, devices.local), axis=-1)
    alone = xp.where(offload, alone_price(devices, xp), 0.0)
    return xp.maximum(local / 3, xp.max(alone, axis=-1))


def residual(devices: Devices, offload: Any, nu: Any, xp: ModuleType = jnp) -> tuple[Any, Any]:
    """What prices ``[...]`` exceed those of modes ``[..., K]`` by, and the slope of it."""
    nu = xp.maximum(nu, xp.finfo(nu.dtype).tiny)
    worth, time, nats = offers(devices, nu, xp)
    fall = time / (devices.speed * xp.expm1(-nats) ** 2)  # -ds / dnu
    worth, time, fall = (xp.sum(xp.where(offload, x, 0.0), axis=-1) for x in (worth, time, fall))
    local = xp.sum(xp.where(offload, 0.0, devices.local), axis=-1)
    scale = local / 3 * xp.cbrt(1 + time) ** 2
    return nu - worth - scale, 1 + time + scale * 2 / 3 * fall / (1 + time)


@jax.custom_jvp
def _at_root(devices: Devices, offload: jax.Array, nu: jax.Array) -> jax.Array:
    """Return a price at which ``residual`` is 0, with its derivatives."""
    del devices, offload
    return nu


@_at_root.defjvp
def _at_root_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    devices, offload, _ = primals
    nu = _at_root(*primals)
    _, moved = jax.jvp(lambda d: residual(d, offload, nu)[0], (devices,), (tangents[0],))
    return nu, -moved / residual(devices, offload, nu)[1]


@short_repr
class Allocated(NamedTuple):
    """The best allocation of a mode."""

    rate: jax.Array  # [] weighted sum rate [bit/s]
    bound: jax.Array  # [] its dual value, which no allocation of the mode exceeds [bit/s]
    harvest: jax.Array  # [] a [-]
    time: jax.Array  # [K] tau [-]
    nu: jax.Array  # [] price of time [bit/s]


def allocate_set(
    devices: Devices, offload: jax.Array, start: jax.Array | float = 0.0, steps: int = PRICE_STEPS
) -> Allocated:
    """Allocate the time of a fixed mode, THEORY.md, section 11.

    Args:
        devices: the devices.
        offload: who sends ``[K]`` bool.
        start: a price near that of the mode, 0 if none is known ``[]`` [bit/s].
        steps: of Newton's method.
    """
    offload = offload & devices.usable
    nu = set_price(devices, offload, start, steps)
    safe = jnp.maximum(nu, jnp.finfo(nu.dtype).tiny)
    _, time, nats = offers(devices, safe)
    time = jnp.where(offload, time, 0.0)
    harvest = 1 / (1 + jnp.sum(time))
    local = jnp.where(offload, 0.0, devices.local)
    earned = jnp.where(offload, devices.speed * time * nats, 0.0)
    value = pairwise_sum(local * jnp.cbrt(harvest) + earned * harvest)
    formula = at_best(_lagrangian, (devices, offload), (safe, harvest))
    rate = with_derivative(value, formula)
    bound = with_derivative(jnp.maximum(value, proven_dual(devices, offload, safe)), formula)
    return Allocated(rate, bound, harvest, harvest * time, safe)


def _lagrangian(
    devices: Devices, offload: jax.Array, nu: jax.Array, harvest: jax.Array
) -> jax.Array:
    """What a mode earns at a price and a harvesting time, time sold at the price: ``[]``."""
    worth = jnp.where(offload, offers(devices, nu)[0], 0.0)
    local = jnp.where(offload, 0.0, devices.local)
    return jnp.sum(local) * jnp.cbrt(harvest) + jnp.sum(worth) * harvest + nu * (1 - harvest)


def best_harvest(local: Any, worth: Any, nu: Any, xp: ModuleType = jnp) -> Any:
    """Cube root y of the a from 0 to 1 that is best for A a^(1/3) + V a + nu (1 - a), any shape.

    Args:
        local: A, the sum of L over who computes [bit/s].
        worth: V, the sum of v over who sends [bit/s].
        nu: price [bit/s].
        xp: jax.numpy, or numpy.
    """
    cost = 3 * (nu - worth)
    inside = cost > local
    return xp.where(
        inside, xp.sqrt(xp.where(inside, local / xp.where(inside, cost, 1.0), 1.0)), 1.0
    )


def dual_value(local: Any, worth: Any, nu: Any, xp: ModuleType = jnp) -> Any:
    """Dual of modes at a price, max over a of A a^(1/3) + V a + nu (1 - a), any shape [bit/s]."""
    y = best_harvest(local, worth, nu, xp)
    a = y * y * y
    return local * y + worth * a + nu * (1 - a)


def inflate(devices: Devices, worth: Any, nats: Any, xp: ModuleType = jnp) -> tuple[Any, Any]:
    """Raise L and v ``[..., K]`` by what rounding may have taken from them: their operations.

    An error d of u costs v the part d; u is as exact as nu / (w eps), in its own size.
    """
    unit = rounding(devices)
    doubt = (16 + 4 * nats) * unit + EXCESS_ERROR
    return devices.local * (1 + 10 * unit), worth * (1 + doubt)


def rounding(devices: Devices) -> float:
    """Largest relative error of one operation."""
    return float(np.finfo(devices.local.dtype).eps) / 2


def summing(devices: Devices) -> float:
    """Largest relative error of pairwise sums over the devices, and of what is made of them."""
    return rounding(devices) * (8 + math.log2(devices.local.shape[-1]))


def proven_dual(devices: Devices, offload: Any, nu: Any) -> jax.Array:
    """Bound the rate of a mode from above by its dual at a price, rounding allowed for: ``[]``."""
    devices, nu = jax.lax.stop_gradient((devices, nu))
    worth, _, nats = offers(devices, nu)
    local, worth = inflate(devices, worth, nats)
    local = pairwise_sum(jnp.where(offload, 0.0, local))
    worth = pairwise_sum(jnp.where(offload, worth, 0.0))
    return dual_value(local, worth, nu) * (1 + summing(devices))
