"""Gradient estimators of a binary decision on P1: same network, data, steps and tuning effort.

Every estimator of ``meco_jax.learned.estimators`` trains the same network from random weights on
the same mixture of K and b, at each of --learning_rates; the best of these on validation channels
is trained again with every one of --seeds, and tested on fresh channels with fresh tasks against
the certified optimum. A gap is energy / optimum - 1 of a feasible channel, its decision made
feasible. Writes results.csv (a row per estimator, K and b), runs.csv, history.csv, curves.csv (its
means over seeds), gradients.png/.pdf and run.json into --output_dir; the same command goes on with
a run that was cut off. Example:

    python experiments/gradients.py --output_dir=runs/gradients
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from report import result_tables
from support import common, csv_tables, list_flags, plots, progress_bar

from meco_jax import (
    GeneralPolicy,
    PolicyConfig,
    System,
    figures,
    pad_devices,
    sample_channels,
    solve,
    table1,
)
from meco_jax import system as sy
from meco_jax.exact.shares import fits
from meco_jax.exact.uplink import make_uplink
from meco_jax.figures import student_t
from meco_jax.learned.estimators import GRADIENTS
from meco_jax.learned.policy import DeviceNetwork
from meco_jax.learned.training import Sample, advance_policy, start_policy
from meco_jax.runtime.atomic import json_text, write_atomically

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_list("estimators", list(GRADIENTS), "the gradient estimators to compare")
flags.DEFINE_alias("ways", "estimators")  # deprecated
flags.DEFINE_list("num_devices", ["8", "14", "20"], "K of the channels; 4:8:2 is 4,6,8")
flags.DEFINE_list("log_bases", ["2", "10"], "bases of the logarithm in (3)")
flags.DEFINE_float("slot", 0.5, "slot length T [s]", lower_bound=1e-6)
flags.DEFINE_list("learning_rates", ["1e-3", "3e-3", "1e-2"], "to choose from, a run each")
flags.DEFINE_integer("seeds", 5, "trainings at the chosen rate", lower_bound=1, upper_bound=10)
flags.DEFINE_integer("epochs", 20, "of 100 steps each", lower_bound=4)
flags.DEFINE_integer("batch_size", 192, "channels per step", lower_bound=1)
flags.DEFINE_integer("validation_channels", 200, "of each K and b", lower_bound=2)
flags.DEFINE_integer("test_channels", 1000, "of each K and b", lower_bound=2)
flags.DEFINE_bool("plot_only", False, "train nothing, draw again from --output_dir's csv")
NETWORK = DeviceNetwork(trust=0.0)  # nothing of the answer is given
VALIDATION_SEED, TEST_SEED = 2**30, 2**30 + 10**7  # of tasks; training draws below


class Channels(NamedTuple):
    """Channels of every cell (K, b), ``[C * N, ...]``, with their optima."""

    system: System
    h: jax.Array
    optimum: np.ndarray  # [C, N], infinite where infeasible [J]


def main(argv: list[str]) -> None:
    """Train what is missing, test and draw."""
    common.begin(argv)
    folder = Path(FLAGS.output_dir)
    if not FLAGS.plot_only:
        estimators = list_flags.names("estimators", list(GRADIENTS))
        rates = list_flags.numbers("learning_rates", above=0)
        cells = list(
            itertools.product(
                list_flags.integers("num_devices", low=1), list_flags.numbers("log_bases", above=1)
            )
        )
        folder = common.prepare(resumes=True)
        same_settings(folder / "settings.json")
        train_all(folder, estimators, rates, cells)
    # As the files have them: a run that was cut off and went on gives the same bytes.
    runs, history = read(folder)
    rows = summarise(runs, history)
    if not rows:
        common.stop(f"{folder / 'runs.csv'} must have rows of seeds above 0; got none yet")
    curves = mean_curves(rows, history)
    csv_tables.write_csv(folder / "results.csv", rows)
    csv_tables.write_csv(folder / "curves.csv", curves)
    figures.save_figure(plots.learning_figure(curves, rows), folder / "gradients")
    if not FLAGS.plot_only:
        common.write_run(folder / "run.json")
    result_tables.show(result_tables.gradients(rows))


def read(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the tests of the trainings, runs.csv, and how they went, history.csv.

    Each training in history.csv has all its steps there, and all its cells in runs.csv.
    """
    training = "method", "learning_rate", "seed"
    place = *training, "num_devices", "log_base"
    tested = "gap_mean", "gap_worst", "within_deadline"
    runs = csv_tables.read_csv(folder / "runs.csv", (*place, *tested), place)
    steps = *training, "step"
    history = csv_tables.read_csv(folder / "history.csv", (*steps, "gap", "within_deadline"), steps)
    trainings = dict.fromkeys(tuple(row[name] for name in training) for row in history)
    for name, rows, columns in (("history", history, steps), ("runs", runs, place)):
        there = {tuple(row[column] for column in columns) for row in rows}
        parts = dict.fromkeys(at[len(training) :] for at in there)
        for at in itertools.product(trainings, parts):
            if (*at[0], *at[1]) not in there:
                values = zip(columns, (*at[0], *at[1]))
                text = ", ".join(f"{column} = {value}" for column, value in values)
                common.stop(f"{folder / name}.csv must have a row for {text}")
    return runs, history


def same_settings(path: Path) -> None:
    """Keep the flags that every training depends on; stop if an earlier run had others."""
    names = ("num_devices", "log_bases", "slot", "epochs", "batch_size",
             "learning_rates", "validation_channels", "test_channels")  # fmt: skip
    mine = {name: FLAGS[name].value for name in names}
    try:
        before = dict(json.loads(path.read_bytes())) if path.exists() else mine
    except (ValueError, TypeError, RecursionError):  # no JSON, or no object
        common.stop(f"{path} cannot be read; delete {path.parent} to begin again")
    for name in names:
        if before.get(name) != mine[name]:
            common.stop(
                f"--{name} must be {before.get(name)} to go on with the run in {path.parent}; "
                f"got {mine[name]}"
            )
    write_atomically(path, lambda file: file.write(json_text(mine)))


def train_all(
    folder: Path, estimators: list[str], rates: list[float], cells: list[tuple[int, float]]
) -> None:
    """Train with every estimator at every rate, then with every seed at its best rate.

    Writes runs.csv and history.csv.
    """
    validation, test = (
        channels(cells, seed, number)
        for seed, number in (
            (VALIDATION_SEED, FLAGS.validation_channels), (TEST_SEED, FLAGS.test_channels),
        )
    )  # fmt: skip
    mixture = make_mixture(cells)
    runs, history = read(folder) if (folder / "history.csv").exists() else ([], [])
    with progress_bar.Bar(len(estimators) * (len(rates) + FLAGS.seeds)) as bar:

        def run(estimator: str, rate: float, seed: int) -> float:
            """Train and test once, unless it was; the mean validation gap at the end."""
            mine = {"method": estimator, "learning_rate": rate, "seed": seed}
            done = [r for r in history if _matches(r, mine)]
            if done:
                bar.skip(1)
            else:
                policy, done = train_one(mine, mixture, validation)
                runs[:] = [r for r in runs if not _matches(r, mine)]
                runs.extend(mine | row for row in examine(policy, test, cells))
                history.extend(done)
                csv_tables.write_csv(folder / "runs.csv", runs)  # first: history says what is done
                csv_tables.write_csv(folder / "history.csv", history)
                common.keep_time(folder / "run.json")
                bar.advance(1, f"{estimator}, seed {seed}: {100 * done[-1]['gap']:.2f} %")
            return float(np.mean([r["gap"] for r in done[-3:]]))

        for estimator in estimators:
            best = min(rates, key=lambda rate: run(estimator, rate, 0))
            for seed in range(1, FLAGS.seeds + 1):
                run(estimator, best, seed)


def train_one(
    mine: dict[str, Any], mixture: Sample, validation: Channels
) -> tuple[GeneralPolicy, list[dict[str, Any]]]:
    """Train one network, and judge it on the validation channels after every epoch."""
    config = PolicyConfig(
        gradient=mine["method"], learning_rate=mine["learning_rate"], sample=mixture,
        batches=((FLAGS.batch_size, max(list_flags.integers("num_devices", 1))),),
        network=NETWORK, epochs=FLAGS.epochs,
    )  # fmt: skip
    run, history = start_policy(jax.random.key(mine["seed"]), config), []
    for epoch in range(config.epochs):
        run, _ = advance_policy(run, epoch, config)
        gaps, within = judge(GeneralPolicy(run.params, NETWORK), validation)
        means = {"gap": float(np.nanmean(gaps)), "within_deadline": float(np.nanmean(within))}
        history.append(mine | {"step": (epoch + 1) * config.steps_per_epoch} | means)
    return GeneralPolicy(run.params, NETWORK), history


def make_mixture(cells: list[tuple[int, float]]) -> Sample:
    """Return what draws the cells' systems in equal shares, tasks anew in each."""
    devices, bases = (jnp.asarray(column) for column in zip(*cells))
    slot = FLAGS.slot

    def mixture(key: jax.Array, num: int, num_devices: int) -> tuple[System, jax.Array]:
        task_key, channel_key = jax.random.split(key)
        seeds = jax.random.randint(task_key, (num,), 0, VALIDATION_SEED)
        system = jax.vmap(lambda seed: table1(num_devices, seed=seed))(seeds)
        cell = jnp.arange(num) % len(cells)
        system = system.replace(
            active=jnp.arange(num_devices)[None] < devices[cell][:, None],
            log_base=bases[cell].astype(jnp.float32),
            slot=jnp.full(num, slot),
        )
        one = table1(num_devices)
        return system, sample_channels(channel_key, one, num)

    return mixture


def channels(cells: list[tuple[int, float]], first_seed: int, number: int) -> Channels:
    """Draw channels of every cell with tasks of their own, and solve them."""
    largest = max(num_devices for num_devices, _ in cells)
    parts = []
    for num_devices, base in cells:
        seeds = first_seed + np.arange(number)

        def tasks(seed: Any, num_devices: int = num_devices) -> System:
            return pad_devices(table1(num_devices, FLAGS.slot, seed), largest)

        system = jax.vmap(tasks)(seeds).replace(log_base=np.full(number, base, np.float32))
        h = sample_channels(jax.random.key(first_seed + num_devices), table1(num_devices), number)
        h = jnp.pad(h, ((0, 0), (0, largest - num_devices)))
        parts.append((system, h))
    system, h = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    optimum = solve(h, system, method="optimal").energy
    return Channels(system, h, np.asarray(optimum, np.float64).reshape(len(cells), number))


def judge(policy: GeneralPolicy, on: Channels) -> tuple[np.ndarray, np.ndarray]:
    """Gaps and whether the raw decision keeps the deadline, ``[C, N]``, NaN where infeasible."""
    energy, within = (np.asarray(x, np.float64) for x in _judge(policy, on.system, on.h))
    ok = np.isfinite(on.optimum)
    gap = np.where(ok, energy.reshape(ok.shape) / np.where(ok, on.optimum, 1.0) - 1, np.nan)
    return np.maximum(gap, 0.0), np.where(ok, within.reshape(ok.shape), np.nan)


@jax.jit
def _judge(policy: GeneralPolicy, system: System, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    def one(system: System, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        raw = sy.forced(system) | (policy.scores(system, h) > 0)
        raw = jnp.where(system.active, raw, False).astype(h.dtype)
        return policy.decide(system, h).energy, fits(make_uplink(system, h), raw)

    return jax.vmap(one)(system, h)


def examine(
    policy: GeneralPolicy, test: Channels, cells: list[tuple[int, float]]
) -> list[dict[str, Any]]:
    """Test one network: a row per cell."""
    gaps, within = judge(policy, test)
    return [
        {
            "num_devices": num_devices,
            "log_base": base,
            "gap_mean": float(np.nanmean(gap)),
            "gap_worst": float(np.nanmax(gap)),
            "within_deadline": float(np.nanmean(kept)),
        }
        for (num_devices, base), gap, kept in zip(cells, gaps, within)
    ]


def summarise(runs: list[dict[str, Any]], history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over seeds: a row per estimator and cell, with the steps to twice the final gap."""
    rows = []
    tested = [row for row in runs if row["seed"] > 0]  # seed 0 chose the rate
    cells = dict.fromkeys((row["num_devices"], row["log_base"]) for row in tested)
    for estimator in dict.fromkeys(row["method"] for row in tested):
        steps = [
            steps_to_twice([r for r in history if r["method"] == estimator and r["seed"] == seed])
            for seed in sorted({r["seed"] for r in tested if r["method"] == estimator})
        ]
        for num_devices, base in cells:
            few = [row for row in tested if row["method"] == estimator
                   and (row["num_devices"], row["log_base"]) == (num_devices, base)]  # fmt: skip
            gaps = np.array([row["gap_mean"] for row in few])
            half = student_t(len(few)) * np.std(gaps, ddof=min(1, len(few) - 1))
            rows.append({
                "method": estimator,
                "num_devices": int(num_devices),
                "log_base": base,
                "learning_rate": few[0]["learning_rate"],
                "seeds": len(few),
                "gap_mean": float(np.mean(gaps)),
                "gap_ci95": float(half / len(few) ** 0.5),
                "gap_worst": max(row["gap_worst"] for row in few),
                "within_deadline": float(np.mean([row["within_deadline"] for row in few])),
                "steps_to_twice": float(np.mean(steps)),
            })  # fmt: skip
    return rows


def steps_to_twice(history: list[dict[str, Any]]) -> float:
    """First step at which the validation gap is at most twice that of the last three epochs."""
    final = np.mean([row["gap"] for row in history[-3:]])
    return float(next(row["step"] for row in history if row["gap"] <= 2 * final))


def mean_curves(rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average the chosen trainings over seeds: a row per estimator and step, best one first."""
    final = {estimator: np.mean([r["gap_mean"] for r in rows if r["method"] == estimator])
             for estimator in dict.fromkeys(row["method"] for row in rows)}  # fmt: skip
    curves = []
    for estimator in sorted(final, key=lambda estimator: final[estimator]):
        mine = [row for row in history if row["method"] == estimator and row["seed"] > 0]
        for step in dict.fromkeys(row["step"] for row in mine):
            few = [row for row in mine if row["step"] == step]
            means = {name: float(np.mean([row[name] for row in few]))
                     for name in ("gap", "within_deadline")}  # fmt: skip
            curves.append({"method": estimator, "step": int(step)} | means)
    return curves


def _matches(row: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Whether a row that went through a csv is of this training."""
    return row["method"] == mine["method"] and all(
        np.isclose(row[name], mine[name]) for name in ("learning_rate", "seed")
    )


if __name__ == "__main__":
    common.launch(main)
