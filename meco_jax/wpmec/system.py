"""The wireless powered system: its parameters, channel draws, the answer, and what is refused.

In a frame of 1 s an access point first sends power for a seconds, from which all devices harvest;
then those that offload send, one after the other, for tau seconds each. A device in local mode
computes with what it harvested. The objective is the weighted sum of the bits computed.

====================  ======================  ==============================================
symbol                field or argument       meaning [unit]
====================  ======================  ==============================================
w_k                   ``weight``              weight in the objective [-]
k_k                   ``chip``                effective switched capacitance [J s^2]
phi_k                 ``cycles_per_bit``      CPU cycles per bit [-]
mu_k                  ``harvest_efficiency``  part of the received power that is harvested [-]
P                     ``power``               transmit power of the access point [W]
B                     ``bandwidth``           bandwidth [Hz]
N0                    ``noise_power``         noise power at the access point [W]
v_u                   ``overhead``            bits sent per bit of a task [-]
h_k                   ``gain``                power gain, the same in both directions [-]
a                     ``harvest``             harvesting time [s] of a frame of 1 s
tau_k                 ``time``                sending time [s] of a frame of 1 s
====================  ======================  ==============================================

Source: S. Bi, Y. J. Zhang, IEEE Trans. Wireless Commun. 17(6), 2018; L. Huang, S. Bi,
Y. J. Zhang, IEEE Trans. Mobile Comput. 19(11), 2020, whose constants are the defaults.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from meco_jax.propagation import exponential
from meco_jax.runtime.checks import (
    as_floats,
    broadcast,
    flags,
    in_range,
    integer,
    is_traced,
    real,
    refuse,
    require,
)
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.memory import once_per_system
from meco_jax.runtime.settings import as_key, moves_data
from meco_jax.system import ArrayLike, Leaf

RANGES = {  # name: (lower end, whether it is allowed); all must be finite
    "weight": (0.0, False),
    "chip": (0.0, False),
    "cycles_per_bit": (0.0, False),
    "harvest_efficiency": (0.0, False),
    "power": (0.0, False),
    "bandwidth": (0.0, False),
    "noise_power": (0.0, False),
    "overhead": (0.0, False),
}
PER_DEVICE = "weight", "chip", "cycles_per_bit", "harvest_efficiency", "active"
RANKS = {name: int(name in PER_DEVICE) for name in (*RANGES, "active")}
GAIN_RANGE = 0.0, True
GAIN_HINT = "; gains in dB become power gains by meco_jax.from_db(gain)"


@short_repr
class WPMEC(struct.PyTreeNode):
    """Hold the physics of wireless powered offloading: a pytree, to be traced, swept and batched.

    Any field may carry leading batch axes. All fields after the first have the values of the
    public reference code.
    """

    weight: Leaf  # [K] w_k [-]
    chip: Leaf = 1e-26  # [K] k_k [J s^2]
    cycles_per_bit: Leaf = 100.0  # [K] phi_k [-]
    harvest_efficiency: Leaf = 0.7  # [K] mu_k [-]
    active: Leaf = True  # [K] True: a real device, False: padding
    power: Leaf = 3.0  # P [W]
    bandwidth: Leaf = 2e6  # B [Hz]
    noise_power: Leaf = 1e-10  # N0 [W]
    overhead: Leaf = 1.1  # v_u [-]

    if TYPE_CHECKING:  # so that type checkers refuse what is no number

        def __init__(
            self,
            weight: ArrayLike,
            chip: ArrayLike = ...,
            cycles_per_bit: ArrayLike = ...,
            harvest_efficiency: ArrayLike = ...,
            active: ArrayLike = ...,
            power: ArrayLike = ...,
            bandwidth: ArrayLike = ...,
            noise_power: ArrayLike = ...,
            overhead: ArrayLike = ...,
        ) -> None: ...

        def replace(self, **fields: ArrayLike) -> WPMEC:
            """Return a system with some fields changed."""
            ...

    @property
    def num_devices(self) -> int:
        """Number of devices, padding included: the last axis of ``weight``."""
        shape = np.shape(self.weight)
        if not shape:
            raise ValueError("system.weight must have one entry per device; got one number")
        return shape[-1]


@short_repr
class Solution(struct.PyTreeNode):
    """Hold an answer for channels ``[..., K]``; see ``meco_jax.wpmec.solve``."""

    offload: jax.Array  # [..., K] 1: the device sends, 0: it computes itself [-]
    harvest: jax.Array  # [...] a [s] of a frame of 1 s
    time: jax.Array  # [..., K] tau [s] of a frame of 1 s
    rate: jax.Array  # [...] weighted sum of the rates [bit/s]
    upper_bound: jax.Array  # [...] no mode, however allocated, has a higher rate [bit/s]
    feasible: jax.Array  # [...] bool: True wherever the input is in range

    def as_dict(self) -> dict[str, np.ndarray]:
        """Return plain NumPy arrays by field name, for ``np.savez`` or ``scipy.io.savemat``."""
        return {name: np.asarray(leaf) for name, leaf in vars(self).items()}


def reference(num_devices: int = 10) -> WPMEC:
    """Return the reference code's system: its constants, and weights 1, 1.5, 1, 1.5, ...

    Args:
        num_devices: K, at least 1.

    Raises:
        ValueError: if it is less.
    """
    num_devices = integer("num_devices", num_devices, low=1)
    return WPMEC(weight=np.where(np.arange(num_devices) % 2, 1.5, 1.0))


@moves_data
def sample_channels(
    key: jax.Array | int, num_devices: int, num: int, nearest: float = 2.5, farthest: float = 5.2
) -> jax.Array:
    """Draw Rayleigh power gains of devices at equal steps of distance, the first one nearest.

    Free-space loss with an antenna gain of 4.11, 915 MHz and exponent 2.8, times a unit-mean
    exponential: the setting that Huang, Bi and Zhang describe. Device i's column depends on
    (key, i) and its distance only.

    Args:
        key: PRNG key, consumed, or a seed.
        num_devices: K, at least 1.
        num: number of channels.
        nearest: distance of the first device, above 0 [m].
        farthest: distance of the last device [m].

    Returns:
        Power gains ``[num, K]`` [-].

    Raises:
        ValueError: if an argument is out of range.
    """
    num_devices = integer("num_devices", num_devices, low=1)
    num = integer("num", num, low=0)
    require("nearest", nearest, 0.0, included=False)
    require("farthest", farthest, 0.0, included=False)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(as_key("key", key), jnp.arange(num_devices))
    draw = jax.vmap(lambda k: jax.random.uniform(k, (num,), jnp.float32), out_axes=1)
    distance = np.linspace(nearest, farthest, num_devices)
    mean = 4.11 * (3e8 / (4 * np.pi * 915e6 * distance)) ** 2.8
    uniform = draw(keys).astype(jnp.result_type(float))
    return exponential(uniform) * jnp.asarray(mean[None], uniform.dtype)


def check_call(gain: ArrayLike, system: WPMEC | None) -> tuple[Any, WPMEC]:
    """Return gains and system, by default ``reference(K)``, as floats whose axes fit.

    Raises:
        ValueError: if a value or a shape is wrong.
    """
    if isinstance(gain, WPMEC):
        raise ValueError(
            "gain must be power gains [..., K], and the system comes second, "
            "solve(gain, system); got a WPMEC first"
        )
    gains = real("gain", gain, ": pass abs(h) ** 2")
    if system is None:
        if not gains.shape or not gains.shape[-1]:
            raise ValueError(
                f"gain must have one entry per device, [..., K]; got shape {gains.shape}"
            )
        system = _reference(gains.shape[-1], jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    system = check_system(system)
    number = system.num_devices
    if not gains.shape or gains.shape[-1] != number:
        raise ValueError(
            f"gain must have one entry for each of {number} devices; got shape {gains.shape}"
        )
    require("gain", gains, *GAIN_RANGE, hint=GAIN_HINT)
    batch_shape(system, gain=gains)
    return as_floats(gains), system


@functools.lru_cache(maxsize=64)
def _reference(num_devices: int, x64: bool) -> WPMEC:
    """Return ``reference(K)`` as floats that cannot be written, once per size and precision."""
    del x64
    system = check_system(reference(num_devices))
    system.weight.setflags(write=False)
    return system


@once_per_system
def check_system(system: WPMEC) -> WPMEC:
    """Return the system with floating-point leaves, per-device ones ``[..., K]``.

    Raises:
        ValueError: if it is no ``WPMEC``, a field has not one value or one per device, or a
            value is known (it is not under ``jax.jit``) and out of its range.
    """
    if not isinstance(system, WPMEC):
        raise refuse("system", "a meco_jax.wpmec.WPMEC", system)
    values = {name: real(f"system.{name}", getattr(system, name)) for name in RANGES}
    active = flags("system.active", system.active)
    shape = values["weight"].shape
    if not shape or not shape[-1]:
        rule = "one entry per device, [..., K], K at least 1"
        raise ValueError(f"system.weight must have {rule}; got shape {shape}")
    for name in PER_DEVICE:
        given = values.get(name, active).shape
        if given and given[-1] != shape[-1]:
            raise ValueError(
                f"system.{name} must be one number or have one entry for each of {shape[-1]} "
                f"devices on its last axis, like weight; got shape {given}"
            )
    for name, (low, included) in RANGES.items():
        value = values[name]
        if name in PER_DEVICE:  # padding may hold anything
            if is_traced(value, active):
                continue
            value = np.where(active, value, np.asarray(low + 1.0, value.dtype))
        require(f"system.{name}", value, low, included)
    floats = {name: as_floats(value) for name, value in values.items()}
    return WPMEC(**floats, active=active)


def batch_shape(system: WPMEC, **arrays: Any) -> tuple[int, ...]:
    """Broadcast the batch axes of arrays ``[..., K]`` and of all fields.

    Raises:
        ValueError: if they do not fit.
    """
    return broadcast({n: array.shape[:-1] for n, array in arrays.items()} | _field_shapes(system))


@once_per_system
def _field_shapes(system: WPMEC) -> dict[str, tuple[int, ...]]:
    """Name the batch axes that fields bring along, where there are any."""
    shapes = {name: np.shape(getattr(system, name)) for name in RANKS}
    return {
        f"system.{name}": shape[: len(shape) - RANKS[name]]
        for name, shape in shapes.items()
        if len(shape) > RANKS[name]
    }


def is_valid(system: WPMEC, h: jax.Array) -> jax.Array:
    """Tell whether gains ``[K]`` and system are in range: the check under ``jax.jit``, bool."""
    good = jnp.all(in_range(h, *GAIN_RANGE))
    for name, limits in RANGES.items():
        inside = in_range(getattr(system, name), *limits)
        good &= jnp.all(inside | ~system.active if name in PER_DEVICE else inside)
    return good
