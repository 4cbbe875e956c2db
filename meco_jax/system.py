"""The offloading system: its parameters, channel draws and equations (1)-(6).

One symbol table for the whole package; SI units everywhere.

====================  ======================  ==============================================
paper                 field or function       meaning [unit]
====================  ======================  ==============================================
K                     ``num_devices``         number of devices [-]
B_k                   ``task_bits``           task size [bit]; 1 KB = 8000 bit
C_k                   ``cycles_per_bit``      CPU cycles a bit [-]
f_k                   ``cpu_hz``              CPU frequency [Hz]
beta_k                ``weight``              weight in the objective [-]
T                     ``slot``                slot length, also the deadline [s]
W                     ``bandwidth``           bandwidth [Hz]
N0                    ``noise_power``         noise power [W]
p_max                 ``max_power``           transmit power limit [W]
h_k                   ``h``                   amplitude gain [-]; the power gain is h^2
eps                   ``chip``                effective switched capacitance [J s^2]
a_k, p_k, t_k         offload, power, time    decision [-], power [W], slot share [s]
r_k                   ``rate``                uplink rate [bit/s], (3)
t'_k                  ``transmit_time``       realised offloading time [s], (4)
m_k^+                 ``required_ratio``      part of the task the CPU cannot finish in T [-]
====================  ======================  ==============================================

Formulas are written for one channel, ``h: [K]``; batches go through ``jax.vmap``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from meco_jax.derivatives import with_derivative

PER_DEVICE = ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "active")
"""The fields of ``System`` with one entry a device; the others are scalars."""

ArrayLike = Any  # jax.Array, numpy array or Python number


class System(struct.PyTreeNode):
    """Hold the physics of P1, (6): a pytree whose leaves can be traced, swept and batched.

    Any field may carry leading batch axes. All fields after the first three have the
    values of the paper's Table 1.
    """

    task_bits: ArrayLike  # [K] B_k [bit]
    cycles_per_bit: ArrayLike  # [K] C_k [-]
    cpu_hz: ArrayLike  # [K] f_k [Hz]
    weight: ArrayLike = 1.0  # [K] beta_k [-]
    active: ArrayLike = True  # [K] True: a real device, False: padding
    slot: ArrayLike = 0.5  # T [s]
    bandwidth: ArrayLike = 1e7  # W [Hz]
    noise_power: ArrayLike = 1e-9  # N0 [W]
    max_power: ArrayLike = 10 ** (23 / 10 - 3)  # p_max [W]: 23 dBm
    mean_gain: ArrayLike = 1e-6  # E[h^2] [-]
    chip: ArrayLike = 1e-28  # eps [J s^2]
    log_base: ArrayLike = 2.0  # base of the logarithm in (3): 2 counts bits

    @property
    def num_devices(self) -> int:
        """Number of devices, padding included: the last axis of ``task_bits``."""
        return jnp.shape(self.task_bits)[-1]


def table1(num_devices: int = 14, slot: float = 0.5, seed: int | jax.Array = 0) -> System:
    """Draw the paper's Table 1: B 100-300 KB, C 200-400, f 1-2 GHz, uniform.

    Device i's task depends on (seed, i) only, so fewer devices are a prefix of more.

    Args:
        num_devices: K, at least 1.
        slot: T [s], positive.
        seed: seed of the task data; may be traced.

    Returns:
        A ``System`` with ``[K]`` task data and Table 1's scalars.

    Raises:
        ValueError: if ``num_devices`` < 1 or ``slot`` is not positive.
    """
    if num_devices < 1:
        raise ValueError(f"num_devices must be at least 1; got {num_devices}")
    require("slot", slot, *SYSTEM_RANGES["slot"])
    keys = _device_keys(jax.random.key(seed), num_devices)
    low = jnp.array([100 * 8000.0, 200.0, 1e9])
    high = jnp.array([300 * 8000.0, 400.0, 2e9])
    bits, cycles, hz = jax.vmap(
        lambda key: jax.random.uniform(key, (3,), minval=low, maxval=high), out_axes=1
    )(keys)
    return System(
        task_bits=bits,
        cycles_per_bit=cycles,
        cpu_hz=hz,
        weight=jnp.ones(num_devices),
        active=jnp.ones(num_devices, bool),
        slot=slot,
    )


def sample_channels(key: jax.Array, system: System, num: int) -> jax.Array:
    """Draw Rayleigh amplitude gains with E[h^2] = ``mean_gain``.

    Device i's column depends on (key, i) only, so padding devices changes no other gain.
    The power gain is -log1p(-u) of uniform draws: the same numbers on every JAX version.

    Args:
        key: PRNG key, consumed.
        system: gives K and ``mean_gain`` [-].
        num: number of channels.

    Returns:
        Gains ``[num, K]`` [-].
    """
    keys = _device_keys(key, system.num_devices)
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (num,)), out_axes=1)(keys)  # [num, K]
    power_gain = -jnp.log1p(-uniform) * system.mean_gain
    heard = power_gain > 0  # the root of 0 has no derivative
    return jnp.where(heard, jnp.sqrt(jnp.where(heard, power_gain, 1.0)), 0.0)


def pad_devices(system: System, num_devices: int) -> System:
    """Append inactive devices until there are ``num_devices``; they change no answer.

    Raises:
        ValueError: if the system already has more devices.
    """
    missing = num_devices - system.num_devices
    if missing < 0:
        raise ValueError(f"num_devices must be at least {system.num_devices}; got {num_devices}")
    num_devices = system.num_devices

    def pad(leaf: ArrayLike) -> jax.Array:
        leaf = jnp.broadcast_to(leaf, (*jnp.shape(leaf)[:-1], num_devices))
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, missing)])

    return system.replace(**{name: pad(getattr(system, name)) for name in PER_DEVICE})


def power_gain(system: System, h: jax.Array) -> jax.Array:
    """Gain over noise g = h^2 / N0 [1/W], ``[K]``."""
    # (h / sqrt N0)^2 and not h^2 / N0: the square of a small gain underflows float32.
    return jnp.square(h / jnp.sqrt(system.noise_power))


def nat_rate(system: System) -> jax.Array:
    """Rate of one nat a symbol, w = W / ln(base) [bit/s]."""
    return system.bandwidth / jnp.log(system.log_base)


def rate(system: System, h: jax.Array, power: jax.Array) -> jax.Array:
    """Uplink rate r = W log(1 + p h^2 / N0), (3).

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        power: transmit powers ``[K]`` [W].

    Returns:
        Rates ``[K]`` [bit/s].
    """
    return nat_rate(system) * jnp.log1p(power * power_gain(system, h))


def local_time(system: System) -> jax.Array:
    """Time to compute a whole task locally, C B / f, (1) with a = 0: ``[K]`` [s]."""
    cycles = system.cycles_per_bit * system.task_bits
    never = (cycles > 0) & (system.cpu_hz == 0)
    hz = jnp.where((cycles > 0) & jnp.logical_not(never), system.cpu_hz, 1.0)
    return jnp.where(never, jnp.inf, cycles / hz)


def local_energy(system: System) -> jax.Array:
    """Weighted energy to compute a whole task locally, beta eps B C f^2, (2): ``[K]`` [J]."""
    # eps f^2 first: B C f^2 alone comes close to the largest float32.
    energy_per_cycle = system.chip * system.cpu_hz * system.cpu_hz
    return system.weight * energy_per_cycle * system.cycles_per_bit * system.task_bits


def required_ratio(system: System) -> jax.Array:
    """Part of a task that must be offloaded, m^+ = max(0, 1 - f T / (C B)), (15): ``[K]`` [-]."""
    time = local_time(system)
    late = forced(system)
    ratio = jax.lax.stop_gradient(1 - system.slot / jnp.where(late, time, 1.0))
    # Rounded up: what stays, 1 - m, must be done in time even where it is tiny.
    ratio += jnp.nextafter(ratio, jnp.ones_like(ratio)) - ratio
    cycles = jnp.where(late, system.cycles_per_bit * system.task_bits, 1.0)
    formula = 1 - system.slot * (system.cpu_hz / cycles)  # fit for derivatives at f = 0 too
    return jnp.where(late, with_derivative(ratio, formula), 0.0)


def forced(system: System) -> jax.Array:
    """Tell which devices cannot finish locally in time, C B / f > T, C2: ``[K]`` bool."""
    return system.active & (local_time(system) > system.slot)


def transmit_time(system: System, h: jax.Array, offload: jax.Array, power: jax.Array) -> jax.Array:
    """Realised offloading time t' = a B / r, (4); infinite where a task is sent at rate 0.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: offloaded part of each task ``[K]`` [-].
        power: transmit powers ``[K]`` [W].

    Returns:
        Times ``[K]`` [s]; 0 for padding and for tasks that stay.
    """
    bits = jnp.where(system.active, offload * system.task_bits, 0.0)
    bits_per_second = rate(system, h, power)
    heard = bits_per_second > 0  # not bits > 0: time grows with a from a = 0 on
    time = bits / jnp.where(heard, bits_per_second, 1.0)
    return jnp.where(heard, time, jnp.where(bits > 0, jnp.inf, 0.0))


def realised_energy(
    system: System, h: jax.Array, offload: jax.Array, power: jax.Array
) -> jax.Array:
    """Weighted energy that is really spent, sum beta [p t' + (1 - a) eps B C f^2], (2) + (5).

    P1's objective (6) charges p_k t_k; a device stops sending when its task is through,
    so figures and solutions charge p_k t'_k.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: offloaded part of each task ``[K]`` [-].
        power: transmit powers ``[K]`` [W].

    Returns:
        Energy ``[]`` [J].
    """
    time = transmit_time(system, h, offload, power)
    never = jnp.isinf(time)  # a task sent without power or gain; 0 * inf would be NaN
    sent = jnp.where(never, jnp.inf, system.weight * power * jnp.where(never, 0.0, time))
    kept = jnp.where(system.active, (1 - offload) * local_energy(system), 0.0)
    return jnp.sum(sent + kept, axis=-1)


def check_channels(h: ArrayLike, num_devices: int) -> jax.Array:
    """Return gains ``[..., K]`` as floats.

    Raises:
        ValueError: if there is not one gain a device, or if a gain is known (it is not under
            ``jax.jit``) and negative or not finite.
    """
    shape = np.shape(h)
    if not shape or shape[-1] != num_devices:
        raise ValueError(
            f"h must have one gain for each of {num_devices} devices; got shape {shape}"
        )
    require("h", h, *CHANNEL_RANGE)
    return _as_array(h, jnp.result_type(float))


def check_system(system: System) -> System:
    """Return the system with floating-point leaves.

    Raises:
        ValueError: if a value is known (it is not under ``jax.jit``) and out of its range.
    """
    active = system.active
    for name, (low, included) in SYSTEM_RANGES.items():
        value = getattr(system, name)
        if name in PER_DEVICE and not _is_traced(value, active):
            value = np.where(active, value, low + 1.0)  # padding may hold anything
        require(f"system.{name}", value, low, included)
    kind = jnp.result_type(float)
    floats = {name: _as_array(getattr(system, name), kind) for name in SYSTEM_RANGES}
    return system.replace(**floats, active=_as_array(active, jnp.dtype(bool)))


def is_valid(system: System, h: jax.Array) -> jax.Array:
    """Tell whether gains ``[K]`` and system are in range: the check under ``jax.jit``, bool."""
    good = jnp.all(_in_range(jnp, h, *CHANNEL_RANGE))
    for name, (low, included) in SYSTEM_RANGES.items():
        inside = _in_range(jnp, getattr(system, name), low, included)
        good &= jnp.all(inside | ~system.active if name in PER_DEVICE else inside)
    return good


SYSTEM_RANGES = {  # name: (lower end, whether it is allowed); all must be finite
    "task_bits": (0.0, True),
    "cycles_per_bit": (0.0, True),
    "cpu_hz": (0.0, True),
    "weight": (0.0, False),
    "slot": (0.0, False),
    "bandwidth": (0.0, False),
    "noise_power": (0.0, False),
    "max_power": (0.0, True),
    "mean_gain": (0.0, False),
    "chip": (0.0, True),
    "log_base": (1.0, False),
}
CHANNEL_RANGE = (0.0, True)


def _in_range(xp: Any, value: ArrayLike, low: float, included: bool) -> Any:
    return xp.isfinite(value) & ((value >= low) if included else (value > low))


def require(name: str, value: ArrayLike, low: float, included: bool) -> None:
    """Raise a ValueError that names the argument, the rule and the first offending value."""
    if _is_traced(value):
        return
    value = np.asarray(value)
    good = _in_range(np, value, low, included)
    if not np.all(good):
        rule = f"finite and {'at least' if included else 'above'} {low:g}"
        raise ValueError(f"{name} must be {rule}; got {value[~good].flat[0]}")


def _as_array(value: ArrayLike, kind: Any) -> jax.Array:
    """Return an array of dtype ``kind``; NumPy's for host values, since jit takes it quickest."""
    if isinstance(value, jax.Array):
        return value if value.dtype == kind else value.astype(kind)
    return np.asarray(value, kind)  # type: ignore[return-value]


def _is_traced(*values: ArrayLike) -> bool:
    return any(isinstance(value, jax.core.Tracer) for value in values)


def _device_keys(key: jax.Array, num_devices: int) -> jax.Array:
    """One key a device that depends on (key, i) only: ``[K]`` keys."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_devices))
