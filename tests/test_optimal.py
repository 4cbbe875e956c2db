import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import check_solution, pad_to, random_case, stack
from hypothesis import given
from hypothesis import strategies as st
from support import external_solvers as external

from meco_jax import allocate, sample_channels, sample_systems, solve, table1
from meco_jax import system as sy
from meco_jax.exact import enumeration
from meco_jax.exact.shares import fits
from meco_jax.exact.uplink import make_uplink

optimal_one = jax.jit(enumeration.optimal)
optimal_set = jax.jit(allocate)


def certified(solution, tolerance=1e-4):
    return solution.energy - solution.lower_bound <= tolerance * solution.energy


def test_known_optima(known):
    """All 500, K up to 40: found, certified, and no bound above the true optimum."""
    systems, h, data = known
    solution = solve(h, systems, method="optimal")
    feasible = np.isfinite(data["energy"])
    np.testing.assert_array_equal(solution.feasible, feasible)
    assert np.all(np.isinf(solution.energy[~feasible]))
    assert np.all(np.isinf(solution.lower_bound[~feasible]))
    energy, bound, true = (np.asarray(x)[feasible] for x in
                           (solution.energy, solution.lower_bound, data["energy"]))  # fmt: skip
    assert np.all(energy <= true * (1 + 1e-4))
    assert np.all(energy >= true * (1 - 2e-6))
    assert np.all(bound <= true * (1 + 1e-6))
    assert np.all(energy - bound <= 1.01e-4 * energy)


def draw(rng, num, largest=8):
    """Instances with the corners: deep fades, all or none forced, tight slots, twins."""
    for trial in range(num):
        k = int(rng.integers(1, largest + 1))
        kind = trial % 7
        fixed = {"slot": rng.uniform(0.2, 1.6)}
        if kind == 1:
            fixed["h"] = np.sqrt(1e-6 * rng.exponential(size=k)) * rng.choice([1, 1e-3, 1e-9], k)
        if kind == 2:
            fixed["cpu_hz"] = np.full(k, 1e8)  # all forced
        if kind == 3:
            fixed["cpu_hz"] = np.full(k, 1e10)  # none forced
        if kind == 4:
            same = {"task_bits": 1.6e6, "cycles_per_bit": 300.0, "cpu_hz": 1.5e9, "weight": 1.0}
            fixed |= {name: np.full(k, value) for name, value in (same | {"h": 1e-3}).items()}
        system, h, p = random_case(rng, k, **fixed)
        if kind == 5 and np.isfinite(p.min_time.sum()):
            tight = {"slot": np.float32(p.min_time.sum() * 1.00001)}
            system = system.replace(**tight)
            p = refresh(system, h)
        if kind == 6:
            system = system.replace(max_power=np.float32(1e-9))  # nothing fits
            p = refresh(system, h, max_power=1e-9)
        yield system, h, p


def refresh(system, h, **physics):
    names = ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "slot", "log_base")
    values = {name: np.float64(getattr(system, name)) for name in names}
    return reference.instance(
        h=np.float64(h), **values, physics=SimpleNamespace(**(vars(reference.TABLE1) | physics))
    )


def test_against_brute_force():
    rng, feasible = np.random.default_rng(21), 0
    for trial, (system, h, p) in enumerate(draw(rng, 140)):
        true, _ = reference.brute_force(p)
        system, h = pad_to(system.replace(active=np.ones(len(h), bool)), h, 8)
        solution = jax.tree.map(np.asarray, solve(h, system, method="optimal"))
        assert bool(solution.feasible) == np.isfinite(true), trial
        if solution.feasible:
            feasible += 1
            check_solution(system, h, solution)
            np.testing.assert_allclose(solution.energy, true, rtol=2e-5)
            assert solution.lower_bound <= true * (1 + 1e-6)
            assert certified(solution, 1.01e-4)
    assert feasible >= 60


def test_against_an_independent_solver():
    """Branch and bound over convex programs, by CVXPY and Clarabel: K = 1-20."""
    rng, feasible, failed = np.random.default_rng(22), 0, 0
    clarabel = functools.cache(external.Clarabel)
    for trial, (system, h, _) in enumerate(draw(rng, 42, largest=20)):
        try:
            problem = external.instance(system, np.asarray(h))
            expected, decision = clarabel(len(h)).solve(problem, 1e-5, most_nodes=800)
        except ArithmeticError:  # equal devices make large trees
            failed += 1
            continue
        system, h = pad_to(system.replace(active=np.ones(len(h), bool)), h, 20)
        solution = solve(h, system, method="optimal")
        assert bool(solution.feasible) == np.isfinite(expected), trial
        if solution.feasible:
            feasible += 1
            np.testing.assert_allclose(solution.energy, expected, rtol=1.1e-4)
            decision = jnp.pad(jnp.asarray(decision, h.dtype), (0, 20 - len(decision)))
            again = optimal_set(h, system, decision).energy
            assert solution.lower_bound <= again * (1 + 2e-6)
    assert feasible >= 18
    assert failed <= 4


@pytest.mark.skipif(not external.has_scip(), reason="needs pyscipopt, extra bench")
@pytest.mark.parametrize("nonlinear", [False, True])
def test_against_scip(nonlinear):
    system = table1(6, slot=0.3, seed=1)
    for h in np.asarray(sample_channels(jax.random.key(4), system, 3)):
        _, decision = external.scip(external.instance(system, h), 1e-4, 30.0, nonlinear)
        energy = optimal_set(h, system, jnp.asarray(decision, h.dtype)).energy
        np.testing.assert_allclose(solve(h, system, method="optimal").energy, energy, rtol=1e-3)


def test_certificates_hold_when_uncertified():
    """The first stage alone, on loads where it leaves gaps: its bound is still below the truth."""
    system = table1(30, slot=0.4, seed=1).replace(log_base=2.0)
    h = sample_channels(jax.random.key(2), system, 60)
    first = jax.jit(lambda h: solve(h, system, method="optimal"))(h)
    proven = solve(h, system, method="optimal", tolerance=1e-5)
    feasible = np.asarray(first.feasible)
    assert not np.all(certified(first)[feasible])
    assert np.all(certified(proven, 1.1e-5)[feasible])
    assert np.all(first.lower_bound[feasible] <= proven.energy[feasible] * (1 + 1e-6))
    assert np.all(first.energy[feasible] >= proven.lower_bound[feasible] * (1 - 1e-6))
    assert np.all(proven.energy[feasible] <= first.energy[feasible] * (1 + 1e-6))
    assert np.all(proven.lower_bound[feasible] >= first.lower_bound[feasible] * (1 - 1e-6))


def test_certificates_are_true_for_every_channel_of_a_batch():
    """One system, 2048 channels: what 1e-4 certifies, 5e-6 must not refute.

    Each channel has a device that the relaxed price leaves indifferent up to rounding.
    """
    for log_base, num_devices in ((2.0, 20), (np.e, 17)):
        system = table1(num_devices).replace(log_base=log_base)
        h = sample_channels(jax.random.key(1), system, 2048)
        coarse = solve(h, system, method="optimal")
        fine = solve(h, system, method="optimal", tolerance=5e-6)
        ok = np.asarray(fine.feasible)
        assert np.all(certified(fine, 5.1e-6)[ok])
        assert np.all(coarse.lower_bound[ok] <= fine.energy[ok] * (1 + 1e-6))
        assert np.all(coarse.energy[ok] <= fine.energy[ok] * (1 + 1.01e-4))


@pytest.mark.parametrize(
    ("stage", "num_devices"), [(enumeration.STAGES[0], 14), (enumeration.STAGES[1], 20)]
)
def test_batches_equal_single_channels(stage, num_devices):
    """Compilers differ between the two, and one has summed sets wrongly in batches."""
    system = sy.check_system(sy.pad_devices(table1(num_devices), -(-num_devices // 8) * 8))
    h = sample_channels(jax.random.key(1), system, 1000)
    solve_one = functools.partial(enumeration.optimal, system, stage=stage)
    alone = jax.jit(lambda h: jax.lax.map(solve_one, h))(h)
    batch = jax.jit(jax.vmap(solve_one))(h)
    ok = np.asarray(alone.feasible)
    np.testing.assert_array_equal(batch.feasible, ok)
    np.testing.assert_allclose(batch.energy[ok], alone.energy[ok], rtol=1e-5)
    np.testing.assert_allclose(batch.lower_bound[ok], alone.lower_bound[ok], rtol=1e-4)


def test_larger_systems_are_certified():
    for num_devices, slot in ((20, 0.3), (40, 0.7)):
        system = table1(num_devices, slot=slot, seed=2).replace(log_base=2.0)
        h = sample_channels(jax.random.key(3), system, 24)
        solution = solve(h, system, method="optimal")
        assert np.all(certified(solution, 1.01e-4)[solution.feasible])
        for i in np.flatnonzero(solution.feasible)[:5]:
            one = jax.tree.map(lambda x, i=i: np.asarray(x[i]), solution)
            check_solution(system, h[i], one)


def test_gap_shrinks_with_many_devices():
    """The first stage alone, memory linear in K: on average 1e-4 at K = 3000."""
    for num_devices, largest in ((3000, 1e-4),):
        system = table1(num_devices, slot=num_devices / 50, seed=1)
        h = sample_channels(jax.random.key(1), system, 4)
        solution = jax.jit(lambda h, s=system: solve(h, s, method="optimal"))(h)
        assert np.all(solution.feasible)
        assert np.mean(1 - solution.lower_bound / solution.energy) <= largest


def test_stages_only_improve():
    rng = np.random.default_rng(23)
    cases = [random_case(rng, 14, slot=0.35) for _ in range(20)]
    systems, h = stack([c[0] for c in cases]), jnp.stack([c[1] for c in cases])
    small, large = (
        jax.jit(jax.vmap(lambda s, h, stage=stage: enumeration.optimal(s, h, stage)))(systems, h)
        for stage in (enumeration.Stage(4, 2), enumeration.Stage(10, 16))
    )
    feasible = np.asarray(small.feasible)
    np.testing.assert_array_equal(feasible, large.feasible)
    assert np.all(large.energy[feasible] <= small.energy[feasible] * (1 + 1e-6))
    assert np.all(large.lower_bound[feasible] <= small.energy[feasible] * (1 + 1e-6))


@given(st.integers(0, 2**32 - 1))
def test_permuting_devices_permutes_the_answer(seed):
    rng = np.random.default_rng(seed)
    system, h, _ = random_case(rng, 9)
    order = rng.permutation(9)
    fields = {name: getattr(system, name) for name in (*sy.SYSTEM_RANGES, "active")}
    renamed = sy.System(**{n: v[order] if np.ndim(v) else v for n, v in fields.items()})
    plain, other = optimal_one(system, h), optimal_one(renamed, h[order])
    assert bool(plain.feasible) == bool(other.feasible)
    np.testing.assert_allclose(other.energy, plain.energy, rtol=1e-4)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1e3]))
def test_scaling_units_scales_the_answer(seed, scale):
    system, h, _ = random_case(np.random.default_rng(seed), 9)
    scaled = system.replace(
        slot=system.slot * scale, bandwidth=system.bandwidth / scale,
        cpu_hz=system.cpu_hz / scale, chip=system.chip * scale**3,
    )  # fmt: skip
    plain, other = optimal_one(system, h), optimal_one(scaled, h)
    np.testing.assert_allclose(other.energy, plain.energy * scale, rtol=1e-4)


def test_no_nan_and_finite_gradients():
    slope = jax.jit(jax.grad(finite_energy))
    for gain in (0.0, 1e-30, 1e-12, 1e6):
        system, _, _ = random_case(np.random.default_rng(5), 4)
        h = jnp.array([gain, 1e-3, gain, 2e-3])
        solution = optimal_one(system, h)
        assert not any(np.isnan(x).any() for x in jax.tree.leaves(solution))
        assert np.isfinite(slope(h, system)).all()


def finite_energy(h, system):
    energy = enumeration.optimal(system, h).energy
    return jnp.where(jnp.isfinite(energy), energy, 0.0)


def test_feasible_whenever_the_forced_devices_fit():
    """Systems far beyond Table 1, where no set of the likely devices may fit."""
    systems, h = sample_systems(jax.random.key(9), 4000, 20)
    fit = lambda s, h: fits(make_uplink(s, h), sy.forced(s).astype(h.dtype))  # noqa: E731
    forced_fit = jax.jit(jax.vmap(fit))(systems, h)
    found = jax.jit(jax.vmap(functools.partial(enumeration.optimal, stage=enumeration.STAGES[0])))(
        systems, h
    )
    np.testing.assert_array_equal(found.feasible, forced_fit)
