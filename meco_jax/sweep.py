"""Many trainings as one program: lanes of (system, key), padded to the largest K.

Lanes are mapped by ``jax.lax.map(..., batch_size=)``: one at a time on a CPU, where
batched small matrix products are slower, all at once (``vmap``) on accelerators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.network import Policy
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


@partial(jax.jit, static_argnames="size")
def _start_lanes(keys: jax.Array, systems: System, config: TrainConfig, size: int) -> Run:
    return map_lanes(lambda key, system: start(key, system, config), (keys, systems), size)


@partial(jax.jit, static_argnames="size", donate_argnums=0)
def _advance_lanes(
    runs: Run, systems: System, config: TrainConfig, size: int
) -> tuple[Run, Metrics]:
    return map_lanes(lambda run, system: advance(run, system, config), (runs, systems), size)
