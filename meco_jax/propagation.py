"""How far radio reaches: path loss by distance, devices in a cell, fading from uniform numbers.

Each formula stands here once, for channels of one slot (``scenarios``) and for those that move
(``simulation``).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from meco_jax.runtime.checks import as_floats, one_number, real, refuse, require
from meco_jax.runtime.settings import moves_data
from meco_jax.system import ArrayLike
from meco_jax.units import from_db

LIGHT = 299_792_458.0  # [m/s]
MEASURED = {  # name: (loss at 1 km [dB], its slope [dB per decade]), both at 2 GHz
    "3gpp-macro": (128.1, 37.6),
    "3gpp-pico": (140.7, 36.7),
}
OPTIONS = {  # name: (default, which models it is for)
    "carrier": (2e9, ("free-space", "exponent")),
    "exponent": (3.0, ("exponent",)),
    "reference": (1.0, ("exponent",)),
}
MODELS = (*MEASURED, "free-space", "exponent")

Number = jax.Array | float  # inside formulas: one number, or an array that broadcasts


@moves_data
def path_gain(
    distance_m: ArrayLike,
    model: str = "3gpp-macro",
    *,
    carrier: ArrayLike | None = None,
    exponent: ArrayLike | None = None,
    reference: ArrayLike | None = None,
) -> jax.Array:
    """Compute the mean power gain at a distance, E[h^2]: a ``mean_gain`` of ``System``.

    ===============  ====================================  ======================================
    model            path loss [dB]                        source
    ===============  ====================================  ======================================
    "3gpp-macro"     128.1 + 37.6 lg(d / km), from 35 m    3GPP TR 36.814, Table A.2.1.1.2-3,
                                                           model 1, macro to UE; TR 25.942
    "3gpp-pico"      140.7 + 36.7 lg(d / km), from 10 m    the same, pico to UE
    "free-space"     20 lg(4 pi f d / c)                   Friis, Proc. IRE 34(5), 1946
    "exponent"       20 lg(4 pi f d_0 / c)                 log-distance: Rappaport, Wireless
                     + 10 alpha lg(d / d_0), from d_0      Communications, 2002, section 4.9
    ===============  ====================================  ======================================

    Those of 3GPP are for 2 GHz. Gains of antennas, walls and shadowing are not in it: multiply by
    ``from_db`` of theirs. Nearer than "from" the laws go on, but were not made for it.

    Args:
        distance_m: d, any shape [m]; may be traced.
        model: name of a law.
        carrier: f of "free-space" and "exponent", 2 GHz where left out [Hz].
        exponent: alpha of "exponent", 3 where left out [-].
        reference: d_0 of "exponent", 1 m where left out [m].

    Returns:
        Power gains of the shape of ``distance_m`` [-].

    Raises:
        ValueError: if a number is not above 0, ``model`` is unknown, or an option is not for it.
    """
    if not isinstance(model, str) or model not in MODELS:
        raise refuse("model", f"one of {', '.join(MODELS)}", model)
    distance = real("distance_m", distance_m)
    require("distance_m", distance, 0.0, included=False)
    given = {"carrier": carrier, "exponent": exponent, "reference": reference}
    numbers = {name: _option(name, value, model) for name, value in given.items()}
    distance = jnp.asarray(as_floats(distance))
    if model in MEASURED:
        loss, slope = MEASURED[model]
        return from_db(-loss) * power_law(distance, 1000.0, slope / 10)
    one_radian = LIGHT / (4 * math.pi * numbers["carrier"])  # where free space has gain 1 [m]
    if model == "free-space":
        return power_law(distance, one_radian, 2.0)
    near = numbers["reference"]
    return power_law(near, one_radian, 2.0) * power_law(distance, near, numbers["exponent"])


def power_law(distance: Number, reference: Number, exponent: Number) -> Any:
    """Compute the gain over that at a reference, (d_0 / d)^alpha [-].

    Args:
        distance: d, any shape [m].
        reference: d_0 [m].
        exponent: alpha [-].
    """
    return (reference / distance) ** exponent


def disc_distance(u: jax.Array, radius: Number, inner: Number = 0.0) -> jax.Array:
    """Place points uniformly over a ring: their distances from its middle, shaped as u [m].

    The area within a distance grows as its square.

    Args:
        u: uniform numbers from 0 to 1.
        radius: outer radius R [m].
        inner: inner radius r [m].
    """
    hole = (inner / radius) ** 2  # part of the disc
    return radius * jnp.sqrt(hole + u * (1 - hole))


def exponential(u: jax.Array) -> jax.Array:
    """Make exponential numbers of mean 1 of uniform ones below 1: -ln(1 - u)."""
    return -jnp.log1p(-u)


def complex_normal(u: jax.Array, v: jax.Array) -> jax.Array:
    """Make complex normal numbers of unit power of uniform ones: ``[..., 2]``.

    The power is exponential, the phase uniform (Box and Muller, Ann. Math. Stat. 29, 1958).

    Args:
        u: of the power, below 1, ``[...]``.
        v: of the phase, ``[...]``.

    Returns:
        Real and imaginary part on the last axis.
    """
    amplitude, phase = jnp.sqrt(exponential(u)), 2 * jnp.pi * v
    return amplitude[..., None] * jnp.stack([jnp.cos(phase), jnp.sin(phase)], axis=-1)


def rician_amplitude(rice: jax.Array, scattered: jax.Array) -> jax.Array:
    """Return the amplitude |c_0 + c_1 u| of mean power 1 ``[...]`` [-].

    c_0^2 = kappa / (kappa + 1) is the power of the fixed path, c_1^2 = 1 / (kappa + 1) that of
    the scattered ones (Goldsmith, Wireless Communications, 2005, section 3.2.2).

    Args:
        rice: kappa, broadcasts against ``[...]`` [-].
        scattered: u, ``[..., 2]`` [-].
    """
    fixed = jnp.sqrt(rice / (rice + 1))
    part = jnp.sqrt(1 / (rice + 1))
    return jnp.hypot(fixed + part * scattered[..., 0], part * scattered[..., 1])


def _option(name: str, value: ArrayLike | None, model: str) -> Number:
    """Return an option's number, or its default where it is left out."""
    default, models = OPTIONS[name]
    if value is None:
        return default
    if model not in models:
        raise refuse(name, f"left out for model {model!r}", value)
    require(name, one_number(name, value), 0.0, included=False)
    return as_floats(one_number(name, value))
