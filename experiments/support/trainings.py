"""What the experiments that train share: flags, and one program for all lanes.

``run`` trains BCOS and learned PCOS in every lane of a grid, resumes what an earlier run
left in --output_dir, and evaluates every scheme on the same fresh channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from meco_jax import (
    Policy,
    TrainConfig,
    evaluate_grid,
    figures,
    make_grid,
    save_policy,
    train_grid,
)
from meco_jax.evaluation import Outcome, summarise
from meco_jax.paper.network import SLOPES
from meco_jax.paper.sweep import Lanes, gather, share, take_lane
from meco_jax.paper.training import check_config
from meco_jax.runtime.checkpoints import OtherRunError
from meco_jax.runtime.loop import History
from meco_jax.solver import Scheme
from support import common, csv_tables, list_flags, own, plots, progress_bar

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # what is defined here is the calling script's
SHORT = {"num_devices": "k", "slot": "t"}  # in file names, and large in figures
MOST_LINES = 20  # that a training figure can hold
WORK = {"bcos": 2, "pcos": 1}  # BCOS trains a teacher and a student
PREFIX = {"bcos": "", "pcos": "pcos_"}  # of the flags in ``OWN``
OWN = {  # settings that the two trainings have apart
    "learning_rate": "Adam's at the start",
    "multiplier_step": "alpha, the rise of lambda by a violation",
    "frozen_after": "part of the training after which batch statistics rest",
    "margin": "part of each slot time that the penalty asks to leave free",
}


def define_sweep_flags() -> None:
    """Define what every sweep has: common and training flags, seeds, lanes, what is your own."""
    common.define_flags()
    own.define_flags()
    define_training_flags()
    flags.DEFINE_list("seeds", ["0"], "task seeds, comma separated; one training each and scheme")
    flags.DEFINE_bool("plot_only", False, "train nothing, draw again from --output_dir's csv")
    flags.DEFINE_integer("test_channels", 2000, "fresh channels to evaluate on", lower_bound=2)
    flags.DEFINE_string(
        "coordinator_address", None, "host:port of process 0, to share the lanes among processes; "
        "'auto' where the cluster tells them (TPU pods, Slurm)",
    )  # fmt: skip
    flags.DEFINE_integer("num_processes", None, "processes that share the lanes", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "number of this process", lower_bound=0)
    flags.DEFINE_float(
        "save_seconds", 20.0, "least time between two checkpoints [s]", lower_bound=0
    )
    flags.DEFINE_integer(
        "lane_batch", None, "lanes trained at once; default: 1 on a CPU, elsewhere all",
        lower_bound=1,
    )  # fmt: skip


def define_training_flags() -> None:
    """Define how BCOS and PCOS are trained; defaults are the library's."""
    default = check_config(TrainConfig())
    pcos = check_config(TrainConfig(scheme="pcos"))
    flags.DEFINE_integer("num_channels", default.num_channels, "training channels", lower_bound=1)
    flags.DEFINE_integer("batch_size", default.batch_size, "channels per minibatch", lower_bound=1)
    flags.DEFINE_integer(
        "epochs", default.epochs, "passes over the training channels", lower_bound=1
    )
    flags.DEFINE_list("hidden", [str(n) for n in default.hidden], "widths of the hidden layers")
    flags.DEFINE_float(
        "final_learning_rate", default.final_learning_rate, "the end's part of the start's",
        lower_bound=0, upper_bound=1,
    )  # fmt: skip
    flags.DEFINE_float(
        "multiplier", default.multiplier,
        "lambda at the start, in mean local energies per slot", lower_bound=0,
    )  # fmt: skip
    for prefix, scheme, config in (("", "BCOS", default), ("pcos_", "learned PCOS", pcos)):
        for name, meaning in OWN.items():
            flags.DEFINE_float(
                f"{prefix}{name}", getattr(config, name), f"{scheme}: {meaning}", lower_bound=0
            )
    flags.DEFINE_enum(
        "slope", default.slope, list(SLOPES),
        "slope of the binary layer's backward pass",
    )  # fmt: skip
    flags.DEFINE_bool(
        "share_resources", default.share_resources,
        "teacher and student share their time and power branches",
    )  # fmt: skip
    flags.DEFINE_enum(
        "input_scaling", default.input_scaling, ["log", "raw"], "log-gain or raw amplitude as input"
    )


def train_configs() -> dict[str, TrainConfig]:
    """Read the settings of the "bcos" and "pcos" trainings from the flags, or stop with a line."""
    names = ("num_channels", "batch_size", "epochs", "final_learning_rate", "multiplier",
             "slope", "share_resources", "input_scaling")  # fmt: skip
    shared: dict[str, Any] = {name: FLAGS[name].value for name in names}
    shared |= {"hidden": tuple(list_flags.integers("hidden", low=1, different=False))}
    configs = {}
    for scheme, prefix in PREFIX.items():
        own: dict[str, Any] = {name: FLAGS[f"{prefix}{name}"].value for name in OWN}
        own["scheme"] = scheme
        try:
            configs[scheme] = check_config(TrainConfig(**shared, **own))
        except ValueError as error:
            common.stop(common.as_flags(error, prefix))
    return configs


class Results(NamedTuple):
    """What ``run`` finds."""

    lanes: Lanes
    rows: list[dict[str, Any]]  # one per lane and scheme
    outcomes: dict[str, Outcome]  # by scheme, [L, N]
    histories: dict[str, History]  # "bcos" and "pcos", [chunks, L]


def run(
    axes: Mapping[str, Sequence[float]],
    draw: Callable[[Path], None],
    write: Callable[[Path, Results], None] | None = None,
) -> None:
    """Train, evaluate, write and draw a grid of lanes, or draw again what --output_dir holds.

    The same command goes on where it was cut off.

    Args:
        axes: of the grid, see ``meco_jax.make_grid``; its "seed" is --seeds, and ``own.axes``
            are added.
        draw: draws the experiment's own figure from the tables in the folder.
        write: writes the experiment's own tables, besides results.csv.
    """
    if FLAGS.plot_only:
        draw(Path(FLAGS.output_dir))
        return
    connect()
    configs = train_configs()
    try:
        seeds = list_flags.integers("seeds", low=0)
        lanes = make_grid({**axes, "seed": seeds, **own.axes()}, own.system())
    except ValueError as error:
        common.stop(common.as_flags(error))
    schemes = own.schemes(lanes)
    folder = common.prepare(resumes=True)
    own.keep_rows(folder / "results.csv", schemes)
    policies, histories, outcomes = train_and_evaluate(lanes, configs, folder, schemes)
    if jax.process_index() > 0:
        return
    results = Results(lanes, summarise(outcomes, lanes), outcomes, histories)
    common.write_run(folder / "run.json", finished=False)  # of what is written now
    csv_tables.write_csv(folder / "results.csv", results.rows)
    if write:
        write(folder, results)
    draw(folder)
    draw_training(folder, results)
    for scheme, stacked in policies.items():
        save_policies(folder, scheme, stacked, lanes)
    common.write_run(folder / "run.json")
    print(f"wrote {folder} in {common.seconds():.0f} s")


def connect() -> None:
    """Join the other processes, if the flags say that there are any."""
    address = FLAGS.coordinator_address
    if not address:
        return
    if address == "auto":
        jax.distributed.initialize()
    else:
        if FLAGS.num_processes is None or FLAGS.process_id is None:
            common.stop("--coordinator_address needs --num_processes and --process_id")
        jax.distributed.initialize(address, FLAGS.num_processes, FLAGS.process_id)
    # CPUs connect at their first exchange and wait 30 s for each other: now all are here.
    # Later exchanges wait for the slowest share.
    multihost_utils.sync_global_devices("connect")


def train_and_evaluate(
    lanes: Lanes,
    configs: dict[str, TrainConfig],
    folder: Path,
    schemes: Mapping[str, Scheme],
) -> tuple[dict[str, Policy], dict[str, History], dict[str, Outcome]]:
    """Train BCOS, then PCOS, and evaluate all schemes, your own too, in all lanes.

    Each process does its share; all return the policies, histories and outcomes of all lanes.
    """
    number, mine, count = len(lanes.points), share(lanes), jax.process_count()
    print(f"training {number} lanes on {jax.device_count()} x {jax.devices()[0]}", flush=True)
    policies, histories = {}, {}
    total = sum(WORK[scheme] * config.epochs for scheme, config in configs.items())
    with progress_bar.Bar(total) as bar:
        for scheme, config in configs.items():
            show = Show(bar, scheme, config, number, folder)
            place = checkpoint_folder(folder, scheme, jax.process_index(), count)
            try:
                policies[scheme], histories[scheme] = train_grid(
                    mine, config, batch_size=FLAGS.lane_batch, report=show,
                    folder=place, save_seconds=FLAGS.save_seconds,
                )  # fmt: skip
            except OtherRunError as error:
                common.other_run(error, PREFIX[scheme])
            bar.skip(WORK[scheme] * config.epochs - show.done)
    outcomes = evaluate_grid(policies, mine, FLAGS.test_channels, FLAGS.lane_batch, schemes)
    policies, gathered = (gather(tree, number) for tree in (policies, outcomes))
    outcomes = {name: gathered[name] for name in outcomes}  # in the same order
    for history in histories.values():
        columns = {name: values.T for name, values in history.items() if name != "step"}
        history |= {name: values.T for name, values in gather(columns, number).items()}
    return policies, histories, outcomes


def checkpoint_folder(folder: Path, scheme: str, process: int, count: int) -> Path:
    """Name the folder of a process's checkpoints, or stop if the run had other processes.

    Processes share the lanes, so that another number of them would find other trainings.
    """
    place = folder / "checkpoints" / scheme
    mine = f"_of_{count}" if count > 1 else ""
    for entry in sorted(place.glob("*")):
        before = entry.name.rpartition("_of_")[2] if entry.name.startswith("process_") else "1"
        if before != str(count):
            common.stop(
                f"--num_processes must be {before} to go on with the run in {folder}; "
                f"take another --output_dir, or as many processes"
            )
    return place / f"process_{process}{mine}" if mine else place


class Show:
    """Reports the chunks of one training on the bar."""

    def __init__(
        self, bar: progress_bar.Bar, scheme: str, config: TrainConfig, lanes: int, folder: Path
    ) -> None:
        self._bar, self._scheme, self._lanes, self._folder = bar, scheme, lanes, folder
        self._role = "student" if scheme == "bcos" else "teacher"
        self._steps, self._chunk = config.epochs * config.steps_per_epoch, config.chunk_epochs
        self._chunk_steps = config.chunk_epochs * config.steps_per_epoch
        self._began, self.done = time.monotonic(), 0.0

    def __call__(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Show steps per second over all lanes, and their mean energy; note the time so far."""
        if jax.process_index() == 0:
            common.keep_time(self._folder / "run.json", every=1.0)
        work = WORK[self._scheme] * self._chunk
        if not self.done:  # chunks before are of an earlier run
            self.done = work * (step / self._chunk_steps - 1)
            self._bar.skip(self.done)
        self.done += work
        now = time.monotonic()
        rate, self._began = self._lanes * self._chunk_steps / (now - self._began), now
        energy = np.mean(metrics[f"{self._role}_energy"])
        self._bar.advance(
            work,
            f"{self._scheme} step {step} of {self._steps}, {self._lanes} lanes, "
            f"{rate:.0f} lane steps/s, mean energy {energy:.4f} J",
        )


def save_policies(folder: Path, scheme: str, stacked: Policy, lanes: Lanes) -> None:
    """Save the policy of every lane under a name that says where it stands in the grid."""
    for lane, point in enumerate(lanes.points):
        place = "_".join(f"{SHORT.get(name, name)}{value:.8g}" for name, value in point.items())
        save_policy(folder / f"{scheme}_{place}.npz", take_lane(stacked, lane))


def draw_training(folder: Path, results: Results) -> None:
    """Draw how training went in the lanes of the first seed, if a figure can hold them."""
    points = results.lanes.points
    lanes = [i for i, point in enumerate(points) if point["seed"] == points[0]["seed"]]
    if len(lanes) > MOST_LINES:
        print(f"{len(lanes)} lanes of a seed are too many for training.png: it is not drawn")
        return
    titles = {
        scheme.upper(): {n: v if n == "step" else v[:, lanes] for n, v in history.items()}
        for scheme, history in results.histories.items()
    }
    labels = [
        ", ".join(f"{SHORT[n].upper()} = {points[i][n]:g}" for n in SHORT if n in points[i])
        for i in lanes
    ]
    figures.save_figure(plots.training_figure(titles, labels), folder / "training")


def read_results(
    folder: Path, *columns: str, fixed: Sequence[str] = (), scheme: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Read results.csv, or stop with a line if it is not a whole sweep.

    Args:
        folder: that holds it.
        columns: to read, besides those that tell the rows apart.
        fixed: columns of a single value.
        scheme: schemes that must be there.
    """
    path, place = folder / "results.csv", ("num_devices", "slot", "seed", "scheme")
    rows = csv_tables.read_csv(path, (*place, *columns), place, whole=True, scheme=scheme)
    for name in fixed:
        values = sorted({row[name] for row in rows})
        if len(values) > 1:
            common.stop(f"{path} must have one {name}; got {', '.join(f'{x:g}' for x in values)}")
    return rows


def sweep_energy(axes: Mapping[str, Sequence[float]], axis: str, name: str) -> None:
    """Run a grid and draw energies along one of its axes: Figures 4 and 5.

    Args:
        axes: "num_devices" and "slot"; one has one value.
        axis: the other.
        name: of the figure's files.
    """

    def draw(folder: Path) -> None:
        columns = ("cost_mean_j", "gap_to_optimum_mean",
                   "feasible_fraction", "deadline_met_fraction")  # fmt: skip
        (fixed,) = axes.keys() - {axis}
        rows = read_results(folder, *columns, fixed=(fixed,))
        points = sorted({row[axis] for row in rows})
        energy = figures.by_scheme(rows, axis, "cost_mean_j")
        figures.save_figure(figures.energy_figure(rows, axis), folder / name)
        print("mean energy [J]    " + "".join(f"{f'{point:g}':>10}" for point in points))
        for scheme, values in energy.items():
            print(f"{scheme:<19}" + "".join(f"{value:10.4f}" for value in values.mean(axis=0)))
        kept = figures.by_scheme(rows, axis, "feasible_fraction")
        print("C1-C5 kept [%], by the answers of these energies")
        for scheme in figures.judged(kept):
            shares = 100 * kept[scheme].mean(axis=0)
            print(f"{scheme:<19}" + "".join(f"{share:10.1f}" for share in shares))

    run(axes, draw)
