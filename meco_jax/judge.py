"""What an answer to P1 really costs and whether it keeps C1-C6: from its decision, powers, times.

All is computed again in float64 on the host. What the answer says of itself does not count.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from meco_jax import system as sy
from meco_jax.runtime.arguments import core_leaves
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.system import System

ROUNDING = 1e-6  # relative excess of a constraint that float32 may make [-]


@short_repr
class Verdict(NamedTuple):
    """What answers ``[N]`` are worth."""

    value: np.ndarray  # [N] the objective: cost [J], or rate [bit/s]
    feasible: np.ndarray  # [N] bool: all constraints hold


def judge(h: np.ndarray, system: System, answer: Solution) -> Verdict:
    """Judge answers to P1: their cost, (6) with realised times, and C1-C6.

    Args:
        h: amplitude gains ``[N, K]`` [-].
        system: the physics, fields ``[N, K]`` and ``[N]``.
        answer: ``offload``, ``power`` and ``time`` count, ``[N, K]`` each.

    Returns:
        The costs, infinite where a sent task never arrives, and whether the answers are feasible.
    """
    gains, system = _devices_first(h), _on_host(system, h.shape)
    sent, power, time = map(_devices_first, (answer.offload, answer.power, answer.time))
    with np.errstate(all="ignore"):  # an answer may hold anything
        numbers = all_finite(sent, power, time)
        used = sy.transmit_time(system, gains, sent, power, time, xp=np)
        kept = (1 - sent) * sy.local_time(system, np)
        each = (
            (sent == 0) | ((sent == 1) & system.active),  # C4
            ~system.active | (sent == 1) | (kept <= system.slot * (1 + ROUNDING)),  # C2
            (power >= 0) & (power <= system.max_power * (1 + ROUNDING)),  # C3
            (time >= 0) & (used <= sy.allowed_time(system, time, np) * (1 + ROUNDING)),  # C5
        )
        feasible = numbers & np.all(each, axis=(0, 1))
        feasible &= sy.slot_left(system, sent, time, np) >= -ROUNDING * system.slot  # C1
        feasible &= sy.edge_left(system, sent, np) >= -ROUNDING  # C6
        cost = sy.realised_energies(system, gains, sent, power, time, xp=np)
        cost = cost + sy.realised_delays(system, gains, sent, power, time, xp=np)
        return Verdict(np.sum(cost, axis=0), feasible)


def all_finite(*arrays: np.ndarray) -> Any:
    """Tell for which answers all numbers ``[K, N]`` are finite: ``[N]`` bool."""
    return np.all([np.isfinite(array).all(axis=0) for array in arrays], axis=0)


def _on_host(system: System, shape: tuple[int, ...]) -> System:
    """Take a system to float64 with its devices on the first axis, where ``[N]`` broadcasts."""
    fields = {}
    for name, (leaf, rank) in core_leaves(sy.check_system(system), np.asarray).items():
        if rank:
            leaf = np.broadcast_to(leaf, shape).T
        fields[name] = leaf if leaf.dtype == bool else leaf.astype(np.float64)
    return System(**fields, access=system.access)


def _devices_first(x: Any) -> Any:
    """Turn ``[N, K]`` into float64 ``[K, N]``."""
    return np.asarray(x, np.float64).T
