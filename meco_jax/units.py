"""Units of the fields by name, and powers given in decibels."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import jax
import numpy as np

from meco_jax.runtime.checks import real

Number = TypeVar("Number", float, np.ndarray, np.number, jax.Array)

UNITS = {
    "task_bits": "bit",
    "cpu_hz": "Hz",
    "slot": "s",
    "bandwidth": "Hz",
    "noise_power": "W",
    "max_power": "W",
    "chip": "J s^2",
    "circuit_power": "W",
    "fixed_time": "s",
    "fixed_energy": "J",
    "delay_weight": "J/s",
    "delay_cost": "J",
    "cost": "J",
    "power": "W",
    "time": "s",
    "energy": "J",
    "lower_bound": "J",
    "energy_per_device": "J",
    "sending_time": "s",
    "harvest": "s",
    "rate": "bit/s",
    "upper_bound": "bit/s",
    "doppler": "Hz",
    "speed": "m/s",
    "radius": "m",
    "reference": "m",
    "decorrelation": "m",
    "shadowing_db": "dB",
    "battery": "J",
    "delay": "s",
    "bits": "bit",
    "slot_energy": "J",
    "slot_energy_ci95": "J",
    "delay_mean": "s",
    "delay_95": "s",
    "delay_99": "s",
    "throughput": "bit/s",
    "lifetime": "s",
    "db": "dB",
    "snr_db": "dB",
    "Scenario.rate": "tasks/slot",  # where another class has the same name for something else
}
"""The units of fields by name, or by class and name; other fields have none [-]."""


def from_db(db: Number) -> Number:
    """Convert decibels to a ratio of powers, 10^(dB / 10).

    A channel gain in dB is a ratio of powers, h^2; ``solve`` takes the amplitude gain, its
    root: ``h = np.sqrt(meco_jax.from_db(path_gain_db))``, where a path loss of 60 dB is a gain
    of -60 dB.

    Args:
        db: a number, NumPy or JAX array of any shape [dB]; it may be traced.

    Returns:
        The ratio [-], of the same kind and shape: 10 dB are 10, -60 dB are 1e-6.

    Raises:
        ValueError: if it is no real number or array of these.
    """
    return _power_of_ten("db", db, 0.0)


def from_dbm(dbm: Number) -> Number:
    """Convert decibels over a milliwatt to a power, 10^(dBm / 10) mW.

    Args:
        dbm: a number, NumPy or JAX array of any shape [dBm]; it may be traced.

    Returns:
        The power [W], of the same kind and shape: 30 dBm are 1 W, 23 dBm 0.2 W.

    Raises:
        ValueError: if it is no real number or array of these.
    """
    return _power_of_ten("dbm", dbm, -3.0)


def _power_of_ten(name: str, level: Any, exponent: float) -> Any:
    """Return 10^(level / 10 + exponent)."""
    array = real(name, level)
    level = level if isinstance(level, (int, float)) else array
    try:
        return 10.0 ** (level / 10 + exponent)
    except OverflowError:  # of Python's floats; arrays become infinite by themselves
        return math.inf
