import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meco_jax import sample_channels, table1
from meco_jax import system as sy
from meco_jax.paper import network as nw


def test_binarize_forward():
    """(15)-(16) on every branch of the sign function, phi = 1/2 among them."""
    ratio = jnp.array([0.0, 0.49, 0.5, 0.51, 1.0, 0.0, 0.49])
    required = jnp.array([0.0, 0, 0, 0, 0, 0.2, 1e-6])
    printed = np.sign((np.sign(2 * np.asarray(ratio) - 1) + 1) / 2 + np.sign(required))
    np.testing.assert_array_equal(nw.binarize(ratio, required, jnp.ones(7)), printed)


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_binarize_backward_is_the_slope(slope):
    ratio, required = jnp.linspace(0, 1, 5), jnp.array([0.0, 0.1, 0, 0.5, 0])
    cotangent = jnp.array([1.0, -2, 3, 0.5, 7])
    loss = lambda r, m, s: jnp.sum(cotangent * nw.binarize(r, m, s))  # noqa: E731
    gradients = jax.grad(loss, argnums=(0, 1, 2))(ratio, required, jnp.full(5, slope))
    np.testing.assert_allclose(gradients[0], slope * cotangent)
    np.testing.assert_array_equal(gradients[1:], np.zeros((2, 5)))


def test_binarize_with_the_teachers_slope_has_the_teachers_gradient():
    ratio, required = jnp.linspace(0, 1, 6), jnp.array([0.0, 0.1, 0.9, 0.5, 0, 0])
    cotangent = jnp.arange(6.0)
    teacher = jax.grad(lambda r: jnp.sum(cotangent * nw.relaxed_ratio(r, required)))(ratio)
    student = jax.grad(lambda r: jnp.sum(cotangent * nw.binarize(r, required, 1 - required)))(ratio)
    np.testing.assert_allclose(student, teacher)


def test_binarize_sweeps_slopes_in_one_trace():
    traces = []

    def gradient(slope):
        traces.append(1)
        return jax.grad(lambda r: nw.binarize(r, jnp.zeros(()), slope))(0.7)

    swept = jax.jit(jax.vmap(gradient))
    np.testing.assert_allclose(swept(jnp.array([0.0, 0.5, 1.0])), [0, 0.5, 1])
    swept(jnp.array([0.1, 0.2, 0.3]))
    assert len(traces) == 1


def test_output_layers():
    phi = jnp.array([0.1, 0.2, 0.9])
    np.testing.assert_allclose(nw.output_power(phi, 0.2), [0.02, 0.04, 0.18], rtol=1e-6)
    every = jnp.ones(3, bool)
    # |phi|_1 = 1.2 > 1: normalised to T; 0.3 of the first two alone < 1: scaled by T
    np.testing.assert_allclose(jnp.sum(nw.output_time(phi, 0.5, every)), 0.5, rtol=1e-6)
    two = jnp.array([True, True, False])
    np.testing.assert_allclose(nw.output_time(phi, 0.5, two), [0.05, 0.1, 0], rtol=1e-6)
    np.testing.assert_array_equal(nw.output_time(jnp.zeros(3), 0.5, every), np.zeros(3))
    assert np.isfinite(
        jax.grad(lambda x: jnp.sum(nw.output_time(x, 0.5, every)))(jnp.zeros(3))
    ).all()
    np.testing.assert_allclose(
        nw.relaxed_ratio(phi, jnp.array([0.0, 0.5, 1])), [0.1, 0.6, 1], rtol=1e-6
    )


def test_features_are_standardised(key):
    system = table1(10)
    x = nw.features(system, sample_channels(key, system, 20_000))
    assert abs(np.mean(x)) < 0.02
    assert np.std(x) == pytest.approx(1, abs=0.02)
    zero = nw.features(system, jnp.zeros((1, 10)))
    assert np.isfinite(zero).all()
    raw = nw.features(system, sample_channels(jax.random.key(1), system, 20_000), "raw")
    assert np.mean(raw**2) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("share", [False, True])
def test_roles_share_the_decision_branch(key, share):
    network = nw.Network((16, 8), share)
    system = table1(5)
    variables = nw.init_variables(network, key, 5)
    own = {"student_time", "student_power"} | (
        set() if share else {"teacher_time", "teacher_power"}
    )
    assert set(variables["params"]) == own | {"decision"}
    h = sample_channels(jax.random.key(1), system, 3)
    (soft, power, _), _ = nw.decide(network, variables, system, h, "teacher")
    (hard, other, time), _ = nw.decide(network, variables, system, h, "student")
    forced = sy.forced(system)
    required = sy.required_ratio(system)[None]
    np.testing.assert_array_equal(hard, (soft - required >= 0.5 * (1 - required)) | forced[None])
    assert np.allclose(power, other) == share
    assert np.all(soft >= required - 1e-6)
    assert np.all(np.sum(time, axis=1) <= 0.5 * (1 + 1e-6))


def test_padding_devices_change_nothing(key):
    """A network for 3 of 5 devices gives the 3 what a network for 3 gives."""
    network = nw.Network((16, 8))
    small = table1(3)
    large = table1(5).replace(active=jnp.arange(5) < 3)
    h = sample_channels(jax.random.key(1), large, 7)
    for role in ("teacher", "student"):
        few, _ = nw.decide(
            network, nw.init_variables(network, jax.random.key(2), 3), small, h[:, :3], role
        )
        many, _ = nw.decide(
            network, nw.init_variables(network, jax.random.key(2), 5), large, h, role
        )
        for a, b in zip(few, many, strict=True):
            np.testing.assert_allclose(a, b[:, :3], rtol=1e-5)
        np.testing.assert_array_equal(many.offload[:, 3:], 0)
        np.testing.assert_array_equal(many.time[:, 3:], 0)


def test_realised_times_keep_the_constraints_at_the_same_energy(key):
    """t' for t wherever sum t' <= T: no other a, p or energy, and C1-C5 by float64 arithmetic.

    The two are different programs, which may round otherwise: a few 1e-7 of a sum.
    """
    system = sy.check_system(table1(4).replace(max_power=0.02))
    network = nw.Network((8, 8))
    policy = nw.Policy(nw.init_variables(network, key, 4), system, network)
    h = sample_channels(jax.random.key(1), system, 300)
    own, kept = policy(h), policy(h, times="realised")
    for name in ("offload", "power", "energy", "lower_bound"):
        np.testing.assert_allclose(getattr(kept, name), getattr(own, name), rtol=1e-6)
    gain = np.asarray(h, np.float64) ** 2 / 1e-9
    bits = np.asarray(own.offload, np.float64) * np.asarray(system.task_bits)
    used = bits / (1e7 * np.log2(1 + np.asarray(own.power, np.float64) * gain))  # t'
    late = used.sum(axis=1) > 0.5
    edge = np.abs(used.sum(axis=1) - 0.5) < 1e-5  # rounding says which
    assert 20 < late.sum() < 280
    assert np.all((kept.feasible == ~late) | edge)
    assert not np.any(own.feasible & ~kept.feasible & ~edge)
    assert np.sum(own.feasible) < np.sum(kept.feasible)
    np.testing.assert_allclose(kept.time[~late & ~edge], used[~late & ~edge], rtol=1e-5)
    np.testing.assert_allclose(kept.time[late & ~edge], own.time[late & ~edge], rtol=1e-6)
    with pytest.raises(ValueError, match="times must be one of network, realised; got 'mine'"):
        policy(h, times="mine")


def test_batch_normalisation_uses_the_batch_in_training_only(key):
    network, system = nw.Network((16, 8)), table1(4)
    variables = nw.init_variables(network, key, 4)
    h = sample_channels(jax.random.key(1), system, 50)
    _, stats = nw.decide(network, variables, system, h, "student", train=True)
    changed = jax.tree.map(lambda a, b: not np.allclose(a, b), variables["batch_stats"], stats)
    assert all(jax.tree.leaves(changed["decision"]))
    assert not any(jax.tree.leaves(changed["teacher_time"]))
    _, same = nw.decide(network, variables, system, h, "student")
    jax.tree.map(np.testing.assert_array_equal, same, variables["batch_stats"])
