"""What a simulation comes to: energy, missed deadlines, delays, fairness, lifetimes, throughput."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from meco_jax.runtime.checks import refuse, require
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.settings import moves_data
from meco_jax.simulation.simulate import Outcome


@short_repr
class Summary(NamedTuple):
    """The outcomes of many slots and cells; see ``summarise``."""

    energy: np.ndarray  # [..., K] mean energy of a device per slot [J]
    slot_energy: float  # mean energy of a cell per slot [J]
    slot_energy_ci95: float  # half width of its 95 % interval over cells, or slots of one [J]
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

    Args:
        outcome: from ``simulate``, ``[..., N, K]``; batch axes are cells.
        slot: T [s].
        active: which devices count ``[K]`` bool; padding does not.

    Raises:
        ValueError: if ``outcome`` is none, or ``slot`` is not positive.
    """
    if not isinstance(outcome, Outcome):
        raise refuse("outcome", "from meco_jax.simulation.simulate", outcome)
    require("slot", slot, 0.0, included=False)
    played: Any = Outcome(*map(np.asarray, outcome))  # type: ignore[arg-type]
    if played.energy.ndim < 2:
        raise refuse("outcome", "of several slots, [..., N, K]", f"shape {played.energy.shape}")
    energy = played.energy.astype(np.float64)
    active = np.broadcast_to(np.asarray(active, bool), energy.shape[-1:])
    per_slot = energy.sum(axis=-1)
    samples = per_slot.mean(axis=-1).ravel() if per_slot.ndim > 1 else per_slot
    delay = np.sort(played.delay[played.completed].astype(np.float64))
    bits = played.bits.astype(np.float64).sum(axis=-2)[..., active]
    dead = ~played.alive
    first = np.argmax(dead, axis=-2).astype(np.float64) + 1
    lifetime = np.where(dead.any(axis=-2), first * slot, np.inf)
    sent = played.sent.any(axis=-1)
    return Summary(
        energy=energy.mean(axis=-2),
        slot_energy=float(per_slot.mean()),
        slot_energy_ci95=float(1.96 * samples.std() / max(len(samples), 1) ** 0.5),
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
    """
    shares = np.asarray(shares, np.float64)
    squares = shares.shape[-1] * np.sum(shares**2, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sum(shares, axis=-1) ** 2 / squares


def _share(part: int, whole: int) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _quantile(ordered: np.ndarray, probability: float) -> float:
    """Return the smallest value that so many are at most."""
    if not len(ordered):
        return float("nan")
    return float(ordered[max(int(np.ceil(probability * len(ordered))) - 1, 0)])
