"""What each piece of realism costs: from the paper's P1 to a real system, piece by piece.

Systems start from Table 1, and pieces are switched on one after the other: places in a cell,
radios of their own, circuit power, downloads, weighted delays, a finite edge, several antennas,
CPUs that run no faster than they must. At each step: the certified optimum, BCOS and MCOS, and
what it costs to decide with plain P1 on the same gains and to pay in the real system. Then the
optimum of the whole against the edge's cycles, the antennas, the slot (TDMA and FDMA), and the
weight of delay. Writes realism.csv and realism_sweeps.csv, their figures and run.json into
--output_dir.

Example:
    python experiments/realism.py --flagfile=experiments/flags/quick_realism.flags
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from support import common, csv_tables, list_flags, progress_bar, realism_plots

from meco_jax import (
    Solution,
    System,
    allocate,
    drop_devices,
    figures,
    from_db,
    from_dbm,
    pad_devices,
    path_gain,
    sample_channels,
    scale_frequency,
    solve,
    table1,
)
from meco_jax import system as sy

FLAGS = flags.FLAGS
common.define_flags()
SCHEMES = "mcos", "bcos", "optimal"
SWEEPS = "edge", "antennas", "access", "delay"
flags.DEFINE_list("num_devices", ["14", "20"], "the K to compare at, a panel each; 4:8:2 is 4,6,8")
flags.DEFINE_list("seeds", ["0", "1", "2"], "task seeds, of places and channels too")
flags.DEFINE_integer("channels", 2000, "channels per step", lower_bound=2)
flags.DEFINE_integer("sweep_channels", 500, "channels per point of a sweep", lower_bound=2)
flags.DEFINE_float("slot", 0.5, "slot length T [s]", lower_bound=1e-6)
flags.DEFINE_list("schemes", list(SCHEMES), "methods of solve; optimal is one of them")
flags.DEFINE_list("sweeps", list(SWEEPS), f"what to sweep: {', '.join(SWEEPS)}")
flags.DEFINE_float("tolerance", 1e-4, "proven gap that certifies an optimum [-]", lower_bound=1e-6)
flags.DEFINE_float("radius", 250.0, "of the cell, whose devices are 35 m away or more [m]",
                   lower_bound=36.0)  # fmt: skip
flags.DEFINE_float("interference", 6.0, "over the noise, from 0 dB to this [dB]", lower_bound=0)
flags.DEFINE_float("circuit_power", 0.05, "drawn while sending [W]", lower_bound=0)
flags.DEFINE_float("fixed_time", 5e-3, "guard time and download per sent task [s]", lower_bound=0)
flags.DEFINE_float("fixed_energy", 4e-4, "for receiving the result [J]", lower_bound=0)
flags.DEFINE_float("delay_weight", 0.02, "worth of a task's delay [J/s]", lower_bound=0)
flags.DEFINE_float("edge_share", 0.5, "F over the cycles of all tasks [-]", lower_bound=1e-6)
flags.DEFINE_integer("antennas", 4, "of the station, combined", lower_bound=1)
flags.DEFINE_list("edge_shares", ["0.2", "0.3", "0.4", "0.5", "0.6", "0.8", "1"], "F swept [-]")
flags.DEFINE_list("antenna_numbers", ["1", "2", "4", "8", "16"], "antennas swept")
flags.DEFINE_list("slots", ["0.3", "0.4", "0.5", "0.6", "0.8", "1", "1.2"], "T swept [s]")
flags.DEFINE_list("delay_weights", ["0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1", "3"],
                  "weights swept, of a trade-off curve [J/s]")  # fmt: skip
flags.DEFINE_bool("plot_only", False, "draw again from --output_dir's csv")

NEAREST = 35.0  # where the macro cell's path loss begins [m]
NOISE = from_dbm(-99.0)  # thermal over 10 MHz, and a noise figure of 5 dB [W]
POWERS = from_dbm(np.array([23.0, 20.0, 17.0]))  # p_max by device, in turn [W]
PIECES = (
    "plain P1", "places in a cell", "radios", "circuit power", "downloads", "delay",
    "finite edge", "antennas", "frequency scaling",
)  # fmt: skip
PLAN_TOLERANCE = 1e-6  # of times [-]
PLACE = "piece", "scheme", "num_devices", "seed"
SWEEP_PLACE = "sweep", "access", "scheme", "num_devices", "seed", "value"
Rows = list[dict[str, Any]]


def main(argv: list[str]) -> None:
    """Solve all steps and sweeps, or draw again what is there."""
    common.begin(argv)
    folder = Path(FLAGS.output_dir)
    if FLAGS.plot_only:
        steps = csv_tables.read_csv(folder / "realism.csv", place=PLACE)
        path = folder / "realism_sweeps.csv"
        sweeps = csv_tables.read_csv(path, place=SWEEP_PLACE) if path.exists() else []
        draw(folder, steps, sweeps)
        return
    steps, sweeps = evaluate()
    draw(folder, steps, sweeps)
    common.write_run(folder / "run.json")
    report(steps)
    print(f"wrote {folder} in {common.seconds():.0f} s")


def draw(folder: Path, steps: Rows, sweeps: Rows) -> None:
    """Draw both figures."""
    figures.save_figure(realism_plots.steps_figure(steps), folder / "realism")
    if sweeps:
        figures.save_figure(realism_plots.sweeps_figure(sweeps), folder / "realism_sweeps")


def evaluate() -> tuple[Rows, Rows]:
    """Solve all steps, then all points of the sweeps; every finished one is in its csv at once."""
    devices = list_flags.integers("num_devices", low=1)
    seeds = list_flags.integers("seeds", low=0)
    schemes = list_flags.names("schemes", SCHEMES)
    if "optimal" not in schemes:
        common.stop(f"--schemes must have optimal, which others are compared with; got {schemes}")
    points = list(sweep_points())
    folder = common.prepare()
    places = list(itertools.product(devices, seeds))
    steps, sweeps = Rows(), Rows()
    with progress_bar.Bar(len(places) * (len(PIECES) + len(points))) as bar:
        for (size, seed), number in itertools.product(places, range(len(PIECES))):
            place = {"piece": PIECES[number], "num_devices": size, "seed": seed}
            steps += [place | row for row in compare_step(size, seed, number, schemes)]
            bar.advance(1, f"K = {size}, seed {seed}: {PIECES[number]}")
            csv_tables.write_csv(folder / "realism.csv", steps)
            common.write_run(folder / "run.json", finished=False)
        for (size, seed), (name, value, access, fields) in itertools.product(places, points):
            place = {"sweep": name, "value": value, "access": access,
                     "num_devices": size, "seed": seed}  # fmt: skip
            mine = schemes if access == "tdma" else ["optimal"]
            system, h = channels(size, seed, FLAGS.sweep_channels, access=access, **fields)
            sweeps += [place | row for row in compare(system, h, mine)[0]]
            bar.advance(1, f"K = {size}, seed {seed}: {name} {value:g}")
            csv_tables.write_csv(folder / "realism_sweeps.csv", sweeps)
            common.write_run(folder / "run.json", finished=False)
    return steps, sweeps


def sweep_points() -> Iterator[tuple[str, float, str, dict[str, Any]]]:
    """List the points of all sweeps: name, value, access, and what differs from the flags.

    The edge is unlimited in all but the first: what it lets through dwarfs the rest.
    """
    names = list_flags.names("sweeps", SWEEPS) if FLAGS.sweeps else []
    free = {"edge_share": None}
    if "edge" in names:
        for share in list_flags.numbers("edge_shares", above=0):
            yield "edge", share, "tdma", {"edge_share": share}
    if "antennas" in names:
        for number in list_flags.integers("antenna_numbers", low=1):
            yield "antennas", number, "tdma", {"antennas": number} | free
    if "access" in names:
        for slot, access in itertools.product(list_flags.numbers("slots", above=0), sy.ACCESS):
            yield "access", slot, access, {"slot": slot} | free
    if "delay" in names:
        for weight in list_flags.numbers("delay_weights", above=0):
            yield "delay", weight, "tdma", {"delay_weight": weight} | free


def plain(size: int, seed: int, slot: float | None = None) -> System:
    """Return Table 1, with all fields there that pieces fill, at what leaves them out.

    So all systems without F share their programs, as all with F do.
    """
    nothing = np.zeros(size)
    return table1(size, slot or FLAGS.slot, seed).replace(
        noise_power=np.full(size, 1e-9), max_power=np.full(size, POWERS[0]),
        mean_gain=np.full(size, 1e-6), circuit_power=nothing, fixed_time=nothing,
        fixed_energy=nothing, delay_weight=nothing,
    )  # fmt: skip


def real(size: int, seed: int, number: int, slot: float | None = None, **fields: Any) -> System:
    """Return the system with the first so many pieces switched on, fields beside the flags' ones.

    Only the ratio of gain and noise counts: gains are such that Table 1's noise is the thermal
    one. So plain P1 sees the same channels without the interference.
    """
    system = plain(size, seed, slot)

    def value(name: str) -> Any:
        return fields.get(name, FLAGS[name].value)

    gain = path_gain(drop_devices(seed, size, FLAGS.radius, NEAREST))
    rise = from_db(np.random.default_rng(seed).uniform(0, FLAGS.interference, size))
    cycles = np.asarray(system.task_bits, np.float64) * np.asarray(system.cycles_per_bit)
    share = value("edge_share")
    pieces: tuple[dict[str, Any], ...] = (
        {},
        {"mean_gain": np.asarray(gain, np.float64) * 1e-9 / NOISE},
        {"max_power": np.resize(POWERS, size), "noise_power": 1e-9 * rise},
        {"circuit_power": np.full(size, value("circuit_power"))},
        {"fixed_time": np.full(size, value("fixed_time")),
         "fixed_energy": np.full(size, value("fixed_energy"))},
        {"delay_weight": np.full(size, value("delay_weight"))},
        {} if share is None else {"edge_cycles": share * np.sum(cycles)},
    )  # fmt: skip
    for piece in pieces[: number + 1]:
        system = system.replace(**piece)
    return scale_frequency(system) if number + 1 >= len(PIECES) else system


def channels(
    size: int, seed: int, num: int, number: int = len(PIECES) - 1, access: str = "tdma",
    antennas: int | None = None, **fields: Any,
) -> tuple[System, np.ndarray]:  # fmt: skip
    """Return a system with some pieces and its gains ``[N, K]``; each antenna adds to the last."""
    system = real(size, seed, number, **fields).replace(access=access)
    several = number >= PIECES.index("antennas")
    key = jax.random.fold_in(jax.random.key(seed), 1)
    h = sample_channels(key, system, num, (antennas or FLAGS.antennas) if several else 1)
    return system, np.asarray(h)


def padded(system: System, h: np.ndarray) -> tuple[System, np.ndarray]:
    """Append idle devices until all K are alike: they share their programs."""
    sizes = list_flags.integers("num_devices", low=1)
    more = 8 * -(-max(sizes) // 8) - system.num_devices
    return pad_devices(system, system.num_devices + more), np.pad(h, ((0, 0), (0, more)))


def compare_step(size: int, seed: int, number: int, schemes: list[str]) -> Rows:
    """Solve a step by all schemes, and pay for what plain P1 decides: a row each."""
    system, h = channels(size, seed, FLAGS.channels, number)
    rows, optimum = compare(system, h, schemes)
    nothing = {"missed_slot": float("nan"), "missed_edge": float("nan"), "late": float("nan")}
    rows = [row | nothing for row in rows]
    return [*rows, rows[-1] | {"scheme": "plain"} | pay(system, plain(size, seed), h, optimum)]


def compare(system: System, h: np.ndarray, schemes: list[str]) -> tuple[Rows, Solution]:
    """Solve channels by all schemes: a row each, and the optimum."""
    system, h = padded(system, h)
    optimum = on_host(solve(h, system, "optimal", tolerance=FLAGS.tolerance))
    methods: list[Any] = [name for name in schemes if name != "optimal"]
    found = {name: on_host(solve(h, system, name)) for name in methods} | {"optimal": optimum}
    return [{"scheme": name} | measures(system, h, one, optimum)
            for name, one in found.items()], optimum  # fmt: skip


def on_host(found: Solution) -> Solution:
    """Take a solution to NumPy, numbers in float64."""
    return jax.tree.map(lambda x: np.asarray(x, None if x.dtype == bool else np.float64), found)


@jax.jit
def times_of(
    system: System, h: jax.Array, offload: jax.Array, power: jax.Array, time: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sum what tasks take of the slot, t' + d, and their delays, ``[N]`` each [s]."""
    one = system.replace(delay_weight=jnp.ones_like(system.task_bits))

    def channel(*answer: jax.Array) -> tuple[jax.Array, jax.Array]:
        used = sy.transmit_time(system, *answer) + answer[1] * system.fixed_time
        return jnp.sum(used), jnp.sum(sy.realised_delays(one, *answer))

    return jax.vmap(channel)(h, offload, power, time)


def measures(
    system: System, h: np.ndarray, found: Solution, optimum: Solution, among: Any = True
) -> dict[str, float]:
    """Average over the channels with an answer, and with an optimum.

    Args:
        system: the physics.
        h: gains ``[N, K]`` [-].
        found: the answers.
        optimum: the certified ones.
        among: which channels to look at besides ``[N]`` bool.
    """
    size = float(np.sum(np.broadcast_to(system.active, h.shape[-1:])))
    known = optimum.feasible & among
    keep = found.feasible & known
    _, delay = times_of(system, h, *(x.astype(h.dtype) for x in
                                     (found.offload, found.power, found.time)))  # fmt: skip
    with np.errstate(invalid="ignore"):
        proven = found.cost - found.lower_bound <= FLAGS.tolerance * found.cost
    means = {
        "cost_j": found.cost, "energy_j": found.energy, "delay_s": np.asarray(delay) / size,
        "gap_mean": found.cost / np.where(optimum.feasible, optimum.cost, 1.0) - 1,
        "certified": proven, "offloaded": np.sum(found.offload, axis=-1) / size,
    }  # fmt: skip
    return {"feasible": mean(found.feasible)} | {n: mean(x[keep]) for n, x in means.items()}


def mean(values: Any) -> float:
    """Average numbers ``[N]``, NaN over nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def pay(system: System, simple: System, h: np.ndarray, optimum: Solution) -> dict[str, float]:
    """Let plain P1 decide on the same gains, and pay in the real system.

    ``missed_slot`` and ``missed_edge`` are the shares of the channels with an optimum in which
    the decision breaks C1 with any powers and times, and C6. The other means are over the rest,
    with the decision's best powers and times. ``late`` is the share in which its own powers, up
    to each device's limit, and times end beyond the slot.
    """
    simple, gains = padded(simple, h)
    system, _ = padded(system, h)
    plan = on_host(solve(gains, simple, "optimal", tolerance=FLAGS.tolerance))
    decided = plan.feasible & optimum.feasible  # where P1 has no answer, the real system has none
    paid = on_host(allocate(gains, system.replace(edge_cycles=None), plan.offload))
    cycles = np.asarray(system.task_bits, np.float64) * np.asarray(system.cycles_per_bit)
    limit = np.inf if system.edge_cycles is None else float(system.edge_cycles)
    beyond = plan.offload @ cycles > limit * (1 + PLAN_TOLERANCE)
    power = np.minimum(plan.power, np.asarray(system.max_power))
    answer = (plan.offload, power, plan.time)
    used, _ = times_of(system, gains, *(x.astype(gains.dtype) for x in answer))
    late = np.asarray(used) > float(system.slot) * (1 + PLAN_TOLERANCE)
    return measures(system, gains, paid, optimum, decided & ~beyond) | {
        "feasible": mean((paid.feasible & ~beyond)[optimum.feasible]),
        "missed_slot": mean(~paid.feasible[optimum.feasible]),
        "missed_edge": mean(beyond[optimum.feasible]),
        "late": mean(late[optimum.feasible]),
    }


def report(rows: Rows) -> None:
    """Print means over the seeds."""
    names: tuple[tuple[str, Callable[[Rows], str]], ...] = (
        ("MCOS [J]", lambda own: text(own, "mcos", "cost_j", "9.4f")),
        ("BCOS [J]", lambda own: text(own, "bcos", "cost_j", "9.4f")),
        ("optimum [J]", lambda own: text(own, "optimal", "cost_j", "9.4f")),
        ("certified", lambda own: text(own, "optimal", "certified", ".2%")),
        ("feasible", lambda own: text(own, "optimal", "feasible", ".1%")),
        ("plain: extra", lambda own: text(own, "plain", "gap_mean", ".2%")),
        ("slot missed", lambda own: text(own, "plain", "missed_slot", ".1%")),
        ("edge missed", lambda own: text(own, "plain", "missed_edge", ".1%")),
    )
    print(f"{'K':>2} {'with':18}" + "".join(f"{name:>13}" for name, _ in names))
    for size, piece in dict.fromkeys((row["num_devices"], row["piece"]) for row in rows):
        own = [row for row in rows if (row["num_devices"], row["piece"]) == (size, piece)]
        print(f"{size:2g} {piece:18}" + "".join(f"{write(own):>13}" for _, write in names))


def text(rows: Rows, scheme: str, column: str, form: str) -> str:
    """Write the mean of a column over the seeds, "-" where there is none."""
    values = [r[column] for r in rows if r["scheme"] == scheme and r[column] == r[column]]
    return f"{np.mean(values):{form}}" if values else "-"


if __name__ == "__main__":
    common.launch(main)
