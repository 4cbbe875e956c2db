"""Call ``solve`` from several threads with ever other batches for a long time, and watch it.

Every answer is compared with that of a single thread, bit for bit. Writes latency.csv (a row a
method and batch size), memory.csv (over time: memory, compiled programs, calls),
soak.png/.pdf and run.json into --output_dir; stops with status 1 if an answer differs, programs
are more than shapes, or memory grows in the second half. Example:

    python experiments/soak.py --output_dir=runs/soak
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from report import result_tables
from support import common, csv_tables, list_flags, plots, progress_bar

from meco_jax import Solution, System, engine, figures, sample_channels, solve, solver, table1

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_float("seconds", 600.0, "how long", lower_bound=1.0)
flags.DEFINE_integer("threads", 4, "callers", lower_bound=1)
flags.DEFINE_integer("cases", 60, "different batches per method", lower_bound=1)
flags.DEFINE_integer("largest_batch", 256, "channels per call, from 1", lower_bound=1)
flags.DEFINE_integer("most_devices", 24, "K of a call, from 1", lower_bound=1)
flags.DEFINE_list("methods", ["bcos", "optimal", "pcos"], "of solve")
flags.DEFINE_integer("seed", 0, "of batches and calls", lower_bound=0)
flags.DEFINE_float("growth", 32.0, "memory that the second half may add [MB]", lower_bound=0)
flags.DEFINE_bool("plot_only", False, "draw again from --output_dir's csv")
SAMPLES = 60  # of memory
LATEST = 5000  # calls of a kind whose latencies are kept


class Case(NamedTuple):
    """A call and its answer from a single thread."""

    method: solver.Method
    system: System
    h: np.ndarray  # [N, K], or [K] where N is 1
    answer: Solution


class Watch:
    """What the threads share: latencies by method and batch size, and what went wrong."""

    def __init__(self) -> None:
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.latencies: dict[tuple[str, int], deque[float]] = {}
        self.calls, self.wrong, self.errors = 0, 0, list[str]()


def main(argv: list[str]) -> None:
    """Prepare the answers, let the threads run, and judge."""
    common.begin(argv)
    folder = Path(FLAGS.output_dir)
    if FLAGS.plot_only:
        draw(folder)
        return
    methods: list[Any] = list_flags.names("methods", (*solver.METHODS, "bcos"))
    folder = common.prepare()
    rng = np.random.default_rng(FLAGS.seed)
    cases = [draw_case(rng, method) for method in methods for _ in range(FLAGS.cases)]
    watch = Watch()
    memory = run(cases, watch)
    latency = [
        {"method": method, "channels": number, "calls": len(times),
         **{f"p{q}_us": 1e6 * float(np.percentile(times, q)) for q in (50, 99, 100)}}
        for (method, number), times in sorted(watch.latencies.items())
    ]  # fmt: skip
    csv_tables.write_csv(folder / "latency.csv", latency)
    csv_tables.write_csv(folder / "memory.csv", memory)
    half, last = memory[len(memory) // 2], memory[-1]
    found: dict[str, Any] = {
        "calls": watch.calls,
        "wrong_answers": watch.wrong,
        "errors": watch.errors[:5],
        "programs": last["programs"],
        "shapes": most_programs(),
        "memory_mb": last["memory_mb"],
        "growth_mb": last["memory_mb"] - half["memory_mb"],
    }
    draw(folder)
    common.write_run(folder / "run.json", **found)
    report(latency, found)


def draw_case(rng: np.random.Generator, method: solver.Method) -> Case:
    """Draw a batch size, K, tasks and gains, and solve them; now and then one channel alone."""
    number = int(np.exp(rng.uniform(0, np.log(FLAGS.largest_batch + 1))))
    devices = int(rng.integers(1, FLAGS.most_devices + 1))
    seed = int(rng.integers(2**31))
    system = table1(devices, slot=float(rng.uniform(0.2, 1.0)), seed=seed)
    h = np.asarray(sample_channels(jax.random.key(seed), system, number))
    h = h[0] if number == 1 else h
    return Case(method, system, h, jax.tree.map(np.asarray, solve(h, system, method=method)))


def run(cases: list[Case], watch: Watch) -> list[dict[str, float]]:
    """Let the threads call for --seconds, and look at the process meanwhile: [SAMPLES] rows."""
    threads = [
        threading.Thread(target=call, args=(cases, watch, FLAGS.seed + 1 + number), daemon=True)
        for number in range(FLAGS.threads)
    ]
    began, rows = time.monotonic(), list[dict[str, float]]()
    for thread in threads:
        thread.start()
    with progress_bar.Bar(SAMPLES) as bar:
        for _ in range(SAMPLES):
            watch.stop.wait(FLAGS.seconds / SAMPLES)
            rows.append({"seconds": time.monotonic() - began, "memory_mb": memory_mb(),
                         "programs": programs(), "calls": watch.calls})  # fmt: skip
            bar.advance(1, f"{watch.calls} calls, {rows[-1]['memory_mb']:.0f} MB")
    watch.stop.set()
    for thread in threads:
        thread.join()
    return rows


def call(cases: list[Case], watch: Watch, seed: int) -> None:
    """Call ``solve`` with one case after the other, at random, and compare."""
    rng = np.random.default_rng(seed)
    while not watch.stop.is_set():
        case = cases[rng.integers(len(cases))]
        began = time.perf_counter()
        try:
            found = jax.tree.map(np.asarray, solve(case.h, case.system, method=case.method))
        except Exception as error:  # of any kind: it goes into the report
            with watch.lock:
                watch.errors.append(repr(error))
            continue
        seconds = time.perf_counter() - began
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(case.answer))
        same = all(np.array_equal(new, old) for new, old in pairs)
        place = case.method, len(case.h) if case.h.ndim > 1 else 1
        with watch.lock:
            watch.calls += 1
            watch.wrong += not same
            watch.latencies.setdefault(place, deque(maxlen=LATEST)).append(seconds)


def programs() -> int:
    """Number of compiled programs that ``solve`` holds."""
    return int(solver._solve._cache_size())  # type: ignore[attr-defined]


def most_programs() -> int:
    """Bound the programs: sizes of blocks, padded K, stages."""
    sizes = {engine.block_size(n, engine.BATCH_SIZES) for n in range(1, FLAGS.largest_batch + 1)}
    devices = -(-FLAGS.most_devices // engine.DEVICE_MULTIPLE)
    later = 2 * len(engine.LATER_SIZES)  # the optimum's
    return devices * (len(sizes) * len(FLAGS.methods) + later * ("optimal" in FLAGS.methods))


def memory_mb() -> float:
    """Memory that the process holds [MB]; its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(latency: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Print the latencies of batches of similar size, and stop if something is wrong."""
    result_tables.show(result_tables.soak(latency))
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    if found["wrong_answers"] or found["errors"]:
        common.stop("an answer differs from that of a single thread, or a call failed", 1)
    if found["programs"] > found["shapes"]:
        common.stop("more programs than padded shapes were compiled", 1)
    if found["growth_mb"] > FLAGS.growth:
        common.stop(f"memory grew by {found['growth_mb']:.0f} MB in the second half", 1)


def draw(folder: Path) -> None:
    """Draw memory over time and latency against the batch size."""
    memory = csv_tables.read_csv(folder / "memory.csv", ("seconds", "memory_mb", "programs"))
    place = "method", "channels"
    latency = csv_tables.read_csv(folder / "latency.csv", (*place, "p50_us", "p99_us"), place)
    figures.save_figure(plots.soak_figure(memory, latency), folder / "soak")


if __name__ == "__main__":
    common.launch(main)
