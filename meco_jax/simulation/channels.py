"""Channels that move, and what is known of them: fading, path loss, shadowing, CSI.

The complex gain of a device is ``scale (c_0 + c_1 u)``: u is the scattered part, complex normal
of unit power, c_0^2 = kappa / (kappa + 1) and c_1^2 = 1 / (kappa + 1), and ``scale`` holds mean
gain, path loss and shadowing. Only its amplitude h enters P1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax.propagation import LIGHT, disc_distance, power_law, rician_amplitude
from meco_jax.runtime.checks import real, require
from meco_jax.runtime.describe import short_repr
from meco_jax.simulation import draws
from meco_jax.simulation.scenario import Scenario
from meco_jax.system import Leaf

NODES = 32  # of the mean that is J0 up to ``SERIES_END``: J_64(8) is 1e-50
SERIES_END = 8.0
MODULUS = (0.79788456, -0.00000077, -0.00552740, -0.00009512, 0.00137237, -0.00072805, 0.00014476)
PHASE = (-0.78539816, -0.04166397, -0.00003954, 0.00262573, -0.00054125, -0.00029333, 0.00013558)


@short_repr
class Channel(NamedTuple):
    """Where the channels of a cell are."""

    scattered: jax.Array  # [K, 2] u, real and imaginary part [-]
    shadow: jax.Array  # [K] standard normal [-]
    position: jax.Array  # [K, 2] from the station at 0 [m]
    target: jax.Array  # [K, 2] where the device goes [m]


@short_repr
class Estimates(NamedTuple):
    """What was measured in this slot and the last ``csi_delay`` ones, newest first."""

    scattered: jax.Array  # [delay + 1, K, 2] estimates of u [-]
    h: jax.Array  # [delay + 1, K] the amplitude gains that they mean [-]


@short_repr
class Knowledge(NamedTuple):
    """What is known of the complex gains now: normal around a mean, given the estimate."""

    h: jax.Array  # [K] the amplitude as it was estimated [-]
    expected: jax.Array  # [K] amplitude of the mean of the gain now [-]
    spread: jax.Array  # [K] standard deviation of the complex gain around it [-]


def bessel_j0(x: jax.Array) -> jax.Array:
    """Compute the Bessel function J0(x) of any shape, to 1e-6 in float32, 3e-8 in float64.

    Up to 8 as its integral, the mean of cos(x sin t), by equidistant nodes, which is exact to
    rounding; beyond by modulus and phase, Abramowitz and Stegun, Handbook of Mathematical
    Functions, 1964, 9.4.3.
    """
    x = jnp.abs(jnp.asarray(x, jnp.result_type(float)))
    near, far = jnp.minimum(x, SERIES_END), jnp.maximum(x, SERIES_END)
    sines = np.sin(np.pi * (np.arange(NODES) + 0.5) / NODES).astype(x.dtype)
    series = jnp.mean(
        jnp.cos(near[..., None] * sines.reshape(near.ndim * (1,) + sines.shape)), axis=-1
    )
    modulus, phase = (jnp.polyval(jnp.asarray(c[::-1], x.dtype), 3 / far) for c in (MODULUS, PHASE))
    beyond = modulus * jnp.cos(far + phase) / jnp.sqrt(far)
    return jnp.where(x < SERIES_END, series, beyond)


def doppler_frequency(speed: Leaf, carrier: Leaf) -> Any:
    """Return the maximum Doppler frequency v f / c [Hz].

    Args:
        speed: v, at least 0, a number or an array [m/s].
        carrier: carrier frequency f, at least 0, a number or an array [Hz].

    Raises:
        ValueError: if a number is known and out of its range.
    """
    for name, value in (("speed", speed), ("carrier", carrier)):
        require(name, value, 0.0, included=True)
    speeds, carriers = (x if isinstance(x, float) else real("speed", x) for x in (speed, carrier))
    return speeds * carriers / LIGHT


def slot_correlation(scenario: Scenario) -> jax.Array:
    """Correlate the scattered part with that of the slot before: ``[K]`` [-].

    rho = J0(2 pi f_d T) for Gauss-Markov fading (Clarke's scattering, sampled once per slot), 0
    for block fading.
    """
    if scenario.fading == "block":
        return jnp.zeros_like(scenario.doppler)
    return bessel_j0(2 * jnp.pi * scenario.doppler * scenario.system.slot)


def start_channel(key: jax.Array, scenario: Scenario, devices: jax.Array) -> Channel:
    """Draw channels of the first slot; devices are spread uniformly over the cell."""
    moving = draws.uniform(key, devices, draws.MOVING, 4)
    return Channel(
        scattered=draws.complex_normal(key, devices, draws.FADING),
        shadow=_normal(key, devices),
        position=_place(scenario, moving[:, :2]),
        target=_place(scenario, moving[:, 2:]),
    )


def next_channel(
    key: jax.Array, scenario: Scenario, devices: jax.Array, channel: Channel
) -> Channel:
    """Move all channels on by a slot.

    Gauss-Markov fading: u' = rho u + (1 - rho^2)^(1/2) w, w complex normal. Shadowing likewise,
    with correlation e^(-v T / d_s) (Gudmundson, Electronics Letters 27, 1991). Random waypoint:
    a device goes straight to a target, drawn uniformly over the cell, rests there until the slot
    ends, and draws the next.
    """
    fresh = draws.complex_normal(key, devices, draws.FADING)
    if scenario.fading == "gauss_markov":
        rho = slot_correlation(scenario)[:, None]
        fresh = rho * channel.scattered + jnp.sqrt(1 - rho * rho) * fresh
    if scenario.mobility == "none":
        return channel._replace(scattered=fresh)
    way = channel.target - channel.position
    distance, step = _length(way), scenario.speed * scenario.system.slot
    part = jnp.where(distance > step, step / jnp.where(distance > 0, distance, 1.0), 1.0)
    target = _place(scenario, draws.uniform(key, devices, draws.MOVING, 2))
    target = jnp.where((distance > step)[:, None], channel.target, target)
    rho = jnp.exp(-step / scenario.decorrelation)
    shadow = rho * channel.shadow + jnp.sqrt(1 - rho * rho) * _normal(key, devices)
    return Channel(fresh, shadow, channel.position + part[:, None] * way, target)


def large_scale(scenario: Scenario, channel: Channel) -> jax.Array:
    """Compute the mean amplitude from mean gain, path loss and shadowing: ``[K]`` [-]."""
    decibels = scenario.shadowing_db * channel.shadow
    gain = scenario.system.mean_gain * 10 ** (decibels / 10)
    if scenario.mobility != "none":
        distance = jnp.maximum(_length(channel.position), scenario.reference)
        gain = gain * power_law(distance, scenario.reference, scenario.exponent)
    return jnp.sqrt(gain)


def amplitude(scenario: Scenario, scale: jax.Array, scattered: jax.Array) -> jax.Array:
    """Return the amplitude gains h = scale |c_0 + c_1 u|: ``[K]`` [-].

    Args:
        scenario: gives kappa.
        scale: of ``large_scale``, ``[K]`` [-].
        scattered: u, ``[K, 2]`` [-].
    """
    return scale * rician_amplitude(scenario.rice, scattered)


def gains(scenario: Scenario, channel: Channel) -> jax.Array:
    """Return the true amplitude gains h: ``[K]`` [-]."""
    return amplitude(scenario, large_scale(scenario, channel), channel.scattered)


def measure(
    key: jax.Array, scenario: Scenario, devices: jax.Array, channel: Channel
) -> tuple[jax.Array, jax.Array]:
    """Estimate the scattered part with least mean square error, and the amplitude it means.

    u = estimate + e, where e is complex normal of power eps_h^2 and independent of the
    estimate (Kay, Fundamentals of Statistical Signal Processing, 1993, ch. 10).

    Returns:
        The estimate of u ``[K, 2]`` and of h ``[K]`` [-].
    """
    error = scenario.csi_error * scenario.csi_error
    noise = draws.complex_normal(key, devices, draws.MEASURING)
    estimate = (1 - error) * channel.scattered + jnp.sqrt(error * (1 - error)) * noise
    return estimate, amplitude(scenario, large_scale(scenario, channel), estimate)


def remember(estimates: Estimates, newest: tuple[jax.Array, jax.Array]) -> Estimates:
    """Put the newest estimates first, and forget the oldest."""
    return Estimates(*(jnp.concatenate([new[None], old[:-1]])
                       for new, old in zip(newest, estimates)))  # fmt: skip


def know(scenario: Scenario, channel: Channel, estimates: Estimates | None) -> Knowledge:
    """Say what is known of the gains now: mean gain, path loss, shadowing, an old estimate of u.

    With estimate v, d slots old, u is normal around rho_d v, of power 1 - rho_d^2 (1 - eps_h^2),
    where rho_d is the correlation over d slots.
    """
    if estimates is None:
        h = gains(scenario, channel)
        return Knowledge(h, h, jnp.zeros_like(h))
    rho = slot_correlation(scenario) ** scenario.csi_delay
    scale = large_scale(scenario, channel)
    expected = amplitude(scenario, scale, rho[:, None] * estimates.scattered[-1])
    known = rho * rho * (1 - scenario.csi_error * scenario.csi_error)
    spread = scale * jnp.sqrt((1 - known) / (scenario.rice + 1))
    return Knowledge(estimates.h[-1], expected, spread)


def _normal(key: jax.Array, devices: jax.Array) -> jax.Array:
    """Draw standard normal numbers of the shadowing ``[K]``."""
    return 2**0.5 * draws.complex_normal(key, devices, draws.SHADOWING)[:, 0]


def _place(scenario: Scenario, u: jax.Array) -> jax.Array:
    """Place devices uniformly in the disc from uniform numbers ``[K, 2]``: ``[K, 2]`` [m]."""
    distance, angle = disc_distance(u[:, 0], scenario.radius), 2 * jnp.pi * u[:, 1]
    return distance[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def _length(vectors: jax.Array) -> jax.Array:
    return jnp.hypot(vectors[:, 0], vectors[:, 1])
