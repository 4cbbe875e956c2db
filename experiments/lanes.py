"""Speed and memory against the number of lanes, and one call against a call for each lane.

Every measurement has a process of its own, so that its peak of memory is true. Writes
results.csv (lanes one after another by lax.map, and all at once by vmap), ratio.csv (n lanes
in one call, and in n calls that compile each), lanes.png/.pdf and run.json into --output_dir,
for example

    python experiments/lanes.py --output_dir=runs/lanes
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from report import result_tables
from support import common, csv_tables, list_flags, plots, progress_bar, trainings

from meco_jax import TrainConfig, figures, make_grid, train_grid
from meco_jax.paper.sweep import Lanes
from meco_jax.paper.training import check_config

FLAGS = flags.FLAGS
common.define_flags()
trainings.define_training_flags()
flags.DEFINE_list("lanes", [str(n) for n in (1, 2, 4, 8, 16, 32, 64, 126)], "numbers of lanes")
flags.DEFINE_integer("num_devices", 14, "K of these lanes", lower_bound=1)
flags.DEFINE_list("ratio_devices", ["10", "12", "14"], "K of one call against many")
flags.DEFINE_list("ratio_slots", ["0.5", "1", "1.5"], "T of one call against many [s]")
flags.DEFINE_integer("ratio_seeds", 3, "seeds of one call against many", lower_bound=1)
flags.DEFINE_integer("ratio_epochs", 20, "epochs of one call against many", lower_bound=1)
flags.DEFINE_bool("plot_only", False, "measure nothing, draw again from --output_dir's csv")
FLAGS.set_default("num_channels", 10_000)
FLAGS.set_default("epochs", 6)


def main(argv: list[str]) -> None:
    """Measure speed and memory, then the ratio, or draw again what is there."""
    common.begin(argv)
    if FLAGS.plot_only:
        draw(Path(FLAGS.output_dir))
        return
    numbers = list_flags.integers("lanes", low=1)
    if FLAGS.epochs < 4 or FLAGS.epochs % 2:
        common.stop(f"--epochs must be even and at least 4; got {FLAGS.epochs}")
    config = check_config(trainings.train_configs()["bcos"].replace(chunk_epochs=2))
    grid: dict[str, list[Any]] = {
        "num_devices": list_flags.integers("ratio_devices", low=1),
        "slot": list_flags.numbers("ratio_slots", above=0),
        "seed": list(range(FLAGS.ratio_seeds)),
    }
    folder, rows = common.prepare(), list[dict[str, Any]]()
    with progress_bar.Bar(len(numbers) + 1) as bar:
        for number in numbers:
            for method, size in (("lax.map", 1), ("vmap", number)):
                place = FLAGS.num_devices, number, size, config
                rows.append({"method": method, "lanes": number, **common.alone(measure, *place)})
            csv_tables.write_csv(folder / "results.csv", rows)
            bar.advance(1, f"{number} lanes")
        ratios = compare(make_grid(grid), config.replace(epochs=FLAGS.ratio_epochs, chunk_epochs=1))
        csv_tables.write_csv(folder / "ratio.csv", ratios)
        bar.advance(1, "one call against many")
    draw(folder)
    common.write_run(folder / "run.json")
    result_tables.show(result_tables.lanes(rows))
    print(f"{ratios[0]['lanes']} lanes in one call, and in a call each:")
    result_tables.show(result_tables.ratios(ratios))


def measure(num_devices: int, number: int, size: int, config: TrainConfig) -> dict[str, float]:
    """Train ``number`` lanes, ``size`` at once: the fastest chunk, the peak of this process."""
    lanes = make_grid({"num_devices": [num_devices], "seed": range(number)})
    seconds = progress(lanes, config, size)[:, 0]
    steps = number * config.chunk_epochs * config.steps_per_epoch
    return {
        "lane_steps_per_s": steps / float(np.min(np.diff(seconds))),
        "first_chunk_s": seconds[0],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def compare(lanes: Lanes, config: TrainConfig) -> list[dict[str, float]]:
    """Time a grid in one call and lane by lane, compilation included, step by step."""
    together = common.alone(progress, lanes, config)
    singles = [make_grid({name: [value] for name, value in p.items()}) for p in lanes.points]
    separate = common.alone(progress_apart, singles, config)
    steps = config.steps_per_epoch * (1 + np.arange(config.epochs))
    shown = [i for i in range(config.epochs) if i + 1 in (1, 2, 5, 10, 20, 50, config.epochs)]
    return [
        {"lanes": len(lanes.points), "steps": int(steps[i]),
         "one_call_s": together[i, 0], "separate_calls_s": separate[i, 0],
         "ratio": separate[i, 0] / together[i, 0], "cpu_ratio": separate[i, 1] / together[i, 1]}
        for i in shown
    ]  # fmt: skip


def progress_apart(singles: list[Lanes], config: TrainConfig) -> np.ndarray:
    """Sum ``progress`` over calls that find nothing compiled."""
    return np.sum([progress(lane, config) for lane in singles], axis=0)


def progress(lanes: Lanes, config: TrainConfig, size: int | None = None) -> np.ndarray:
    """Train, and return seconds from the start to the end of every chunk: [s] and CPU [s]."""
    jax.config.update("jax_enable_compilation_cache", False)  # that on the disk
    jax.clear_caches()
    clocks = lambda: np.array([time.perf_counter(), time.process_time()])  # noqa: E731
    seconds, began = list[np.ndarray](), clocks()
    report = lambda *_: seconds.append(clocks() - began)  # noqa: E731
    train_grid(lanes, config, batch_size=size, report=report)
    return np.asarray(seconds)


def draw(folder: Path) -> None:
    """Draw both panels from the table."""
    place = "method", "lanes"
    columns = *place, "lane_steps_per_s", "peak_mb"
    rows = csv_tables.read_csv(folder / "results.csv", columns, place, whole=True)
    figures.save_figure(plots.lanes_figure(rows), folder / "lanes")


if __name__ == "__main__":
    common.launch(main)
