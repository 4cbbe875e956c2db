import jax
import jax.numpy as jnp
import numpy as np
import reference
from cases import check_solution, pad_to, random_case, stack
from hypothesis import given
from hypothesis import strategies as st

from meco_jax import System, allocate, mcos, mcos_partial, pcos, repair
from meco_jax import system as sy

SCHEMES = {name: jax.jit(jax.vmap(f)) for name, f in
           (("mcos", mcos), ("mcos_partial", mcos_partial), ("pcos", pcos))}  # fmt: skip
repair_one, pcos_one, mcos_one = jax.jit(repair), jax.jit(pcos), jax.jit(mcos)
allocate_one = jax.jit(allocate)


def test_schemes_against_the_reference():
    """600 instances, K 1-30: MCOS exact, PCOS to 1e-5, every solution checked."""
    rng, largest = np.random.default_rng(11), 30
    cases = [random_case(rng, rng.integers(1, largest + 1)) for _ in range(600)]
    padded = [pad_to(system, h, largest) for system, h, _ in cases]
    systems, h = stack([s for s, _ in padded]), jnp.stack([h for _, h in padded])
    for name, scheme in SCHEMES.items():
        solutions = jax.tree.map(np.asarray, scheme(systems, h))
        for i, (_, _, p) in enumerate(cases):
            if name == "pcos":
                expected = reference.relaxed_bound(p, p.required)
            else:
                part = p.forced.astype(float) if name == "mcos" else p.required
                expected = reference.mcos(p, part)
            np.testing.assert_allclose(
                solutions.energy[i], expected, rtol=1e-5 if name == "pcos" else 2e-6
            )
            if np.isfinite(expected) and i % 3 == 0:
                one = jax.tree.map(lambda x, i=i: np.asarray(x[i]), (systems, h, solutions))
                check_solution(*one, whole=name == "mcos")


def test_known_optima(known):
    systems, h, data = known
    for name, scheme in SCHEMES.items():
        np.testing.assert_allclose(scheme(systems, h).energy, data[name], rtol=2e-6)
    repaired = jax.jit(jax.vmap(repair))(systems, h, jnp.asarray(data["offload"], jnp.float32))
    feasible = np.isfinite(data["energy"])
    np.testing.assert_array_equal(repaired.feasible, feasible)
    assert np.all(repaired.energy[feasible] >= data["energy"][feasible] * (1 - 2e-6))
    assert np.all(repaired.energy[feasible] <= data["mcos"][feasible] * (1 + 2e-6))


def test_mcos_by_hand():
    """One forced device and one free: the first sends at full power, the second stays."""
    system = System(jnp.array([2e6, 1e6]), jnp.full(2, 300.0), jnp.full(2, 1e9), slot=0.5)
    # local times 0.6 and 0.3 s; g = 1000, x_max = ln(1 + 199.52623) = 5.300945 nat
    # t_min = 2e6 / (1.442695e7 * 5.300945) = 0.02615184 s; 0.19952623 W * t_min = 5.217979e-3 J
    # the free one computes: 1e-28 * 3e8 * 1e18 = 0.03 J
    h = jnp.full(2, 1e-3)
    solution = mcos(system, h)
    np.testing.assert_array_equal(solution.offload, [1, 0])
    np.testing.assert_allclose(solution.time, [0.02615184, 0], rtol=1e-5)
    np.testing.assert_allclose(solution.energy, 0.035217979, rtol=1e-5)
    # m = 1 - 0.5 / 0.6 = 1/6: a sixth is sent, 5/6 of 0.06 J is computed
    partial = mcos_partial(system, h)
    np.testing.assert_allclose(partial.offload, [1 / 6, 0], rtol=1e-5)
    np.testing.assert_allclose(partial.energy, 5.217979e-3 / 6 + 0.05 + 0.03, rtol=1e-5)


def test_order_of_the_schemes():
    """Optimal PCOS <= bound of P1 <= repaired decision <= MCOS: splitting tasks only helps."""
    rng = np.random.default_rng(12)
    for _ in range(30):
        system, h, _ = random_case(rng, 8)
        best = repair_one(system, h, jnp.asarray(rng.integers(0, 2, 8), jnp.float32))
        if best.feasible:
            assert pcos_one(system, h).energy <= best.lower_bound * (1 + 2e-6)
            assert best.lower_bound <= best.energy * (1 + 2e-6)
            assert best.energy <= mcos_one(system, h).energy * (1 + 2e-6)


def test_repair_is_feasible_and_picks_by_energy():
    rng = np.random.default_rng(13)
    for trial in range(40):
        system, h, p = random_case(rng, 6, slot=rng.uniform(0.1, 0.5), log_base=10.0)
        decision = jnp.asarray(rng.integers(0, 2, 6), jnp.float32)
        solution = repair_one(system, h, decision)
        if not np.isfinite(reference.mcos(p, p.forced.astype(float))):
            assert not solution.feasible
            continue
        check_solution(system, h, solution)
        assert np.all(solution.offload[p.forced] == 1)
        given_energy = allocate_one(system, h, jnp.maximum(decision, p.forced)).energy
        assert solution.energy <= given_energy * (1 + 2e-6), trial
        order = rng.permutation(6)  # by energy, not by index: renaming devices changes nothing
        fields = {name: getattr(system, name) for name in (*sy.SYSTEM_RANGES, "active")}
        renamed = System(**{n: v[order] if np.ndim(v) else v for n, v in fields.items()})
        again = repair_one(renamed, h[order], decision[order])
        np.testing.assert_allclose(again.energy, solution.energy, rtol=1e-5)
        np.testing.assert_array_equal(again.offload, solution.offload[order])


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([1e-3, 1.0, 1e3]))
def test_scaling_units_scales_the_answer(seed, num_devices, scale):
    """Time, and energy with it, in other units: T, 1 / W and 1 / f scale together."""
    system, h, _ = random_case(np.random.default_rng(seed), num_devices)
    system, h = pad_to(system, h, 12)
    scaled = system.replace(
        slot=system.slot * scale,
        bandwidth=system.bandwidth / scale,
        cpu_hz=system.cpu_hz / scale,
        chip=system.chip * scale**3,
    )
    plain, other = pcos_one(system, h), pcos_one(scaled, h)
    np.testing.assert_allclose(other.energy, plain.energy * scale, rtol=1e-5)
    np.testing.assert_allclose(other.lower_bound, plain.lower_bound * scale, rtol=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(1.0, 3.0))
def test_more_slot_never_costs_energy(seed, factor):
    system, h, _ = random_case(np.random.default_rng(seed), 7)
    longer = system.replace(slot=np.float32(system.slot * factor))
    assert pcos_one(longer, h).energy <= pcos_one(system, h).energy * (1 + 2e-6)
