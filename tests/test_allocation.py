import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import check_solution, pad_to, random_case, stack

from meco_jax import System, allocate
from meco_jax import system as sy
from meco_jax.exact.pricing import set_energy
from meco_jax.exact.relaxation import relax
from meco_jax.exact.uplink import best_efficiency, log_price, make_uplink, priced_cost

allocate_all = jax.jit(jax.vmap(allocate))
bound_all = jax.jit(jax.vmap(lambda s, h, must: relax(make_uplink(s, h), must).bound))


@jax.jit
def value_and_gradients(system, h, offload):
    """An allocation, and the gradients of its energy and bound where they are finite."""

    def finite(name):
        def function(system, h):
            solution = allocate(h, system, offload)
            value = getattr(solution, name)
            return jnp.where(jnp.isfinite(value), value, 0.0), solution

        return jax.grad(function, argnums=(0, 1), has_aux=True, allow_int=True)(system, h)

    energy, solution = finite("energy")
    return solution, energy, finite("lower_bound")[0]


set_energies = jax.jit(jax.vmap(lambda s, h, a: set_energy(make_uplink(s, h), a)[0]))
allocate_one = jax.jit(allocate)


def draw_cases(num, seed, largest=30):
    """Random cases padded to ``largest``: systems, gains, sets that fit or nearly, references."""
    rng = np.random.default_rng(seed)
    cases, sets = [], []
    for _ in range(num):
        case = random_case(rng, rng.integers(1, largest + 1))
        least = case[2].min_time
        order = rng.permutation(len(least))
        fitting = np.cumsum(least[order]) <= case[2].slot * rng.uniform(0.3, 1.1)
        chosen = np.zeros(largest, np.float32)
        chosen[order[fitting]] = 1
        cases.append(case)
        sets.append(chosen)
    padded = [pad_to(system, h, largest) for system, h, _ in cases]
    systems = stack([s for s, _ in padded])
    return systems, jnp.stack([h for _, h in padded]), jnp.array(sets), [c[2] for c in cases]


def test_two_devices_by_hand():
    """Twins share the slot equally: x = D / (w T / 2), p = (e^x - 1) / g."""
    system = System(jnp.full(2, 1e6), jnp.full(2, 300.0), jnp.full(2, 1e9), slot=0.5)
    # w = 1e7 / ln 2 = 1.442695e7; x = 1e6 / (1.442695e7 * 0.25) = 0.27725887 nat
    # g = 1e-6 / 1e-9 = 1000; p = (e^0.27725887 - 1) / 1000 = 3.195079e-4 W
    # energy = 2 * p * 0.25 = 1.597540e-4 J
    solution = allocate(jnp.full(2, 1e-3), system, jnp.ones(2))
    np.testing.assert_allclose(solution.time, [0.25, 0.25], rtol=1e-6)
    np.testing.assert_allclose(solution.power, 3.195079e-4, rtol=1e-5)
    np.testing.assert_allclose(solution.energy, 1.597540e-4, rtol=1e-5)
    # local: eps B C f^2 = 1e-28 * 3e8 * 1e18 = 0.03 J each
    np.testing.assert_allclose(
        allocate(jnp.full(2, 1e-3), system, jnp.zeros(2)).energy, 0.06, rtol=1e-6
    )


def test_energies_against_the_reference():
    systems, h, sets, references = draw_cases(600, seed=1)
    solutions = allocate_all(h, systems, sets)
    energies = np.asarray(set_energies(systems, h, sets))
    systems, h, sets, solutions = jax.tree.map(np.asarray, (systems, h, sets, solutions))
    fitting = 0
    for i, p in enumerate(references):
        chosen = np.asarray(sets[i, : len(p.load)], np.float64)
        expected = reference.allocate(p, chosen)[0]
        np.testing.assert_allclose(energies[i], expected, rtol=1e-5)
        expected_feasible = np.isfinite(expected) and np.all(chosen[p.forced] == 1)
        assert bool(solutions.feasible[i]) == expected_feasible
        if expected_feasible:
            fitting += 1
            one = jax.tree.map(lambda x, i=i: np.asarray(x[i]), (systems, h, solutions))
            check_solution(*one)
        else:
            assert np.isinf(solutions.energy[i])
            assert np.all(solutions.power[i] == 0)
            assert np.all(solutions.time[i] == 0)
    assert fitting >= 100


def test_bounds_against_the_reference():
    systems, h, _, references = draw_cases(300, seed=2)
    must = jax.vmap(sy.forced)(systems).astype(jnp.float32)
    bounds = np.asarray(bound_all(systems, h, must))
    for bound, p in zip(bounds, references, strict=True):
        np.testing.assert_allclose(
            bound, reference.relaxed_bound(p, p.forced.astype(float)), rtol=1e-5
        )


def test_known_optima(known):
    systems, h, data = known
    solutions = allocate_all(h, systems, jnp.asarray(data["offload"], jnp.float32))
    feasible = np.isfinite(data["energy"])
    np.testing.assert_array_equal(solutions.feasible, feasible)
    np.testing.assert_allclose(solutions.energy, data["energy"], rtol=2e-6)
    bound = np.asarray(solutions.lower_bound, np.float64)[feasible]
    assert np.all(bound <= data["lagrangian"][feasible] * (1 + 1e-8))
    np.testing.assert_allclose(bound, data["lagrangian"][feasible], rtol=6e-6)  # a price's digits
    assert np.all(np.isinf(solutions.lower_bound[~feasible]))
    np.testing.assert_allclose(solutions.time, data["time"], atol=2e-6)


def test_bound_is_below_every_decision():
    rng = np.random.default_rng(3)
    cases = [random_case(rng, rng.integers(1, 8)) for _ in range(40)]
    padded = [pad_to(system, h, 8) for system, h, _ in cases]
    systems, h = stack([system for system, _ in padded]), jnp.stack([h for _, h in padded])
    bounds = bound_all(systems, h, jax.vmap(sy.forced)(systems).astype(jnp.float32))
    for bound, (_, _, p) in zip(bounds, cases):
        assert bound <= reference.brute_force(p)[0] * (1 + 1e-6)


def test_price_and_nats_are_inverse():
    system, h, _ = random_case(np.random.default_rng(4), 20)
    uplink = make_uplink(system, h)
    nats = uplink.max_efficiency * jnp.linspace(1e-6, 1, 20)
    found = jax.vmap(lambda v: best_efficiency(uplink, v))(log_price(uplink, nats))
    np.testing.assert_allclose(jnp.diagonal(found), nats, rtol=2e-6)


def test_priced_cost_is_the_least(rng):
    system, h, p = random_case(rng, 10)
    uplink = make_uplink(system, h)
    for price in (1e-6, 1e-2, 1.0, 1e3):
        time = p.min_time[:, None] * np.logspace(0, 8, 20_001)
        paid = p.beta[:, None] * time * np.expm1(p.load[:, None] / time) / p.gain[:, None]
        least = np.min(paid + price * time, axis=1)
        np.testing.assert_allclose(priced_cost(uplink, jnp.log(price)), least, rtol=1e-5)


@pytest.mark.parametrize("gain", [0.0, 1e-30, 1e-20, 1e-12, 1e-3, 1e6])
@pytest.mark.parametrize("slot", [1e-6, 0.5, 1e6])
def test_extreme_gains_give_no_nan(gain, slot):
    system, _, _ = random_case(np.random.default_rng(5), 4, slot=slot)
    system = jax.tree.map(jnp.asarray, system)
    h = jnp.array([gain, 1e-3, gain, 2e-3])

    for offload in (jnp.zeros(4), jnp.ones(4), jnp.array([0.0, 1, 0, 1])):
        solution, *gradients = value_and_gradients(system, h, offload)
        assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(solution))
        for leaf in jax.tree.leaves(gradients):
            assert leaf.dtype == jax.dtypes.float0 or np.isfinite(leaf).all()


def test_empty_tasks_cost_nothing():
    system, h, _ = random_case(np.random.default_rng(6), 3)
    system = system.replace(task_bits=system.task_bits * jnp.array([1.0, 0.0, 0.0]), slot=2.0)
    solution = allocate(h, system, jnp.array([1.0, 1.0, 0.0]))
    alone = allocate(h, system, jnp.array([1.0, 0.0, 0.0]))
    assert bool(solution.feasible)
    np.testing.assert_allclose(solution.energy, alone.energy, rtol=1e-6)
    np.testing.assert_array_equal(solution.power[1:], 0)


def test_exactly_tight_slot_fits():
    system, h, p = random_case(np.random.default_rng(7), 5, log_base=2.0)
    for scale, fits in ((1 + 1e-5, True), (1.0, True), (1 - 1e-5, False)):
        tight = system.replace(slot=np.float32(p.min_time.sum() * scale))
        solution = allocate(h, tight, jnp.ones(5))
        assert bool(solution.feasible) == fits
        if fits:
            check_solution(tight, h, solution)
            np.testing.assert_allclose(solution.power, system.max_power, rtol=1e-2)


def test_padding_changes_nothing():
    rng = np.random.default_rng(8)
    for _ in range(20):
        system, h, _ = random_case(rng, 6)
        offload = jnp.asarray(rng.integers(0, 2, 6), jnp.float32)
        plain = allocate_one(h, system, offload)
        padded = allocate_one(*pad_to(system, h, 9)[::-1], jnp.concatenate([offload, jnp.ones(3)]))
        np.testing.assert_allclose(padded.energy, plain.energy, rtol=1e-6)
        np.testing.assert_allclose(padded.lower_bound, plain.lower_bound, rtol=1e-6)
        np.testing.assert_allclose(padded.time[:6], plain.time, rtol=1e-5)
        np.testing.assert_array_equal(padded.offload[6:], 0)


def test_envelope_gradients_against_differences_of_the_reference():
    """d energy / d(slot, h, task_bits), in float32 against central differences in float64."""
    rng = np.random.default_rng(9)
    checked = 0
    while checked < 10:
        system, h, p = random_case(rng, 5)
        if p.min_time.sum() > 0.8 * p.slot:
            continue
        checked += 1
        gradient = value_and_gradients(system, h, jnp.ones(5))[1]

        def shifted(step, p=p, system=system, **names):
            names_of = ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "slot", "log_base")
            values = {name: np.float64(getattr(system, name)) for name in names_of}
            values["h"] = np.sqrt(p.gain * 1e-9)
            for name in names:
                values[name] = values[name] * (1 + step)
            return reference.allocate(reference.instance(**values), np.ones(5))[0]

        for name, leaf, value in (
            ("slot", gradient[0].slot, system.slot),
            ("h", gradient[1], h),
            ("task_bits", gradient[0].task_bits, system.task_bits),
        ):
            difference = (shifted(1e-5, **{name: 1}) - shifted(-1e-5, **{name: 1})) / 2e-5
            np.testing.assert_allclose(np.sum(leaf * value), difference, rtol=2e-4)
