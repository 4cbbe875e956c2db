"""Seeded draws: the paper's Table 1, its Rayleigh channels, and random systems beyond it.

A seed, or a key, means the same float32 numbers in every precision and with every generator of
JAX. THEORY.md, section 2, has the channels' distribution.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from meco_jax.runtime.checks import as_floats, integer, real, refuse, require
from meco_jax.runtime.settings import as_key, moves_data
from meco_jax.system import SYSTEM_RANGES, System, check_system, check_type

LOG_BASES = (2.0, math.e, 10.0)


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
def sample_channels(key: jax.Array | int, system: System, num: int) -> jax.Array:
    """Draw Rayleigh amplitude gains with E[h^2] = ``mean_gain``.

    Device i's column depends on (key, i) only, so padding devices changes no other gain.
    The power gain is -log1p(-u) of uniform draws, float32 in every precision: the same numbers
    on every JAX version and with every generator.

    Args:
        key: PRNG key, consumed, or a seed.
        system: gives K and ``mean_gain`` [-].
        num: number of channels.

    Returns:
        Gains ``[num, K]`` [-].

    Raises:
        ValueError: if ``key`` is neither, ``num`` is negative, or ``mean_gain`` is not one
            positive number.
    """
    num = integer("num", num, low=0)
    mean_gain = real("system.mean_gain", check_type(system).mean_gain)
    if mean_gain.shape:
        raise refuse("system.mean_gain", "one number; map over systems by jax.vmap", mean_gain)
    require("system.mean_gain", mean_gain, *SYSTEM_RANGES["mean_gain"])
    keys = _device_keys(as_key("key", key), system.num_devices)
    draw = jax.vmap(lambda k: jax.random.uniform(k, (num,), jnp.float32), out_axes=1)
    uniform = draw(keys).astype(jnp.result_type(float))  # [num, K]
    power_gain = -jnp.log1p(-uniform) * as_floats(mean_gain)
    heard = power_gain > 0  # the root of 0 has no derivative
    return jnp.where(heard, jnp.sqrt(jnp.where(heard, power_gain, 1.0)), 0.0)


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
    power_gain = -jnp.log1p(-uniform(device)) * mean_gain  # as in sample_channels
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


def _device_keys(key: jax.Array, num_devices: int) -> jax.Array:
    """One key per device that depends on (key, i) only: ``[K]`` keys."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_devices))


def _choice(key: jax.Array, values: tuple[float, ...], num: int) -> jax.Array:
    """Draw from a few values: ``jax.random.choice`` counts in int64 where that is on."""
    number = jax.random.randint(key, (num,), 0, len(values), jnp.int32)
    return jnp.asarray(values, jnp.float32)[number]
