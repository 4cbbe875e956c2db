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
p_c (ours)            ``circuit_power``       drawn while sending [W]
d_k (ours)            ``fixed_time``          of the slot, per sent task [s]
q_k (ours)            ``fixed_energy``        per sent task [J]
gamma_k (ours)        ``delay_weight``        weight of a task's own delay [J/s]
F (ours)              ``edge_cycles``         cycles that the edge has in a slot [-]
====================  ======================  ==============================================

Formulas are written for one channel, ``h: [K]``; batches go through ``jax.vmap``. The model and
P1 are written out in THEORY.md, sections 2 and 3; what is ours, not the paper's, in section 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from meco_jax.exact.derivatives import with_derivative
from meco_jax.runtime.checks import (
    as_floats,
    flags,
    in_range,
    integer,
    real,
    refuse,
    require,
    to_array,
    turned,
)
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.memory import once_per_system
from meco_jax.units import from_dbm

PER_DEVICE = ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "active")
"""The fields of ``System`` with one entry per device."""

FLEXIBLE = ("noise_power", "max_power", "mean_gain", "chip")
"""The fields that are one number, or have one entry per device; see ``core_rank``."""

ADDED_PER_DEVICE = ("circuit_power", "fixed_time", "fixed_energy", "delay_weight")
"""The per-device fields beyond the paper's: None, or as those of ``PER_DEVICE``."""

ACCESS = ("tdma", "fdma")

Lists = Sequence[float] | Sequence[Sequence[float]]
ArrayLike = jax.Array | np.ndarray | np.number | np.bool_ | Lists | float
"""What an argument may be: an array of JAX or NumPy, a list of numbers, a number."""

Leaf = Any  # what was given is read back, and inside a program it is traced


@short_repr
class System(struct.PyTreeNode):
    """Hold the physics of P1, (6): a pytree whose leaves can be traced, swept and batched.

    Any field may carry leading batch axes. All fields after the first three have the
    values of the paper's Table 1; those after ``log_base`` are beyond the paper, and None leaves
    them out. A field that may be one number or one per device has its devices on the last axis,
    of K entries, or of 1 for a number, as ``[N, 1]`` for N systems; with no more axes than the
    tasks ``[N, K]`` have before K, so ``[N]``, it is one number per system.
    """

    task_bits: Leaf  # [K] B_k [bit]
    cycles_per_bit: Leaf  # [K] C_k [-]
    cpu_hz: Leaf  # [K] f_k [Hz]
    weight: Leaf = 1.0  # [K] beta_k [-]
    active: Leaf = True  # [K] True: a real device, False: padding
    slot: Leaf = 0.5  # T [s]
    bandwidth: Leaf = 1e7  # W [Hz]
    noise_power: Leaf = 1e-9  # N0, and known interference; one or [K] [W]
    max_power: Leaf = from_dbm(23)  # p_max, one or [K] [W]
    mean_gain: Leaf = 1e-6  # E[h^2], one or [K] [-]
    chip: Leaf = 1e-28  # eps, one or [K] [J s^2]
    log_base: Leaf = 2.0  # base of the logarithm in (3): 2 counts bits
    circuit_power: Leaf = None  # [K] p_c drawn while sending [W]
    fixed_time: Leaf = None  # [K] d: of the slot per sent task, beside its sending time [s]
    fixed_energy: Leaf = None  # [K] q per sent task, beside its sending energy [J]
    delay_weight: Leaf = None  # [K] gamma of a task's own delay in the objective [J/s]
    edge_cycles: Leaf = None  # F: cycles of the edge per slot, C6
    access: str = struct.field(pytree_node=False, default="tdma")  # or "fdma"

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
            circuit_power: ArrayLike | None = ...,
            fixed_time: ArrayLike | None = ...,
            fixed_energy: ArrayLike | None = ...,
            delay_weight: ArrayLike | None = ...,
            edge_cycles: ArrayLike | None = ...,
            access: str = ...,
        ) -> None: ...

        @overload
        def replace(self, **fields: ArrayLike | None) -> System: ...
        @overload
        def replace(self, *, access: str, **fields: ArrayLike | None) -> System: ...
        def replace(self, **fields: Any) -> System:
            """Return a system with some fields changed."""
            ...

    @property
    def num_devices(self) -> int:
        """Number of devices, padding included: the last axis of ``task_bits``."""
        shape = np.shape(self.task_bits)
        if not shape:
            raise ValueError("system.task_bits must have one entry per device; got one number")
        return shape[-1]


def leaves(system: System) -> dict[str, Leaf]:
    """Name the fields that are numbers and not left out."""
    named = {name: getattr(system, name) for name in (*RANGES, "active")}
    return {name: leaf for name, leaf in named.items() if leaf is not None}


def core_rank(system: System, name: str) -> int:
    """Tell how many of a field's last axes belong to one system: 1 if it is per device, or 0.

    See ``System``. So it is 1 for a number that is given as ``[..., 1]``.
    """
    if name not in FLEXIBLE:
        return int(name in (*PER_DEVICE, *ADDED_PER_DEVICE))
    tasks = max(np.ndim(getattr(system, field)) for field in PER_DEVICE)
    return int(np.ndim(getattr(system, name)) > max(tasks - 1, 0))


def is_number(system: System, name: str) -> bool:
    """Tell whether a field that might be per device is one number given as ``[..., 1]``."""
    last = np.shape(getattr(system, name))[-1:]
    may_be = name in (*FLEXIBLE, *ADDED_PER_DEVICE)
    return may_be and core_rank(system, name) == 1 and last == (1,) != (system.num_devices,)


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

    def pad(name: str) -> jax.Array:
        leaf = to_array(f"system.{name}", getattr(system, name))
        leaf = jnp.broadcast_to(leaf, (*leaf.shape[:-1], own))
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, missing)])

    return system.replace(**{name: pad(name) for name in per_device(system)})


def per_device(system: System) -> tuple[str, ...]:
    """Name the fields that have an entry per device, or one for all that might be padded."""
    names = [name for name in leaves(system) if core_rank(system, name)]
    return tuple(name for name in names if not is_number(system, name))


def power_gain(system: System, h: jax.Array, xp: ModuleType = jnp) -> jax.Array:
    """Gain over noise g = h^2 / N0 [1/W], ``[K]``."""
    noise = system.noise_power
    if np.ndim(noise):  # padding may hold anything
        noise = xp.where(system.active, noise, 1.0)
    # (h / sqrt N0)^2 and not h^2 / N0: the square of a small gain underflows float32.
    return xp.square(h / xp.sqrt(noise))


def nat_rate(system: System, xp: ModuleType = jnp) -> jax.Array:
    """Rate of one nat per symbol, w = W / ln(base) [bit/s]."""
    return system.bandwidth / xp.log(system.log_base)


def rate(
    system: System,
    h: jax.Array,
    power: jax.Array,
    time: jax.Array | None = None,
    *,
    xp: ModuleType = jnp,
) -> jax.Array:
    """Uplink rate r = W log(1 + p h^2 / N0), (3); with FDMA that of the share t / T of the band.

    The noise is in proportion to the band: r = (t / T) W log(1 + p (T / t) h^2 / N0).

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        power: transmit powers ``[K]`` [W].
        time: slot times ``[K]`` [s], which FDMA alone asks for.
        xp: jax.numpy, or numpy.

    Returns:
        Rates ``[K]`` [bit/s].
    """
    if system.access == "tdma":
        return nat_rate(system, xp) * xp.log1p(power * power_gain(system, h, xp))
    if time is None:
        raise ValueError("time must be given where system.access is 'fdma'; got None")
    share = xp.where(time > 0, time, 1.0) / system.slot
    whole = nat_rate(system, xp) * share * xp.log1p(power / share * power_gain(system, h, xp))
    return xp.where(time > 0, whole, 0.0)  # type: ignore[no-any-return]


def allowed_time(system: System, time: jax.Array, xp: ModuleType = jnp) -> jax.Array:
    """Time by which what is sent must be through, C5: t, or with FDMA all of the slot, [s]."""
    return time if system.access == "tdma" else xp.broadcast_to(system.slot, time.shape)


def slot_left(
    system: System, offload: jax.Array, time: jax.Array, xp: ModuleType = jnp
) -> jax.Array:
    """What times and fixed times leave of the slot, T - sum (t + a d), C1: ``[]`` [s]."""
    return system.slot - xp.sum(_slot_used(system, offload, time, xp), axis=0)  # type: ignore[no-any-return]


def _slot_used(
    system: System, offload: jax.Array, time: jax.Array, xp: ModuleType = jnp
) -> jax.Array:
    if system.fixed_time is None:
        return time
    return time + _if_sent(system, offload, system.fixed_time, xp)


def edge_left(system: System, offload: jax.Array, xp: ModuleType = jnp) -> jax.Array:
    """Part of the edge's cycles that is left, 1 - sum a B C / F, C6: ``[]`` [-]."""
    if system.edge_cycles is None:
        return xp.ones(())  # type: ignore[no-any-return]
    cycles = system.task_bits * system.cycles_per_bit / system.edge_cycles
    return 1 - xp.sum(_if_sent(system, offload, cycles, xp), axis=0)  # type: ignore[no-any-return]


def _if_sent(
    system: System, offload: jax.Array, whole: jax.Array, xp: ModuleType = jnp
) -> jax.Array:
    """What the sent parts of tasks take of something that a whole task takes: ``[K]``."""
    return xp.where(system.active & (system.task_bits > 0), offload * whole, 0.0)  # type: ignore[no-any-return]


def local_time(system: System, xp: ModuleType = jnp) -> jax.Array:
    """Time to compute a whole task locally, C B / f, (1) with a = 0: ``[K]`` [s]."""
    cycles = system.cycles_per_bit * system.task_bits
    never = (cycles > 0) & (system.cpu_hz == 0)
    hz = xp.where((cycles > 0) & xp.logical_not(never), system.cpu_hz, 1.0)
    return xp.where(never, xp.inf, cycles / hz)  # type: ignore[no-any-return]


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


def forced(system: System, xp: ModuleType = jnp) -> jax.Array:
    """Tell which devices cannot finish locally in time, C B / f > T, C2: ``[K]`` bool."""
    return system.active & (local_time(system, xp) > system.slot)


def transmit_time(
    system: System,
    h: jax.Array,
    offload: jax.Array,
    power: jax.Array,
    time: jax.Array | None = None,
    *,
    xp: ModuleType = jnp,
) -> jax.Array:
    """Realised offloading time t' = a B / r, (4); infinite where a task is sent at rate 0.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: offloaded part of each task ``[K]`` [-].
        power: transmit powers ``[K]`` [W].
        time: as in ``rate``.
        xp: jax.numpy, or numpy.

    Returns:
        Times ``[K]`` [s]; 0 for padding and for tasks that stay.
    """
    bits = xp.where(system.active, offload * system.task_bits, 0.0)
    bits_per_second = rate(system, h, power, time, xp=xp)
    heard = bits_per_second > 0  # not bits > 0: time grows with a from a = 0 on
    time = bits / xp.where(heard, bits_per_second, 1.0)
    return xp.where(heard, time, xp.where(bits > 0, xp.inf, 0.0))  # type: ignore[no-any-return]


def realised_energy(
    system: System,
    h: jax.Array,
    offload: jax.Array,
    power: jax.Array,
    time: jax.Array | None = None,
) -> jax.Array:
    """Weighted energy that is really spent, sum beta [p t' + (1 - a) eps B C f^2], (2) + (5).

    See ``realised_energies``. Returns ``[]`` [J].
    """
    return jnp.sum(realised_energies(system, h, offload, power, time), axis=-1)


def realised_energies(
    system: System,
    h: jax.Array,
    offload: jax.Array,
    power: jax.Array,
    time: jax.Array | None = None,
    *,
    xp: ModuleType = jnp,
) -> jax.Array:
    """Weighted energy that each device really spends, beta [p t' + (1 - a) eps B C f^2].

    P1's objective (6) charges p_k t_k; a device stops sending when its task is through,
    so figures and solutions charge p_k t'_k. Circuits draw p_c for t' as well, and a sent task
    takes its fixed energy.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: offloaded part of each task ``[K]`` [-].
        power: transmit powers ``[K]`` [W].
        time: as in ``rate``.
        xp: jax.numpy, or numpy.

    Returns:
        Energies ``[K]`` [J], 0 for padding.
    """
    time = transmit_time(system, h, offload, power, time, xp=xp)
    never = xp.isinf(time)  # a task sent without power or gain; 0 * inf would be NaN
    finite = xp.where(never, 0.0, time)
    sent = xp.where(never, xp.inf, system.weight * power * finite)
    kept = xp.where(system.active, (1 - offload) * local_energy(system), 0.0)
    return _with_added_energies(system, sent + kept, offload, finite, xp)


def realised_delays(
    system: System,
    h: jax.Array,
    offload: jax.Array,
    power: jax.Array,
    time: jax.Array | None = None,
    *,
    xp: ModuleType = jnp,
) -> jax.Array:
    """Weighted delay of each device, gamma [t' + a d + (1 - a) C B / f], see ``delay_weight``.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].
        offload: offloaded part of each task ``[K]`` [-].
        power: transmit powers ``[K]`` [W].
        time: as in ``rate``.
        xp: jax.numpy, or numpy.

    Returns:
        What the delays add to the objective ``[K]`` [J], 0 for padding; zeros without weights.
    """
    if system.delay_weight is None:
        return xp.zeros_like(h)  # type: ignore[no-any-return]
    used = transmit_time(system, h, offload, power, time, xp=xp)
    return _delay_costs(system, offload, used, xp)


def with_added_costs(
    system: System, paid: jax.Array, offload: jax.Array, used: jax.Array
) -> jax.Array:
    """Add what circuits, fixed energies and weighted delays cost to costs ``[K]`` [J].

    Args:
        system: the physics.
        paid: costs ``[K]`` [J].
        offload: offloaded part of each task ``[K]`` [-].
        used: realised offloading times ``[K]`` [s].
    """
    paid = _with_added_energies(system, paid, offload, used)
    return paid if system.delay_weight is None else paid + _delay_costs(system, offload, used)


def _with_added_energies(
    system: System,
    paid: jax.Array,
    offload: jax.Array,
    used: jax.Array,
    xp: ModuleType = jnp,
) -> jax.Array:
    if system.circuit_power is not None:
        paid = paid + xp.where(system.active, system.weight * system.circuit_power, 0.0) * used
    if system.fixed_energy is not None:
        paid = paid + _if_sent(system, offload, system.weight * system.fixed_energy, xp)
    return paid


def _delay_costs(
    system: System, offload: jax.Array, used: jax.Array, xp: ModuleType = jnp
) -> jax.Array:
    """Weighted delays at realised times ``used``: ``[K]`` [J]."""
    sent = _slot_used(system, offload, used, xp)
    stays = system.active & (offload < 1)
    kept = xp.where(stays, (1 - offload) * xp.where(stays, local_time(system, xp), 0.0), 0.0)
    weight = xp.where(system.active, system.delay_weight, 0.0)
    delay = sent + kept
    late = xp.isinf(delay)
    return xp.where(late, xp.inf, weight * xp.where(late, 0.0, delay))  # type: ignore[no-any-return]


def last_arrival(system: System, offload: jax.Array, used: jax.Array) -> jax.Array:
    """When the last task is through at realised times ``[K]``: ``[]`` [s].

    One after the other, fixed times included; with FDMA all send at once.
    """
    if system.access == "fdma":
        return jnp.max(used)
    return jnp.sum(_slot_used(system, offload, used))


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
            f"{turned('h', h.shape, num_devices)}"
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
    if system.access not in ACCESS:
        raise refuse("system.access", f"one of {', '.join(ACCESS)}", system.access)
    names = [name for name in RANGES if name in SYSTEM_RANGES or fields[name] is not None]
    values = {name: real(f"system.{name}", fields[name]) for name in names}
    active = flags("system.active", system.active)
    _check_devices({name: values.get(name, active) for name in PER_DEVICE})
    _check_flexible(values, active)
    known = not isinstance(active, jax.core.Tracer)
    padded = known and not np.asarray(active).all()
    each = {name for name in values if name in per_device(system)}
    for name, value in values.items():
        low, included = RANGES[name]
        if name in each and (padded or not known):
            if not known or isinstance(value, jax.core.Tracer):
                continue
            value = np.where(active, value, np.asarray(low + 1.0, value.dtype))  # padding is free
        hint = DBM_HINT if name in ("noise_power", "max_power") else ""
        require(f"system.{name}", value, low, included, hint)
    floats = {name: as_floats(value) for name, value in values.items()}
    return system.replace(**floats, active=active)


def _check_flexible(values: dict[str, Any], active: Any) -> None:
    """Check the last axis of the fields that may have an entry per device."""
    tasks = max(values.get(name, active).ndim for name in PER_DEVICE)
    num_devices = values["task_bits"].shape[-1]
    for name in values.keys() & {*FLEXIBLE, *ADDED_PER_DEVICE}:
        shape = values[name].shape
        if (name in FLEXIBLE and len(shape) < tasks) or shape[-1:] in ((), (1,), (num_devices,)):
            continue
        raise ValueError(
            f"system.{name} must be one number or have one entry for each of {num_devices} "
            f"devices on its last axis; got shape {shape}{turned(name, shape, num_devices)}. One "
            f"number for each of N systems has shape [N, 1]"
            + (f": pass {name}[:, None] of shape {(*shape, 1)}" if len(shape) == 1 else "")
        )


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
                f"{turned(name, value.shape, num_devices)}"
            )


def is_valid(system: System, h: jax.Array) -> jax.Array:
    """Tell whether gains ``[K]`` and system are in range: the check under ``jax.jit``, bool."""
    good = jnp.all(in_range(h, *CHANNEL_RANGE))
    for name, value in leaves(system).items():
        if name == "active":
            continue
        inside = in_range(value, *RANGES[name])
        free = name in PER_DEVICE or (name in (*FLEXIBLE, *ADDED_PER_DEVICE) and np.ndim(value))
        good &= jnp.all(inside | ~system.active if free else inside)
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
ADDED_RANGES = {  # the same of the fields that None leaves out
    "circuit_power": (0.0, True),
    "fixed_time": (0.0, True),
    "fixed_energy": (0.0, True),
    "delay_weight": (0.0, True),
    "edge_cycles": (0.0, False),
}
RANGES = SYSTEM_RANGES | ADDED_RANGES
CHANNEL_RANGE = (0.0, True)
COMPLEX_HINT = ": pass abs(h)"
DECIBEL_HINT = "; gains in dB become amplitudes by sqrt(meco_jax.from_db(h))"
DBM_HINT = "; powers in dBm become W by meco_jax.from_dbm"
