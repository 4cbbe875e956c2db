"""The offloading system: its parameters, their ranges and checks, and equations (1)-(6).

One symbol table for the whole package; SI units everywhere.

====================  ======================  ==============================================
paper                 field or function       meaning [unit]
====================  ======================  ==============================================
K                     ``num_devices``         number of devices [-]
B_k                   ``task_bits``           task size [bit]; 1 KB = 8000 bit
C_k                   ``cycles_per_bit``      CPU cycles per bit [-]
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

Formulas are written for one channel, ``h: [K]``; batches go through ``jax.vmap``. The model and
P1 are written out in THEORY.md, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from meco_jax.exact.derivatives import with_derivative
from meco_jax.runtime.checks import (
    as_floats,
    in_range,
    integer,
    is_traced,
    real,
    refuse,
    require,
)
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.memory import once_per_system
from meco_jax.units import from_dbm

PER_DEVICE = ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "active")
"""The fields of ``System`` with one entry per device; the others are scalars."""

Lists = Sequence[float] | Sequence[Sequence[float]]
ArrayLike = jax.Array | np.ndarray | np.number | np.bool_ | Lists | float
"""What an argument may be: an array of JAX or NumPy, a list of numbers, a number."""

Leaf = Any  # what was given is read back, and inside a program it is traced


@short_repr
class System(struct.PyTreeNode):
    """Hold the physics of P1, (6): a pytree whose leaves can be traced, swept and batched.

    Any field may carry leading batch axes. All fields after the first three have the
    values of the paper's Table 1.
    """

    task_bits: Leaf  # [K] B_k [bit]
    cycles_per_bit: Leaf  # [K] C_k [-]
    cpu_hz: Leaf  # [K] f_k [Hz]
    weight: Leaf = 1.0  # [K] beta_k [-]
    active: Leaf = True  # [K] True: a real device, False: padding
    slot: Leaf = 0.5  # T [s]
    bandwidth: Leaf = 1e7  # W [Hz]
    noise_power: Leaf = 1e-9  # N0 [W]
    max_power: Leaf = from_dbm(23)  # p_max [W]
    mean_gain: Leaf = 1e-6  # E[h^2] [-]
    chip: Leaf = 1e-28  # eps [J s^2]
    log_base: Leaf = 2.0  # base of the logarithm in (3): 2 counts bits

    if TYPE_CHECKING:  # so that type checkers refuse what is no number

        def __init__(
            self,
            task_bits: ArrayLike,
            cycles_per_bit: ArrayLike,
            cpu_hz: ArrayLike,
            weight: ArrayLike = ...,
            active: ArrayLike = ...,
            slot: ArrayLike = ...,
            bandwidth: ArrayLike = ...,
            noise_power: ArrayLike = ...,
            max_power: ArrayLike = ...,
            mean_gain: ArrayLike = ...,
            chip: ArrayLike = ...,
            log_base: ArrayLike = ...,
        ) -> None: ...

        def replace(self, **fields: ArrayLike) -> System:
            """Return a system with some fields changed."""
            ...

    @property
    def num_devices(self) -> int:
        """Number of devices, padding included: the last axis of ``task_bits``."""
        shape = np.shape(self.task_bits)
        if not shape:
            raise ValueError("system.task_bits must have one entry per device; got one number")
        return shape[-1]


def pad_devices(system: System, num_devices: int) -> System:
    """Append inactive devices until there are ``num_devices``; they change no answer.

    Args:
        system: the physics, per-device fields ``[..., K]``.
        num_devices: K afterwards.

    Raises:
        ValueError: if the system already has more devices.
    """
    own = check_type(system).num_devices
    missing = integer("num_devices", num_devices, low=own) - own

    def pad(leaf: Leaf) -> jax.Array:
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        leaf = jnp.broadcast_to(leaf, (*leaf.shape[:-1], own))
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, missing)])

    return system.replace(**{name: pad(getattr(system, name)) for name in PER_DEVICE})


def power_gain(system: System, h: jax.Array, xp: ModuleType = jnp) -> jax.Array:
    """Gain over noise g = h^2 / N0 [1/W], ``[K]``."""
    # (h / sqrt N0)^2 and not h^2 / N0: the square of a small gain underflows float32.
    return xp.square(h / xp.sqrt(system.noise_power))


def nat_rate(system: System, xp: ModuleType = jnp) -> jax.Array:
    """Rate of one nat per symbol, w = W / ln(base) [bit/s]."""
    return system.bandwidth / xp.log(system.log_base)


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

    See ``realised_energies``. Returns ``[]`` [J].
    """
    return jnp.sum(realised_energies(system, h, offload, power), axis=-1)


def realised_energies(
    system: System, h: jax.Array, offload: jax.Array, power: jax.Array
) -> jax.Array:
    """Weighted energy that each device really spends, beta [p t' + (1 - a) eps B C f^2].

    P1's objective (6) charges p_k t_k; a device stops sending when its task is through,
    so figures and solutions charge p_k t'_k.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: offloaded part of each task ``[K]`` [-].
        power: transmit powers ``[K]`` [W].

    Returns:
        Energies ``[K]`` [J], 0 for padding.
    """
    time = transmit_time(system, h, offload, power)
    never = jnp.isinf(time)  # a task sent without power or gain; 0 * inf would be NaN
    sent = jnp.where(never, jnp.inf, system.weight * power * jnp.where(never, 0.0, time))
    kept = jnp.where(system.active, (1 - offload) * local_energy(system), 0.0)
    return sent + kept


def check_channels(h: ArrayLike, num_devices: int) -> jax.Array:
    """Return gains ``[..., K]`` as floats.

    Raises:
        ValueError: if there is not one real gain per device, or if a gain is known (it is not
            under ``jax.jit``) and negative or not finite.
    """
    h = real("h", h, COMPLEX_HINT)
    if not h.shape or h.shape[-1] != num_devices:
        raise ValueError(
            f"h must have one gain for each of {num_devices} devices; got shape {h.shape}"
        )
    require("h", h, *CHANNEL_RANGE, hint=DECIBEL_HINT)
    return as_floats(h)


def check_type(system: System) -> System:
    """Return a ``System``, or raise a ValueError if it is something else."""
    if not isinstance(system, System):
        raise refuse("system", "a meco_jax.System", system)
    return system


@once_per_system
def check_system(system: System) -> System:
    """Return the system with floating-point leaves.

    Raises:
        ValueError: if it is no ``System``, a field has not one value or one per device, or a
            value is known (it is not under ``jax.jit``) and out of its range.
    """
    fields = vars(check_type(system))
    values = {name: real(f"system.{name}", fields[name]) for name in SYSTEM_RANGES}
    active = _flags("system.active", system.active)
    _check_devices({name: values.get(name, active) for name in PER_DEVICE})
    known = not isinstance(active, jax.core.Tracer)
    padded = known and not np.asarray(active).all()
    for name, (low, included) in SYSTEM_RANGES.items():
        value = values[name]
        if name in PER_DEVICE and (padded or not known):  # padding may hold anything
            if not known or isinstance(value, jax.core.Tracer):
                continue
            value = np.where(active, value, np.asarray(low + 1.0, value.dtype))
        require(f"system.{name}", value, low, included)
    floats = {name: as_floats(value) for name, value in values.items()}
    for name, value in floats.items():
        if isinstance(fields[name], (int, float)):
            value.setflags(write=False)  # for ``once_per_system``
    return system.replace(**floats, active=active)


def _flags(name: str, value: ArrayLike) -> Any:
    """Return booleans as an array; 0 and 1 are as good."""
    if jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.bool_):
        return value if isinstance(value, jax.Array) else np.asarray(value)
    value = real(name, value)
    if not is_traced(value) and not np.all((value == 0) | (value == 1)):
        raise refuse(name, "True or False", np.asarray(value))
    return value.astype(bool)


def _check_devices(fields: dict[str, Any]) -> None:
    """Check that the last axis of all per-device fields holds the same K devices."""
    bits = fields["task_bits"]
    if not bits.shape or not bits.shape[-1]:
        rule = "one entry per device, [..., K], K at least 1"
        raise ValueError(f"system.task_bits must have {rule}; got shape {bits.shape}")
    # N systems of one device each are possible, but then their ``active`` says so.
    if bits.shape[-1] == 1 and bits.shape[-2:-1] > (1,) and bits.shape != fields["active"].shape:
        raise ValueError(
            f"system.task_bits must have its devices on the last axis; got a column of shape "
            f"{bits.shape}: pass task_bits.T, or active of the same shape for as many systems"
        )
    num_devices = bits.shape[-1]
    for name, value in fields.items():
        if value.shape and value.shape[-1] != num_devices:
            raise ValueError(
                f"system.{name} must be one number or have one entry for each of {num_devices} "
                f"devices on its last axis, like task_bits; got shape {value.shape}"
            )


def is_valid(system: System, h: jax.Array) -> jax.Array:
    """Tell whether gains ``[K]`` and system are in range: the check under ``jax.jit``, bool."""
    good = jnp.all(in_range(h, *CHANNEL_RANGE))
    for name, (low, included) in SYSTEM_RANGES.items():
        inside = in_range(getattr(system, name), low, included)
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
COMPLEX_HINT = ": pass abs(h)"
DECIBEL_HINT = "; gains in dB become amplitudes by sqrt(meco_jax.from_db(h))"
