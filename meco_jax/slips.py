"""Values that look like slips of unit: out of what devices, radios and tasks of this world have.

Each rule is about the median over the devices of all channels, so that one weak link or a single
odd device is no slip. Nothing is refused: all of these values may be meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from meco_jax.runtime.describe import short_repr
from meco_jax.system import System, leaves

LEAST_TASK = 1e4  # less is a packet, which nobody offloads; KB written as bit are 1 to 9999 [bit]
MOST_CYCLES = 1e5  # video and ciphers take 1e2 to 1e4; a whole task's cycles are 1e6 or more [-]
LEAST_CPU = 1e6  # slower than any microcontroller; GHz are below 1e2, MHz below 1e5 [Hz]
MOST_LOCAL_POWER = 100.0  # of a device's CPU, eps f^3; a phone's takes some 5 W [W]
LEAST_BAND = 1e3  # narrower than any uplink: NB-IoT has 3.75 kHz [Hz]
LONG_SLOT, SHORT_TASKS = 5.0, 0.1  # s, and local times over T: ms written as s are 5 to 5000
MOST_POWER = 5.0  # no handset or sensor sends more; dBm written as W are 5 to 40, mW more [W]
THERMAL = 1.38e-23 * 290  # k T_0, thermal noise at room temperature [W/Hz]
LEAST_FIGURE = 0.1  # noise over the thermal one; less than it no receiver has, and 0.1 to spare [-]
MOST_FIGURE = 1e3  # 30 dB: beyond any receiver, and any usual interference [-]
LEAST_SNR = -6.7  # at full power; below it LTE has no rate, CQI 1 [dB]
FADE = 30.0  # of one link by Rayleigh fading, once in 1000; the median of n fades by less [dB]
MOST_SNR = 60.0  # at full power; distortion ends what radios tell apart at 40 to 50 dB [dB]
MOST_EDGE = 1e3  # a task's cycles over the edge's; GHz written as cycles give 1e6 or more [-]
LEAST_GAIN = 1e-14  # h^2 of a link in a cell, -140 dB; less is no link [-]


@short_repr
class Slip(NamedTuple):
    """A value that looks like a slip of unit."""

    name: str  # of the argument or field
    text: str  # the value, what it is beside, and what to pass if it is a slip


def find_slips(
    system: System, h: np.ndarray, snr_db: np.ndarray, local_ratio: np.ndarray
) -> tuple[Slip, ...]:
    """Find what looks like a slip of unit.

    Args:
        system: the physics, NumPy arrays ``[..., K]`` or ``[..., 1]``.
        h: amplitude gains ``[..., K]`` [-].
        snr_db: at full power ``[..., K]`` [dB].
        local_ratio: local times over T ``[..., K]`` [-].
    """
    counted = system.active & (system.task_bits > 0)
    values = leaves(system) | {
        "h": h,
        "snr": 10 ** (snr_db / 10),
        "local": local_ratio,
        "local_power": system.chip * system.cpu_hz**3,
        "figure": system.noise_power / (THERMAL * system.bandwidth),
    }
    if system.edge_cycles is not None:
        values["edge"] = system.task_bits * system.cycles_per_bit / system.edge_cycles
    medians = {name: _median(x, counted) for name, x in values.items()}
    links = int(np.count_nonzero(counted & (h > 0)))
    medians["least_snr"] = LEAST_SNR - FADE / max(links, 1)
    return (*_of_devices(medians), *_of_radios(medians), *_of_gains(medians))


def _median(values: Any, counted: np.ndarray) -> float:
    """Return the median of what is above 0 and finite where it counts, NaN if nothing is."""
    values = np.where(counted, values, 0.0)
    values = values[(values > 0) & np.isfinite(values)]
    return float(np.median(values)) if values.size else np.nan


def _of_devices(m: dict[str, float]) -> Iterator[Slip]:
    """Look at tasks, CPUs, the slot and the edge."""
    bits, hz, slot = m["task_bits"], m["cpu_hz"], m["slot"]
    if bits < LEAST_TASK:
        yield Slip(
            "task_bits", f"{bits:.3g} bit are a packet; {bits:.3g} KB are {8e3 * bits:.3g} bit"
        )
    if m["cycles_per_bit"] > MOST_CYCLES:
        yield Slip(
            "cycles_per_bit",
            f"{m['cycles_per_bit']:.3g} cycles for a bit; of a whole task they are "
            f"{m['cycles_per_bit'] / bits:.3g} for a bit",
        )
    if hz < LEAST_CPU:
        unit, factor = ("GHz", 1e9) if hz < 100 else ("MHz", 1e6)
        yield Slip("cpu_hz", f"{hz:.3g} Hz run no task; {hz:.3g} {unit} are {factor * hz:.3g} Hz")
    elif m["local_power"] > MOST_LOCAL_POWER:
        power = f"eps f^3 = {m['local_power']:.3g} W"
        yield Slip("chip", f"a CPU of {hz:.3g} Hz draws {power}; eps is some 1e-28 J s^2")
    if slot >= LONG_SLOT and m["local"] < SHORT_TASKS:
        yield Slip(
            "slot",
            f"{slot:.3g} s, of which local tasks take {m['local']:.2g}; {slot:.3g} ms are "
            f"{slot / 1e3:.3g} s",
        )
    if m.get("fixed_time", 0.0) > slot:
        fixed = m["fixed_time"]
        yield Slip(
            "fixed_time", f"{fixed:.3g} s exceed the slot; {fixed:.3g} ms are {fixed / 1e3:.3g} s"
        )
    if m.get("edge", 0.0) > MOST_EDGE:
        yield Slip(
            "edge_cycles",
            f"{m['edge_cycles']:.3g} cycles in a slot are less than one task has; F GHz are "
            f"F * 1e9 * slot cycles",
        )


def _of_radios(m: dict[str, float]) -> Iterator[Slip]:
    """Look at bandwidth, powers and noise."""
    band, power, noise = m["bandwidth"], m["max_power"], m["noise_power"]
    if band < LEAST_BAND:
        yield Slip(
            "bandwidth", f"{band:.3g} Hz are no uplink; {band:.3g} MHz are {1e6 * band:.3g} Hz"
        )
    if power > MOST_POWER:
        yield Slip(
            "max_power",
            f"{power:.3g} W; {power:.3g} dBm are from_dbm({power:.3g}) = "
            f"{10 ** min(power / 10 - 3, 300.0):.3g} W, {power:.3g} mW are {power / 1e3:.3g} W",
        )
    thermal = THERMAL * band
    if m["figure"] < LEAST_FIGURE and band >= LEAST_BAND:
        yield Slip(
            "noise_power",
            f"{noise:.3g} W are less than the thermal noise of the band, {thermal:.2g} W; a "
            f"density [W/Hz] is to be multiplied by the bandwidth",
        )


def _of_gains(m: dict[str, float]) -> Iterator[Slip]:
    """Look at gains beside power and noise."""
    h, snr, least = m["h"], _decibel(m["snr"]), m["least_snr"]
    path, beside = _decibel(h * h), f"an SNR of {snr:.0f} dB at full power"
    as_power = snr - _decibel(h)  # if h were h^2
    if snr < least and LEAST_SNR < as_power < MOST_SNR:
        yield Slip(
            "h",
            f"{h:.3g} means a path of {path:.0f} dB and {beside}; if these are power gains, a path "
            f"of {_decibel(h):.0f} dB and {as_power:.0f} dB, pass np.sqrt(h)",
        )
    if snr < least and m["figure"] > MOST_FIGURE and h * h > LEAST_GAIN:
        yield Slip(
            "noise_power",
            f"{m['noise_power']:.3g} W beside a path of {path:.0f} dB is {beside}; thermal noise "
            f"of the band is {THERMAL * m['bandwidth']:.2g} W, times the receiver's figure",
        )
    if snr > MOST_SNR and h > 1:
        yield Slip(
            "h",
            f"{h:.3g} receives more than was sent, {beside}; a path loss of {h:.3g} dB is "
            f"np.sqrt(from_db({-h:.3g}))",
        )
    elif snr > MOST_SNR:
        yield Slip(
            "h",
            f"{h:.3g} means a path of {path:.0f} dB and {beside}; fading of mean 1 is to be "
            f"multiplied by the root of the path's gain",
        )


def _decibel(ratio: float) -> float:
    return float(10 * np.log10(ratio))
