"""Many trainings as one program: lanes of (system, key), padded to the largest K.

Lanes are mapped by ``jax.lax.map(..., batch_size=)``: one at a time on a CPU, where
batched small matrix products are slower, all at once (``vmap``) on accelerators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import schemes
from meco_jax import system as sy
from meco_jax.allocation import FIT_TOLERANCE, Solution
from meco_jax.network import Policy
from meco_jax.solver import solve
from meco_jax.system import System
from meco_jax.training import (
    History,
    Metrics,
    Report,
    Run,
    TrainConfig,
    advance,
    check_config,
    make_policy,
    start,
    train_loop,
)


def stack_systems(systems: Sequence[System]) -> System:
    """Pad systems to the largest K and stack their leaves on a leading lane axis."""
    largest = max(system.num_devices for system in systems)
    padded = [sy.check_system(sy.pad_devices(system, largest)) for system in systems]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)


def train_lanes(
    systems: System,
    keys: jax.Array,
    config: TrainConfig | None = None,
    *,
    batch_size: int | None = None,
    report: Report | None = None,
) -> tuple[Policy, History]:
    """Train one policy a lane, all in one program; a lane equals its single ``train``.

    Args:
        systems: stacked systems, ``[L, ...]`` leaves, see ``stack_systems``.
        keys: PRNG keys ``[L]``, consumed.
        config: the settings, shared by all lanes.
        batch_size: lanes that run at once; by default 1 on a CPU, elsewhere all.
        report: called after every chunk with the number of steps done and the metrics ``[L]``.

    Returns:
        The stacked policies, see ``take_lane``, and the history, arrays ``[chunks, L]``.

    Raises:
        ValueError: if a value is out of its range.
    """
    config = check_config(config or TrainConfig())
    size = lane_batch_size(len(keys)) if batch_size is None else batch_size
    runs = _start_lanes(keys, systems, config, size)
    runs, history = train_loop(partial(_advance_lanes, size=size), runs, systems, config, report)
    return make_policy(runs.state, systems, config), history


def map_lanes(function: Callable[..., Any], lanes: tuple[Any, ...], size: int) -> Any:
    """Map ``function(*lane)`` over the leading axis of ``lanes``, ``size`` lanes at once."""
    return jax.lax.map(lambda lane: function(*lane), lanes, batch_size=size if size > 1 else None)


def lane_batch_size(num_lanes: int) -> int:
    """Return how many lanes should run at once here: 1 on a CPU, elsewhere all."""
    return 1 if jax.default_backend() == "cpu" else num_lanes


def take_lane(policies: Policy, lane: int) -> Policy:
    """Take one policy out of stacked ones, without its padding devices."""
    policy: Policy = jax.tree.map(lambda leaf: leaf[lane], policies)
    num_devices = int(jnp.sum(policy.system.active))
    system = jax.tree.map(lambda leaf: leaf[:num_devices] if leaf.ndim else leaf, policy.system)

    def trim(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        layer, kind = path[-2].key, path[-1].key
        if layer == "Dense_0" and kind == "kernel":
            return leaf[:num_devices]  # the features of real devices
        if layer == f"Dense_{len(policy.network.hidden)}":
            return leaf[..., :num_devices]  # their outputs
        return leaf

    return policy.replace(
        system=system, variables=jax.tree_util.tree_map_with_path(trim, policy.variables)
    )


class Outcome(NamedTuple):
    """What one scheme does on the test channels of every lane, ``[L, N]`` each."""

    energy: jax.Array  # realised weighted energy, infinite where infeasible [J]
    lower_bound: jax.Array  # the Lagrangian one of P1, the same for all schemes [J]
    feasible: jax.Array  # bool: C1-C5 hold
    sending_time: jax.Array  # sum of the realised offloading times t' [s]
    offloaded: jax.Array  # share of the tasks that is sent [-]


def evaluate_lanes(
    policies: dict[str, Policy], keys: jax.Array, num_channels: int, size: int | None = None
) -> dict[str, Outcome]:
    """Run every scheme on the same fresh channels of each lane.

    Args:
        policies: the stacked policies "bcos" and "pcos" for the same systems.
        keys: PRNG keys of the test channels ``[L]``, consumed.
        num_channels: N, channels a lane.
        size: lanes that run at once, see ``train_lanes``.

    Returns:
        Outcomes of "mcos", "mcos_partial", "pcos" (optimal), "pcos_learned", "bcos_raw" (the
        network's own output), "bcos" (its decision made feasible) and "optimal", certified.
    """
    size = lane_batch_size(len(keys)) if size is None else size
    h, outcomes = _evaluate_lanes(policies, keys, num_channels, size)
    systems = policies["bcos"].system
    optimum = solve(h, jax.tree.map(lambda leaf: leaf[:, None], systems), method="optimal")
    judge = jax.vmap(jax.vmap(_outcome, (None, 0, 0, 0)))
    return outcomes | {"optimal": judge(systems, h, optimum, outcomes["bcos"].lower_bound)}


@partial(jax.jit, static_argnames=("num_channels", "size"))
def _evaluate_lanes(
    policies: dict[str, Policy], keys: jax.Array, num_channels: int, size: int
) -> tuple[jax.Array, dict[str, Outcome]]:
    def lane(policies: dict[str, Policy], key: jax.Array) -> tuple[jax.Array, dict[str, Outcome]]:
        system = policies["bcos"].system
        h = sy.sample_channels(key, system, num_channels)
        raw = policies["bcos"](h)
        solutions = {
            "mcos": jax.vmap(partial(schemes.mcos, system))(h),
            "mcos_partial": jax.vmap(partial(schemes.mcos_partial, system))(h),
            "pcos": jax.vmap(partial(schemes.pcos, system))(h),
            "pcos_learned": policies["pcos"](h),
            "bcos_raw": raw,
            "bcos": jax.vmap(partial(schemes.repair, system))(h, raw.offload),
        }
        judge = jax.vmap(partial(_outcome, system))
        return h, {name: judge(h, found, raw.lower_bound) for name, found in solutions.items()}

    return map_lanes(lane, (policies, keys), size)


def _outcome(system: System, h: jax.Array, solution: Solution, bound: jax.Array) -> Outcome:
    used = sy.transmit_time(system, h, solution.offload, solution.power)
    return Outcome(
        energy=solution.energy,
        lower_bound=bound,
        feasible=solution.feasible,
        sending_time=jnp.sum(used),
        offloaded=jnp.sum(solution.offload) / jnp.sum(system.active),
    )


def summarise(outcomes: dict[str, Outcome], systems: System, seed: int) -> list[dict[str, Any]]:
    """Average outcomes over the channels that are feasible for all: one row a lane and scheme.

    The rows of "lower_bound" hold the Lagrangian bound of P1 itself.

    Args:
        outcomes: from ``evaluate_lanes``.
        systems: the lanes' stacked systems.
        seed: goes into the rows.

    Returns:
        Rows with num_devices, slot, seed, scheme, energy_mean_j, energy_ci95_j (half width over
        channels), feasible_fraction, deadline_met_fraction (sum t' <= T), offload_fraction,
        gap_to_bound_mean and gap_to_optimum_mean (means of energy / bound - 1 and of energy /
        optimum - 1) and infeasible_fraction, the share of all channels that is left out.
    """
    bounds = np.asarray(outcomes["optimal"].lower_bound, np.float64)
    rows = []
    for lane, (active, slot) in enumerate(zip(np.asarray(systems.active), systems.slot)):
        keep = np.isfinite(bounds[lane])
        bound = bounds[lane][keep]
        optimum = np.asarray(outcomes["optimal"].energy[lane], np.float64)[keep]
        base = {"num_devices": int(np.sum(active)), "slot": round(float(slot), 6), "seed": seed}
        rest = {"infeasible_fraction": 1 - _mean(keep)}
        for scheme, outcome in outcomes.items():
            energy, _, feasible, sending_time, offloaded = (
                np.asarray(leaf[lane], np.float64)[keep] for leaf in outcome
            )
            on_time = sending_time <= float(slot) * (1 + FIT_TOLERANCE)
            means = _means(scheme, energy, (feasible, on_time, offloaded), bound, optimum)
            rows.append(base | means | rest)
        rows.append(base | _means("lower_bound", bound, ((), (), ()), bound, optimum) | rest)
    return rows


def _means(
    scheme: str, energy: np.ndarray, fractions: tuple[Any, ...], bound: Any, optimum: Any
) -> dict[str, Any]:
    """Average one lane and scheme over its feasible channels ``[N]``."""
    names = ("feasible_fraction", "deadline_met_fraction", "offload_fraction")
    return {
        "scheme": scheme,
        "energy_mean_j": _mean(energy),
        "energy_ci95_j": 1.96 * float(np.std(energy)) / max(len(energy), 1) ** 0.5,
        **dict(zip(names, map(_mean, fractions))),
        "gap_to_bound_mean": _mean(energy / bound - 1),
        "gap_to_optimum_mean": _mean(energy / optimum - 1),
    }


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


@partial(jax.jit, static_argnames="size")
def _start_lanes(keys: jax.Array, systems: System, config: TrainConfig, size: int) -> Run:
    return map_lanes(lambda key, system: start(key, system, config), (keys, systems), size)


@partial(jax.jit, static_argnames="size", donate_argnums=0)
def _advance_lanes(
    runs: Run, first_epoch: jax.Array, systems: System, config: TrainConfig, size: int
) -> tuple[Run, Metrics]:
    return map_lanes(
        lambda *lane: advance(lane[0], first_epoch, lane[1], config), (runs, systems), size
    )
