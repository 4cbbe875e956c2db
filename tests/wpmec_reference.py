"""Wireless powered offloading in plain float64 NumPy, brute force. Imports no meco_jax.

Fixed modes by their KKT conditions, checked against SciPy's SLSQP in ``test_wpmec.py``.
"""

import itertools

import numpy as np
from scipy.special import lambertw

CONSTANTS = {
    "chip": 1e-26, "cycles_per_bit": 100.0, "harvest_efficiency": 0.7, "power": 3.0,
    "bandwidth": 2e6, "noise_power": 1e-10, "overhead": 1.1,
}  # fmt: skip


def terms(h, weight, **constants):
    """Local rates L, gains rho and rates per nat w eps ``[K]``."""
    c = CONSTANTS | constants
    energy = c["harvest_efficiency"] * c["power"] * h  # harvested in the whole frame [J]
    local = weight * np.cbrt(energy / c["chip"]) / c["cycles_per_bit"]
    gain = energy * h / c["noise_power"]
    speed = weight * c["bandwidth"] / (c["overhead"] * np.log(2)) * np.ones_like(h)
    return local, gain, speed


def nats_at(price):
    """u with u - 1 + e^-u = y by SciPy's Lambert function."""
    return np.maximum(1 + price + lambertw(-np.exp(-1 - price)).real, 1e-12)


def best_rates(modes, local, gain, speed):
    """Best rates and harvesting times of modes ``[P, K]``, by bisection of the KKT conditions.

    Of sum_local L a^(1/3) + sum_S speed t ln(1 + gain a / t) subject to a + sum t = 1, with z =
    gain a / t: d/dt = speed (ln(1 + z) - z / (1 + z)) = nu for all that send, and d/da = nu. The
    rate is that of the allocation, so that an error of the price costs its square.
    """
    computing = np.where(modes, 0, local).sum(axis=1)
    low, high = np.full(len(modes), -30.0), np.full(len(modes), 45.0)  # ln nu
    for _ in range(60):
        nu = np.exp((low + high) / 2)
        u = np.minimum(nats_at(nu[:, None] / speed), 600)
        ratio = np.where(modes, gain / np.expm1(u), 0)  # t / a
        a = 1 / (1 + ratio.sum(axis=1))
        slope = np.where(modes, speed * gain * np.exp(-u), 0).sum(axis=1)
        under = computing / 3 * a ** (-2 / 3) + slope > nu
        low, high = np.where(under, np.log(nu), low), np.where(under, high, np.log(nu))
    time = ratio * a[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        sent = np.where(time > 0, speed * time * np.log1p(gain * a[:, None] / time), 0)
    return computing * np.cbrt(a) + sent.sum(axis=1), a


def brute_force(local, gain, speed):
    """Optimum over all 2^K modes: rate [bit/s], mode ``[K]`` bool, harvesting time."""
    modes = np.array(list(itertools.product([False, True], repeat=len(local))))
    rates, a = best_rates(modes, local, gain, speed)
    best = int(np.argmax(rates))
    return rates[best], modes[best], a[best]
