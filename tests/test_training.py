from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meco_jax import TrainConfig, sample_channels, solve, table1, train
from meco_jax import system as sy
from meco_jax.paper import training as tr
from meco_jax.paper.network import SLOPES, Decision

TINY = tr.check_config(
    TrainConfig(num_channels=200, batch_size=50, epochs=4, chunk_epochs=2, hidden=(16, 8))
)


def test_hinge():
    np.testing.assert_array_equal(tr.hinge(jnp.array([-1.0, 0.0, 2.0])), [0, 0, 2])


def test_penalised_loss_by_hand():
    """(17) + lambda (18): two channels, two devices."""
    system = table1(2).replace(
        task_bits=jnp.array([1e6, 2e6]), cycles_per_bit=jnp.full(2, 100.0), cpu_hz=jnp.full(2, 1e9),
        weight=jnp.array([1.0, 2.0]), slot=0.5,
    )  # fmt: skip
    # p g = 3e-3 * 1e-6 / 1e-9 = 3: r = 1e7 * log2(4) = 2e7 bit/s; t' = a B / r = a (0.05, 0.1) s
    # e = beta eps B C f^2 = 1e-28 * 1e8 * 1e18 = 0.01 J and 2 * 0.02 = 0.04 J
    h, power = jnp.full((2, 2), 1e-3), jnp.full((2, 2), 3e-3)
    offload, time = jnp.array([[1.0, 1.0], [1.0, 0.0]]), jnp.full((2, 2), 0.06)
    loss, metrics = tr.penalised_loss(system, h, Decision(offload, power, time), jnp.asarray(10.0))
    # p t = 1.8e-4 J; channel 1: 1.8e-4 + 2 * 1.8e-4 = 5.4e-4; channel 2: 5.4e-4 + 0.04
    assert metrics["energy"] == pytest.approx((5.4e-4 + 5.4e-4 + 0.04) / 2, rel=1e-5)
    # t' - t: channel 1: (-0.01, 0.04), channel 2: (-0.01, -0.06); E sum H = 0.02
    assert metrics["violation"] == pytest.approx(0.02, rel=1e-5)
    assert metrics["on_time"] == 1.0
    assert loss == pytest.approx((5.4e-4 + 5.4e-4 + 0.04) / 2 + 10 * 0.02, rel=1e-5)


def test_margin_by_hand():
    """A slot time of 0.06 s less a margin of 0.25 leaves 0.045 s for the task."""
    system = table1(2).replace(task_bits=jnp.array([1e6, 2e6]), slot=0.5)
    h, power = jnp.full((2, 2), 1e-3), jnp.full((2, 2), 3e-3)  # r = 2e7 bit/s, as above
    offload, time = jnp.array([[1.0, 1.0], [1.0, 0.0]]), jnp.full((2, 2), 0.06)
    loss = partial(tr.penalised_loss, system, h, Decision(offload, power, time), jnp.asarray(10.0))
    value, metrics = loss(0.25)
    # t' = (0.05, 0.1) s and (0.05, 0) s: H = 0.005 + 0.055 and 0.005 + 0; E sum H = 0.0325
    assert metrics["violation"] == pytest.approx(0.0325, rel=1e-5)
    assert value - metrics["energy"] == pytest.approx(0.325, rel=1e-5)
    paid = float(loss()[1]["energy"])
    assert metrics["energy"] == pytest.approx(paid, rel=1e-6)  # what is paid for stays


def test_the_default_computes_the_paper_and_nothing_else(key):
    """Without a margin not an operation is added: one more, and the last bits would change."""
    system = sy.check_system(table1(3))
    h = sample_channels(key, system, 4)
    decision = Decision(*(jnp.full((4, 3), v) for v in (0.7, 0.05, 0.02)))

    def paper(decision):
        def one(h, decision):
            offload, power, time = decision
            used = sy.transmit_time(system, h, offload, power)
            paid = system.weight * power * time + (1 - offload) * sy.local_energy(system)
            energy = jnp.sum(jnp.where(system.active, paid, 0.0))
            violation = jnp.sum(jnp.where(system.active, jnp.maximum(used - time, 0.0), 0.0))
            return energy, violation, jnp.sum(used) <= system.slot

        energy, violation, _ = (jnp.mean(x) for x in jax.vmap(one)(h, decision))
        return energy + 3.0 * violation

    def ours(margin):
        loss = lambda decision: tr.penalised_loss(system, h, decision, 3.0, margin)[0]  # noqa: E731
        return str(jax.make_jaxpr(loss)(decision))

    assert ours(TrainConfig().margin) == str(jax.make_jaxpr(paper)(decision))
    assert ours(0.0) != ours(None)


def test_loss_gradients_are_the_smooth_ones(key):
    """Against central differences, on the teacher's relaxed ratios."""
    system = table1(3)
    h = sample_channels(key, system, 4)
    a, p, t = (jnp.full((4, 3), v) for v in (0.7, 0.05, 0.02))
    loss = jax.jit(
        lambda a, p, t: tr.penalised_loss(system, h, Decision(a, p, t), jnp.asarray(3.0))[0]
    )
    gradients = jax.grad(loss, argnums=(0, 1, 2))(a, p, t)
    for i, (value, step) in enumerate(((a, 1e-2), (p, 1e-3), (t, 1e-3))):
        shifted = [
            [x + sign * step * (j == i) for j, x in enumerate((a, p, t))] for sign in (1, -1)
        ]
        difference = (loss(*shifted[0]) - loss(*shifted[1])) / (2 * step)
        np.testing.assert_allclose(jnp.sum(gradients[i]), difference, rtol=0.02)
        assert value.shape == gradients[i].shape


def start(config, num_devices=3):
    system = sy.check_system(table1(num_devices))
    run = tr._start(jax.random.key(0), system, config)
    return system, run, tr.training_channels(run.channel_key, system, config)[:50]


def changed(before, after):
    """Names of the branches whose arrays differ."""
    differs = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    return {name for name, branch in differs.items() if any(jax.tree.leaves(branch))}


def test_each_step_updates_its_own_branches():
    system, run, batch = start(TINY)
    teacher, metrics = tr.network_step(run.state, batch, "teacher", system=system, config=TINY)
    assert changed(run.state.params, teacher.params) == {
        "decision",
        "teacher_time",
        "teacher_power",
    }
    assert teacher.teacher.violation == metrics["teacher_violation"]
    student, _ = tr.network_step(run.state, batch, "student", system=system, config=TINY)
    assert changed(run.state.params, student.params) == {
        "decision",
        "student_time",
        "student_power",
    }
    both, metrics = tr.alternating_step(run.state, batch, system=system, config=TINY)
    composed, _ = tr.network_step(teacher, batch, "student", system=system, config=TINY)
    composed, _ = tr.multiplier_step(composed, system=system, config=TINY)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), both, composed)
    assert all(np.ndim(value) == 0 for value in metrics.values())


def test_multiplier_step_is_dual_ascent():
    """lambda + alpha mean(e) / T^2 * violation, by hand."""
    system, run, _ = start(TINY)
    unit = np.mean(sy.local_energy(system)) / 0.5
    np.testing.assert_allclose(tr.local_power(system), unit, rtol=1e-6)
    np.testing.assert_allclose(run.state.teacher.multiplier, TINY.multiplier * unit, rtol=1e-6)
    violated = {"teacher": 0.1, "student": 0.3}
    state = run.state._replace(
        **{r: getattr(run.state, r)._replace(violation=jnp.asarray(v)) for r, v in violated.items()}
    )
    after, _ = tr.multiplier_step(state, system=system, config=TINY)
    rise = TINY.multiplier_step * unit / 0.5
    for role, violation in violated.items():
        risen = getattr(after, role).multiplier - getattr(state, role).multiplier
        np.testing.assert_allclose(risen, violation * rise, rtol=1e-4)


@pytest.mark.parametrize("slope", SLOPES)
def test_slope_zero_starves_the_decision_branch(slope):
    """The vanishing gradient that the paper sets out from, and its cures."""
    config = TINY.replace(slope=slope)
    system, run, batch = start(config)
    after, _ = tr.network_step(run.state, batch, "student", system=system, config=config)
    assert ("decision" in changed(run.state.params, after.params)) == (slope != "zero")


def test_pcos_has_no_student():
    config = TINY.replace(scheme="pcos")
    system, run, batch = start(config)
    after, metrics = tr.alternating_step(run.state, batch, system=system, config=config)
    assert changed(run.state.params, after.params) == {"decision", "teacher_time", "teacher_power"}
    assert not any(name.startswith("student_energy") for name in metrics)


def test_training_channels_are_feasible():
    system = table1(3, slot=0.3, seed=0).replace(log_base=10.0, cpu_hz=jnp.full(3, 5e8))
    system = sy.check_system(system)
    drawn = sample_channels(jax.random.key(0), system, 200)
    kept = tr.training_channels(jax.random.key(0), system, TINY)
    feasible = np.asarray(solve(drawn, system, method="mcos").feasible)
    assert 0 < feasible.sum() < 200
    assert np.asarray(solve(kept, system, method="mcos").feasible).all()


def test_training_learns():
    """300 steps at K = 3: the raw network beats local computing by far."""
    config = TrainConfig(num_channels=2000, batch_size=200, epochs=30, hidden=(64, 32))
    system = table1(3)
    reports = []
    policy, history = train(
        system, key=jax.random.key(1), config=config, report=lambda *x: reports.append(x)
    )
    assert [step for step, _ in reports] == [50, 100, 150, 200, 250, 300]
    np.testing.assert_array_equal(history["step"], [50, 100, 150, 200, 250, 300])
    assert history["student_energy"][-1] < history["student_energy"][0]
    h = sample_channels(jax.random.key(2), system, 500)
    raw, repaired, local = policy(h), solve(h, policy=policy), solve(h, system, method="mcos")
    assert np.median(raw.energy) < 0.3 * np.median(local.energy)
    assert np.mean(repaired.energy) < 1.05 * np.mean(repaired.lower_bound)
    used = jax.vmap(partial(sy.transmit_time, system))(h, raw.offload, raw.power)
    spare = np.min((raw.time - used) / 0.5, axis=1)  # within rounding of 0 either is right
    assert np.all((raw.feasible == (spare >= 0)) | (np.abs(spare) < 1e-5))
    assert np.mean(raw.feasible) > 0.5


def test_one_compile_and_the_same_numbers_twice():
    traced = tr._advance._cache_size()
    config = TINY.replace(hidden=(12, 8), epochs=6)
    first = train(table1(4), key=jax.random.key(3), config=config)
    assert tr._advance._cache_size() == traced + 1  # three chunks, one compile
    again = train(table1(4), key=jax.random.key(3), config=config)
    swept = config.replace(learning_rate=3e-3, multiplier=1.0)
    train(table1(4, slot=0.7, seed=5), key=jax.random.key(4), config=swept)
    assert tr._advance._cache_size() == traced + 1  # numbers are arguments, not shapes
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_schemes_have_their_own_defaults():
    for scheme, own in tr.DEFAULTS.items():
        config = tr.check_config(TrainConfig(scheme=scheme))
        assert {name: getattr(config, name) for name in own} == own
    assert tr.check_config(TrainConfig(scheme="pcos", learning_rate=0.5)).learning_rate == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"slope": "steep"},
            f"config.slope must be one of {', '.join(SLOPES)}; got 'steep'",
        ),
        ({"scheme": "dqn"}, "config.scheme must be one of bcos, pcos; got 'dqn'"),
        ({"input_scaling": "db"}, "config.input_scaling must be one of log, raw; got 'db'"),
        ({"epochs": 0}, "config.epochs must be at least 1; got 0"),
        ({"batch_size": 80}, "config.num_channels must be a multiple of batch_size, 80; got 200"),
        ({"batch_size": 500}, "config.batch_size must be at most num_channels, 200; got 500"),
        ({"hidden": (16, 0)}, r"config.hidden must be widths of at least 1; got \(16, 0\)"),
        ({"margin": 1.0}, "config.margin must be at least 0 and below 1; got 1.0"),
        ({"margin": -0.1}, "config.margin must be at least 0 and below 1; got -0.1"),
        ({"margin": float("nan")}, "config.margin must be at least 0 and below 1; got nan"),
        ({"learning_rate": -1.0}, "config.learning_rate must be finite and at least 0; got -1.0"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        train(table1(3), key=jax.random.key(0), config=TINY.replace(**change))
