"""Slots per second of many cells, by method, against the same loop in vectorised NumPy.

Rayleigh block fading, a task per device and slot. "mcos" in NumPy is the same scheme, in
float32, without the lower bound that meco_jax adds. "fixed set" lets the devices send that hear
at least a tenth of the mean, with the forced ones, with optimal powers and times: in meco_jax
``allocate``, bound included, in NumPy Newton's method on the price of the slot. Writes speed.csv
and run.json into --output_dir. Example:

    python experiments/simulation_speed.py --output_dir=runs/simulation_speed
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from support import common, csv_tables, list_flags

from meco_jax import Solution, System, table1
from meco_jax import system as sy
from meco_jax.exact.allocation import allocate
from meco_jax.simulation import Scenario, simulate

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_integer("cells", 1024, "cells at once", lower_bound=1)
flags.DEFINE_integer("num_devices", 14, "K", lower_bound=1)
flags.DEFINE_integer("slots", 20, "slots per timed run", lower_bound=1)
flags.DEFINE_integer("repeats", 3, "timed repetitions, the fastest counts", lower_bound=1)
flags.DEFINE_list("methods", ["mcos", "pcos", "bcos", "optimal"], "methods of solve to time")

QUIET = 0.1  # of the mean gain: "fixed set"


def main(argv: list[str]) -> None:
    """Time all."""
    common.begin(argv)
    methods = list_flags.names("methods", ("mcos", "mcos_partial", "pcos", "bcos", "optimal"))
    folder, rows = common.prepare(), list[dict[str, Any]]()
    system = table1(FLAGS.num_devices)
    loops: dict[str, Callable[[], Any]] = {}
    for scheme in (*methods, fixed_set):
        name = scheme if isinstance(scheme, str) else "fixed set"
        loops[name] = played(system, scheme)
    loops["mcos, NumPy"] = partial(numpy_loop, system, numpy_mcos)
    loops["fixed set, NumPy"] = partial(numpy_loop, system, numpy_fixed_set)
    seconds = common.clock(loops, FLAGS.repeats)
    for name, loop in loops.items():
        speed = FLAGS.cells * FLAGS.slots / seconds[name][1]
        rows.append({"method": name, "slots_per_second": speed, "energy_per_slot_j": float(loop())})
        print(f"{name:20}{speed:12.0f} slots/s{rows[-1]['energy_per_slot_j']:12.5f} J")
    csv_tables.write_csv(folder / "speed.csv", rows)
    common.write_run(folder / "run.json")


def played(system: System, scheme: Any) -> Callable[[], jax.Array]:
    """Return a run of all cells: the mean energy of a slot [J]."""

    @jax.jit
    def run(seeds: jax.Array) -> jax.Array:
        outcome = jax.vmap(lambda s: simulate(Scenario(system), scheme, s, FLAGS.slots)[1])(seeds)
        return jnp.sum(outcome.energy) / (FLAGS.cells * FLAGS.slots)

    return partial(run, jnp.arange(FLAGS.cells))


def fixed_set(system: System, h: jax.Array) -> Solution:
    """Send what is forced or heard, with optimal powers and times; ``[K]``."""
    heard = jnp.square(h / jnp.sqrt(system.mean_gain)) > QUIET
    return allocate(system, h, (heard | sy.forced(system)).astype(h.dtype))


def numpy_loop(system: System, decide: Callable[..., Any]) -> float:
    """Play the slots of all cells, a NumPy operation for all devices at a time."""
    rng = np.random.default_rng(0)
    fields = {name: np.asarray(value, np.float32) for name, value in sy.leaves(system).items()}
    local = fields["chip"] * fields["cpu_hz"] ** 2 * fields["cycles_per_bit"] * fields["task_bits"]
    busy = fields["cycles_per_bit"] * fields["task_bits"] / fields["cpu_hz"]
    total = 0.0
    for _ in range(FLAGS.slots):
        shape = FLAGS.cells, FLAGS.num_devices
        gain = rng.standard_exponential(shape, np.float32) * np.float32(1e-6)
        offload, power, time = decide(fields, gain / fields["noise_power"], busy)
        rate = fields["bandwidth"] * np.log2(1 + power * gain / fields["noise_power"])
        sends = offload & (time > 0)
        needed = np.where(sends, fields["task_bits"] / np.where(sends, rate, 1), 0)
        late = sends & (needed > time * np.float32(1 + 4e-6))
        keeps = ~offload & (busy <= fields["slot"])
        energy = power * np.where(sends, np.minimum(needed, time), 0) + np.where(keeps, local, 0)
        end = np.cumsum(time, axis=1)
        delay = np.where(sends, end, busy)
        _ = np.where(late | ~(sends | keeps), np.inf, delay)
        total += float(np.sum(energy, dtype=np.float64))
    return total / (FLAGS.cells * FLAGS.slots)


def numpy_mcos(fields: dict[str, Any], g: np.ndarray, busy: np.ndarray) -> Any:
    """Send what is forced at full power, if it fits."""
    offload = np.broadcast_to(busy > fields["slot"], g.shape)
    load = fields["task_bits"] * np.float32(np.log(2)) / fields["bandwidth"]
    time = np.where(offload, load / np.log1p(fields["max_power"] * g), 0)
    fits = np.sum(time, axis=1, keepdims=True) <= fields["slot"]
    return offload & fits, np.where(offload & fits, fields["max_power"], 0), np.where(fits, time, 0)


def numpy_fixed_set(fields: dict[str, Any], g: np.ndarray, busy: np.ndarray) -> Any:
    """Send what is forced or heard: Newton's method on the price, THEORY.md, section 4."""
    heard = g * fields["noise_power"] > QUIET * fields["mean_gain"]
    offload = heard | (busy > fields["slot"])
    load = fields["task_bits"] * np.float32(np.log(2)) / fields["bandwidth"]
    slot, most = fields["slot"], np.log1p(fields["max_power"] * g)
    alone = np.minimum(load / slot, most)
    log_price = np.where(offload, alone + np.log(excess(alone)) - np.log(g), -np.inf)
    log_mu = np.maximum(np.max(log_price, axis=1, keepdims=True), -60)  # nobody sends
    with np.errstate(all="ignore"):
        for _ in range(10):
            x = efficiency(log_mu + np.log(g), most)
            capped = x >= most
            used = np.where(offload & ~capped, load / x, 0)
            full = np.sum(np.where(offload & capped, load / most, 0), axis=1, keepdims=True)
            sum_ = np.sum(used, axis=1, keepdims=True)
            fall = np.sum(used * excess(x) / x**2, axis=1, keepdims=True)
            room = np.maximum(slot - full, np.float32(1e-3) * sum_)
            climb = np.maximum(sum_ * np.log(sum_ / room) / fall, 0)
            log_mu = log_mu + np.where(np.isfinite(climb), climb, 0)
    x = efficiency(log_mu + np.log(g), most)
    least, wanted = load / most, load / x
    spare = slot - np.sum(np.where(offload, least, 0), axis=1, keepdims=True)
    longer = np.sum(np.where(offload, wanted - least, 0), axis=1, keepdims=True)
    blend = np.clip(spare / np.where(longer > 0, longer, 1), 0, 2)
    fits = spare >= 0
    time = np.where(offload & fits, least + blend * (wanted - least), 0)
    nats = np.where(time > 0, load / np.where(time > 0, time, 1), 0)
    return offload & fits, np.minimum(np.expm1(nats) / g, fields["max_power"]), time


def efficiency(log_y: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Nats per symbol x with e^x (x - 1) + 1 = y, at most x_max."""
    x = np.log1p(np.sqrt(2 * np.exp(np.minimum(log_y, 60))))
    for _ in range(2):
        rest = excess(x)
        error = x + np.log(rest) - log_y
        x = x - 2 * error * rest * x / (2 * x * x - error * (rest * (1 + x) - x * x))
    return np.minimum(x, most)


def excess(x: np.ndarray) -> np.ndarray:
    """x - 1 + e^-x, by expm1 in place of a series: a few digits less at small x."""
    return np.maximum(x + np.expm1(-x), np.float32(1e-30))


if __name__ == "__main__":
    common.launch(main)
