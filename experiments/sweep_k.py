"""Figure 4: train BCOS and PCOS over the number of devices K and compare all schemes.

Writes results.csv, figure4.png/.pdf, training.png/.pdf, the policies and run.json into
--output_dir. Example:

    python experiments/sweep_k.py --flagfile=experiments/flags/quick.flags
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
from absl import app, flags

from meco_jax import figures, save_policy, sweep
from meco_jax.system import System, table1
from meco_jax.training import check_config

FLAGS = flags.FLAGS
common.define_flags()
common.define_sweep_flags()
common.define_training_flags()
flags.adopt_module_key_flags(common)
flags.DEFINE_list("num_devices", [str(k) for k in range(4, 21, 2)], "the K to sweep")
flags.DEFINE_float("slot", 0.5, "slot length T [s]", lower_bound=1e-6)
flags.DEFINE_bool("plot_only", False, "train nothing, draw figure4 from --output_dir's results.csv")
WORK = {"bcos": 2, "pcos": 1}  # BCOS trains a teacher and a student


def main(argv: list[str]) -> None:
    """Train lane by lane and seed by seed; every finished seed is in the files at once."""
    common.begin(argv)
    if FLAGS.plot_only:
        draw(Path(FLAGS.output_dir), common.read_csv(Path(FLAGS.output_dir) / "results.csv"))
        return
    started, rows = time.time(), []
    devices, seeds = common.integers("num_devices", low=1), common.integers("seeds", low=0)
    configs = common.train_configs()
    try:
        work = sum(WORK[scheme] * check_config(c).epochs for scheme, c in configs.items())
    except ValueError as error:
        common.stop(str(error))
    folder = common.prepare()
    print(f"training {len(devices) * len(seeds)} lanes on {jax.devices()[0]}", flush=True)
    try:
        with common.Bar(work * len(seeds)) as bar:
            for seed in seeds:
                systems = sweep.stack_systems([table1(k, FLAGS.slot, seed) for k in devices])
                policies, histories = train_seed(systems, seed, configs, bar)
                rows += evaluate_seed(systems, seed, policies)
                write(folder, rows, devices, policies, histories, seed)
                common.write_run(
                    folder / "run.json", started, finished_seeds=seeds[: seeds.index(seed) + 1]
                )
    except KeyboardInterrupt:
        common.stop(f"interrupted; {folder} holds the {len(rows)} rows of the finished seeds", 130)
    report(rows)
    print(f"wrote {folder} in {time.time() - started:.0f} s")


def train_seed(
    systems: System, seed: int, configs: dict[str, Any], bar: common.Bar
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train all lanes of one task seed, BCOS then PCOS: stacked policies and histories."""
    policies, histories = {}, {}
    lanes = len(np.atleast_1d(systems.slot))
    for index, (scheme, config) in enumerate(configs.items()):
        key = jax.random.fold_in(jax.random.key(seed), index)
        keys = jax.numpy.stack([key] * lanes)  # devices draw their own numbers, so lanes compare

        def show(step: int, metrics: dict[str, np.ndarray], scheme: str = scheme) -> None:
            energy = np.mean(metrics["student_energy" if scheme == "bcos" else "teacher_energy"])
            text = f"seed {seed} {scheme} step {step}: mean energy {energy:.4f} J"
            bar.advance(WORK[scheme] * configs[scheme].chunk_epochs, text)

        policies[scheme], histories[scheme] = sweep.train_lanes(
            systems, keys, config, batch_size=FLAGS.lane_batch, report=show
        )
    return policies, histories


def evaluate_seed(systems: System, seed: int, policies: dict[str, Any]) -> list[dict[str, Any]]:
    """Evaluate every scheme on fresh channels: the rows of results.csv."""
    lanes = len(np.atleast_1d(systems.slot))
    keys = jax.numpy.stack([jax.random.fold_in(jax.random.key(seed), 2)] * lanes)
    outcomes = sweep.evaluate_lanes(policies, keys, FLAGS.test_channels, FLAGS.lane_batch)
    return sweep.summarise(outcomes, systems, seed)


def write(
    folder: Path,
    rows: list[dict[str, Any]],
    devices: list[int],
    policies: dict[str, Any],
    histories: dict[str, Any],
    seed: int,
) -> None:
    """Write the table, both figures and the policies of one seed."""
    common.write_csv(folder / "results.csv", rows)
    draw(folder, rows)
    titles = {"BCOS": histories["bcos"], "PCOS": histories["pcos"]}
    figures.save_figure(figures.training_figure(titles, devices), folder / "training")
    for scheme, stacked in policies.items():
        for lane, num_devices in enumerate(devices):
            name = f"{scheme}_k{num_devices}_seed{seed}.npz"
            save_policy(folder / name, sweep.take_lane(stacked, lane))


def draw(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Draw Figure 4 from the rows of results.csv."""
    devices = sorted({int(row["num_devices"]) for row in rows})
    energy = common.by_scheme(rows, "num_devices", "energy_mean_j")
    figures.save_figure(figures.energy_figure(devices, energy, rows[0]["slot"]), folder / "figure4")


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table of mean energies."""
    energy = common.by_scheme(rows, "num_devices", "energy_mean_j")
    devices = sorted({row["num_devices"] for row in rows})
    print("mean energy [J]    " + "".join(f"{f'K={k}':>10}" for k in devices))
    for scheme, values in energy.items():
        print(f"{scheme:<19}" + "".join(f"{value:10.4f}" for value in values.mean(axis=0)))


if __name__ == "__main__":
    app.run(main)
