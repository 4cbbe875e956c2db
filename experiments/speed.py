"""Time one training step and one solved channel: lanes by lax.map against vmap, compiles apart.

Writes speed.csv and run.json into --output_dir. Example:

    python experiments/speed.py --output_dir=runs/speed
"""

from __future__ import annotations

import time
from typing import Any

import common
import jax
import numpy as np
from absl import app, flags

from meco_jax import sample_channels, solve, sweep, train
from meco_jax.system import table1

FLAGS = flags.FLAGS
common.define_flags()
flags.adopt_module_key_flags(common)
flags.DEFINE_integer("num_devices", 20, "K", lower_bound=1)
flags.DEFINE_integer("lanes", 4, "lanes trained together", lower_bound=1)
flags.DEFINE_integer("repeats", 3, "timed repetitions, the fastest counts", lower_bound=1)
FLAGS.set_default("epochs", 5)


def main(argv: list[str]) -> None:
    """Time both trainings by both mappings, and every method of ``solve``."""
    common.begin(argv)
    started, folder = time.time(), common.prepare()
    rows = training_rows() + solving_rows()
    common.write_csv(folder / "speed.csv", rows)
    common.write_run(folder / "run.json", started)
    for row in rows:
        print(f"{row['what']:<28}{row['value']:12.4g} {row['unit']}")


def training_rows() -> list[dict[str, Any]]:
    """Milliseconds a step and lane, and the seconds to compile."""
    systems = sweep.stack_systems([table1(FLAGS.num_devices)] * FLAGS.lanes)
    keys = jax.random.split(jax.random.key(0), FLAGS.lanes)
    rows = []
    for scheme, config in common.train_configs().items():
        steps = config.epochs * config.steps_per_epoch * FLAGS.lanes
        for name, size in (("lax.map", 1), ("vmap", FLAGS.lanes)):

            def run(config: Any = config, size: int = size) -> None:
                policies, _ = sweep.train_lanes(systems, keys.copy(), config, batch_size=size)
                jax.block_until_ready(policies)

            first, best = clock(run)
            rows.append(row(f"{scheme} step, {name}", 1e3 * best / steps, "ms a step and lane"))
            rows.append(row(f"{scheme} compile, {name}", first - best, "s"))
    return rows


def solving_rows() -> list[dict[str, Any]]:
    """Microseconds a channel in a batch, and of one channel alone."""
    system = table1(FLAGS.num_devices)
    config = common.train_configs()["bcos"]
    policy, _ = train(system, key=jax.random.key(1), config=config)
    h = sample_channels(jax.random.key(2), system, 1024)
    rows = []
    for method in ("mcos", "pcos", "bcos", "optimal"):
        for name, gains in (("batch of 1024", h), ("one channel", h[0])):

            def run(method: str = method, gains: jax.Array = gains) -> None:
                chosen = policy if method == "bcos" else None
                jax.block_until_ready(solve(gains, system, method=method, policy=chosen))

            best = clock(run)[1]
            channels = gains.size // FLAGS.num_devices
            rows.append(row(f"{method}, {name}", 1e6 * best / channels, "us a channel"))
    return rows


def clock(run: Any) -> tuple[float, float]:
    """Seconds of the first call and of the fastest later one."""
    seconds = []
    for _ in range(FLAGS.repeats + 1):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds[0], float(np.min(seconds[1:]))


def row(what: str, value: float, unit: str) -> dict[str, Any]:
    """One line of the table."""
    return {"what": what, "value": value, "unit": unit}


if __name__ == "__main__":
    app.run(main)
