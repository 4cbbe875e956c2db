"""The field's reference problem, wireless powered offloading: every way to decide, with proofs.

On your own copy of the public reference data, --data=data_10.mat (fields input_h, output_obj and
output_mode), or without it on frames of the same distribution; and on harder families, where
sorting by gain is not nearly optimal. A normalised rate is rate over best rate; the best one is
proven by ``meco_jax.wpmec``. The baseline in DROO's manner learns online, and is judged on the
last fifth of the frames, as all others are. Writes results.csv, droo.png/.pdf and run.json into
--output_dir. Example:

    python experiments/droo.py --flagfile=experiments/flags/droo.flags
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from support import common, csv_tables, droo, list_flags, plots, progress_bar

from meco_jax import figures, wpmec
from meco_jax.wpmec.devices import allocate_set, make_devices
from meco_jax.wpmec.schemes import allocate

FLAGS = flags.FLAGS
common.define_flags()
FAMILIES = "reference", "weights", "devices", "distances", "all"
flags.DEFINE_string("data", None, "a .mat file of the reference code, instead of drawn frames")
flags.DEFINE_list("family", list(FAMILIES), f"frames to compare on: {', '.join(FAMILIES)}")
flags.DEFINE_list("num_devices", ["10", "30"], "the K of drawn frames; 4:8:2 is 4,6,8")
flags.DEFINE_integer("frames", 10_000, "frames drawn per family, or at most taken of --data",
                     lower_bound=50)  # fmt: skip
flags.DEFINE_integer("descent_frames", 500, "of the judged frames go to coordinate descent",
                     lower_bound=1)  # fmt: skip
flags.DEFINE_integer("candidates", 10, "modes per frame of the learned baseline", lower_bound=1)
flags.DEFINE_integer("repeats", 3, "timed batches per method, the fastest counts", lower_bound=1)
flags.DEFINE_integer("single_calls", 200, "timed calls of one frame", lower_bound=1)
flags.DEFINE_integer("seed", 0, "seed of frames and of learning", lower_bound=0)
flags.DEFINE_bool("plot_only", False, "draw again from --output_dir's results.csv")
NUMBERS = ("num_devices", "loss_mean")
FIELDS = "input_h", "output_obj", "output_mode"
BEATEN = 1e-6  # what a rate exceeds a label by that is not optimal [-]


def main(argv: list[str]) -> None:
    """Compare all methods, family by family."""
    common.begin(argv)
    if FLAGS.plot_only:
        folder = Path(FLAGS.output_dir)
        place = "family", "method", "num_devices"
        rows = csv_tables.read_csv(folder / "results.csv", (*place, "loss_mean"), place)
        draw(folder, rows)
        return
    sizes = list_flags.integers("num_devices", low=1)
    families = list_flags.names("family", FAMILIES)
    label = read(FLAGS.data) if FLAGS.data else None
    if label:
        cases: list[tuple[str, int]] = [("data", label[0].shape[1])]
    else:
        cases = [(family, size) for family in families for size in sizes]
    folder, rows = common.prepare(), list[dict[str, Any]]()
    with progress_bar.Bar(len(cases)) as bar:
        for family, size in cases:
            if label:
                h, system = label[0], wpmec.reference(size)
            else:
                h, system = frames(family, size, FLAGS.frames, FLAGS.seed)
            rows += compare(family, h, system)
            if label:
                judge(label, rows)
            bar.advance(1, f"{family}, K = {size}")
            csv_tables.write_csv(folder / "results.csv", rows)
            common.write_run(folder / "run.json", finished=False)
    draw(folder, rows)
    common.write_run(folder / "run.json")
    report(rows)
    print(f"wrote {folder} in {common.seconds():.0f} s")


def frames(family: str, size: int, number: int, seed: int) -> tuple[np.ndarray, wpmec.WPMEC]:
    """Draw gains ``[N, K]`` of a family and its system, the same for all frames."""
    rng = np.random.default_rng((seed, size, FAMILIES.index(family)))
    system = wpmec.reference(size)
    nearest, farthest = 2.5, 5.2
    if family in ("weights", "all"):
        system = system.replace(weight=10 ** rng.uniform(-0.7, 0.7, size))
    if family in ("devices", "all"):
        system = system.replace(
            chip=10 ** rng.uniform(-27.5, -25, size),
            cycles_per_bit=10 ** rng.uniform(1.3, 2.5, size),
        )
    if family in ("distances", "all"):
        farthest = 10.0
    h = wpmec.sample_channels(seed, size, number, nearest, farthest)
    return np.asarray(h, np.float64), system


def read(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read gains ``[N, K]``, rates ``[N]`` and modes ``[N, K]`` of the reference data."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        common.stop("--data needs SciPy, which reads .mat files: pip install scipy")
    try:
        file = loadmat(path)
    except (MatReadError, OSError, ValueError, NotImplementedError, TypeError) as error:
        common.stop(f"--data={path} must be a .mat file up to version 7.2: {error}")
    missing = [name for name in FIELDS if name not in file]
    if missing:
        found = ", ".join(name for name in file if not name.startswith("__"))
        common.stop(f"--data={path} must have {', '.join(FIELDS)}; got {found or 'nothing'}")
    h, rate, mode = (np.asarray(file[name], np.float64) for name in FIELDS)
    if h.ndim != 2 or mode.shape != h.shape or rate.size != len(h):
        common.stop(
            f"--data={path} must have input_h and output_mode [N, K] and output_obj [N]; "
            f"got shapes {h.shape}, {mode.shape} and {rate.shape}"
        )
    number = len(h) // droo.INTERVAL * droo.INTERVAL
    if number < 50 or not (np.isfinite(h).all() and (h >= 0).all()):
        common.stop(f"--data={path} must have at least 50 frames of gains of at least 0")
    chosen = slice(max(0, number - FLAGS.frames), number)  # the last ones, as are judged
    return h[chosen], rate.ravel()[chosen], mode[chosen]


def compare(family: str, h: np.ndarray, system: wpmec.WPMEC) -> list[dict[str, Any]]:
    """Run all methods on the same frames: a row each."""
    h = h[: len(h) // droo.INTERVAL * droo.INTERVAL]
    learned = droo.online(h, system, min(FLAGS.candidates, h.shape[1] + 1), FLAGS.seed)
    judged = h[-len(h) // 5 :]
    few = judged[-FLAGS.descent_frames :]
    runs: dict[str, Callable[[], wpmec.Solution]] = {
        "optimal": partial(wpmec.solve, judged, system),
        "prefix": partial(wpmec.solve, judged, system, "prefix"),
        "local": partial(wpmec.solve, judged, system, "local"),
        "offload": partial(wpmec.solve, judged, system, "offload"),
        "coordinate descent": partial(wpmec.solve, few, system, coordinate_descent),
    }
    found = {name: run() for name, run in runs.items()}
    seconds = {
        name: common.clock({name: run}, FLAGS.repeats)[name][1] for name, run in runs.items()
    }
    best = np.asarray(found["optimal"].rate, np.float64)
    proven = np.asarray(found["optimal"].upper_bound, np.float64) / best - 1
    rates = {name: np.asarray(x.rate, np.float64) for name, x in found.items()}
    rates["learned, online"] = learned.rate[-len(judged) :]
    single = common.clock(
        {"one": lambda: [wpmec.solve(x, system) for x in judged[: FLAGS.single_calls]]}, 1
    )
    times = {name: 1e6 * s / len(rates[name]) for name, s in seconds.items()}
    times["learned, online"] = 1e6 * learned.decide_seconds / len(h)
    calls = min(FLAGS.single_calls, len(judged))
    rows = []
    for name, rate in rates.items():
        loss = 1 - rate / best[-len(rate) :]
        exact = name == "optimal"
        rows.append({
            "family": family,
            "method": name,
            "num_devices": h.shape[1],
            "frames": len(rate),
            "normalised_mean": float(np.mean(rate / best[-len(rate) :])),
            "loss_mean": float(np.mean(np.maximum(loss, 0))),
            "loss_95": float(np.quantile(np.maximum(loss, 0), 0.95)),
            "loss_worst": float(max(np.max(loss), 0)),
            "proven_1e4": float(np.mean(proven <= 1e-4)) if exact else np.nan,
            "proven_1e6": float(np.mean(proven <= 1e-6)) if exact else np.nan,
            "us_per_frame": times[name],
            "us_alone": 1e6 * single["one"][1] / calls if exact else np.nan,
            "training_seconds": learned.seconds if name == "learned, online" else np.nan,
            "labels_beaten": np.nan,
            "labels_above_bound": np.nan,
        })  # fmt: skip
    return rows


def judge(label: tuple[np.ndarray, np.ndarray, np.ndarray], rows: list[dict[str, Any]]) -> None:
    """Compare all labels with the proven optimum, and say so."""
    h, stored, mode = label
    found = wpmec.solve(h)
    rate, bound = (np.asarray(x, np.float64) for x in (found.rate, found.upper_bound))
    true = np.asarray(wpmec.allocate(h, None, mode > 0.5).rate, np.float64)  # of the label's mode
    beaten = np.flatnonzero(rate > true * (1 + BEATEN))
    above = int(np.sum(np.minimum(true, stored) > bound * (1 + 1e-7)))
    rows[0] |= {"labels_beaten": len(beaten), "labels_above_bound": above}
    print(f"{len(h)} labels: normalised rate {np.mean(rate / true):.8f}, "
          f"{np.mean(bound <= rate * (1 + 1e-6)):.2%} proven to 1e-6; {above} above the bound; "
          f"{len(beaten)} not optimal"
          + "".join(f"; frame {i} by {rate[i] / true[i] - 1:.1e}" for i in beaten[:5]))  # fmt: skip


def coordinate_descent(system: wpmec.WPMEC, h: jax.Array) -> wpmec.Solution:
    """Change the device that gains most, from nobody sending, until none gains."""
    devices = make_devices(system, h)
    flips = jnp.eye(len(h), dtype=bool)

    def go_on(state: Any) -> jax.Array:
        return state[2]  # type: ignore[no-any-return]

    def step(state: Any) -> Any:
        mode, rate, _ = state
        rates = jax.vmap(lambda flip: allocate_set(devices, mode ^ flip).rate)(flips)
        best = jnp.argmax(rates)
        better = rates[best] > rate * (1 + 1e-6)
        return jnp.where(better, mode ^ flips[best], mode), jnp.maximum(rates[best], rate), better

    nobody = jnp.zeros(h.shape, bool)
    start = nobody, allocate_set(devices, nobody).rate, jnp.array(True)
    return allocate(system, h, jax.lax.while_loop(go_on, step, start)[0])


def draw(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the mean loss of every method, family by family."""
    figures.save_figure(plots.loss_figure(rows), folder / "droo")


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'family':10} {'K':>3}  {'method':19}{'normalised':>11}{'worst loss':>12}"
          f"{'us / frame':>12}  proven to 1e-6")  # fmt: skip
    for r in rows:
        proven = "" if np.isnan(r["proven_1e6"]) else f"{100 * r['proven_1e6']:8.2f} %"
        print(f"{r['family']:10} {r['num_devices']:3}  {r['method']:19}{r['normalised_mean']:11.6f}"
              f"{r['loss_worst']:12.1e}{r['us_per_frame']:12.1f}{proven}")  # fmt: skip


if __name__ == "__main__":
    common.launch(main)
