"""What the guide promises of ``solve``, on inputs far beyond the usual.

In CI 40 examples per test, always the same. ``MECO_FUZZ=1000 pytest tests/test_properties.py``
takes that many, at random; each has ``CHANNELS`` channels.
"""

import functools
import os

import jax
import numpy as np
import pytest
import reference
from cases import LEAST_ENERGY, check_solution, pad_to
from hypothesis import given
from instances import draw, knobs, on_edge
from mixtures import check_constraints, wild_mixtures
from mixtures import on_edge as on_edge_of_all

from meco_jax import pad_devices, solve
from meco_jax import system as sy

METHODS = ("mcos", "mcos_partial", "pcos", "optimal", "bcos")
PARTIAL = ("mcos_partial", "pcos")
CHANNELS = 32
SIZES = (8, 16, 24, 64) if "MECO_FUZZ" in os.environ else (16,)
EFFORT = 4
PROVEN = 1.01e-4  # gap of the certified optimum, and float32's part
ROUNDING = 1e-5  # of energies and bounds in float32


def answer(method, h, system):
    return jax.tree.map(np.asarray, solve(h, system, method=method, effort=EFFORT))


def energies(method, h, system):
    return np.asarray(answer(method, h, system).energy, np.float64)


def at_most(low, high, slack):
    """low <= high, in relation; infinite ones too."""
    assert np.all((low <= high * (1 + slack) + LEAST_ENERGY) | np.isinf(high))


@pytest.mark.parametrize("method", METHODS)
@given(knobs=knobs(SIZES))
def test_every_answer_keeps_the_constraints(method, knobs):
    system, h = draw(knobs, CHANNELS)
    check_solution(system, h, answer(method, h, system), whole=method not in PARTIAL)


@given(knobs=knobs(SIZES[:1]))
def test_methods_agree_with_each_other(knobs):
    """On feasibility, and on the order of energies and bounds."""
    system, h = draw(knobs, CHANNELS)
    found = {method: answer(method, h, system) for method in METHODS}
    best, ok = found["optimal"], found["optimal"].feasible
    for method in ("mcos", "bcos"):
        assert np.all((found[method].feasible == ok) | on_edge(system, h))
        at_most(best.lower_bound, found[method].energy, ROUNDING)
        at_most(found[method].lower_bound, best.energy, ROUNDING)
    at_most(found["bcos"].energy, found["mcos"].energy, ROUNDING)
    assert np.all((found["pcos"].feasible >= ok) | on_edge(system, h))
    at_most(found["pcos"].energy, best.energy, ROUNDING)
    at_most(found["pcos"].energy, found["mcos_partial"].energy, ROUNDING)
    gap = np.where(ok, best.energy, 0) - np.where(ok, best.lower_bound, 0)
    assert np.all(gap <= PROVEN * np.where(ok, best.energy, 1) + LEAST_ENERGY)


@given(knobs=knobs((5,)))
def test_the_optimum_is_the_best_of_all_sets(knobs):
    """By brute force over all 2^5 sets in float64."""
    system, h = draw(knobs, 4)
    padded, gains = pad_to(system, h, SIZES[0])
    best, edge = answer("optimal", gains, padded), on_edge(system, h)
    for i in range(len(h)):
        one = jax.tree.map(lambda leaf, i=i: leaf[i] if np.ndim(leaf) else leaf, system)
        true, _ = reference.brute_force(reference.of_system(one, h[i]))
        if edge[i]:
            continue
        assert np.isfinite(true) == best.feasible[i]
        if best.feasible[i]:
            assert best.energy[i] <= true * (1 + PROVEN) + LEAST_ENERGY
            assert best.energy[i] >= true * (1 - ROUNDING) - LEAST_ENERGY
            assert best.lower_bound[i] <= true * (1 + ROUNDING) + LEAST_ENERGY


@pytest.mark.parametrize("name", ["slot", "bandwidth", "max_power"])
@given(knobs=knobs(SIZES[:1]))
def test_more_never_costs_energy(name, knobs):
    system, h = draw(knobs, CHANNELS)
    more = system.replace(**{name: getattr(system, name) * np.float32(1.2)})
    at_most(energies("optimal", h, more), energies("optimal", h, system), PROVEN + ROUNDING)


@pytest.mark.parametrize("method", METHODS)
@given(knobs=knobs(SIZES[:1]))
def test_order_units_and_padding_change_nothing(method, knobs):
    """Devices in another order, time and energy in other units, more idle devices."""
    system, h = draw(knobs, CHANNELS)
    slack = {"optimal": PROVEN + ROUNDING}.get(method, ROUNDING)
    plain = energies(method, h, system)
    same = functools.partial(assert_same, plain, slack, on_edge(system, h))
    order = np.random.default_rng(knobs.seed).permutation(knobs.size)
    permuted = {name: getattr(system, name)[:, order] for name in ("task_bits", "cycles_per_bit",
              "cpu_hz", "weight", "active")}  # fmt: skip
    if method != "bcos":  # its ties may fall otherwise: see the tests of the policy
        same(energies(method, h[:, order], system.replace(**permuted)))
    same(energies(method, h, system.replace(weight=system.weight * 4)) / 4)
    slower = system.replace(
        slot=system.slot * 2, bandwidth=system.bandwidth / 2, cpu_hz=system.cpu_hz / 2,
        chip=system.chip * 8,
    )  # fmt: skip
    same(energies(method, h, slower) / 2)
    small = jax.tree.map(lambda leaf: leaf[:, :5] if np.ndim(leaf) > 1 else leaf, system)
    more = pad_devices(sy.check_system(small), knobs.size)
    padded = energies(method, np.pad(h[:, :5], ((0, 0), (0, knobs.size - 5))), more)
    edge = on_edge(small, h[:, :5])
    assert_same(energies(method, h[:, :5], small), slack, edge, padded)


def assert_same(plain, slack, edge, other):
    """Equal in relation, but where the fastest times just fit, or do not."""
    with np.errstate(invalid="ignore"):
        close = np.abs(plain - other) <= slack * plain + LEAST_ENERGY
    assert np.all(close | edge | (np.isinf(plain) & np.isinf(other)))


def costs(method, h, system):
    return np.asarray(answer(method, h, system).cost, np.float64)


@pytest.mark.slow  # programs of many structures
@pytest.mark.parametrize("access", sy.ACCESS)
@pytest.mark.parametrize("method", METHODS)
@given(knobs=knobs(SIZES[:1]))
def test_realistic_systems(method, access, knobs):
    """Radios, circuits, delays, bands and a finite edge: C1-C6, bounds, order, units, padding."""
    system, h = wild_mixtures(knobs, CHANNELS, access)
    edge = on_edge_of_all(system, h)
    slack = {"optimal": PROVEN + ROUNDING}.get(method, ROUNDING)
    found = answer(method, h, system)
    check_constraints(system, h, found, whole=method not in PARTIAL)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(found))
    at_most(found.lower_bound, found.cost, 0)
    if method != "optimal":
        best = answer("optimal", h, system)
        if method == "pcos":
            assert np.all((found.feasible >= best.feasible) | edge)
            at_most(np.where(edge, 0, found.cost), best.cost, ROUNDING)
        elif method in ("mcos", "bcos"):
            assert np.all((found.feasible == best.feasible) | edge)
            at_most(best.lower_bound, found.cost, ROUNDING)
            at_most(found.lower_bound, best.cost, ROUNDING)
    plain = np.asarray(found.cost, np.float64)
    same = functools.partial(assert_same, plain, slack, edge)
    order = np.random.default_rng(knobs.seed).permutation(knobs.size)
    if method != "bcos":
        moved = {
            name: leaf[:, order] for name, leaf in sy.leaves(system).items() if np.ndim(leaf) > 1
        }
        same(costs(method, h[:, order], system.replace(**moved)))
    same(
        costs(
            method,
            h,
            system.replace(weight=system.weight * 4, delay_weight=system.delay_weight * 4),
        )
        / 4
    )
    slower = system.replace(
        slot=system.slot * 2, bandwidth=system.bandwidth / 2, cpu_hz=system.cpu_hz / 2,
        chip=system.chip * 8, fixed_time=system.fixed_time * 2,
        fixed_energy=system.fixed_energy * 2,
    )  # fmt: skip
    same(costs(method, h, slower) / 2)
    more = pad_devices(system, knobs.size + 8)
    same(costs(method, np.pad(h, ((0, 0), (0, 8))), more))
