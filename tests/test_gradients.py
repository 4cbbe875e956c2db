from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_case

from meco_jax.exact.enumeration import optimal
from meco_jax.exact.pricing import set_energy
from meco_jax.exact.relaxation import relax
from meco_jax.exact.uplink import make_uplink
from meco_jax.learned import estimators as gr
from meco_jax.learned.case import differences, energy, exact_energy, make_case
from meco_jax.learned.estimators import GRADIENTS
from meco_jax.learned.policy import flips
from meco_jax.system import check_system, forced


@pytest.fixture
def case(rng):
    system, h, _ = random_case(rng, 5, slot=0.6, log_base=np.e)
    return make_case(system, h), make_uplink(system, h)


def decisions(case, rng, num=8):
    return np.where(case.free, rng.integers(0, 2, (num, 5)), case.forced).astype(np.float32)


def test_energy_is_that_of_the_best_allocation(rng):
    """In units of the bound, and to what a grid of 17 prices gives away; beyond F there is none."""

    @jax.jit
    def energies(system, h, case, sets):
        uplink = make_uplink(system, h)
        bound = relax(uplink, forced(system).astype(h.dtype)).bound
        sets = jnp.concatenate([sets, gr.best_count(h, case)[None]])
        exacts = jax.vmap(partial(set_energy, uplink))(sets)[0] / bound
        return exacts, jax.vmap(energy, (0, None))(sets, case)

    checked, prepare = 0, jax.jit(make_case)
    for i in range(12):
        system, h, _ = random_case(rng, 5, slot=0.8, log_base=np.e)
        part = np.float32(0.6 if i % 2 else 1e3)  # of all cycles
        cycles = part * np.sum(system.task_bits * system.cycles_per_bit)
        system = system.replace(edge_cycles=cycles, fixed_time=rng.uniform(0, 0.05, 5))
        system = check_system(system)
        case = prepare(system, h)
        for exact, found in zip(*energies(system, h, case, jnp.asarray(decisions(case, rng)))):
            if case.counts and np.isfinite(exact):
                assert found <= exact * (1 + 1e-4)
                if exact < 3:  # the grid is densest around the relaxed problem's price
                    np.testing.assert_allclose(found, exact, rtol=0.03)
                    checked += 1
            elif case.counts:
                assert found > 1
    assert checked >= 5


def test_differences_are_exact(case, rng):
    """Each is the energy of two decisions, computed one by one."""
    case, _ = case
    for offload in decisions(case, rng):
        found = differences(jnp.asarray(offload), case)
        for k in range(5):
            low, high = offload.copy(), offload.copy()
            low[k], high[k] = 0, 1
            expected = energy(jnp.asarray(high), case) - energy(jnp.asarray(low), case)
            np.testing.assert_allclose(found[k], expected, rtol=2e-3, atol=2e-4)


def test_the_gradient_of_the_head_is_the_difference(case, rng):
    case, _ = case
    offload = jnp.asarray(decisions(case, rng)[0])
    gradient = jax.grad(exact_energy)(offload, case)
    np.testing.assert_allclose(gradient, differences(offload, case), rtol=1e-6)


def test_a_sure_and_wrong_device_still_learns():
    """Scores -9 and 9, energy falls with both: slopes sigmoid(9) and sigmoid(-9)."""
    scores = jnp.array([-9.0, 9.0])
    gradient = jax.grad(lambda s: -jnp.sum(gr.commit(s, jnp.zeros(2))))(scores)
    np.testing.assert_allclose(gradient, [-0.99988, -0.000123], rtol=1e-2)


def test_sampled_gradient_is_unbiased(case):
    """Its mean is the gradient of the mean energy over all decisions, summed exactly."""
    case, _ = case
    case = case._replace(
        base_dual=case.base_dual / 1e3, flip_cost=case.flip_cost / 1e3, least=0 * case.least
    )
    scores = jnp.array([0.3, -0.5, 0.1, 0.8, -0.2])
    sets = (np.arange(32)[:, None] >> np.arange(5)) % 2
    sets = jnp.where(case.free[None], sets, case.forced[None]).astype(jnp.float32)

    def mean_energy(scores):
        odds = jnp.where(sets > 0, scores[None], -scores[None])
        weight = jnp.exp(jnp.sum(jnp.where(case.free[None], jax.nn.log_sigmoid(odds), 0.0), axis=1))
        weight = weight / jnp.sum(weight)
        return jnp.sum(weight * jax.vmap(energy, (0, None))(sets, case))

    keys = jax.random.split(jax.random.key(0), 20_000)
    slope = jax.grad(GRADIENTS["sampled"])
    sampled = jnp.mean(jax.vmap(slope, (None, None, 0, None))(scores, case, keys, 0.5), axis=0)
    expected = jnp.where(case.free, jax.grad(mean_energy)(scores), 0.0)
    np.testing.assert_allclose(sampled, expected, atol=0.03 * float(jnp.max(jnp.abs(expected))))


def test_lessons_make_the_optimum_likely(rng):
    """From even odds a step makes the best of all 2^5 sets likelier, whose flips all are tried."""
    names, tried = ("best_flips", "second_look", "listwise", "pairs", "optimum"), 0
    even = jnp.zeros(5), jax.random.key(0), jnp.float32(0.0)
    both = jax.jit(
        lambda system, h: (
            (case := make_case(system, h)),
            optimal(system, h).offload > 0.5,
            [jax.grad(GRADIENTS[name])(even[0], case, *even[1:]) for name in names],
        )
    )
    for _ in range(8):
        case, best, slopes = both(*random_case(rng, 5, slot=0.6, log_base=np.e)[:2])
        sides = np.where(case.free, np.where(best, 1.0, -1.0), 0.0)
        for name, slope in zip(names, slopes):
            if case.counts and np.any(case.free):
                tried += 1
                assert np.sum(slope * sides) < 0, name
    assert tried > 10


def test_flips_are_of_the_devices_in_turn():
    rows = flips(jnp.zeros(8, bool), jnp.arange(8.0), 3, first=6)
    np.testing.assert_array_equal(np.flatnonzero(rows.any(axis=0)), [0, 6, 7])
    assert len({tuple(row) for row in np.asarray(rows).tolist()}) == 8


def test_every_estimator_says_where_it_is_from():
    for name, estimator in GRADIENTS.items():
        assert "Source: " in getattr(estimator, "func", estimator).__doc__, name


@pytest.mark.parametrize("name", sorted(GRADIENTS))
def test_every_estimator_is_finite_and_leaves_fixed_devices_alone(name, rng):
    for k, slot in ((1, 0.3), (5, 0.3), (5, 1.5)):
        system, h, _ = random_case(rng, k, slot=slot, log_base=10.0)
        case = make_case(system, h.at[0].set(0.0))
        slope = jax.jit(jax.grad(GRADIENTS[name]))
        gradient = slope(jnp.linspace(-1.0, 1.0, k), case, jax.random.key(0), jnp.float32(0.3))
        assert np.isfinite(gradient).all()
        assert np.all(gradient[~np.asarray(case.free)] == 0)
        if name == "sign":
            assert np.all(gradient == 0)
