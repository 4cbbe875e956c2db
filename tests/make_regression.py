"""Makes tests/data/regression.npz: 200 instances of P1 with their inputs and proven optima.

Inputs are stored as the float32 numbers themselves, answers in float64: the optimum by the
exact search with its proof, evaluated by ``reference.allocate``; for K <= 12 the same by brute
force, for 30 up to K = 25 by Clarabel's branch and bound. Again, from the root of the tree:

    PYTHONPATH=experiments python tests/make_regression.py
"""

import functools
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import reference
from support import external_solvers as external

from meco_jax import System, solve
from meco_jax.exact.search import search

PATH = Path(__file__).parent / "data" / "regression.npz"
LARGEST = 40  # devices; fewer are padded with zeros
KINDS = {  # instances of each
    "table1": 70, "beyond": 50, "all forced": 20, "none forced": 10, "equal devices": 15,
    "zero gains": 15, "one device": 10, "overfull": 10,
}  # fmt: skip
PER_DEVICE = ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "h")
SCALARS = ("slot", "log_base", "bandwidth", "noise_power", "max_power", "chip")
BRUTE_FORCE, CLARABEL = 12, (25, 30)  # most devices; and of how many instances
TOLERANCE = 1e-10  # of the search
PROVEN = 1e-9  # relative gap of every proof


def inputs():
    """Draw all inputs, float32: by kind, and within a kind by number."""
    drawn = [draw(kind, n) for kind, number in KINDS.items() for n in range(number)]
    names = [kind for kind, number in KINDS.items() for _ in range(number)]
    padded = {
        name: np.stack([np.pad(one[name], (0, LARGEST - len(one["h"]))) for one in drawn])
        for name in PER_DEVICE
    }
    scalars = {name: np.array([one[name] for one in drawn]) for name in SCALARS}
    return {"kind": np.array(names), "K": np.array([len(one["h"]) for one in drawn])} | (
        padded | scalars
    )


def draw(kind, number):
    """Draw one instance, and again while float32 could not tell what is forced or fits."""
    rng = np.random.default_rng([list(KINDS).index(kind), number])
    while True:
        one = {name: np.float32(value) for name, value in propose(rng, kind).items()}
        if is_clear(one, kind):
            return one


def propose(rng, kind):
    """Draw one instance of a kind."""
    k = {"one device": 1, "equal devices": int(rng.integers(2, 13))}.get(
        kind, int(rng.integers(2, LARGEST + 1))
    )
    one = {
        "task_bits": rng.uniform(8e5, 2.4e6, k),
        "cycles_per_bit": rng.uniform(200, 400, k),
        "cpu_hz": rng.uniform(1e9, 2e9, k),
        "weight": np.ones(k),
        "h": np.sqrt(1e-6 * rng.exponential(size=k)),
        "slot": rng.choice([0.2, 0.4]) * 5 ** rng.uniform(),
        "log_base": rng.choice([2, np.e, 10]),
        "bandwidth": 1e7, "noise_power": 1e-9, "max_power": 10 ** (2.3 - 3), "chip": 1e-28,
    }  # fmt: skip
    if kind == "beyond":
        for name, decades in {"task_bits": 1.0, "cycles_per_bit": 0.5, "cpu_hz": 0.5, "weight": 1.5,
                              "h": 0.8}.items():  # fmt: skip
            one[name] = one[name] * 10 ** rng.uniform(-decades / 2, decades / 2, k)
        for name in ("bandwidth", "noise_power", "max_power", "chip"):
            one[name] *= 10 ** rng.uniform(-0.3, 0.3)
    if kind == "all forced":
        one |= {"cpu_hz": np.full(k, 1e8), "slot": rng.uniform(0.05, 0.12) * k}
    if kind == "none forced":
        one["cpu_hz"] = np.full(k, 1e10)
    if kind == "equal devices":
        one |= {name: np.full(k, one[name][0]) for name in PER_DEVICE}
        one["h"] = one["h"] * 0.3  # or all of them fit
    if kind == "zero gains":
        one["h"][: rng.integers(1, k + 1)] = 0
        one["slot"] = rng.uniform(0.4, 1)
    if kind == "one device":
        one["h"] = one["h"] * rng.choice([1, 0.03])  # or it is always sent
    if kind == "overfull":
        one |= {"h": one["h"] * 0.1, "slot": rng.uniform(0.2, 0.5)}
    return one


def refer(one):
    """Write an instance for the reference, where a gain of 1e-12 is as good as none."""
    physics = SimpleNamespace(
        **{name: float(one[name]) for name in SCALARS if name not in ("slot", "log_base")}
    )
    h = np.maximum(np.float64(one["h"]), 1e-12)
    rest = {name: one[name] for name in (*PER_DEVICE[:-1], "slot")}
    return reference.instance(h=h, **rest, log_base=np.float64(one["log_base"]), physics=physics)


def is_clear(one, kind):
    """Whether what is forced and what must fit is clear to 1e-4, and the kind is what it says."""
    p = refer(one)
    local_time = np.float64(one["cycles_per_bit"]) * one["task_bits"] / one["cpu_hz"]
    used = [np.sum(np.where(must > 0, must * p.min_time, 0)) for must in (p.forced, p.required)]
    clear = all(np.all(abs(time / p.slot - 1) > 1e-4) for time in (local_time, *used))
    right = {"all forced": p.forced.all(), "none forced": not p.forced.any(),
             "overfull": used[0] > p.slot}  # fmt: skip
    return clear and right.get(kind, True)


def take(data, index):
    """Take one instance out of the arrays, without its padding."""
    k = int(data["K"][index])
    return {n: data[n][index, :k] for n in PER_DEVICE} | {n: data[n][index] for n in SCALARS}


def systems(data):
    """All instances as float32 systems ``[N, LARGEST]`` and gains."""
    leaves = {name: jnp.asarray(data[name]) for name in (*PER_DEVICE, *SCALARS)}
    h = leaves.pop("h")
    active = np.arange(LARGEST)[None] < data["K"][:, None]
    return System(**leaves, active=active, mean_gain=np.full(len(h), 1e-6, np.float32)), h


def answer(one, known):
    """Find the proven optimum from a known decision, and what the other schemes spend."""
    p = refer(one)
    found = {
        "lagrangian": reference.relaxed_bound(p, p.forced.astype(float)),
        "pcos": reference.relaxed_bound(p, p.required),
        "mcos": reference.mcos(p, p.forced),
        "mcos_partial": reference.mcos(p, p.required),
    }
    if not np.isfinite(found["lagrangian"]):
        none = np.zeros(len(known), bool)
        return found | {"energy": np.inf, "lower_bound": np.inf, "offload": none}
    system = System(**{name: np.asarray(one[name]) for name in (*PER_DEVICE[:-1], *SCALARS)})
    energy = reference.allocate(p, known)[0]
    better, bound = search(system, one["h"], energy, TOLERANCE)
    if better is not None:
        known, energy = better, reference.allocate(p, better)[0]
    assert energy * (1 - PROVEN) <= bound <= energy, (energy, bound)
    return found | {"energy": energy, "lower_bound": bound, "offload": np.asarray(known, bool)}


def cross_check(one, energy, clarabel=None):
    """Assert the optimum by brute force, or by Clarabel where it is given; whether it did."""
    if clarabel is None:
        true, tolerance = reference.brute_force(refer(one))[0], PROVEN
    else:
        system = SimpleNamespace(**{n: x for n, x in one.items() if n != "h"})
        try:
            _, decision = clarabel(len(one["h"])).solve(external.instance(system, one["h"]), 1e-5)
        except ArithmeticError:  # Clarabel failed on a node
            return False
        true, tolerance = reference.allocate(refer(one), decision)[0], 2e-5
    assert (true == energy) or abs(true / energy - 1) <= tolerance, (true, energy)
    return True


def make():
    """Answer all instances: the arrays of the file."""
    data = inputs()
    start = np.asarray(solve(*systems(data)[::-1], method="optimal").offload) > 0
    rows, clarabel, left = [], functools.cache(external.Clarabel), CLARABEL[1]
    for index, k in enumerate(data["K"]):
        one = take(data, index)
        row = answer(one, start[index, :k])
        by = ""
        if k <= BRUTE_FORCE:
            by = "brute force" * cross_check(one, row["energy"])
        elif left and k <= CLARABEL[0] and np.isfinite(row["energy"]):
            by = "Clarabel" * cross_check(one, row["energy"], clarabel)
            left -= bool(by)
        row["offload"] = np.pad(row["offload"], (0, LARGEST - k))
        rows.append(row | {"cross_checked": by})
        print(index, data["kind"][index], k, row["energy"], by, flush=True)
    return data | {name: np.array([row[name] for row in rows]) for name in rows[0]}


if __name__ == "__main__":
    np.savez_compressed(PATH, **make())
