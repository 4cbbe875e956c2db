"""Bounds are true of the exact problem: small, dear tasks beside tasks that fill the slot.

What the cheap fillers leave of the slot is a small difference of large numbers, and decides all.
``MECO_FUZZ=1000 pytest tests/test_certificate.py`` takes that many examples, at random.
"""

import functools
import os

import jax
import numpy as np
import pytest
import reference
from cases import LEAST_ENERGY, check_solution, pad_to, random_case
from hypothesis import given, settings
from hypothesis import strategies as st

from meco_jax import System, solve
from meco_jax import system as sy
from meco_jax.exact.search import search, solution_on_host

CHANNELS, DEVICES, PADDED = 32, 5, 16  # the shapes of the other properties
EXAMPLES = int(os.environ.get("MECO_FUZZ", "3"))
SURE = 1e-8  # of the float64 reference, where a millionth of the slot is left [-]
LEAST_GAP = 1.5e-6  # what a proof in float32 leaves [-]
seeds = st.integers(0, 2**32 - 1)


def fillers(seed):
    """Draw channels whose fillers take 90 to 99.9999 % of the slot at full power."""
    rng = np.random.default_rng(seed)
    shape = CHANNELS, DEVICES
    size = (CHANNELS, 1)
    filler = np.arange(DEVICES)[None] < rng.integers(1, 3, size)
    forced = rng.random(size) < 0.7  # or far dearer on their own CPU
    bandwidth, noise = 10 ** rng.uniform(4, 9, size), 10 ** rng.uniform(-12, -7, size)
    max_power = 10 ** rng.uniform(-2, 1, size)
    gain = 10 ** rng.uniform(-1, 4, size) * 10 ** rng.uniform(-1, 1, shape)  # p_max g
    base = rng.choice([1.5, 2.0, np.e, 10.0], size)
    slot = 10 ** rng.uniform(-3, 2, size)
    left = 10 ** rng.uniform(-6, -1, size)
    parts = rng.uniform(0.3, 1, shape)
    full = np.where(filler, parts, 0) / np.sum(np.where(filler, parts, 0), axis=1, keepdims=True)
    dear = np.where(filler, 0, parts) / np.sum(np.where(filler, 0, parts), axis=1, keepdims=True)
    wanted = 10 ** rng.uniform(-1.2, 0.5, size)  # of what is left, at full power
    share = full * (1 - left) + dear * left * wanted
    cycles = 10 ** rng.uniform(2, 3, shape)
    bits = share * slot * np.log1p(gain) * bandwidth / np.log(base)
    hz = np.where(filler, np.where(forced, 0, 1e10), 10 ** rng.uniform(8, 9.5, shape))
    hz = np.where(filler & forced, hz, np.maximum(hz, 1.5 * cycles * bits / slot))
    weight = np.where(filler, 10 ** rng.uniform(-3, 0, shape), 10 ** rng.uniform(0, 3, shape))
    system = System(
        task_bits=bits, cycles_per_bit=cycles, cpu_hz=hz, weight=weight, slot=slot[:, 0],
        bandwidth=bandwidth[:, 0], noise_power=noise[:, 0], max_power=max_power[:, 0],
        chip=10 ** rng.uniform(-28, -25, CHANNELS), log_base=base[:, 0],
    )  # fmt: skip
    system = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), system)
    h = np.sqrt(gain * noise / max_power).astype(np.float32)
    return system.replace(active=np.ones(shape, bool)), h


def relaxed_optimum(p, must):
    """The largest dual value by ever narrower grids of prices."""
    if np.sum(np.where(must > 0, must * p.min_time, 0)) > p.slot:
        return np.inf
    low, high = -120.0, 80.0
    for _ in range(14):
        grid = np.linspace(low, high, 41)
        values = [reference.dual(p, must, price) for price in grid]
        best = int(np.argmax(values))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 40)]
    return max(values)


@functools.lru_cache(8)
def truth(seed):
    """Optima of P1 and of partial offloading, in float64."""
    system, h = fillers(seed)
    take = lambda i: jax.tree.map(lambda leaf: leaf[i] if np.ndim(leaf) else leaf, system)  # noqa: E731
    problems = [reference.of_system(take(i), h[i]) for i in range(CHANNELS)]
    best = np.array([reference.brute_force(p)[0] for p in problems])
    return best, np.array([relaxed_optimum(p, p.required) for p in problems])


@jax.jit
def one_stage(h, system):
    return solve(h, system, method="optimal")


def answers(method, seed):
    system, h = fillers(seed)
    system, h = pad_to(system, h, PADDED)
    found = one_stage(h, system) if method == "one stage" else solve(h, system, method=method)
    return system, h, jax.tree.map(np.asarray, found)


NAMED = ("mcos", "mcos_partial", "pcos", "bcos", "optimal")


@pytest.mark.parametrize(
    "method", [*(pytest.param(name, marks=pytest.mark.users) for name in NAMED), "one stage"]
)
@settings(max_examples=EXAMPLES)
@given(seed=seeds)
def test_no_bound_is_above_the_optimum(method, seed):
    system, h, found = answers(method, seed)
    partial = method in ("mcos_partial", "pcos")
    true, ok = truth(seed)[partial], found.feasible
    check_solution(system, h, found, whole=not partial)
    bound = np.asarray(found.lower_bound, np.float64)
    assert np.all((bound <= true * (1 + SURE) + LEAST_ENERGY) | np.isinf(true))
    if method == "optimal":
        assert np.all(ok == np.isfinite(true))
        gap = found.energy[ok] - bound[ok]
        assert np.all(gap <= 1.01e-4 * found.energy[ok] + LEAST_ENERGY)
        assert np.all(found.energy[ok] <= true[ok] * (1 + 1e-4) + LEAST_ENERGY)
    if method in ("one stage", "optimal"):  # what rounding takes from a proof
        assert np.median(1 - bound[ok] / found.energy[ok]) <= LEAST_GAP


@pytest.mark.parametrize(
    ("value", "shown"), [(-1, "-1"), (1.5, "1.5"), (True, "True"), ("9", "'9'")]
)
def test_max_nodes_is_a_whole_number(value, shown):
    with pytest.raises(ValueError, match=f"max_nodes must be .*at least 0; got {shown}"):
        solve(np.ones(3), method="optimal", max_nodes=value)


def equal_tasks(num_devices, spread=0.0):
    """One channel of equal tasks and CPUs, and a slot in which about three of four fit."""
    rng = np.random.default_rng(num_devices)
    h = np.sqrt(1e-6 * rng.exponential(size=num_devices))
    ones = 1 + spread * rng.uniform(-1, 1, (3, num_devices))
    bits, cycles, hz = ones * np.array([[1.6e6], [300.0], [1.5e9]])
    least = 1.6e6 * np.log(2) / 1e7 / np.log1p(0.2 * h**2 / 1e-9)
    fields = {"task_bits": bits, "cycles_per_bit": cycles, "cpu_hz": hz, "slot": 0.5 * least.sum()}
    fields = {name: np.asarray(leaf, np.float32) for name, leaf in fields.items()}
    weight, active = np.ones(num_devices, np.float32), np.ones(num_devices, bool)
    return sy.check_system(System(weight=weight, active=active, **fields)), h.astype(np.float32)


@pytest.mark.parametrize(("num_devices", "spread"), [(100, 0.0), (100, 0.01), (1000, 0.0)])
def test_search_of_near_equal_devices_is_short(num_devices, spread):
    """By work, not by time: 2 % of the nodes that are allowed prove them, from no answer at all."""
    system, h = equal_tasks(num_devices, spread)
    nobody = float(np.sum(sy.local_energy(system)))
    chosen, bound = search(system, h, nobody, 1e-4, max_nodes=4000)
    energy = float(solution_on_host(system, h, chosen).energy)
    np.testing.assert_allclose(bound, energy * (1 - 1e-4), rtol=1e-6)


def test_search_says_what_it_proved_when_nodes_run_out():
    rng = np.random.default_rng(5)
    for _ in range(3):
        system, h, p = random_case(rng, 9, slot=0.12)
        system = sy.check_system(system.replace(active=np.ones(9, bool)))
        true, start = reference.brute_force(p)[0], float(p.local.sum())
        if np.isinf(true):
            continue
        bounds = [search(system, np.asarray(h), start, 1e-9, n)[1] for n in (0, 600, 200_000)]
        assert max(bounds) <= true * (1 + SURE)
        assert bounds == sorted(bounds)
        np.testing.assert_allclose(bounds[-1], true, rtol=1e-6)
