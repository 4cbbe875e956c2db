"""A day in a cell: energy, late uplinks and queues, with perfect, estimated and old CSI.

Devices walk through a cell, their tasks arrive by Poisson's law and may be sent again for some
slots; at the busiest hour there are six times as many as at the quietest. Every scheme plays the
same days without a margin, and with the one that ``robust`` takes for --outage. Writes into
--output_dir: day.csv/.png/.pdf, speed.csv/... (devices of other speeds), queues.csv/... (backlog
against load), outage.csv/... (the outage asked for and met, and what a fixed back-off in dB
costs), filmstrip.csv/... (who sends when, at what power) and run.json. Example:

    python experiments/over_time.py --flagfile=experiments/flags/quick_time.flags
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from support import common, csv_tables, list_flags, progress_bar, time_plots

from meco_jax import Solution, figures, solve, table1
from meco_jax.simulation import (
    Outcome,
    Scenario,
    State,
    backoff,
    calibrate,
    doppler_frequency,
    reset,
    robust,
    simulate,
    step,
)
from meco_jax.simulation.simulate import observe

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_integer("num_devices", 14, "K", lower_bound=1)
flags.DEFINE_float("slot", 0.5, "slot length T [s]", lower_bound=1e-6)
flags.DEFINE_list("schemes", ["mcos", "bcos", "optimal"], "methods of solve to compare")
flags.DEFINE_float("error", 0.1, "of the estimates, over the mean amplitude [-]", lower_bound=0)
flags.DEFINE_float("outage", 0.05, "late slots that the margin allows [-]", lower_bound=1e-6)
flags.DEFINE_float("speed", 0.01, "of the devices, of the day [m/s]", lower_bound=0)
flags.DEFINE_float("carrier", 2.4e9, "carrier frequency [Hz]", lower_bound=1)
flags.DEFINE_integer("hours", 24, "parts of the day", lower_bound=1)
flags.DEFINE_integer("hour_slots", 50, "slots per part and cell", lower_bound=1)
flags.DEFINE_integer("study_slots", 400, "slots per cell of speed.csv, queues.csv", lower_bound=1)
flags.DEFINE_integer("outage_slots", 20_000, "slots per row of outage.csv", lower_bound=1)
flags.DEFINE_integer("calibration_slots", 300, "slots per price of risk tried", lower_bound=1)
flags.DEFINE_list("speeds", ["0.003", "0.01", "0.02", "0.03", "0.05", "0.1", "0.3", "1"], "[m/s]")
flags.DEFINE_list("loads", ["0.2", "0.4", "0.6", "0.7", "0.8", "0.9", "0.95"], "tasks per slot")
flags.DEFINE_list("outages", ["0.2", "0.1", "0.05", "0.01", "0.001"], "asked for in outage.csv")
flags.DEFINE_list("errors", ["0.05", "0.1", "0.2"], "of the estimates, of outage.csv")
flags.DEFINE_list("backoffs", ["0.01", "0.5", "1:6", "8:20:2", "24", "28", "32"], "[dB]")
flags.DEFINE_integer(
    "optimization_level", None, "of LLVM, by default XLA's: 0 compiles far quicker, for few slots",
    lower_bound=0, upper_bound=3,
)  # fmt: skip
flags.DEFINE_bool("plot_only", False, "draw again from --output_dir's csv")
flags.DEFINE_integer("seed", 0, "seed of tasks and of all that happens", lower_bound=0)

CELLS = 64  # that one program plays at once: fewer take nearly as long
CSI = ((0, 0), (1, 0), (0, 1))  # of the day: whether estimates have errors, slots that they are old
FILM = 4  # slots of the filmstrip
DEADLINE, QUEUE = 4.0, 12  # slots that a task may take; tasks per device that may wait
METHODS = "backoff", "slot", "price"  # margins: in dB (0 is none), per slot, one price of risk
TABLES = "day", "speed", "queues", "outage", "filmstrip"
PLACE = {
    "day": ("scheme", "error", "delay", "outage", "hour"),
    "speed": ("scheme", "delay", "outage", "speed"),
    "queues": ("scheme", "error", "outage", "load"),
    "outage": ("method", "error", "outage", "backoff_db"),
    "filmstrip": ("slot", "device"),
}
READ = {
    "day": ("energy_per_task_j", "late_slots_fraction", "missed_fraction"),
    "speed": ("energy_per_task_j", "late_slots_fraction", "missed_fraction"),
    "queues": ("backlog",),
    "outage": ("energy_per_task_j", "late_slots_fraction", "late_slots_ci95"),
    "filmstrip": ("length_s", "has_task", "sends", "start_s", "time_s", "power_w", "late",
                  "finish_s"),
}  # fmt: skip
Program = Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]


def main(argv: list[str]) -> None:
    """Play, or draw again what is there."""
    common.begin(argv)
    folder = Path(FLAGS.output_dir)
    if not FLAGS.plot_only:
        evaluate()
    tables = {name: csv_tables.read_csv(folder / f"{name}.csv", (*PLACE[name], *READ[name]),
                                        PLACE[name]) for name in TABLES}  # fmt: skip
    for name in TABLES:
        figures.save_figure(time_plots.FIGURES[name](tables[name]), folder / name)
    if not FLAGS.plot_only:
        common.write_run(folder / "run.json")
        print(f"wrote {folder} in {common.seconds():.0f} s")
    report(tables)


def evaluate() -> None:
    """Play all studies; every finished row is in the csv at once."""
    schemes = list_flags.names("schemes", ("mcos", "mcos_partial", "pcos", "bcos", "optimal"))
    for name in ("speeds", "loads", "outages", "errors", "backoffs"):
        list_flags.numbers(name, above=0)
    for name in ("outages", "errors"):
        if max(list_flags.numbers(name, above=0)) >= 1:
            common.stop(f"--{name} must be below 1; got {FLAGS[name].value}")
    if not FLAGS.outage < 1 > FLAGS.error:
        common.stop(f"--outage and --error must be below 1; got {FLAGS.outage}, {FLAGS.error}")
    folder = common.prepare()
    studies = [*days(schemes), *speeds(schemes), *queues(schemes), *outages(schemes[-1])]
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    csv_tables.write_csv(folder / "filmstrip.csv", filmstrip(schemes[-1], FILM))
    kinds = list(dict.fromkeys(kind for _, kind, _ in studies))
    with progress_bar.Bar(4 * len(kinds) + len(studies)) as bar:
        programs = compile_all(kinds, bar)
        for name, kind, play in studies:
            tables[name] += play(programs[kind])
            bar.advance(1, name)
            csv_tables.write_csv(folder / f"{name}.csv", tables[name])
            common.write_run(folder / "run.json", finished=False)


def scenario(**fields: Any) -> Scenario:
    """Return the cell that all studies vary: within 30 m of the station gains are Table 1's."""
    speed = fields.pop("speed", FLAGS.speed)
    doppler = doppler_frequency(speed, FLAGS.carrier)
    cell = Scenario(
        table1(FLAGS.num_devices, FLAGS.slot, FLAGS.seed), doppler=doppler, speed=speed,
        radius=50.0, reference=30.0, rice=1.0, rate=0.6, deadline=DEADLINE, csi_error=0.0,
        fading="gauss_markov", mobility="waypoint", csi="estimated", arrivals="poisson",
        queue_size=QUEUE,
    )  # fmt: skip
    return cell.replace(**fields)


Kind = tuple[str, int, str]  # scheme, slots that estimates are old, one of METHODS
Study = tuple[str, Kind, Callable[[Program], list[dict[str, Any]]]]


def days(schemes: list[str]) -> Iterator[Study]:
    """Plan the days: a row per scheme, CSI, margin and hour, all cells together."""
    for scheme, (errs, delay), safe in itertools.product(schemes, CSI, (False, True)):
        error = FLAGS.error if errs else 0.0
        if safe and not errs and not delay:
            continue  # perfect CSI needs no margin

        def play(
            program: Program, scheme: str = scheme, error: float = error,
            delay: int = delay, safe: bool = safe,
        ) -> list[dict[str, Any]]:  # fmt: skip
            cells = [scenario(csi_error=error, csi_delay=delay)] * CELLS
            state, rows = begin(cells), []
            for hour in range(FLAGS.hours):
                rate = 0.7 - 0.5 * math.cos(2 * math.pi * (hour / FLAGS.hours - 1 / 8))
                rates = np.full((CELLS, FLAGS.num_devices), rate, jnp.result_type(float))
                state = state._replace(scenario=state.scenario.replace(rate=rates))
                state, totals = go_on(program, state, margin(scheme, safe), hour, FLAGS.hour_slots)
                place = {"scheme": scheme, "error": error, "delay": delay,
                         "outage": FLAGS.outage if safe else 1.0, "hour": hour}  # fmt: skip
                rows.append(place | {"rate": rate} | measures(sums(totals, slice(None))))
            return rows

        yield "day", (scheme, delay, METHODS[safe]), play


def speeds(schemes: list[str]) -> Iterator[Study]:
    """Plan devices of other speeds, with errors and, the second time, an old estimate."""
    values = list_flags.numbers("speeds", above=0)
    for scheme, delay, safe in itertools.product(schemes, (0, 1), (False, True)):

        def play(
            program: Program, scheme: str = scheme, delay: int = delay, safe: bool = safe
        ) -> list[dict[str, Any]]:
            points = [scenario(speed=v, csi_error=FLAGS.error, csi_delay=delay) for v in values]
            totals = study(program, points, [margin_of(scheme, safe)] * len(points))
            outage = FLAGS.outage if safe else 1.0
            return [{"scheme": scheme, "delay": delay, "outage": outage, "speed": v} | measures(t)
                    for v, t in zip(values, totals)]  # fmt: skip

        yield "speed", (scheme, delay, METHODS[safe]), play


def queues(schemes: list[str]) -> Iterator[Study]:
    """Plan loads without a deadline: what is late is sent again until it is through."""
    values = list_flags.numbers("loads", above=0)
    for scheme, errs, safe in itertools.product(schemes, (0, 1), (False, True)):
        error = FLAGS.error if errs else 0.0
        if safe and not errs:
            continue

        def play(
            program: Program, scheme: str = scheme, error: float = error, safe: bool = safe
        ) -> list[dict[str, Any]]:
            points = [scenario(rate=r, deadline=math.inf, csi_error=error) for r in values]
            totals = study(program, points, [margin_of(scheme, safe)] * len(points))
            place = {"scheme": scheme, "error": error, "outage": FLAGS.outage if safe else 1.0}
            return [place | {"load": r} | measures(t) for r, t in zip(values, totals)]

        yield "queues", (scheme, 0, METHODS[safe]), play


def outages(scheme: str) -> Iterator[Study]:
    """Plan the calibration: outages asked for, then back-offs, with a task in every slot.

    All devices hear alike, and their gains change from slot to slot.
    """
    errors = list_flags.numbers("errors", above=0)
    uncorrelated = 2.404826 / (2 * math.pi * FLAGS.slot)  # a zero of J0

    def play(program: Program, method: str) -> list[dict[str, Any]]:
        values = list_flags.numbers("backoffs" if method == "backoff" else "outages", above=0)
        cases = list(itertools.product(errors, values))
        points = [scenario(csi_error=error, rate=4.0, radius=1.0, rice=0.0).replace(
            doppler=uncorrelated) for error, _ in cases]  # fmt: skip
        if method == "backoff":
            kinds: list[Any] = [backoff(scheme, x) for _, x in cases]
        else:
            kinds = [robust(scheme, x) for _, x in cases]
        if method == "price":
            kinds = [calibrate(kind, point, FLAGS.seed + 2, FLAGS.calibration_slots)
                     for kind, point in zip(kinds, points)]  # fmt: skip
        rows = []
        for (error, x), total in zip(cases, study(program, points, kinds, FLAGS.outage_slots)):
            outage, db = (1.0, x) if method == "backoff" else (x, 0.0)
            found = measures(total)
            # Gains and estimates are fresh in every slot, so its slots are independent.
            share, number = found["late_slots_fraction"], total["sending_slots"]
            spread = (max(share * (1 - share), 0) / max(number, 1)) ** 0.5
            rows.append({"method": method, "error": error, "outage": outage, "backoff_db": db,
                         **found, "late_slots_ci95": 1.96 * spread})  # fmt: skip
        return rows

    for method in METHODS:
        yield "outage", (scheme, 0, method), partial(play, method=method)


def margin_of(scheme: str, safe: bool) -> Any:
    """Return the scheme with the margin for --outage, or with none: 0 dB."""
    return robust(scheme, FLAGS.outage) if safe else backoff(scheme, 0.0)


def margin(scheme: str, safe: bool) -> Any:
    """Return the scheme for all cells."""
    return stack([margin_of(scheme, safe)] * CELLS)


def stack(trees: list[Any]) -> Any:
    """Stack pytrees of numbers on the host, in the precision of JAX."""
    return jax.tree.map(
        lambda *leaves: np.stack([np.asarray(x, jnp.result_type(x)) for x in leaves]), *trees
    )


def begin(cells: list[Scenario]) -> State:
    """Begin cells, each with its own randomness: a stacked state."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(FLAGS.seed), np.arange(CELLS))
    return _begin(keys, stack(cells))


_begin = jax.jit(jax.vmap(lambda key, cell: reset(key, cell)[0]))


@partial(jax.jit, static_argnames="num_slots")
def play_slots(
    state: State, schemes: Any, key: jax.Array, num_slots: int
) -> tuple[State, dict[str, jax.Array]]:
    """Play all cells on, and add up: ``[CELLS]`` each."""

    def cell(state: State, scheme: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        state, outcome = simulate(state, scheme, key, num_slots)
        return state, total(outcome)

    return jax.vmap(cell)(state, schemes, jax.random.split(key, CELLS))


def total(outcome: Outcome) -> dict[str, jax.Array]:
    """Add up the outcomes ``[N, K]`` of a cell."""
    return {
        "energy": jnp.sum(outcome.energy),
        "completed": jnp.sum(outcome.completed),
        "sent": jnp.sum(outcome.sent),
        "late": jnp.sum(outcome.late),
        "sending_slots": jnp.sum(jnp.any(outcome.sent, axis=1)),
        "late_slots": jnp.sum(jnp.any(outcome.late, axis=1)),
        "missed": jnp.sum(outcome.missed),
        "arrived": jnp.sum(outcome.arrived),
        "backlog": jnp.sum(outcome.backlog) / outcome.backlog.shape[1],
        "infeasible": jnp.sum(~outcome.feasible),
        "slots": jnp.asarray(outcome.feasible.shape[0]),
    }


def part_slots() -> int:
    """Slots that a program plays at once."""
    return min(FLAGS.hour_slots, 200)


def go_on(
    program: Program, state: State, schemes: Any, part: int, num_slots: int
) -> tuple[State, dict[str, np.ndarray]]:
    """Play cells on for at least so many slots: sums ``[CELLS]``."""
    sums: dict[str, np.ndarray] = {}
    for number in range(-(-num_slots // part_slots())):
        key = jax.random.fold_in(jax.random.key(FLAGS.seed + 1), part)
        state, found = program(state, schemes, jax.random.fold_in(key, number))
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
    return state, sums


def study(
    program: Program, points: list[Scenario], schemes: list[Any], num_slots: int | None = None
) -> list[dict[str, float]]:
    """Play points that differ in their numbers, as many cells each as the program has room for.

    Args:
        program: of all of them.
        points: one per row of the table.
        schemes: one per point.
        num_slots: of a point, all its cells together; by default --study_slots per cell.
    """
    found = []
    for place in range(0, len(points), CELLS):
        number = min(CELLS, len(points) - place)
        own = np.arange(CELLS) % number  # the point that a cell plays
        state = begin([points[place + i] for i in own])
        kinds = stack([schemes[place + i] for i in own])
        slots = -(-num_slots // (CELLS // number)) if num_slots else FLAGS.study_slots
        state, _ = go_on(program, state, kinds, 2 * place + 1000, max(1, slots // 4))  # warm up
        _, totals = go_on(program, state, kinds, 2 * place + 1001, slots)
        found += [sums(totals, own == i) for i in range(number)]
    return found


def sums(totals: dict[str, np.ndarray], cells: Any) -> dict[str, float]:
    """Add up some cells."""
    return {name: float(np.sum(value[cells])) for name, value in totals.items()}


def measures(sums: dict[str, float]) -> dict[str, float]:
    """Turn sums into what the tables hold."""

    def share(part: str, whole: str) -> float:
        return sums[part] / sums[whole] if sums[whole] else math.nan

    return {
        "energy_per_task_j": share("energy", "completed"),
        "energy_per_slot_j": share("energy", "slots"),
        "late_slots_fraction": share("late_slots", "sending_slots"),
        "late_uplinks_fraction": share("late", "sent"),
        "missed_fraction": share("missed", "arrived"),
        "infeasible_fraction": share("infeasible", "slots"),
        "backlog": share("backlog", "slots"),
        "slots": sums["slots"],
    }


def compile_all(kinds: list[Kind], bar: progress_bar.Bar) -> dict[Kind, Program]:
    """Compile the program of every scheme, age of the estimates and margin, two at a time."""

    def one(kind: Kind) -> Program:
        scheme, delay, method = kind
        example = margin_of(scheme, method != "backoff")
        if method == "price":
            example = example.replace(price=1.0)
        shapes = jax.eval_shape(partial(begin, [scenario(csi_delay=delay)] * CELLS))
        key = jax.eval_shape(lambda: jax.random.key(0))
        lowered = play_slots.lower(shapes, stack([example] * CELLS), key, part_slots())
        level = FLAGS.optimization_level
        options = {} if level is None else {"xla_backend_optimization_level": level}
        compiled: Any = lowered.compile(options)
        bar.advance(4, f"compiled {scheme}")
        return compiled

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(kinds, pool.map(one, kinds)))


def filmstrip(scheme: str, number: int) -> list[dict[str, Any]]:
    """Play some slots of one cell, and note who sends when: a row per slot and device."""

    @jax.jit
    def play(key: jax.Array, state: State) -> tuple[State, jax.Array, Solution, Outcome]:
        seen = observe(state)
        decision = solve(seen.h, seen.system, method=scheme)  # type: ignore[arg-type]
        state, _, outcome = step(key, state, decision)
        return state, seen.backlog, decision, outcome

    cells = begin([scenario(csi_error=FLAGS.error, rate=0.8)] * CELLS)
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[0], cells)
    rows = []
    for slot in range(number):
        key = jax.random.key(FLAGS.seed + 1 + slot)
        state, backlog, decision, outcome = play(key, state)
        time, delay = np.asarray(decision.time), np.asarray(outcome.delay)
        finish = np.where(np.isfinite(delay), delay, np.nan) % FLAGS.slot
        columns = {
            "has_task": backlog > 0, "sends": outcome.sent, "start_s": np.cumsum(time) - time,
            "time_s": time, "power_w": decision.power, "late": outcome.late,
            "finish_s": finish,
        }  # fmt: skip
        for k in range(FLAGS.num_devices):
            own = {name: float(np.asarray(column)[k]) for name, column in columns.items()}
            rows.append({"slot": slot, "device": k, "length_s": FLAGS.slot} | own)
    return rows


def report(tables: dict[str, list[dict[str, Any]]]) -> None:
    """Print what the margin costs and keeps, over the day, and the calibration."""
    print("scheme     error  slots old  outage  energy per task  late slots   missed")
    keys = PLACE["day"][:-1]
    for kind, rows in itertools.groupby(tables["day"], key=lambda row: [row[k] for k in keys]):
        own = list(rows)
        energy, late, missed = (np.nanmean([row[k] for row in own]) for k in READ["day"])
        scheme, error, delay, outage = kind
        asked = f"{outage:8.1%}" if outage < 1 else "    none"
        shares = f"{1e3 * energy:14.2f} mJ{late:12.2%}{missed:9.2%}"
        print(f"{scheme:10}{error:6g}{delay:11g}{asked}{shares}")
    print("margin  error  outage asked      met, 95 % interval   energy less than by back-off")
    for row in tables["outage"]:
        if row["method"] != "backoff":
            saved = time_plots.saved_over_backoff(row, tables["outage"])
            met, half = row["late_slots_fraction"], row["late_slots_ci95"]
            text = f"{saved:.1%}" if saved == saved else "out of range"
            asked = f"{row['method']:7}{row['error']:6g}{row['outage']:12.1%}"
            print(f"{asked}{met:12.3%} +- {half:.3%}{text:>16}")


if __name__ == "__main__":
    common.launch(main)
