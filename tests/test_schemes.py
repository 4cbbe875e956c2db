import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import check_solution, pad_to, random_case, stack
from hypothesis import given
from hypothesis import strategies as st
from mixtures import mixtures

from meco_jax import System, allocate, improve, mcos, mcos_partial, pcos, repair
from meco_jax import system as sy

SCHEMES = {name: jax.jit(jax.vmap(f)) for name, f in
           (("mcos", mcos), ("mcos_partial", mcos_partial), ("pcos", pcos))}  # fmt: skip
improve_one, pcos_one, mcos_one = jax.jit(improve), jax.jit(pcos), jax.jit(mcos)


def test_schemes_against_the_reference():
    """600 instances, K 1-30: MCOS exact, PCOS to 1e-5, every solution checked."""
    rng, largest = np.random.default_rng(11), 30
    cases = [random_case(rng, rng.integers(1, largest + 1)) for _ in range(600)]
    padded = [pad_to(system, h, largest) for system, h, _ in cases]
    systems, h = stack([s for s, _ in padded]), jnp.stack([h for _, h in padded])
    for name, scheme in SCHEMES.items():
        solutions = jax.tree.map(np.asarray, scheme(h, systems))
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
        np.testing.assert_allclose(scheme(h, systems).energy, data[name], rtol=2e-6)
    decision, feasible = np.asarray(data["offload"], np.float32), np.isfinite(data["energy"])
    repaired, improved = repair(h, systems, decision), improve(h, systems, decision)
    for found in (repaired, improved):
        np.testing.assert_array_equal(found.feasible, feasible)
        assert np.all(found.energy[feasible] >= data["energy"][feasible] * (1 - 2e-6))
    np.testing.assert_array_equal(repaired.offload[feasible], decision[feasible])
    np.testing.assert_allclose(repaired.energy, data["energy"], rtol=2e-6)


def test_mcos_by_hand():
    """One forced device and one free: the first sends at full power, the second stays."""
    system = System(jnp.array([2e6, 1e6]), jnp.full(2, 300.0), jnp.full(2, 1e9), slot=0.5)
    # local times 0.6 and 0.3 s; g = 1000, x_max = ln(1 + 199.52623) = 5.300945 nat
    # t_min = 2e6 / (1.442695e7 * 5.300945) = 0.02615184 s; 0.19952623 W * t_min = 5.217979e-3 J
    # the free one computes: 1e-28 * 3e8 * 1e18 = 0.03 J
    h = jnp.full(2, 1e-3)
    solution = mcos(h, system)
    np.testing.assert_array_equal(solution.offload, [1, 0])
    np.testing.assert_allclose(solution.time, [0.02615184, 0], rtol=1e-5)
    np.testing.assert_allclose(solution.energy, 0.035217979, rtol=1e-5)
    # m = 1 - 0.5 / 0.6 = 1/6: a sixth is sent, 5/6 of 0.06 J is computed
    partial = mcos_partial(h, system)
    np.testing.assert_allclose(partial.offload, [1 / 6, 0], rtol=1e-5)
    np.testing.assert_allclose(partial.energy, 5.217979e-3 / 6 + 0.05 + 0.03, rtol=1e-5)


def test_order_of_the_schemes():
    """Optimal PCOS <= bound of P1 <= improved decision <= MCOS: splitting tasks only helps."""
    rng = np.random.default_rng(12)
    for _ in range(30):
        system, h, _ = random_case(rng, 8)
        best = improve_one(h, system, jnp.asarray(rng.integers(0, 2, 8), jnp.float32))
        if best.feasible:
            assert pcos_one(h, system).energy <= best.lower_bound * (1 + 2e-6)
            assert best.lower_bound <= best.energy * (1 + 2e-6)
            assert best.energy <= mcos_one(h, system).energy * (1 + 2e-6)


def test_improve_picks_by_energy():
    rng = np.random.default_rng(13)
    for _ in range(40):
        system, h, p = random_case(rng, 8, slot=rng.uniform(0.1, 0.5), log_base=10.0)
        decision = jnp.asarray(rng.integers(0, 2, 8), jnp.float32)
        solution = improve_one(h, system, decision)
        if not np.isfinite(reference.mcos(p, p.forced.astype(float))):
            assert not solution.feasible
            continue
        check_solution(system, h, solution)
        order = rng.permutation(8)  # by energy, not by index: renaming devices changes nothing
        fields = {name: getattr(system, name) for name in (*sy.SYSTEM_RANGES, "active")}
        renamed = System(**{n: v[order] if np.ndim(v) else v for n, v in fields.items()})
        again = improve_one(h[order], renamed, decision[order])
        np.testing.assert_allclose(again.energy, solution.energy, rtol=1e-5)
        np.testing.assert_array_equal(again.offload, solution.offload[order])


@pytest.mark.parametrize("access", ["tdma", "fdma"])
def test_repair_changes_as_little_as_it_can(access):
    """A feasible decision stays bit for bit, nobody free is added, and the answer is feasible."""
    rng = np.random.default_rng(14)
    changed = 0
    for seed in range(3):
        system, h = mixtures(seed, 256, 8, access)
        wish = (rng.random(h.shape) < rng.random((len(h), 1))).astype(np.float32)
        given, kept = allocate(h, system, wish), repair(h, system, wish)
        better, nothing = improve(h, system, wish), repair(h, system, 0 * wish)
        ok = np.asarray(given.feasible)
        np.testing.assert_array_equal(kept.offload[ok], wish[ok])
        np.testing.assert_allclose(kept.cost[ok], given.cost[ok], rtol=1e-6)
        late = system.cycles_per_bit * system.task_bits / system.cpu_hz
        forced = late > system.slot[:, None]
        sent = np.asarray(kept.offload) == 1
        assert not np.any(sent & (wish == 0) & ~forced)
        assert np.all(sent[np.asarray(kept.feasible)] | ~forced[np.asarray(kept.feasible)])
        np.testing.assert_array_equal(kept.feasible, nothing.feasible)  # as the channel is
        np.testing.assert_array_equal(
            nothing.offload, forced & np.asarray(nothing.feasible)[:, None]
        )
        np.testing.assert_array_equal(better.feasible, kept.feasible)
        fine = np.asarray(kept.feasible)
        assert np.all(better.cost[fine] <= np.minimum(kept.cost, nothing.cost)[fine] * (1 + 1e-6))
        changed += np.sum(fine & ~ok)
    assert changed > 100


def test_repair_by_hand():
    """Three alike but for their tasks: the slot has room for two."""
    # g = 1e-6 / 1e-9 = 1000, x_max = ln(1 + 1000 * 0.2) = 5.30, w = 1e7 / ln 2 = 1.443e7;
    # t_min = B / (w x_max) = 0.131, 0.131, 0.105 s, together 0.367 of 0.3 s: 0.067 s are lacking.
    # Local costs 1e-28 C B f^2 = 0.3, 0.2, 0.24 J; sent at full power 0.026, 0.026, 0.021 J.
    # Each frees all that is lacking, so the second leaves: 0.174 against 0.274 and 0.219 J more.
    system = System([1e7, 1e7, 8e6], [300.0, 200.0, 300.0], 1e9, slot=0.3, max_power=0.2)
    # Locally all take seconds, so they must send, and three do not fit.
    assert not repair(np.full(3, 1e-3), system, [1, 1, 1]).feasible
    fast = system.replace(cpu_hz=1e10, chip=1e-30)  # 0.3, 0.2, 0.24 s: all can stay
    found = repair(np.full(3, 1e-3), fast, [1, 1, 1])
    np.testing.assert_array_equal(found.offload, [1, 0, 1])
    np.testing.assert_array_equal(repair(np.full(3, 1e-3), fast, [0, 0, 0]).offload, np.zeros(3))
    # Who is not heard leaves first.
    deaf = repair(np.array([1e-3, 1e-3, 0.0]), fast, [1, 1, 1])
    np.testing.assert_array_equal(deaf.offload, [1, 1, 0])
    # The edge has cycles for two of three tasks: 3e9 + 2e9 + 2.4e9 of 6e9 [cycles], 1.4e9 lacking.
    edge = fast.replace(slot=1.0, edge_cycles=6e9)
    np.testing.assert_array_equal(repair(np.full(3, 1e-3), edge, [1, 1, 1]).offload, [1, 0, 1])


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
    plain, other = pcos_one(h, system), pcos_one(h, scaled)
    np.testing.assert_allclose(other.energy, plain.energy * scale, rtol=1e-5)
    np.testing.assert_allclose(other.lower_bound, plain.lower_bound * scale, rtol=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(1.0, 3.0))
def test_more_slot_never_costs_energy(seed, factor):
    system, h, _ = random_case(np.random.default_rng(seed), 7)
    longer = system.replace(slot=np.float32(system.slot * factor))
    assert pcos_one(h, longer).energy <= pcos_one(h, system).energy * (1 + 2e-6)
