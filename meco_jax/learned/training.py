"""Training of the general policy without labels, over random systems.

Every step draws new systems and channels, prices them, and follows a gradient estimator of
``meco_jax.learned.estimators``, or one of your own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from meco_jax.learned import estimators as gr
from meco_jax.learned.case import Case, energy, make_case
from meco_jax.learned.policy import DeviceNetwork, GeneralPolicy, init_params
from meco_jax.runtime.checks import outside_traces, refuse, require
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.loop import (
    History,
    Keep,
    Metrics,
    Report,
    cosine_adam,
    train_loop,
    whole_chunk,
)
from meco_jax.runtime.settings import as_key, moves_data
from meco_jax.scenarios import sample_mixtures, sample_systems
from meco_jax.system import ACCESS, System

Sample = Callable[[jax.Array, int, int], tuple[System, jax.Array]]  # as ``sample_systems``


@short_repr
class PolicyConfig(struct.PyTreeNode):
    """Settings of the general policy's training."""

    learning_rate: float = 3e-3  # Adam's, at the start [-]
    final_learning_rate: float = 0.01  # of the start, reached by a cosine [-]
    gradient: str | gr.Estimator = struct.field(
        pytree_node=False, default="best_flips"
    )  # a name of ``GRADIENTS``, or a function as those
    batches: tuple[tuple[int, int] | tuple[int, int, str], ...] = struct.field(
        pytree_node=False, default=((256, 24), (32, 64))
    )  # channels and most devices of the parts of a step; with an access of ``sample_mixtures``
    sample: Sample = struct.field(pytree_node=False, default=sample_systems)  # what to learn from
    network: DeviceNetwork = struct.field(pytree_node=False, default=DeviceNetwork())
    steps_per_epoch: int = struct.field(pytree_node=False, default=100)
    epochs: int = struct.field(pytree_node=False, default=200)
    chunk_epochs: int = struct.field(pytree_node=False, default=1)  # most between two reports


@short_repr
class PolicyRun(NamedTuple):
    """A training under way."""

    params: Any
    optimizer: optax.OptState
    key: jax.Array


@moves_data
def train_policy(
    seed: int | jax.Array = 0,
    config: PolicyConfig | None = None,
    *,
    report: Report | None = None,
    folder: str | PathLike[str] | None = None,
    save_seconds: float = 20.0,
) -> tuple[GeneralPolicy, History]:
    """Train a policy that serves any system.

    Args:
        seed: of the network and of the systems, an integer or a PRNG key.
        config: the settings, ``PolicyConfig()`` by default.
        report: called after every chunk with the number of steps done and the metrics.
        folder: keeps checkpoints here; a run that they hold goes on where it ended.
        save_seconds: least time between two checkpoints [s].

    Returns:
        The policy, and the history: arrays ``[chunks]`` of "step" and, over the chunk's last
        epoch, "loss" and "gap", the mean of the energy of the best prefix of the ranking over the
        Lagrangian bound, at most 10 [-].

    Raises:
        ValueError: if a setting is out of its range; ``OtherRunError`` if ``folder`` holds a
            run with other settings (of a function its name counts, not what it does),
            ``DamagedRunError`` if it cannot be read, ``InUseError`` if another process trains
            in it.
        OSError: if a checkpoint cannot be written; those before stay.
    """
    outside_traces("train_policy", seed)
    config = check_policy_config(config or PolicyConfig())
    key = as_key("seed", seed)
    keep = None
    if folder is not None:
        settings = _describe(config, key)
        keep = Keep(Path(folder), settings, save_seconds, _state, _with_state)
    begin = partial(start_policy, key, config)
    run, history = train_loop(begin, lambda *at: advance_policy(*at, config), config, report, keep)
    return GeneralPolicy(run.params, config.network), history


def _describe(config: PolicyConfig, key: jax.Array) -> dict[str, Any]:
    """Name all that a training depends on, as JSON: resuming with other values is wrong."""
    settings = {name: getattr(config, name) for name in config.__dataclass_fields__}
    network = {name: getattr(config.network, name) for name in ("width", "rounds", "trust")}
    high, low = map(int, jax.random.key_data(key))
    settings |= {"seed": high << 32 | low, "sample": config.sample.__name__} | network
    settings["gradient"] = gr.estimator_name(config.gradient)
    del settings["network"]
    return settings


def _state(run: PolicyRun) -> tuple[Any, optax.OptState]:
    """Take what changes in a training to the host."""
    return jax.tree.map(np.asarray, run[:2])


def _with_state(run: PolicyRun, state: tuple[Any, optax.OptState]) -> PolicyRun:
    return run._replace(params=state[0], optimizer=state[1])


@jax.jit
def start_policy(key: jax.Array, config: PolicyConfig) -> PolicyRun:
    """Initialise the network and the optimiser."""
    init_key, draw_key = jax.random.split(key)
    params = init_params(config.network, init_key)
    return PolicyRun(params, cosine_adam(config).init(params), draw_key)


@partial(jax.jit, donate_argnums=0)
def advance_policy(
    run: PolicyRun, first_epoch: jax.Array | int, config: PolicyConfig
) -> tuple[PolicyRun, Metrics]:
    """Train for ``config.chunk_epochs`` epochs: the chunk to jit.

    Returns:
        The run and the metrics' means over the last epoch.
    """
    total = config.epochs * config.steps_per_epoch

    def step(run: PolicyRun, number: jax.Array) -> tuple[PolicyRun, Metrics]:
        draw_key, loss_key = jax.random.split(jax.random.fold_in(run.key, number))
        draw_keys = jax.random.split(draw_key, len(config.batches))
        draws = [
            jax.vmap(make_case)(*_draw(config, key, *part))
            for key, part in zip(draw_keys, config.batches)
        ]
        loss_keys = list(jax.random.split(loss_key, len(draws)))

        def loss(params: Any) -> tuple[jax.Array, Metrics]:
            sums = [
                _sum_losses(params, cases, key, number / total, config)
                for cases, key in zip(draws, loss_keys)
            ]
            count = sum(jnp.sum(cases.counts, dtype=cases.base_dual.dtype) for cases in draws)
            means = jax.tree.map(lambda *parts: sum(parts) / count, *sums)
            return means["loss"], means

        slope, metrics = jax.grad(loss, has_aux=True)(run.params)
        updates, optimizer = cosine_adam(config).update(slope, run.optimizer, run.params)
        return PolicyRun(optax.apply_updates(run.params, updates), optimizer, run.key), metrics

    steps = config.chunk_epochs * config.steps_per_epoch
    numbers = first_epoch * config.steps_per_epoch + jnp.arange(steps)
    run, metrics = jax.lax.scan(step, run, numbers)
    return run, {name: jnp.mean(x[-config.steps_per_epoch :]) for name, x in metrics.items()}


def _draw(
    config: PolicyConfig, key: jax.Array, num: int, num_devices: int, *access: str
) -> tuple[System, jax.Array]:
    """Draw a part of a step."""
    sample = sample_mixtures if access else config.sample
    return sample(key, num, num_devices, *access)


def _sum_losses(
    params: Any, cases: Case, key: jax.Array, progress: jax.Array, config: PolicyConfig
) -> Metrics:
    """Sum the loss and the gap over the cases ``[N]`` that count."""

    def one(case: Case, key: jax.Array) -> Metrics:
        scores: jax.Array = config.network.apply(params, case.features, case.usable)  # type: ignore[assignment]
        loss = gr.find_estimator(config.gradient)(scores, case, key, progress)
        if jnp.shape(loss):
            rule = "config.gradient must return one loss, of shape ()"
            raise ValueError(f"{rule}; got shape {jnp.shape(loss)}")
        gap = jnp.minimum(energy(gr.best_count(scores, case), case) - 1, 10.0)
        return {n: jnp.where(case.counts, x, 0.0) for n, x in (("loss", loss), ("gap", gap))}

    each = jax.vmap(one)(cases, jax.random.split(key, len(cases.counts)))
    return {name: jnp.sum(values) for name, values in each.items()}


def check_policy_config(config: PolicyConfig) -> PolicyConfig:
    """Return the configuration with chunks that fit.

    Raises:
        ValueError: if a setting is out of its range.
    """
    gr.find_estimator(config.gradient)
    for name in ("steps_per_epoch", "epochs", "chunk_epochs"):
        if getattr(config, name) < 1:
            raise ValueError(f"config.{name} must be at least 1; got {getattr(config, name)}")
    parts = [(*part, "tdma")[:3] for part in config.batches]
    if not parts or min(min(part[:2]) for part in parts) < 1:
        raise ValueError(f"config.batches must be pairs of at least 1; got {config.batches}")
    for *_, access in parts:
        if access not in ACCESS:
            raise refuse("config.batches", f"pairs, or with one of {', '.join(ACCESS)}", access)
    for name in ("learning_rate", "final_learning_rate"):
        require(f"config.{name}", getattr(config, name), 0.0, included=True)
    return config.replace(chunk_epochs=whole_chunk(config.epochs, config.chunk_epochs))
