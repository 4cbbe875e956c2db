"""Seeded draws: the paper's Table 1, channels, devices in a cell, and random systems.

A seed, or a key, means the same numbers, to float32's rounding, in every precision and with every
generator of JAX. THEORY.md, section 2, has the channels' distribution.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax.propagation import complex_normal, disc_distance, exponential, rician_amplitude
from meco_jax.runtime.checks import as_floats, integer, is_traced, one_number, real, refuse, require
from meco_jax.runtime.settings import as_key, moves_data
from meco_jax.system import SYSTEM_RANGES, ArrayLike, System, check_system, check_type

LOG_BASES = (2.0, math.e, 10.0)
PLACE = 2**31 - 1  # number of the draw of a device's place: far from those of its antennas


@moves_data
def table1(num_devices: int = 14, slot: float = 0.5, seed: int | jax.Array = 0) -> System:
    """Draw the paper's Table 1: B 100-300 KB, C 200-400, f 1-2 GHz, uniform.

    Device i's task depends on (seed, i) only, so fewer devices are a prefix of more: the same
    float32 numbers in every precision and with every generator of JAX.

    Args:
        num_devices: K, at least 1.
        slot: T [s], positive.
        seed: seed of the task data, or a PRNG key; may be traced.

    Returns:
        A ``System`` with ``[K]`` task data and Table 1's scalars.

    Raises:
        ValueError: if ``num_devices`` < 1, ``slot`` is not positive, or ``seed`` is neither.
    """
    num_devices = integer("num_devices", num_devices, low=1)
    require("slot", slot, *SYSTEM_RANGES["slot"])
    keys = _device_keys(as_key("seed", seed), num_devices)
    low = jnp.array([100 * 8000.0, 200.0, 1e9], jnp.float32)
    high = jnp.array([300 * 8000.0, 400.0, 2e9], jnp.float32)
    draw = jax.vmap(lambda key: jax.random.uniform(key, (3,), jnp.float32, low, high), out_axes=1)
    bits, cycles, hz = draw(keys).astype(jnp.result_type(float))
    return System(
        task_bits=bits,
        cycles_per_bit=cycles,
        cpu_hz=hz,
        weight=jnp.ones(num_devices),
        active=jnp.ones(num_devices, bool),
        slot=slot,
    )


@moves_data
def sample_channels(
    key: jax.Array | int,
    system: System,
    num: int,
    antennas: int = 1,
    rice_factor: ArrayLike = 0.0,
) -> jax.Array:
    """Draw amplitude gains of Rayleigh or Rician fading, combined over antennas.

    With M antennas at the station and maximum-ratio combining (Brennan, Proc. IRE 47(6), 1959)
    h is the norm of the channel vector, h^2 = ``mean_gain`` sum_m |c_0 + c_1 u_m|^2, u_m complex
    normal of unit power, c_0^2 = kappa / (kappa + 1), c_1^2 = 1 / (kappa + 1). So E[h^2] is M
    times ``mean_gain``. At kappa 0, Rayleigh fading, h^2 / ``mean_gain`` is Gamma(M).

    Device i's column depends on (key, i) only, so padding devices changes no other gain, and
    another antenna adds to those before it. All comes from uniform draws, float32 in every
    precision: the same numbers, to rounding, on every JAX version and with every generator.

    Args:
        key: PRNG key, consumed, or a seed.
        system: gives K and ``mean_gain``, per antenna, one number or ``[K]`` [-].
        num: number of channels.
        antennas: M, at least 1.
        rice_factor: kappa, power of the fixed path over the scattered ones, one number or ``[K]``
            [-]; may be traced.

    Returns:
        Gains ``[num, K]`` [-].

    Raises:
        ValueError: if ``key`` is neither, ``num`` or ``rice_factor`` is negative, ``antennas`` is
            less than 1, or ``mean_gain`` is not positive.
    """
    num, antennas = integer("num", num, low=0), integer("antennas", antennas, low=1)
    number = check_type(system).num_devices
    mean_gain = _per_device("system.mean_gain", system.mean_gain, number)
    if not mean_gain.shape:
        require("system.mean_gain", mean_gain, *SYSTEM_RANGES["mean_gain"])
    elif not is_traced(mean_gain, system.active):  # padding may hold anything
        judged = np.where(system.active, mean_gain, 1.0)
        require("system.mean_gain", judged, *SYSTEM_RANGES["mean_gain"])
    rice = _per_device("rice_factor", rice_factor, number)
    require("rice_factor", rice, 0.0, included=True)
    rayleigh = not is_traced(rice) and not np.any(rice)  # then no phases are drawn
    keys = _device_keys(as_key("key", key), number)
    kappa = None if rayleigh else jnp.broadcast_to(as_floats(rice), (number,))
    draw = jax.vmap(lambda k, kappa: _combined(k, kappa, num, antennas), out_axes=1)
    power_gain = draw(keys, kappa) * as_floats(mean_gain).reshape(1, -1)
    heard = power_gain > 0  # the root of 0 has no derivative
    return jnp.where(heard, jnp.sqrt(jnp.where(heard, power_gain, 1.0)), 0.0)


@moves_data
def drop_devices(
    key: jax.Array | int,
    num_devices: int,
    radius: ArrayLike,
    inner: ArrayLike = 0.0,
) -> jax.Array:
    """Drop devices uniformly over a round cell: their distances from the station.

    P(d <= x) = (x^2 - r^2) / (R^2 - r^2). Device i's place depends on (key, i) only, and is not
    bound up with its channel where ``sample_channels`` takes the same seed.

    Args:
        key: PRNG key, consumed, or a seed.
        num_devices: K, at least 1.
        radius: R of the cell [m].
        inner: r, within which there are none, below R [m].

    Returns:
        Distances ``[K]`` above r, up to R, for ``path_gain`` [m].

    Raises:
        ValueError: if ``key`` is neither, ``num_devices`` < 1, or a radius is out of range.
    """
    num_devices = integer("num_devices", num_devices, low=1)
    outer, hole = one_number("radius", radius), one_number("inner", inner)
    require("radius", outer, 0.0, included=False)
    require("inner", hole, 0.0, included=True)
    if not is_traced(outer, hole) and hole >= outer:
        raise refuse("inner", f"below radius, {outer}", hole.item())
    keys = _device_keys(as_key("key", key), num_devices)
    draw = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, PLACE), (), jnp.float32))
    uniform = 1 - draw(keys)  # above 0: at distance 0 there is no path loss
    return disc_distance(uniform.astype(jnp.result_type(float)), as_floats(outer), as_floats(hole))


@moves_data
def scale_frequency(system: System) -> System:
    """Let each CPU run as slowly as the slot allows, f = min(f, C B / T).

    The energy of a task that stays falls with f^2, and no other term has f. Devices that must
    send (C B / f > T) keep their f. C B / T is rounded up by four digits of the last place, so
    that no device is late.

    Args:
        system: the physics, ``cpu_hz`` the highest frequency; fields may have batch axes and be
            traced.

    Returns:
        The system with ``cpu_hz`` of the shape that all its fields ask for, ``[..., K]``.

    Raises:
        ValueError: if ``system`` is none, or a field is out of range.
    """
    system = check_system(system)
    slot = jnp.asarray(system.slot)
    slot = slot[..., None] if slot.ndim else slot
    leaves = (system.cycles_per_bit, system.task_bits, system.cpu_hz, slot)
    cycles, bits, hz, slot = jnp.broadcast_arrays(*leaves)
    slowest = cycles * bits / slot * (1 + 4 * jnp.finfo(hz.dtype).eps)
    return system.replace(cpu_hz=jnp.minimum(hz, slowest))


@moves_data
def sample_systems(key: jax.Array | int, num: int, num_devices: int) -> tuple[System, jax.Array]:
    """Draw systems and one channel of each: up to ``num_devices`` devices, the rest padding.

    One half has the tasks, weights and gains of Table 1. In the other half tasks, CPUs and
    weights go beyond it, mean gains span four decades, those of the devices of a system up to
    two more, and the bandwidth grows with K. T is 0.2-2 s, the base of the logarithm 2, e or 10.

    Args:
        key: PRNG key, consumed.
        num: number of systems N.
        num_devices: largest K.

    Returns:
        Systems with ``[N, K]`` and ``[N]`` fields, and amplitude gains ``[N, K]`` [-].

    Raises:
        ValueError: if ``key`` is neither.
    """
    keys = iter(jax.random.split(as_key("key", key), 16))
    each, device = (num, 1), (num, num_devices)

    def uniform(shape: tuple[int, int], low: float = 0.0, high: float = 1.0) -> jax.Array:
        return jax.random.uniform(next(keys), shape, jnp.float32, low, high)

    def spread(low: float, high: float, shape: tuple[int, int] = device) -> jax.Array:
        return jnp.exp(uniform(shape, math.log(low), math.log(high)))  # log-uniform

    tables = jax.vmap(lambda seed: table1(num_devices, seed=seed))(
        jax.random.randint(next(keys), (num,), 0, 2**31 - 1, jnp.int32)
    )
    known = uniform(each) < 0.5
    number = jnp.ceil(num_devices * uniform(each, 1e-3))
    width = spread(1.0, 10.0, each)  # of the gains in a system
    path = spread(1e-8, 1e-4, each) * width ** (2 * uniform(device) - 1)
    mean_gain = jnp.where(known, 1e-6, path)
    power_gain = exponential(uniform(device)) * mean_gain
    bandwidth = 1e7 * spread(0.3, 3.0, each) * jnp.maximum(number / 20, 1.0)
    plain = known & (uniform(each) < jnp.float32(0.7))

    def wild(name: str, low: float, high: float) -> jax.Array:
        table = getattr(tables, name).astype(jnp.float32)
        return jnp.where(known, table, spread(low, high))

    systems = tables.replace(
        task_bits=wild("task_bits", 2e5, 1e7),
        cycles_per_bit=wild("cycles_per_bit", 50.0, 1000.0),
        cpu_hz=wild("cpu_hz", 5e8, 4e9),
        weight=jnp.where(plain, 1.0, spread(0.2, 5.0)),
        active=jnp.arange(num_devices, dtype=number.dtype)[None] < number,
        slot=spread(0.2, 2.0, each)[:, 0],
        bandwidth=jnp.where(known, 1e7, bandwidth)[:, 0],
        log_base=_choice(next(keys), LOG_BASES, num),
    )
    return check_system(systems), jnp.sqrt(power_gain).astype(jnp.result_type(float))


@moves_data
def sample_mixtures(
    key: jax.Array | int, num: int, num_devices: int, access: str = "tdma"
) -> tuple[System, jax.Array]:
    """Draw systems of the whole family of THEORY.md, section 10, as ``sample_systems`` does.

    Each field beyond plain P1 counts in half of the systems, and is neutral in the others: power
    limits of 0.01-1 W and noises over two decades, chips, circuit power, fixed times and energies,
    weights of delay, each device's own, and an edge with 30-100 % of the cycles of all tasks.

    Args:
        key: PRNG key, consumed.
        num: number of systems N.
        num_devices: largest K.
        access: "tdma" or "fdma".

    Returns:
        Systems with ``[N, K]`` and ``[N]`` fields, and amplitude gains ``[N, K]`` [-].

    Raises:
        ValueError: if ``key`` is neither, or there is no such ``access``.
    """
    plain_key, own_key = jax.random.split(as_key("key", key))
    plain, h = sample_systems(plain_key, num, num_devices)
    keys = iter(jax.random.split(own_key, 20))
    each, device = (num, 1), (num, num_devices)

    def spread(low: float, high: float, shape: tuple[int, int] = device) -> jax.Array:
        ends = math.log(low), math.log(high)
        return jnp.exp(jax.random.uniform(next(keys), shape, jnp.float32, *ends))

    def maybe(value: jax.Array, neutral: Any = 0.0) -> jax.Array:
        there = jax.random.uniform(next(keys), each, jnp.float32) < jnp.float32(0.5)
        return jnp.where(there, value, neutral)

    tasks = jnp.where(plain.active, plain.task_bits * plain.cycles_per_bit, 0.0)
    cycles = jnp.sum(tasks, axis=1, keepdims=True)
    number = jnp.sum(plain.active, axis=1, keepdims=True, dtype=jnp.float32)
    slots = plain.slot[:, None] / jnp.maximum(number / 20, 1.0)
    limit = float(System.max_power)
    systems = plain.replace(
        max_power=maybe(spread(0.01, 1.0), limit),
        noise_power=maybe(spread(1e-10, 1e-8), 1e-9),
        chip=maybe(spread(3e-29, 3e-28), 1e-28),
        circuit_power=maybe(spread(1e-3, 1.0)),
        fixed_time=maybe(slots * spread(1e-4, 0.15)),
        fixed_energy=maybe(spread(1e-4, 0.1)),
        delay_weight=maybe(spread(1e-3, 3.0)),
        edge_cycles=maybe(cycles * spread(0.3, 1.0, each), 100 * cycles)[:, 0],
        access=access,
    )
    return check_system(systems), h


def _device_keys(key: jax.Array, num_devices: int) -> jax.Array:
    """One key per device that depends on (key, i) only: ``[K]`` keys."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_devices))


def _per_device(name: str, value: ArrayLike, num_devices: int) -> jax.Array | np.ndarray:
    """Return real numbers, one or ``[K]``."""
    numbers = real(name, value)
    if numbers.shape not in ((), (num_devices,)):
        rule = f"one number or {num_devices}, one per device; map over systems by jax.vmap"
        raise ValueError(f"{name} must be {rule}; got shape {numbers.shape}")
    return numbers


def _combined(key: jax.Array, kappa: jax.Array | None, num: int, antennas: int) -> jax.Array:
    """Draw power gains of a device, the sum over its antennas, each of mean 1: ``[num]`` [-].

    Args:
        key: of the device.
        kappa: Rice's factor, None for Rayleigh fading.
        num: number of channels.
        antennas: M.
    """
    total = _antenna(key, kappa, 0, num)
    if antennas > 1:  # one body for all calls: it is compiled once
        _, _, total = jax.lax.fori_loop(1, antennas, _add_antenna, (key, kappa, total))
    return total


def _add_antenna(m: Any, state: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
    key, kappa, total = state
    return key, kappa, total + _antenna(key, kappa, m, len(total))


def _antenna(key: jax.Array, kappa: jax.Array | None, m: Any, num: int) -> jax.Array:
    """Draw power gains of antenna m of a device, of mean 1: ``[num]`` [-].

    The scattered power is number 2 m of the device's draws, the phase number 2 m + 1; number 0
    is of the device's own key, as it was before there were others.
    """

    def uniform(number: Any) -> jax.Array:
        own = key if isinstance(number, int) and number == 0 else jax.random.fold_in(key, number)
        return jax.random.uniform(own, (num,), jnp.float32).astype(jnp.result_type(float))

    u = uniform(2 * m)
    power = exponential(u)
    if kappa is None:
        return power
    fixed = kappa > 0  # without a fixed path these are the bits of Rayleigh fading
    amplitude = rician_amplitude(
        jnp.where(fixed, kappa, 1.0), complex_normal(u, uniform(2 * m + 1))
    )
    return jnp.where(fixed, jnp.square(amplitude), power)


def _choice(key: jax.Array, values: tuple[float, ...], num: int) -> jax.Array:
    """Draw from a few values: ``jax.random.choice`` counts in int64 where that is on."""
    number = jax.random.randint(key, (num,), 0, len(values), jnp.int32)
    return jnp.asarray(values, jnp.float32)[number]
