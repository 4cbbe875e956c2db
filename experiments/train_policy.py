"""Train the general policy: the weights that are shipped with the package.

Writes policy.npz, history.csv, training.png/.pdf and run.json into --output_dir, and goes on
with a run that was interrupted. The shipped ones come from

    python experiments/train_policy.py --flagfile=experiments/flags/policy.flags
"""

from __future__ import annotations

import re
import shlex
import sys
from typing import Any

import jax
import numpy as np
from absl import flags
from support import common, csv_tables, gap_plots, progress_bar

from meco_jax import PolicyConfig, figures, save_policy, train_policy
from meco_jax.learned.estimators import GRADIENTS
from meco_jax.learned.policy import DeviceNetwork
from meco_jax.learned.training import check_policy_config

FLAGS = flags.FLAGS
DEFAULT = PolicyConfig()
common.define_flags()
flags.DEFINE_integer("seed", 0, "of the network and of the systems", lower_bound=0)
flags.DEFINE_integer("epochs", DEFAULT.epochs, "of 100 steps each", lower_bound=1)
flags.DEFINE_float("learning_rate", DEFAULT.learning_rate, "Adam's at the start", lower_bound=0)
flags.DEFINE_integer("width", DEFAULT.network.width, "of the network's layers", lower_bound=1)
flags.DEFINE_integer("rounds", DEFAULT.network.rounds, "of the network", lower_bound=1)
flags.DEFINE_enum("gradient", str(DEFAULT.gradient), sorted(GRADIENTS), "gradient estimator")
flags.DEFINE_list(
    "batches", [f"{n}x{k}" + "".join(f":{x}" for x in access) for n, k, *access in DEFAULT.batches],
    "channels x devices of a step's parts; of all fields, with :tdma or :fdma",
)  # fmt: skip
flags.DEFINE_float("save_seconds", 20.0, "least time between two checkpoints [s]", lower_bound=0)


def main(argv: list[str]) -> None:
    """Train, and write the policy with the command that made it."""
    common.begin(argv)
    config = read_config()
    folder = common.prepare(resumes=True)
    print(f"training on {jax.devices()[0]}", flush=True)
    with progress_bar.Bar(config.epochs) as bar:
        seen = 0

        def report(step: int, metrics: dict[str, np.ndarray]) -> None:
            nonlocal seen
            common.keep_time(folder / "run.json", every=1.0)
            epoch = step // config.steps_per_epoch
            if not seen:  # epochs before are of an earlier run
                bar.skip(epoch - config.chunk_epochs)
            seen = epoch
            text = f"step {step}, energy over the bound {100 * float(metrics['gap']):.2f} %"
            bar.advance(config.chunk_epochs, text)

        policy, history = train_policy(
            FLAGS.seed, config, report=report, folder=folder / "checkpoints",
            save_seconds=FLAGS.save_seconds,
        )  # fmt: skip
    common.write_run(folder / "run.json", finished=False)  # of what is written now
    save_policy(folder / "policy.npz", policy, origin=shlex.join(["python", *sys.argv]))
    rows: list[dict[str, Any]] = [
        {name: float(values[i]) for name, values in history.items()}
        for i in range(len(history["step"]))
    ]
    csv_tables.write_csv(folder / "history.csv", rows)
    gaps = {"best prefix of the ranking over the lower bound": history["gap"]}
    panel = gap_plots.GapPanel(
        "step [-]", history["step"], gaps, ylabel="mean gap to the lower bound [%]"
    )
    figures.save_figure(gap_plots.gap_figure([panel]), folder / "training")
    common.write_run(folder / "run.json")
    print(f"wrote {folder} in {common.seconds():.0f} s")


def read_config() -> PolicyConfig:
    """Read the settings from the flags, or stop with a line."""
    parts = [re.fullmatch(r"([0-9]+)x([0-9]+)(?::(\w+))?", text) for text in FLAGS.batches]
    try:
        return check_policy_config(
            PolicyConfig(
                learning_rate=FLAGS.learning_rate,
                gradient=FLAGS.gradient,
                batches=tuple(
                    (int(part[1]), int(part[2]), *filter(None, (part[3],))) if part else (0, 0)
                    for part in parts
                ),
                network=DeviceNetwork(FLAGS.width, FLAGS.rounds),
                epochs=FLAGS.epochs,
            )
        )
    except ValueError as error:
        rule = f"--batches must be like 256x24,32x20:fdma; got {','.join(FLAGS.batches) or 'none'}"
        common.stop(rule if "batches" in str(error) else common.as_flags(error))


if __name__ == "__main__":
    common.launch(main)
