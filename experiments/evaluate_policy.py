"""How far the shipped policy is from the certified optimum: in its range, and beyond it.

Tasks are drawn anew in every channel, with other seeds than in training. Writes into
--output_dir: gaps.csv (K x b x T), beyond.csv and beyond.png/.pdf (K, T, b, path gain, spread
of the gains, weights outside the training's ranges), csi.csv and csi.png/.pdf (decisions on
noisy gains, with a back-off) and run.json. A gap is energy / optimum - 1 of a channel; means
are over the feasible channels. Example:

    python experiments/evaluate_policy.py --output_dir=runs/evaluate_policy
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from report import result_tables
from support import common, csv_tables, gap_plots, list_flags, progress_bar

from meco_jax import (
    GeneralPolicy,
    System,
    figures,
    load_policy,
    pretrained,
    sample_channels,
    solve,
    table1,
)
from meco_jax import system as sy
from meco_jax.exact.shares import FIT_TOLERANCE
from meco_jax.learned.policy import init_params

PANELS: dict[str, tuple[float, ...]] = {  # of beyond.csv
    "num_devices": (2, 4, 8, 16, 32, 64, 128, 256),
    "slot": (0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0),
    "log_base": (1.5, 2.0, math.e, 5.0, 10.0, 20.0, 40.0),
    "mean_gain": tuple(10.0 ** np.arange(-9, -1)),
    "spread": (0.0, 0.5, 1.0, 2.0, 3.0, 4.0),
    "weights": (0.0, 0.5, 1.0, 1.4, 2.0, 3.0),
}

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_string("policy", None, "file of a general policy; the shipped one by default")
flags.DEFINE_list(
    "num_devices", ["4", "8", "14", "20", "40", "60"], "the K of gaps.csv; 4:8:2 is 4,6,8"
)
flags.DEFINE_list("log_bases", ["2", "e", "10"], "bases of the logarithm in (3)")
flags.DEFINE_list("slots", ["0.3", "0.5", "1.0"], "slot lengths T [s]")
flags.DEFINE_integer("channels", 2000, "channels per row, each with its own tasks", lower_bound=2)
flags.DEFINE_integer("beyond_channels", 500, "channels per point of the figures", lower_bound=2)
flags.DEFINE_list("efforts", ["0", "4", "6"], "efforts to compare")
flags.DEFINE_multi_enum("panels", list(PANELS), list(PANELS), "what to take beyond the training")
flags.DEFINE_bool("plot_only", False, "draw again from --output_dir's csv")
flags.DEFINE_integer("seed", 10_000_000, "first task seed", lower_bound=0)

TABLES = "gaps", "beyond", "csi"
ERRORS = 0.05, 0.1, 0.2  # standard deviation of the gain's estimate over its mean amplitude
BACKOFFS = 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0  # [dB]
CSI_DEVICES = 14


def main(argv: list[str]) -> None:
    """Evaluate, or draw again what is there."""
    common.begin(argv)
    efforts, folder = list_flags.integers("efforts", low=0), Path(FLAGS.output_dir)
    tables = read(folder) if FLAGS.plot_only else evaluate(efforts)
    figures.save_figure(gap_plots.beyond_figure(tables["beyond"]), folder / "beyond")
    figures.save_figure(gap_plots.csi_figure(tables["csi"]), folder / "csi")
    if not FLAGS.plot_only:
        common.write_run(folder / "run.json")
        print(f"wrote {folder} in {common.seconds():.0f} s")
    report(tables["gaps"])


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the tables, or stop with a line that says what is wrong with them."""
    wanted = {
        "gaps": (("num_devices", "log_base", "slot"), ("missed",)),
        "beyond": (("family", "value"), ("feasible_fraction",)),
        "csi": (("error", "backoff_db"), ("late_fraction", "gap_mean")),
    }
    tables = {}
    for name, (place, more) in wanted.items():
        gaps = ("no_network_gap_mean", "no_network_gap_worst") if name != "csi" else ()
        path = folder / f"{name}.csv"
        csv_tables.read_csv(path, (*place, *more, *gaps), place, whole=name == "csi")
        tables[name] = csv_tables.read_csv(path)  # the gaps of any efforts too
        means = [column for column in tables[name][0] if column.endswith("_gap_mean")]
        csv_tables.read_csv(path, [column.replace("_mean", "_worst") for column in means])
    return tables


def evaluate(efforts: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Find all tables; every finished row is in the csv at once."""
    devices = list_flags.integers("num_devices", low=1)
    bases, slots = (
        list_flags.numbers(name, above=low) for name, low in (("log_bases", 1), ("slots", 0))
    )
    try:
        policy = load_policy(FLAGS.policy) if FLAGS.policy else pretrained()
    except (OSError, ValueError) as error:
        common.stop(f"--policy={FLAGS.policy}: {error}")
    if not isinstance(policy, GeneralPolicy):
        common.stop(f"--policy={FLAGS.policy} must be a general policy, not one of one system")
    folder = common.prepare()
    cases = list(itertools.product(devices, bases, slots))
    points = sum(len(PANELS[name]) for name in FLAGS.panels)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    with progress_bar.Bar(len(cases) + points + len(ERRORS)) as bar:
        for name, row in rows(policy, cases, efforts):
            tables[name].append(row)
            bar.advance(1 if name != "csi" else 1 / len(BACKOFFS), name)
            csv_tables.write_csv(folder / f"{name}.csv", tables[name])
            common.write_run(folder / "run.json", finished=False)
    return tables


def rows(
    policy: GeneralPolicy, cases: list[tuple[Any, ...]], efforts: list[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Find all rows, each with the name of its table."""
    for num_devices, base, slot in cases:
        fields = {"log_base": base, "slot": slot}
        system, h = draw_cases(FLAGS.channels, num_devices, fields)
        yield "gaps", {"num_devices": num_devices, **fields, **measure(policy, system, h, efforts)}
    for name in FLAGS.panels:
        for value in PANELS[name]:
            system, h = beyond(name, value)
            yield "beyond", {"family": name, "value": value, **measure(policy, system, h, efforts)}
    for error in ERRORS:
        for row in imperfect(policy, error, efforts[-1]):
            yield "csi", row


def draw_cases(number: int, num_devices: int, fields: dict[str, float]) -> tuple[System, jax.Array]:
    """Draw channels ``[N, K]`` and the Table 1 tasks of each, fields ``[N, ...]``."""
    seeds = FLAGS.seed + np.arange(number)
    system = jax.vmap(lambda seed: table1(num_devices, seed=seed))(seeds)
    system = system.replace(**{name: np.full(number, x) for name, x in fields.items()})
    one = jax.tree.map(lambda leaf: leaf[0], system)
    return system, sample_channels(jax.random.key(FLAGS.seed), one, number)


def beyond(name: str, value: float) -> tuple[System, jax.Array]:
    """Draw cases with one thing changed; "spread" is DROO's kind of channel."""
    number, num_devices = FLAGS.beyond_channels, 20
    fields: dict[str, float] = {}
    if name == "num_devices":
        num_devices = int(value)
        fields = {"bandwidth": 1e7 * max(1.0, num_devices / 20)}
    elif name in ("slot", "log_base", "mean_gain"):
        fields = {name: value}
    system, h = draw_cases(number, num_devices, fields)
    rng = np.random.default_rng(FLAGS.seed)
    decades = rng.uniform(-0.5, 0.5, h.shape) if name in ("spread", "weights") else 0.0
    scale = jnp.asarray(10.0 ** (value * decades), h.dtype)
    if name == "spread":
        h = h * jnp.sqrt(scale)  # h^2 is the power gain
    elif name == "weights":
        system = system.replace(weight=scale)
    return system, h


def measure(
    policy: GeneralPolicy, system: System, h: jax.Array, efforts: list[int]
) -> dict[str, Any]:
    """Compare the policy's energies with the certified optimum, over the feasible channels."""
    best = solve(h, system, method="optimal", tolerance=1e-4 if h.shape[1] <= 64 else 1e-3)
    ok = np.asarray(best.feasible)
    energy = np.asarray(best.energy, np.float64)[ok]
    plain = policy.replace(params=init_params(policy.network, jax.random.key(0)))
    lines = [("no_network", plain, 0)] + [(f"effort_{n}", policy, n) for n in efforts]
    found: dict[str, Any] = {"feasible_fraction": float(np.mean(ok)), "missed": 0}
    for name, one, effort in lines:
        answer = jax.tree.map(np.asarray, solve(h, system, policy=one, effort=effort))
        found["missed"] += int(np.sum(answer.feasible != ok))  # feasible for one of the two alone
        gap = np.maximum(answer.energy[ok].astype(np.float64) / energy - 1, 0)
        found[f"{name}_gap_mean"] = float(np.mean(gap)) if len(gap) else math.nan
        found[f"{name}_gap_worst"] = float(np.max(gap)) if len(gap) else math.nan
    return found


def imperfect(policy: GeneralPolicy, error: float, effort: int) -> Iterator[dict[str, Any]]:
    """Decide on noisy gains less a back-off, and pay on the true ones: one row a back-off."""
    system, h = draw_cases(FLAGS.channels, CSI_DEVICES, {})
    rng = np.random.default_rng(FLAGS.seed)
    noise = rng.normal(size=(2, *h.shape)) * error / math.sqrt(2) * 1e-3  # of amplitude 1e-6^0.5
    seen = jnp.asarray(np.hypot(np.asarray(h) + noise[0], noise[1]), h.dtype)
    best = np.asarray(solve(h, system, method="optimal").energy, np.float64)
    for backoff in BACKOFFS:
        decision = solve(seen * 10 ** (-backoff / 20), system, policy=policy, effort=effort)
        energy, used = (
            np.asarray(x, np.float64) for x in _pay(system, h, decision.offload, decision.power)
        )
        ok = np.isfinite(best) & np.asarray(decision.feasible)
        share = used[ok] / np.asarray(system.slot)[ok]
        yield {
            "error": error,
            "backoff_db": backoff,
            "refused_fraction": float(np.mean(np.isfinite(best) & ~ok)),
            "late_fraction": float(np.mean(share > 1 + FIT_TOLERANCE)),
            "overrun_mean": float(np.mean(np.maximum(share - 1, 0))),
            "gap_mean": float(np.mean(energy[ok] / best[ok] - 1)),  # late channels too
        }


@jax.jit
@jax.vmap
def _pay(
    system: System, h: jax.Array, offload: jax.Array, power: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Energy [J] and time [s] that a decision takes on the true gains ``[K]``."""
    used = sy.transmit_time(system, h, offload, power)
    return sy.realised_energy(system, h, offload, power), jnp.sum(used)


def report(gaps: list[dict[str, Any]]) -> None:
    """Print the table as RESULTS.md has it: a row per K, the means over its rows and the worst."""
    result_tables.show(result_tables.policy(gaps))
    print(f"feasible for one of policy and optimum alone: {sum(row['missed'] for row in gaps)}")


if __name__ == "__main__":
    common.launch(main)
