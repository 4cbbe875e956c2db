"""What an engineer looks at first: who must offload, what that takes, and slips of unit.

All is worked out by NumPy in float64 from the numbers that ``solve`` computes with; nothing is
compiled. The formulas are those of ``system`` and ``exact.uplink``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from meco_jax import system as sy
from meco_jax.exact.shares import FIT_TOLERANCE
from meco_jax.exact.uplink import make_uplink
from meco_jax.runtime.arguments import batch_shape, check_call, core_leaves
from meco_jax.runtime.checks import integer, is_traced, refuse
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.settings import moves_data
from meco_jax.slips import Slip, find_slips
from meco_jax.system import ArrayLike, System

CONSTRAINTS = "", "C1", "C6", "C1 and C6"
MOST_ROWS = 20  # devices in the text: those that need most of the slot


@short_repr
@dataclasses.dataclass(frozen=True)
class Explanation:
    """Hold what ``explain`` finds of channels ``[..., K]``: NumPy arrays; ``str`` is the text."""

    snr_db: np.ndarray  # [..., K] at full power in the whole band [dB]
    local_ratio: np.ndarray  # [..., K] local time over T, infinite without a CPU [-]
    forced: np.ndarray  # [..., K] bool: must offload, C2
    slot_share: np.ndarray  # [..., K] least part of the slot, or band, that sends the task [-]
    slot_need: np.ndarray  # [...] sum of those that must offload; C1 fails above 1 [-]
    feasible: np.ndarray  # [...] bool
    constraint: np.ndarray  # [...] what fails: "C1", "C6", "C1 and C6" or ""
    slips: tuple[Slip, ...]  # values that look like slips of unit
    index: tuple[int, ...]  # of the channel that the text is about
    text: str = dataclasses.field(repr=False)
    edge_share: np.ndarray | None = None  # [..., K] part of the edge's cycles of each task [-]
    edge_need: np.ndarray | None = None  # [...] as ``slot_need``; C6 fails above 1 [-]

    def __str__(self) -> str:
        return self.text


@moves_data
def explain(
    h: ArrayLike, system: System, index: int | tuple[int, ...] | None = None
) -> Explanation:
    """Print and return what to look at first where an answer is infeasible or surprising.

    The SNR at full power, log10(p_max h^2 / N0); the local time over T, C B / (f T), above 1 for
    those that must offload, C2; what these need at least of the slot, sum (t_min + d) / T, C1, and
    of the edge's cycles, C6; and values that look like slips of unit. Source: THEORY.md, sections
    3 and 10.

    Args:
        h: amplitude gains ``[..., K]`` [-].
        system: the physics, any field with leading batch axes that broadcast against h's.
        index: of a batch, the channel to print: its place in the flattened batch, or a tuple. By
            default the first that is infeasible, or else the first.

    Returns:
        An ``Explanation`` of all channels.

    Raises:
        ValueError: as ``solve``; if there is no such channel; under ``jax.jit`` and its like.
    """
    if is_traced(h, system):
        raise ValueError(
            "explain must be called outside jax.jit, grad, vmap, scan and their like, since it "
            "prints numbers; got a call under one of them"
        )
    gains, system = check_call(h, system)
    shape = batch_shape(system, gains)
    if 0 in shape:
        raise ValueError(f"h and system must be of one channel at least; got batch axes {shape}")
    columns, amplitude = _columns(system), np.asarray(gains, np.float64)
    with np.errstate(all="ignore"):  # infinite where nothing can be sent or computed
        found = _work_out(system, columns, amplitude, (*shape, gains.shape[-1]))
        slips = find_slips(columns, amplitude, found["snr_db"], found["local_ratio"])
    place = _place(index, shape, found["feasible"])
    lines = [
        *_summary(found, place),
        *_one_channel(columns, found, place),
        *map(_write_slip, slips),
    ]
    text = "\n".join(lines)
    print(text)
    return Explanation(**found, slips=slips, index=place, text=text)


def _columns(system: System, kind: Any = np.float64) -> System:
    """Return a system of NumPy arrays ``[..., K]`` and ``[..., 1]``, which fit each other."""
    fields = {}
    for name, (leaf, rank) in core_leaves(system, np.asarray).items():
        leaf = leaf if name == "active" else leaf.astype(kind)
        fields[name] = leaf if rank else leaf[..., None]
    return System(**fields, access=system.access)


def _work_out(system: System, columns: System, h: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Compute the arrays of an ``Explanation``, ``shape`` ``[..., K]``."""
    uplink = make_uplink(columns, h, np)
    # As rounded as where ``solve`` decides it: a CPU may be just quick enough.
    forced = sy.forced(_columns(system, np.asarray(system.slot).dtype), np)
    has_task = columns.active & (columns.task_bits > 0)
    arrays = {
        "snr_db": 10 * np.log10(columns.max_power * sy.power_gain(columns, h, np)),
        "local_ratio": np.where(has_task, sy.local_time(columns, np) / columns.slot, 0.0),
        "forced": forced,
        "slot_share": np.where(has_task, uplink.exact.coarse, 0.0),
    }
    if columns.edge_cycles is not None:
        cycles = columns.task_bits * columns.cycles_per_bit / columns.edge_cycles
        arrays["edge_share"] = np.where(has_task, cycles, 0.0)
    found: dict[str, Any] = {n: np.broadcast_to(x, shape).copy() for n, x in arrays.items()}
    late = {}
    for name, constraint in (("slot", "C1"), ("edge", "C6")):
        if f"{name}_share" in found:
            each = np.where(found["forced"], found[f"{name}_share"], 0.0)
            found[f"{name}_need"] = need = np.asarray(each.sum(axis=-1))
            late[constraint] = need > 1 + FIT_TOLERANCE
    slot, edge = late["C1"], late.get("C6", np.zeros(shape[:-1], bool))
    words = np.array(CONSTRAINTS)
    verdict = {"feasible": ~(slot | edge), "constraint": words[slot + 2 * edge]}
    return found | {name: np.asarray(x) for name, x in verdict.items()}


def _place(index: Any, shape: tuple[int, ...], feasible: np.ndarray) -> tuple[int, ...]:
    """Return the channel to print, a place in the batch."""
    if index is None:
        return tuple(map(int, np.unravel_index(np.argmin(feasible), shape))) if shape else ()
    if isinstance(index, tuple):
        if len(index) != len(shape):
            raise refuse("index", f"of {len(shape)} axes, like the batch {shape}", index)
        return tuple(integer("index", i, 0, n - 1) for i, n in zip(index, shape))
    place = integer("index", index, 0, math.prod(shape) - 1)
    return tuple(map(int, np.unravel_index(place, shape))) if shape else ()


def _summary(found: dict[str, Any], place: tuple[int, ...]) -> list[str]:
    """Say of a batch how many channels are infeasible, and by which constraint."""
    if not place:
        return []
    constraint = found["constraint"]
    counts = {name: int(np.sum(constraint == name)) for name in CONSTRAINTS[1:]}
    by = ", ".join(f"{number} by {name}" for name, number in counts.items() if number)
    infeasible = f"{sum(counts.values())} of {constraint.size} channels are infeasible"
    return [infeasible + (f": {by}" if by else ""), f"channel {', '.join(map(str, place))}"]


def _one_channel(columns: System, found: dict[str, Any], place: tuple[int, ...]) -> list[str]:
    """Describe one channel: the verdict, and a row per device."""
    one = {name: x[place] for name, x in found.items()}
    active = np.broadcast_to(columns.active, found["forced"].shape)[place]
    slot = _number(columns.slot, found, place)
    verdict = "feasible" if one["feasible"] else f"INFEASIBLE by {one['constraint']}"
    lines = [
        f"{verdict}: {one['forced'].sum()} of {active.sum()} devices must offload, as their local "
        f"time is above T = {slot:.4g} s (C2)"
    ]
    whole = "slot" if columns.access == "tdma" else "band"
    never = np.flatnonzero(one["forced"] & np.isinf(one["slot_share"]))
    if len(never):
        lines.append(
            f"no time is enough for device {_listed(never)} at full power (C3): see its SNR"
        )
    elif one["forced"].any():
        enough = one["slot_need"] * slot
        advice = f", and would fit into {enough:.4g} s" if whole == "slot" and enough > slot else ""
        lines.append(f"they take {_percent(one['slot_need'])} of the {whole} at least (C1){advice}")
    if "edge_need" in one and one["forced"].any():
        lines.append(f"they take {_percent(one['edge_need'])} of the edge's cycles (C6)")
    return lines + _table(one, np.flatnonzero(active), whole)


def _number(leaf: np.ndarray, found: dict[str, Any], place: tuple[int, ...]) -> float:
    """Return a field ``[..., 1]`` of one channel."""
    return float(np.broadcast_to(leaf[..., 0], found["feasible"].shape)[place])


def _table(one: dict[str, Any], devices: np.ndarray, whole: str) -> list[str]:
    """Write a row per device; of many those that must offload and need most of the slot."""
    rank = np.lexsort((-one["slot_share"][devices], ~one["forced"][devices]))
    shown = np.sort(devices[rank[:MOST_ROWS]])
    edge = "edge_share" in one
    lines = [
        f"{'device':>6} {'SNR [dB]':>9} {'local / T':>10} {'must offload':>13} "
        f"{'of the ' + whole:>12}" + (f" {'of the edge':>12}" if edge else "")
    ]
    for k in shown:
        why = ("no CPU" if np.isinf(one["local_ratio"][k]) else "yes") if one["forced"][k] else "-"
        lines.append(
            f"{k:>6} {one['snr_db'][k]:>9.1f} {one['local_ratio'][k]:>10.3g} {why:>13} "
            f"{_percent(one['slot_share'][k]):>12}"
            + (f" {_percent(one['edge_share'][k]):>12}" if edge else "")
        )
    hidden = len(devices) - len(shown)
    return lines + ([f"   ... {hidden} more, which need less"] if hidden else [])


def _percent(part: float) -> str:
    return "out of reach" if math.isinf(part) else f"{100 * part:.4g} %"


def _listed(devices: np.ndarray) -> str:
    shown = ", ".join(map(str, devices[:MOST_ROWS]))
    return shown + (", ..." if len(devices) > MOST_ROWS else "")


def _write_slip(slip: Slip) -> str:
    return f"look at {slip.name}: {slip.text}"
