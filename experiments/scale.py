"""Time, memory and proven gap of the certified optimum from ten to ten thousand devices.

The bandwidth grows with K, so that a device's share of it stays the same. The proven gap of a
channel is 1 - lower bound / energy. Writes results.csv, scale.png/.pdf and run.json into
--output_dir. Example:

    python experiments/scale.py --output_dir=runs/scale
"""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from report.result_tables import slope
from support import common, csv_tables, list_flags, plots, progress_bar

from meco_jax import System, figures, sample_channels, solve, table1
from meco_jax.system import check_system

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_list(
    "num_devices", [str(k) for k in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)], "the K"
)  # fmt: skip
flags.DEFINE_float("slot", 0.5, "slot length T [s]", lower_bound=1e-6)
flags.DEFINE_float(
    "device_bandwidth", 3e5, "bandwidth per device [Hz]; Table 1 has 5e5 at K = 20", lower_bound=1
)
flags.DEFINE_integer("work", 40_960, "devices times channels in a batch", lower_bound=1)
flags.DEFINE_integer("repeats", 5, "timed repetitions, the fastest counts", lower_bound=1)
flags.DEFINE_integer("seed", 0, "seed of tasks and channels", lower_bound=0)


def main(argv: list[str]) -> None:
    """Measure one jitted stage, K by K."""
    common.begin(argv)
    devices = sorted(list_flags.integers("num_devices", low=1))
    folder, rows = common.prepare(), []
    with progress_bar.Bar(len(devices)) as bar:
        for num_devices in devices:
            rows.append(measure(num_devices))
            bar.advance(1, f"K = {num_devices}")
            write(folder, rows)
            common.write_run(folder / "run.json", finished=False, slope=slope(rows))
    common.write_run(folder / "run.json", slope=slope(rows))
    print("    K  us per channel  kB per channel  peak MB    proven gap: mean, worst")
    for r in rows:
        memory = f"{r['bytes_per_channel'] / 1e3:16.1f}{r['process_peak_mb']:9.0f}"
        gaps = f"{r['gap_mean']:10.1e}{r['gap_worst']:11.1e}"
        print(f"{r['num_devices']:5}{r['us_per_channel']:16.1f}{memory}{gaps}")
    print(f"slope of ln time over ln K: {slope(rows):.2f}")
    print(f"wrote {folder} in {common.seconds():.0f} s")


def measure(num_devices: int) -> dict[str, Any]:
    """Time one stage on a batch, and read its working memory off the compiled program."""
    system = table1(num_devices, FLAGS.slot, FLAGS.seed)
    system = check_system(system.replace(bandwidth=FLAGS.device_bandwidth * num_devices))
    number = max(4, FLAGS.work // num_devices)
    h = sample_channels(jax.random.key(FLAGS.seed), system, number)
    compiled = jax.jit(one_stage).lower(h, system).compile()
    run = partial(compiled, h, system)
    seconds = common.clock({"stage": run}, FLAGS.repeats)["stage"][1]
    found = jax.tree.map(np.asarray, run())
    ok = found.feasible
    energy, bound = (np.asarray(x[ok], np.float64) for x in (found.energy, found.lower_bound))
    gap = 1 - bound / energy
    memory: Any = compiled.memory_analysis()
    return {
        "num_devices": num_devices,
        "channels": number,
        "feasible_fraction": float(np.mean(ok)),
        "us_per_channel": 1e6 * seconds / number,
        "bytes_per_channel": memory.temp_size_in_bytes / number,
        "process_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "gap_mean": float(np.mean(gap)) if len(gap) else float("nan"),
        "gap_worst": float(np.max(gap, initial=0)),
    }


def one_stage(h: jax.Array, system: System) -> Any:
    """Solve as ``solve`` does inside other jitted code."""
    return solve(h, system, method="optimal")


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table and the figure."""
    csv_tables.write_csv(folder / "results.csv", rows)
    figures.save_figure(plots.scale_figure(rows, slope(rows)), folder / "scale")


if __name__ == "__main__":
    common.launch(main)
