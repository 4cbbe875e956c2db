"""Time one training step and one solved channel: lanes by lax.map against vmap, compiles apart.

Writes speed.csv, the figure speed and run.json into --output_dir. The figure shows the parts of the
certified optimum's first stage beside what their exponentials alone would take, and with
--before=old/speed.csv beside what this script of an older version has measured. Example:

    python experiments/speed.py --output_dir=runs/speed
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from support import common, csv_tables, plots, trainings

from meco_jax import (
    System,
    figures,
    make_grid,
    pad_devices,
    sample_channels,
    solve,
    table1,
    train,
    train_grid,
)
from meco_jax.engine import DEVICE_MULTIPLE
from meco_jax.exact import enumeration, sets
from meco_jax.exact.duals import price_grid
from meco_jax.exact.pricing import priced_set
from meco_jax.exact.relaxation import relax
from meco_jax.exact.uplink import make_uplink
from meco_jax.solver import Method
from meco_jax.system import check_system, forced

EXPONENTIALS = 2**18  # timed together
COSTLY = "exponential", "exponential-minus-one", "log", "log-plus-one"  # XLA's names
FLAGS = flags.FLAGS
common.define_flags()
trainings.define_training_flags()
flags.DEFINE_integer("num_devices", 20, "K", lower_bound=1)
flags.DEFINE_integer("lanes", 4, "lanes trained together", lower_bound=1)
flags.DEFINE_integer("repeats", 3, "timed repetitions, the fastest counts", lower_bound=1)
flags.DEFINE_bool("plot_only", False, "draw again from --output_dir's csv")
flags.DEFINE_string("before", None, "speed.csv of an older version, drawn beside")
FLAGS.set_default("epochs", 5)


def main(argv: list[str]) -> None:
    """Time both trainings by both mappings, every method of ``solve``, and the optimum's parts."""
    common.begin(argv)
    folder = common.prepare()
    if FLAGS.plot_only:
        return draw(folder)
    rows = training_rows() + solving_rows() + stage_rows()
    csv_tables.write_csv(folder / "speed.csv", rows)
    if FLAGS.before:
        csv_tables.write_csv(folder / "speed_before.csv", csv_tables.read_csv(Path(FLAGS.before)))
    draw(folder)
    common.write_run(folder / "run.json")
    for row in rows:
        print(f"{row['what']:<28}{row['value']:12.4g} {row['unit']}")


def training_rows() -> list[dict[str, Any]]:
    """Milliseconds per step and lane, and the seconds to compile."""
    lanes = make_grid({"num_devices": [FLAGS.num_devices], "seed": range(FLAGS.lanes)})
    rows = []
    for scheme, config in trainings.train_configs().items():
        steps = config.epochs * config.steps_per_epoch * FLAGS.lanes
        for name, size in (("lax.map", 1), ("vmap", FLAGS.lanes)):
            run = partial(train_grid, lanes, config, batch_size=size)
            first, best = common.clock({name: run}, FLAGS.repeats)[name]
            rows.append(row(f"{scheme} step, {name}", 1e3 * best / steps, "ms per step and lane"))
            rows.append(row(f"{scheme} compile, {name}", first - best, "s"))
    return rows


def solving_rows() -> list[dict[str, Any]]:
    """Microseconds per channel in a batch, of one channel alone, and with a limited edge, C6."""
    system = table1(FLAGS.num_devices)
    config = trainings.train_configs()["bcos"]
    policy, _ = train(system, key=jax.random.key(1), config=config)
    cycles = np.sum(system.task_bits * system.cycles_per_bit, dtype=np.float32)
    limited = system.replace(edge_cycles=cycles / 2)
    h = sample_channels(jax.random.key(2), system, 1024)
    kinds = {"batch of 1024": (system, h), "one channel": (system, h[0]),
             "batch of 1024, half the edge's cycles": (limited, h)}  # fmt: skip
    rows = []
    methods: tuple[Method, ...] = ("mcos", "pcos", "bcos", "optimal")
    for method in methods:
        for name, (where, gains) in kinds.items():

            def run(
                method: Method = method, where: System = where, gains: jax.Array = gains
            ) -> None:
                chosen = policy if method == "bcos" else None
                jax.block_until_ready(solve(gains, where, method=method, policy=chosen))

            best = common.clock({name: run}, FLAGS.repeats)[name][1]
            channels = gains.size // FLAGS.num_devices
            rows.append(row(f"{method}, {name}", 1e6 * best / channels, "us per channel"))
    return rows


def stage_rows() -> list[dict[str, Any]]:
    """Microseconds per channel of each part of the certified optimum's stages, in a batch."""
    padded = -(-FLAGS.num_devices // DEVICE_MULTIPLE) * DEVICE_MULTIPLE  # as ``solve`` does
    system = check_system(pad_devices(table1(FLAGS.num_devices), padded))
    h = sample_channels(jax.random.key(2), system, 1024)
    must, log_mu = forced(system).astype(h.dtype), jnp.float32(-3.0)
    parts: dict[str, Callable[[jax.Array], Any]] = {
        "relaxed price": lambda h: relax(make_uplink(system, h), must),
        "price grid, coarse": lambda h: price_grid(
            make_uplink(system, h), h > 1e-3, log_mu, *enumeration.COARSE
        ),
        "price grid, fine": lambda h: price_grid(
            make_uplink(system, h), h > 1e-3, log_mu, *enumeration.FINE
        ),
    }
    for stage in enumeration.STAGES:
        some = (jnp.arange(padded)[None] % (jnp.arange(stage.num_exact)[:, None] + 2) == 0).astype(
            h.dtype
        )

        def patterns(h: jax.Array, number: int = stage.num_enumerated) -> Any:
            uplink = make_uplink(system, h)
            grid = price_grid(uplink, h > 1e-3, log_mu, *enumeration.COARSE)
            sides = enumeration.choose_sides(grid, forced(system), uplink.usable)
            bounded = enumeration.bound_patterns(uplink, grid, forced(system), sides, number)
            return sets.smallest(bounded.bounds, 1)

        def exact(h: jax.Array, some: jax.Array = some) -> Any:
            uplink, guess = make_uplink(system, h), jnp.broadcast_to(log_mu, len(some))
            return jax.vmap(partial(priced_set, uplink))(some, guess)

        name = f"n = {stage.num_enumerated}"
        parts[f"grids and pattern bounds, {name}"] = patterns
        parts[f"{stage.num_exact} exact energies, {name}"] = exact
        parts[f"whole stage, {name}"] = partial(enumeration.optimal, system, stage=stage)
    programs = {n: jax.jit(jax.vmap(part)).lower(h).compile() for n, part in parts.items()}
    some = jnp.linspace(0.0, 1.0, EXPONENTIALS, dtype=h.dtype)
    runs = {name: partial(program, h) for name, program in programs.items()}
    times = common.clock(runs | {"exponential": partial(jax.jit(jnp.exp), some)}, FLAGS.repeats)
    each = times.pop("exponential")[1] / EXPONENTIALS
    rows = [row(name, 1e6 * best / len(h), "us per channel") for name, (_, best) in times.items()]
    for name, program in programs.items():
        number = exponentials(program.as_text() or "") / len(h)
        rows.append(row(f"{plots.LIMIT}{name}", 1e6 * each * number, "us per channel"))
    return rows


def exponentials(program: str) -> int:
    """Count the exponentials and logarithms of a compiled program, all rounds of its loops."""
    parts = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{$(.*?)^\}", program, re.M | re.S))

    def count(part: str) -> int:
        number = 0
        for line in parts[part].splitlines():
            if found := re.search(rf"\[([\d,]*)\]\S* ({'|'.join(COSTLY)})\(", line):
                number += math.prod(int(n) for n in found[1].split(",") if n)
            rounds = re.search(r"known_trip_count\W+n\W+(\d+)", line)
            for called in re.findall(r"(?:calls|body|to_apply)=%?([\w.-]+)", line):
                number += count(called) * (int(rounds[1]) if rounds else 1)
        return number

    return count(re.search(r"^ENTRY %?([\w.-]+)", program, re.M)[1])  # type: ignore[index]


def draw(folder: Path) -> None:
    """Draw the parts of the optimum's first stage, beside those of an older version if known."""
    tables = [csv_tables.read_csv(folder / "speed.csv")]
    if (folder / "speed_before.csv").exists():
        tables.append(csv_tables.read_csv(folder / "speed_before.csv"))
    figures.save_figure(plots.parts_figure(*tables), folder / "speed")


def row(what: str, value: float, unit: str) -> dict[str, Any]:
    """One line of the table."""
    return {"what": what, "value": value, "unit": unit}


if __name__ == "__main__":
    common.launch(main)
