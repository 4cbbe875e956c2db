"""Make the benchmark's files: instances, and optima that are proven to 1e-9 in float64.

An instance whose proof does not close in --max_nodes is drawn anew, and counted. Writes one .npz
per family, index.txt with their SHA-256 and run.json into --output_dir; the package carries them
as meco_jax/benchmark_data. Example:

    python experiments/make_benchmarks.py --output_dir=runs/benchmarks
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from support import common, list_flags, progress_bar

from meco_jax import (
    System,
    drop_devices,
    from_dbm,
    path_gain,
    sample_channels,
    wpmec,
)
from meco_jax import system as sy
from meco_jax.benchmarks import INDEX
from meco_jax.exact import search as p1
from meco_jax.runtime.atomic import write_atomically
from meco_jax.scenarios import table1
from meco_jax.wpmec import search as wp
from meco_jax.wpmec import system as wsy

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_integer("instances", 100, "per family", lower_bound=1)
flags.DEFINE_integer("max_nodes", 200_000, "of a search", lower_bound=1)
flags.DEFINE_list("family", [], "only these, by default all")
TOLERANCE = 5e-10  # of the searches: bounds are within 1e-9
Draw = Callable[[int], tuple[np.ndarray, Any]]  # from a seed to one instance


def p1_instance(
    size: int, slot: float, fade: float = 1.0, weights: bool = False, edge: bool = False
) -> Draw:
    """Draw P1 as the paper does, with gains of a share ``fade`` of its mean, weights or an edge."""

    def draw(seed: int) -> tuple[np.ndarray, System]:
        system = table1(size, slot, seed)
        rng = np.random.default_rng((seed, size))
        if weights:
            system = system.replace(weight=10 ** rng.uniform(-1, 1, size))
        if edge:
            system = system.replace(edge_cycles=finite_edge(system, rng))
        h = np.asarray(sample_channels(seed + 1, system, 1))[0] * np.sqrt(fade)
        return h, system

    return draw


def real_instance(size: int, slot: float, access: str) -> Draw:
    """Draw all that THEORY.md, section 10, has: devices in a cell that differ in everything."""

    def draw(seed: int) -> tuple[np.ndarray, System]:
        rng = np.random.default_rng((seed, size))
        table = table1(size, slot, seed)
        system = table.replace(
            mean_gain=path_gain(drop_devices(seed, size, radius=250.0, inner=35.0)),
            noise_power=from_dbm(-99.0 + rng.uniform(0, 6, size)),  # interference over the noise
            max_power=from_dbm(rng.choice([23.0, 20.0, 17.0], size)),
            circuit_power=rng.uniform(0.02, 0.1, size),
            fixed_time=rng.uniform(2e-3, 8e-3, size),
            fixed_energy=rng.uniform(2e-4, 8e-4, size),
            delay_weight=rng.uniform(0, 0.04, size),
            edge_cycles=finite_edge(table, rng),
            access=access,
        )
        return np.asarray(sample_channels(seed + 1, system, 1, antennas=4))[0], system

    return draw


def finite_edge(system: System, rng: np.random.Generator) -> float:
    """Draw F, 30 to 70 % of the cycles of all tasks."""
    cycles = np.asarray(system.task_bits, np.float64) * np.asarray(system.cycles_per_bit)
    return float(rng.uniform(0.3, 0.7) * np.sum(cycles))


def wpmec_instance(size: int, hard: bool) -> Draw:
    """Draw wireless powered offloading as published, or with devices that differ in all."""

    def draw(seed: int) -> tuple[np.ndarray, wpmec.WPMEC]:
        system = wpmec.reference(size)
        rng = np.random.default_rng((seed, size))
        farthest = 5.2
        if hard:
            farthest = 10.0
            system = wpmec.WPMEC(
                weight=10 ** rng.uniform(-0.7, 0.7, size),
                chip=10 ** rng.uniform(-27.5, -25, size),
                cycles_per_bit=10 ** rng.uniform(1.3, 2.5, size),
            )
        return np.asarray(wpmec.sample_channels(seed, size, 1, farthest=farthest))[0], system

    return draw


FAMILIES: dict[str, Draw] = {
    "p1-k10-v1": p1_instance(10, 0.5),
    "p1-k14-v1": p1_instance(14, 0.5),
    "p1-k20-v1": p1_instance(20, 0.5),
    "p1-k20-ample-v1": p1_instance(20, 1.0),
    "p1-k14-tight-v1": p1_instance(14, 0.3),
    "p1-k14-faded-v1": p1_instance(14, 1.0, fade=1e-2),
    "p1-k14-weights-v1": p1_instance(14, 0.5, weights=True),
    "p1-k14-edge-v1": p1_instance(14, 0.5, edge=True),
    "p1-k14-real-v1": real_instance(14, 0.5, "tdma"),
    "p1-k14-fdma-v1": real_instance(14, 0.5, "fdma"),
    "wpmec-k10-v1": wpmec_instance(10, hard=False),
    "wpmec-k30-v1": wpmec_instance(30, hard=False),
    "wpmec-k10-hard-v1": wpmec_instance(10, hard=True),
    "wpmec-k30-hard-v1": wpmec_instance(30, hard=True),
}


def main(argv: list[str]) -> None:
    """Make all families."""
    common.begin(argv)
    wanted = list_flags.names("family", list(FAMILIES)) if FLAGS.family else list(FAMILIES)
    folder, lines = common.prepare(), list[str]()
    with progress_bar.Bar(len(wanted)) as bar:
        for name in wanted:
            data, redrawn = make(name)
            stream = io.BytesIO()
            np.savez_compressed(stream, **data)  # type: ignore[arg-type]
            content = stream.getvalue()
            write(folder / f"{name}.npz", content)
            lines.append(f"{hashlib.sha256(content).hexdigest()} {name}\n")
            write(folder / INDEX, "".join(lines).encode())
            bar.advance(1, f"{name}: {len(content) / 1e3:.0f} kB, {redrawn} drawn anew")
    common.write_run(folder / "run.json")
    size = sum(path.stat().st_size for path in Path(folder).glob("*.npz"))
    print(f"wrote {size / 1e3:.0f} kB into {folder} in {common.seconds():.0f} s")


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    write_atomically(path, lambda file: file.write(content))


def make(name: str) -> tuple[dict[str, np.ndarray], int]:
    """Draw and prove the instances of a family: arrays ``[N, ...]``, and how many were not."""
    prove = prove_p1 if name.startswith("p1") else prove_wpmec
    rows: list[dict[str, Any]] = []
    seed = 0
    while len(rows) < FLAGS.instances:
        h, system = FAMILIES[name](seed)
        h, system = jax.tree.map(rounded, (h, system))
        each = sy.per_device(system) if isinstance(system, System) else wsy.PER_DEVICE
        own = {n: np.broadcast_to(getattr(system, n), h.shape) for n in each}
        system = system.replace(**own)
        row = prove(h, system)
        fields = sy.leaves(system) if isinstance(system, System) else vars(system)
        rows += [fields | {"h": h} | row] if row else []
        seed += 1
    arrays = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0]}
    access = getattr(system, "access", "tdma")
    words = {"problem": name.split("-")[0]} | ({} if access == "tdma" else {"access": access})
    return arrays | {n: np.asarray(word) for n, word in words.items()}, seed - len(rows)


def rounded(value: Any) -> np.ndarray:
    """Round to float32, as the files and all schemes have the numbers."""
    value = np.asarray(value)
    return value if value.dtype == bool else value.astype(np.float32)


def prove_p1(h: np.ndarray, system: System) -> dict[str, Any] | None:
    """Find and prove the optimum, None if there is none or it is not proven."""
    offload, bound = p1.search(system, h, np.inf, TOLERANCE, FLAGS.max_nodes)
    if offload is None:
        return None
    cost = p1.allocate_on_host(p1.host_uplink(system, h), offload)[0]
    if not cost * (1 - 1e-9) <= bound:
        return None
    return {"optimum": cost, "bound": min(bound, cost), "offload": offload}


def prove_wpmec(h: np.ndarray, system: wpmec.WPMEC) -> dict[str, Any] | None:
    """Find and prove the optimum, None if it is not proven."""
    devices = wp.host_devices(system, h)
    offload = np.asarray(wpmec.solve(h, system).offload) > 0
    rate = wp.allocate_on_host(devices, offload)[0]
    better, bound = wp.search(devices, rate, TOLERANCE, FLAGS.max_nodes)
    if better is not None:
        offload = better
        rate = wp.allocate_on_host(devices, offload)[0]
    if not rate * (1 + 1e-9) >= bound:
        return None
    return {"optimum": rate, "bound": max(bound, rate), "offload": offload}


if __name__ == "__main__":
    common.launch(main)
