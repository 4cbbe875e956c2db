"""What a simulation comes to: energy, missed deadlines, delays, fairness, lifetimes, throughput."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from meco_jax.runtime.checks import one_number, refuse, require
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.settings import moves_data
from meco_jax.runtime.statistics import effective_number, half_width, series_half_width
from meco_jax.simulation.simulate import Outcome


@short_repr
class Summary(NamedTuple):
    """The outcomes of many slots and cells; see ``summarise``."""

    energy: np.ndarray  # [..., K] mean energy of a device per slot [J]
    slot_energy: float  # mean energy of a cell per slot [J]
    # [J] half width of its 95 % interval, over cells or the slots of one; infinite if these are few
    slot_energy_ci95: float
    effective_slots: float  # independent slots per cell that have a mean as certain [-]
    missed: float  # tasks that missed their deadline, of those that arrived [-]
    late: float  # uplinks that were late, of all [-]
    late_slots: float  # slots with a late uplink, of those with any [-]
    infeasible: float  # slots without a feasible plan [-]
    delay_mean: float  # of the tasks that got through, late ones included [s]
    delay_95: float  # 95 % of them took at most [s]
    delay_99: float  # [s]
    fairness: float  # Jain's index of the bits of the devices, 1 / K to 1 [-]
    backlog: float  # mean number of tasks that wait per device [-]
    throughput: float  # of a cell [bit/s]
    lifetime: np.ndarray  # [..., K] until the battery was empty, infinite if it never was [s]


@moves_data
def summarise(outcome: Outcome, slot: float, active: np.ndarray | bool = True) -> Summary:
    """Summarise outcomes in float64 on the host.

    Several cells are independent, and so are the means over their slots: the interval is
    Student's. The slots of one cell are not, where channels or queues go on from slot to slot:
    the interval is that of ``meco_jax.runtime.statistics.series_half_width``. A single run that
    is short beside the coherence time tells neither its mean nor how wrong that is: its interval
    is infinite, and several cells are what helps.

    Args:
        outcome: from ``simulate``, ``[..., N, K]``; batch axes are cells.
        slot: T [s].
        active: which devices count ``[K]`` bool; padding does not.

    Raises:
        ValueError: if ``outcome`` is none, or holds numbers out of range, ``slot`` is not
            positive, or ``active`` has not one boolean per device.
    """
    if not isinstance(outcome, Outcome):
        raise refuse("outcome", "from meco_jax.simulation.simulate", outcome)
    require("slot", one_number("slot", slot), 0.0, included=False)
    played: Any = Outcome(*map(np.asarray, outcome))  # type: ignore[arg-type]
    if played.energy.ndim < 2:
        raise refuse("outcome", "of several slots, [..., N, K]", f"shape {played.energy.shape}")
    require("outcome.energy", played.energy, 0.0, included=True)
    energy = played.energy.astype(np.float64)
    active = _which(active, energy.shape[-1])
    per_slot = energy.sum(axis=-1)
    series = per_slot.reshape(-1, per_slot.shape[-1])  # of cells
    means = series.mean(axis=1)
    delay = np.sort(played.delay[played.completed].astype(np.float64))
    bits = played.bits.astype(np.float64).sum(axis=-2)[..., active]
    dead = ~played.alive
    first = np.argmax(dead, axis=-2).astype(np.float64) + 1
    lifetime = np.where(dead.any(axis=-2), first * slot, np.inf)
    sent = played.sent.any(axis=-1)
    return Summary(
        energy=energy.mean(axis=-2),
        slot_energy=float(per_slot.mean()),
        slot_energy_ci95=half_width(means) if len(means) > 1 else series_half_width(series[0]),
        effective_slots=float(np.mean([effective_number(own) for own in series])),
        missed=_share(played.missed.sum(), played.arrived.sum()),
        late=_share(played.late.sum(), played.sent.sum()),
        late_slots=_share(played.late.any(axis=-1).sum(), sent.sum()),
        infeasible=float(1 - played.feasible.mean()),
        delay_mean=float(delay.mean()) if len(delay) else float("nan"),
        delay_95=_quantile(delay, 0.95),
        delay_99=_quantile(delay, 0.99),
        fairness=float(np.mean(jain_index(bits))),
        backlog=float(played.backlog[..., active].mean()),
        throughput=float(bits.sum(axis=-1).mean() / (slot * per_slot.shape[-1])),
        lifetime=lifetime,
    )


def jain_index(shares: np.ndarray) -> np.ndarray:
    """Compute Jain's fairness index, (sum x)^2 / (K sum x^2), over the last axis.

    Jain, Chiu and Hawe, DEC Research Report TR-301, 1984. NaN where all are 0.

    Args:
        shares: what each has, at least 0 ``[..., K]``.

    Raises:
        ValueError: if it is no array of numbers in that range.
    """
    require("shares", shares, 0.0, included=True)
    shares = np.asarray(shares, np.float64)
    if not shares.ndim:
        raise refuse("shares", "one number for each of K devices, [..., K]", shares)
    squares = shares.shape[-1] * np.sum(shares**2, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sum(shares, axis=-1) ** 2 / squares


def _which(active: Any, num_devices: int) -> np.ndarray:
    """Return which devices count ``[K]``, from one boolean or one each."""
    flags = np.asarray(active)
    if flags.shape not in ((), (num_devices,)):
        rule = f"one boolean, or one for each of {num_devices} devices"
        raise ValueError(f"active must be {rule}; got shape {flags.shape}")
    if not np.all((flags == 0) | (flags == 1)):
        raise refuse("active", "True or False", flags)
    return np.broadcast_to(flags.astype(bool), (num_devices,))


def _share(part: int, whole: int) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _quantile(ordered: np.ndarray, probability: float) -> float:
    """Return the smallest value that so many are at most."""
    if not len(ordered):
        return float("nan")
    return float(ordered[max(int(np.ceil(probability * len(ordered))) - 1, 0)])
