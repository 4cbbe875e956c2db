"""Makes the 200 rows of data/optima.npz whose optima the exact search proved; the rest stays.

Inputs are stored as the float32 numbers themselves, answers in float64: the optimum by the
exact search with its proof, evaluated by ``reference.allocate``; for K <= 12 the same by brute
force, for 30 up to K = 25 by Clarabel's branch and bound. Again, from the root of the tree:

    PYTHONPATH=experiments python tests/make_optima.py
"""

import functools
from types import SimpleNamespace

import numpy as np
import optima
import reference
from optima import PER_DEVICE, SCALARS
from support import external_solvers as external

from meco_jax import System, solve
from meco_jax.exact.search import search

SOURCE = "exact search"  # and what checked it again
LARGEST = 40  # devices; fewer are padded with zeros
KINDS = {  # instances of each
    "table1": 70, "beyond": 50, "all forced": 20, "none forced": 10, "equal devices": 15,
    "zero gains": 15, "one device": 10, "overfull": 10,
}  # fmt: skip
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


def system_of(one):
    """Write an instance for the library."""
    return System(**{name: np.asarray(one[name]) for name in (*PER_DEVICE[:-1], *SCALARS)})


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
        none = np.zeros(len(known))
        found |= {"energy": np.inf, "lower_bound": np.inf, "offload": none > 0}
        return found | {"power": none, "time": none}
    energy, power, time = reference.allocate(p, known)
    better, bound = search(system_of(one), one["h"], energy, TOLERANCE)
    if better is not None:
        known, (energy, power, time) = better, reference.allocate(p, better)
    assert energy * (1 - PROVEN) <= bound <= energy, (energy, bound)
    found |= {"energy": energy, "lower_bound": bound, "offload": np.asarray(known, bool)}
    return found | {"power": power, "time": time}


def cross_check(one, energy, clarabel=None):
    """Assert the optimum by brute force, or by Clarabel where it is given; whether it did."""
    if clarabel is None:
        true, tolerance = reference.brute_force(refer(one))[0], PROVEN
    else:
        problem = external.instance(system_of(one), one["h"])
        try:
            _, decision = clarabel(len(one["h"])).solve(problem, 1e-5)
        except ArithmeticError:  # Clarabel failed on a node
            return False
        true, tolerance = reference.allocate(refer(one), decision)[0], 2e-5
    assert (true == energy) or abs(true / energy - 1) <= tolerance, (true, energy)
    return True


def make():
    """Answer all instances: the columns of the file."""
    data = inputs()
    start = np.asarray(solve(*optima.systems(data)[::-1], method="optimal").offload) > 0
    rows, clarabel, left = [], functools.cache(external.Clarabel), CLARABEL[1]
    for index, k in enumerate(data["K"]):
        one = optima.take(data, index)
        row = answer(one, start[index, :k])
        by = ""
        if k <= BRUTE_FORCE:
            by = ", brute force" * cross_check(one, row["energy"])
        elif left and k <= CLARABEL[0] and np.isfinite(row["energy"]):
            by = ", Clarabel" * cross_check(one, row["energy"], clarabel)
            left -= bool(by)
        row |= {name: np.pad(row[name], (0, LARGEST - k)) for name in ("offload", "power", "time")}
        rows.append(row | {"source": SOURCE + by})
        print(index, data["kind"][index], k, row["energy"], rows[-1]["source"], flush=True)
    return data | {name: np.array([row[name] for row in rows]) for name in rows[0]}


if __name__ == "__main__":
    old, made = optima.load(), make()
    kept = old["source"] == optima.INDEPENDENT
    columns = {name: np.concatenate([old[name][kept], made[name]]) for name in old}
    np.savez_compressed(optima.PATH, **columns)
