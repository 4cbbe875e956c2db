"""Decisions that need no solver, and what each is worth as it is, repaired and improved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import System, TrainConfig, benchmarks, improve, repair, solve, train_grid
from meco_jax.benchmarks import Family
from meco_jax.exact.search import host_uplink
from meco_jax.exact.shares import resources
from meco_jax.paper.sweep import Lanes

ROOM = 1 + 1e-9  # of the slot, and of the edge's cycles, which a float64 sum may reach [-]


def simple(family: Family) -> dict[str, np.ndarray]:
    """Decide by rule: decisions ``[N, K]`` by name."""
    shape = family.h.shape
    return {
        "nothing": np.zeros(shape),
        "all": np.ones(shape),
        "random": np.random.default_rng(0).integers(0, 2, shape).astype(float),
        "best channel": best_channel(family),
    }


def best_channel(family: Family) -> np.ndarray:
    """Send in the order of gain over noise whoever still fits at full power: ``[N, K]``.

    Of wireless powered offloading, where all fit, the better half.
    """
    if not isinstance(family.system, System):
        return (family.h > np.median(family.h, axis=1, keepdims=True)).astype(float)
    rows = []
    for row, h in enumerate(family.h):
        uplink = host_uplink(jax.tree.map(lambda leaf: leaf[row], family.system), h)  # noqa: B023
        parts = resources(uplink, np)
        taken, left = np.zeros(len(h)), np.full(len(parts) // 2, ROOM)
        for device in np.argsort(-np.asarray(uplink.gain)):
            needed = parts[::2, device] + parts[1::2, device]
            if uplink.usable[device] and np.all(needed <= left):
                taken[device], left = 1, left - needed
        rows.append(taken)
    return np.stack(rows)


def by_policy(family: Family) -> np.ndarray:
    """Decide by the shipped policy: ``[N, K]``."""
    return np.asarray(solve(family.h, p1_system(family)).offload)


def p1_system(family: Family) -> System:
    """Return the systems of a family of P1."""
    if not isinstance(family.system, System):
        raise ValueError(f"family must be one of P1; got {family.name}")
    return family.system


def by_network(family: Family, instances: int, config: TrainConfig) -> np.ndarray:
    """Train the paper's network for the system of each of the first instances: ``[n, K]``.

    Its channels are drawn with the mean power that the family's have.
    """
    whole = p1_system(family)
    system = jax.tree.map(lambda leaf: leaf[:instances], whole)
    faded = np.mean(np.square(family.h) / _column(whole.mean_gain))
    system = system.replace(mean_gain=np.float32(system.mean_gain * faded))
    points = tuple({"instance": float(i)} for i in range(instances))
    policies, _ = train_grid(Lanes(points, system, np.arange(instances), {}), config)
    decide = jax.jit(jax.vmap(lambda policy, h: policy.outputs(h).offload))
    return np.asarray(decide(policies, jnp.asarray(family.h[:instances])))


def _column(leaf: np.ndarray) -> np.ndarray:
    return leaf if leaf.ndim > 1 else leaf[:, None]


def worth(family: Family, name: str, decisions: np.ndarray) -> list[dict[str, Any]]:
    """Score decisions ``[n, K]`` of the first instances as they are, repaired and improved."""
    family = first(family, len(decisions))
    played: dict[str, Any] = {"as it is": decisions}
    if isinstance(family.system, System):
        played["repaired"] = repair(family.h, family.system, decisions)
        played["improved"] = improve(family.h, family.system, decisions)
    rows = []
    for how, answer in played.items():
        score = benchmarks.score(answer, family)
        rows.append(
            {
                "family": family.name,
                "decision": name,
                "played": how,
                "instances": len(decisions),
                "feasible_fraction": 1 - score.infeasible / len(decisions),
                "gap_mean": score.gap_mean,
                "gap_worst": score.gap_worst,
            }
        )
    return rows


def first(family: Family, number: int) -> Family:
    """Take the first instances of a family."""
    arrays = family.h, family.system, family.optimum, family.bound, family.offload
    taken = jax.tree.map(lambda x: x[:number], arrays)
    return Family(family.name, family.problem, *taken)
