"""The benchmark: all built-in methods, and schemes of your own, on instances with proven optima.

A gap is |answer - optimum| / optimum of an instance. --scheme=module:function adds your own, a
function of one channel as ``meco_jax.solve`` takes it, or ``meco_jax.wpmec.solve`` on families of
that problem; repeatable. Beside the methods stand decisions that need no solver, each as it is,
repaired and improved, so that one sees whether a family ranks schemes: decisions.csv. With
--network_instances the paper's network is among them, trained for each of so many systems. Writes
results.csv, decisions.csv, benchmark.png/.pdf and run.json into --output_dir.

Example:
    python experiments/benchmark.py --output_dir=runs/benchmark
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags
from report import result_tables
from support import common, csv_tables, decisions, list_flags, own, plots, progress_bar

from meco_jax import TrainConfig, benchmarks, figures

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_multi_string("scheme", [], "module:function of your own, on the families of --problem")
flags.DEFINE_enum("problem", None, ["p1", "wpmec"], "only this problem; with --scheme its own")
flags.DEFINE_list("family", [], "only these, by default all: see meco_jax.benchmarks.names()")
flags.DEFINE_integer(
    "network_instances", 0, "per family of P1, whose systems the paper's network is trained for",
    lower_bound=0,
)  # fmt: skip
flags.DEFINE_integer("epochs", 250, "of these trainings, 20 steps each", lower_bound=1)
flags.DEFINE_integer("repeats", 3, "timed calls, the fastest counts", lower_bound=1)
flags.DEFINE_bool("plot_only", False, "draw again from --output_dir's results.csv")
METHODS = {
    "p1": ("optimal", "policy", "mcos"),
    "wpmec": ("optimal", "prefix", "local", "offload"),
}


def main(argv: list[str]) -> None:
    """Score all methods, family by family."""
    common.begin(argv)
    if FLAGS.plot_only:
        folder = Path(FLAGS.output_dir)
        place = "family", "method"
        draw(folder, csv_tables.read_csv(folder / "results.csv", (*place, "gap_mean"), place))
        return
    known = benchmarks.names()
    wanted = list_flags.names("family", known) if FLAGS.family else known
    families = [benchmarks.load(name) for name in wanted]
    families = [each for each in families if FLAGS.problem in (None, each.problem)]
    problems = {each.problem for each in families}
    if not families:
        common.stop(f"--family must have some of --problem={FLAGS.problem}; got {','.join(wanted)}")
    if FLAGS.scheme and len(problems) > 1:
        common.stop(f"--problem must say whose --scheme is, {' or '.join(METHODS)}; got none")
    schemes: dict[str, Any] = {}
    for text in FLAGS.scheme:
        name, function, _ = own.load_scheme(text)
        schemes[name] = function
    runs = [
        (family, name, scheme)
        for family in families
        for name, scheme in ({m: m for m in METHODS[family.problem]} | schemes).items()
    ]
    folder, rows = common.prepare(), list[dict[str, Any]]()
    worth = list[dict[str, Any]]()
    with progress_bar.Bar(len(runs) + len(families)) as bar:
        for family, name, scheme in runs:
            try:
                score = benchmarks.score(scheme, family, FLAGS.repeats)
            except ValueError as error:
                common.stop(f"--scheme: {name} on {family.name}: {error}")
            row = score._asdict()
            rows.append({"family": row.pop("name"), "method": name, **row})
            bar.advance(1, f"{family.name}, {name}")
            csv_tables.write_csv(folder / "results.csv", rows)
            common.write_run(folder / "run.json", finished=False)
        for family in families:
            worth += decided(family)
            csv_tables.write_csv(folder / "decisions.csv", worth)
            bar.advance(1, f"{family.name}, decisions by rule")
    draw(folder, rows)
    common.write_run(folder / "run.json")
    report(rows)
    result_tables.show(result_tables.decisions(worth))
    print(f"wrote {folder} in {common.seconds():.0f} s")


def decided(family: benchmarks.Family) -> list[dict[str, Any]]:
    """Score decisions that need no solver: rows of decisions.csv."""
    found = decisions.simple(family)
    if family.problem == "p1":
        found["policy"] = decisions.by_policy(family)
        if FLAGS.network_instances:
            config = TrainConfig(num_channels=20_000, batch_size=1000, epochs=FLAGS.epochs)
            number = min(FLAGS.network_instances, len(family.h))
            found["network"] = decisions.by_network(family, number, config)
    return [row for name, rows in found.items() for row in decisions.worth(family, name, rows)]


def draw(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the mean gap of every method on every family."""
    figures.save_figure(plots.benchmark_figure(rows), folder / "benchmark")


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'family':20}{'method':16}{'mean gap':>10}{'95 %':>10}{'worst':>10}"
          f"{'infeasible':>11}{'us':>9}")  # fmt: skip
    for r in rows:
        print(f"{r['family']:20}{r['method']:16}{r['gap_mean']:10.1e}{r['gap_95']:10.1e}"
              f"{r['gap_worst']:10.1e}{r['infeasible']:11}{r['us_per_channel']:9.0f}"
              + (f"  {r['impossible']} beyond the proof" if r["impossible"] else ""))  # fmt: skip


if __name__ == "__main__":
    common.launch(main)
