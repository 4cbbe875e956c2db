"""How far float32 is from float64, for every public quantity, on the same inputs.

Random systems far and wide (``sample_systems``) go through the library in float32 and, in a
process of its own, in float64. Writes precision.csv and run.json into --output_dir; stops with
status 1 if an error is beyond its budget. Example:

    python experiments/precision.py --output_dir=runs/precision
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from report import result_tables
from support import common, csv_tables

from meco_jax import System, sample_systems, solve
from meco_jax import system as sy
from meco_jax.exact import uplink as up
from meco_jax.solver import Method

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_integer("channels", 4000, "channels, each with its own system", lower_bound=2)
flags.DEFINE_integer("num_devices", 24, "most devices of a system", lower_bound=1)
flags.DEFINE_integer("seed", 0, "of the systems", lower_bound=0)

METHODS: tuple[Method, ...] = "mcos", "mcos_partial", "pcos", "optimal", "bcos"
BUDGET = {  # largest relative error of float32
    "rate": 1e-6,
    "local_time": 5e-7,
    "local_energy": 1e-6,
    "required_ratio": 1e-3,  # 1e-7 of the task, which may be much of a tiny ratio
    "transmit_time": 1e-6,
    "realised_energy": 1e-6,
    "best_efficiency": 1e-6,
    "priced_cost": 2e-6,
    "energy": 5e-6,
    "lower_bound": 2e-5,
    "power": 1e-4,  # near the optimum the energy hardly depends on these
    "time": 2e-2,  # of a part that PCOS hardly sends; whole tasks stay below 1e-4
}
SAME = 1e-3  # parts of tasks that differ by less are the same decision
Values = dict[str, np.ndarray]


def main(argv: list[str]) -> None:
    """Compare, print the table and write it."""
    common.begin(argv)
    folder = common.prepare()
    inputs = jax.tree.map(
        np.asarray,
        sample_systems(jax.random.key(FLAGS.seed), FLAGS.channels, FLAGS.num_devices),
    )
    single = quantities(*inputs)
    double = common.alone(quantities, *inputs, environment={"JAX_ENABLE_X64": "1"})
    rows = [row(name, single, double) for name in double if name.split(": ")[-1] in BUDGET]
    csv_tables.write_csv(folder / "precision.csv", rows)
    common.write_run(folder / "run.json")
    report(rows, single, double)
    bad = [r["quantity"] for r in rows if not r["error_max"] <= r["budget"]]
    if bad:
        common.stop(f"beyond the budget: {', '.join(bad)}", 1)


def row(name: str, single: Values, double: Values) -> dict[str, Any]:
    """Compare one quantity where both precisions have it, and decide alike."""
    method = name.split(": ")[0]
    same = np.isfinite(single[name]) & np.isfinite(double[name])
    if name.endswith(("power", "time")) and method in METHODS:
        alike = np.abs(single[f"{method}: offload"] - double[f"{method}: offload"]) < SAME
        same &= np.all(alike, axis=-1, keepdims=True)
    one, two = (np.asarray(x[name], np.float64)[same] for x in (single, double))
    error = np.abs(one - two) / np.where(two == 0, 1.0, np.abs(two))
    return {
        "quantity": name,
        "numbers": len(error),
        "error_median": float(np.median(error)),
        "error_p99": float(np.percentile(error, 99)),
        "error_max": float(np.max(error)),
        "budget": BUDGET[name.split(": ")[-1]],
    }


def report(rows: list[dict[str, Any]], single: Values, double: Values) -> None:
    """Print the table as RESULTS.md has it, and how often the precisions decide otherwise."""
    result_tables.show(result_tables.precision(rows))
    for method in METHODS:
        names = f"{method}: feasible", f"{method}: offload"
        feasible, offload = (np.abs(1.0 * single[n] - double[n]) for n in names)
        other = np.any(offload > SAME, axis=-1)
        print(f"{method}: {np.sum(feasible > 0)} of {len(other)} channels feasible in one alone, "
              f"{np.sum(other)} decided otherwise")  # fmt: skip


def quantities(system: System, h: Any) -> Values:
    """Compute everything for systems and channels ``[N, K]``, in the precision of this process."""
    system, h = sy.check_system(system), sy.check_channels(h, system.num_devices)
    found = dict(jax.tree.map(np.asarray, _formulas(system, h)))
    for method in METHODS:
        solution = jax.tree.map(np.asarray, solve(h, system, method=method, tolerance=1e-6))
        ok, active = solution.feasible, np.asarray(system.active)
        decided = ok[:, None] & active
        found |= {
            f"{method}: feasible": ok,
            f"{method}: offload": solution.offload,
            f"{method}: energy": np.where(ok, solution.energy, np.nan),
            f"{method}: lower_bound": np.where(ok, solution.lower_bound, np.nan),
            f"{method}: power": np.where(decided, solution.power, np.nan),
            f"{method}: time": np.where(decided, solution.time, np.nan),
        }
    return found


@jax.jit
@jax.vmap
def _formulas(system: System, h: jax.Array) -> dict[str, jax.Array]:
    """The formulas at half the power limit, and what the devices do at a price of 0.1 W."""
    power = 0.5 * system.max_power * (system.task_bits > 0)
    uplink, half = up.make_uplink(system, h), 0.5 * (system.task_bits > 0)
    at = jnp.log(jnp.asarray(0.1, h.dtype))
    shown = lambda x: jnp.where(uplink.usable, x, jnp.nan)  # noqa: E731
    return {
        "rate": sy.rate(system, h, power),
        "local_time": sy.local_time(system),
        "local_energy": sy.local_energy(system),
        "required_ratio": sy.required_ratio(system),
        "transmit_time": shown(sy.transmit_time(system, h, half, power)),
        "realised_energy": sy.realised_energy(system, h, half, power),
        "best_efficiency": shown(up.best_efficiency(uplink, at)),
        "priced_cost": shown(up.priced_cost(uplink, at)),
    }


if __name__ == "__main__":
    common.launch(main)
