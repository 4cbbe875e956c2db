"""The loop that every training runs on: one jitted chunk after another, reported and kept.

The loop stands on the host. Randomness is by ``fold_in(key, number)``, so that a training goes
on from a checkpoint bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meco_jax.runtime.checkpoints import RunStore
from meco_jax.runtime.describe import short_repr

Metrics = dict[str, jax.Array]
Row = dict[str, np.ndarray]  # the metrics of one report, and "step"
Carry = TypeVar("Carry")
Report = Callable[[int, Row], None]


@short_repr
class History(Row):
    """Metrics of a training by name, an array with an entry per report each."""


def _unflatten(names: tuple[str, ...], values: Sequence[np.ndarray]) -> History:
    return History(zip(names, values))


jax.tree_util.register_pytree_node(  # as a dict is
    History, lambda history: (tuple(history.values()), tuple(history)), _unflatten
)


class Schedule(Protocol):
    """What settings say about the length and the rate of a training."""

    @property
    def learning_rate(self) -> Any:
        """Rate at the start [-]."""

    @property
    def final_learning_rate(self) -> float:
        """Rate at the end, as a part of the start's [-]."""

    @property
    def epochs(self) -> int:
        """Number of epochs."""

    @property
    def chunk_epochs(self) -> int:
        """Epochs between two reports."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""


@short_repr
class Keep(NamedTuple, Generic[Carry]):
    """Where the checkpoints of a training are kept, and what of it they hold."""

    folder: Path  # of this training alone
    settings: dict[str, Any]  # all that the training depends on, JSON values by name
    save_seconds: float  # least time between two checkpoints [s]
    state: Callable[[Carry], Any]  # of a run: what changes, on the host
    with_state: Callable[[Carry, Any], Carry]  # a fresh run with a state that was kept


def train_loop(
    begin: Callable[[], Carry],
    advance: Callable[[Carry, int], tuple[Carry, Metrics]],
    config: Schedule,
    report: Report | None,
    keep: Keep[Carry] | None = None,
) -> tuple[Carry, History]:
    """Drive a jitted chunk from the host until ``config.epochs`` are done.

    Args:
        begin: makes a training under way, 0 epochs old.
        advance: from a run and the number of its first epoch to the run after a chunk.
        config: the settings; ``chunk_epochs`` divides ``epochs``.
        report: called after every chunk with the number of steps done and the metrics.
        keep: where checkpoints are kept; a run that they hold goes on where it ended.

    Raises:
        ValueError: ``OtherRunError`` if the folder holds a run with other settings,
            ``DamagedRunError`` if it cannot be read, ``InUseError`` if another process trains
            in it.
        OSError: if a checkpoint cannot be written; those before stay.
    """
    if keep is None:
        return _drive(begin(), advance, config, report)
    with RunStore(*keep[:3]) as store:
        run, first, rows = begin(), 0, list[Row]()  # not before the folder takes it
        if saved := store.load(keep.state(run)):
            first, state, rows = saved
            run = keep.with_state(run, state)

        def save(done: int, run: Carry, rows: list[Row]) -> None:
            store.save(done, lambda: keep.state(run), rows, done == config.epochs)

        return _drive(run, advance, config, report, first, rows, save)


def _drive(
    run: Carry,
    advance: Callable[[Carry, int], tuple[Carry, Metrics]],
    config: Schedule,
    report: Report | None,
    first: int = 0,
    before: Sequence[Row] = (),
    save: Callable[[int, Carry, list[Row]], None] | None = None,
) -> tuple[Carry, History]:
    """Go on with a run that is ``first`` epochs old, with the rows of the chunks before."""
    rows = list(before)
    for epoch in range(first, config.epochs, config.chunk_epochs):
        run, metrics = advance(run, epoch)
        done = epoch + config.chunk_epochs
        step = done * config.steps_per_epoch
        rows.append({"step": np.asarray(step), **jax.device_get(metrics)})
        if save is not None:
            save(done, run, rows)
        if report is not None:
            report(step, rows[-1])
    return run, History({name: np.stack([row[name] for row in rows]) for name in rows[0]})


def whole_chunk(epochs: int, most: int) -> int:
    """Return the largest number of epochs up to ``most`` that divides ``epochs``."""
    return max(n for n in range(1, min(most, epochs) + 1) if epochs % n == 0)


def cosine_adam(config: Schedule) -> optax.GradientTransformation:
    """Adam with a cosine decay of its rate."""
    total = config.epochs * config.steps_per_epoch

    def rate(step: jax.Array) -> jax.Array:
        done = jnp.clip(step / total, 0.0, 1.0)
        fall = (1 + jnp.cos(jnp.pi * done)) / 2
        final = config.final_learning_rate
        return config.learning_rate * (final + (1 - final) * fall)

    adam = optax.adam(rate)

    def update(*arguments: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax counts on it
            return adam.update(*arguments)

    return optax.GradientTransformation(adam.init, update)
