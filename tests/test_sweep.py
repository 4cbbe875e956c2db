import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import TrainConfig, pcos, sample_channels, solve, sweep, table1, train, train_lanes

CONFIG = TrainConfig(
    num_channels=200, batch_size=50, epochs=2, chunk_epochs=1, hidden=(16, 8), learning_rate=1e-3
)
DEVICES = (2, 5, 3)


def lanes():
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    return sweep.stack_systems([table1(k) for k in DEVICES]), keys


def test_lanes_equal_single_runs():
    """By lax.map and by vmap, padded to K = 5; the single runs are not padded."""
    systems, _ = lanes()
    for size in (1, 3):
        policies, history = train_lanes(systems, lanes()[1], CONFIG, batch_size=size)
        for lane, num_devices in enumerate(DEVICES):
            single, alone = train(table1(num_devices), key=jax.random.key(lane), config=CONFIG)
            for name, values in alone.items():
                together = history[name] if name == "step" else history[name][:, lane]
                np.testing.assert_allclose(together, values, rtol=2e-3, atol=1e-5, err_msg=name)
            taken = sweep.take_lane(policies, lane)
            shapes = lambda p: jax.tree.map(jnp.shape, p.variables)  # noqa: E731
            assert shapes(taken) == shapes(single)
            h = sample_channels(jax.random.key(7), table1(num_devices), 20)
            np.testing.assert_allclose(taken(h).power, single(h).power, rtol=5e-3, atol=1e-4)
            np.testing.assert_allclose(taken(h).time, single(h).time, rtol=5e-3, atol=1e-4)


def test_lanes_compile_once():
    systems, keys = lanes()
    before = sweep._advance_lanes._cache_size()
    train_lanes(systems, keys, CONFIG.replace(hidden=(8, 8)))
    train_lanes(systems, lanes()[1], CONFIG.replace(hidden=(8, 8), multiplier=1.0))
    assert sweep._advance_lanes._cache_size() == before + 1


def test_every_scheme_on_the_same_channels():
    systems, _ = lanes()
    policies = {
        scheme: train_lanes(systems, lanes()[1], CONFIG.replace(scheme=scheme))[0]
        for scheme in ("bcos", "pcos")
    }
    outcomes = sweep.evaluate_lanes(policies, lanes()[1], 40)
    learned = {"pcos_learned", "bcos_raw", "bcos"}
    assert set(outcomes) == {"mcos", "mcos_partial", "pcos", "optimal"} | learned
    for lane, num_devices in [(1, DEVICES[1])]:  # the others differ by padding only
        system = table1(num_devices)
        h = sample_channels(jax.random.key(lane), system, 40)
        alone = solve(h, system, policy=sweep.take_lane(policies["bcos"], lane))
        np.testing.assert_allclose(outcomes["bcos"].energy[lane], alone.energy, rtol=1e-5)
        np.testing.assert_allclose(outcomes["bcos"].lower_bound[lane], alone.lower_bound, rtol=1e-5)
        best = jax.vmap(lambda h, s=system: pcos(s, h))(h)
        np.testing.assert_allclose(outcomes["pcos"].energy[lane], best.energy, rtol=1e-5)
        certified = solve(h, system, method="optimal")
        np.testing.assert_allclose(outcomes["optimal"].energy[lane], certified.energy, rtol=1e-5)
        share = np.mean(alone.offload, axis=1)
        np.testing.assert_allclose(outcomes["bcos"].offloaded[lane], share, rtol=1e-5)
        np.testing.assert_allclose(
            outcomes["bcos"].sending_time[lane], np.sum(alone.time, axis=1), rtol=1e-5
        )
    rows = sweep.summarise(outcomes, systems, seed=9)
    assert len(rows) == 3 * 8
    assert all(row["seed"] == 9 for row in rows)
    bound = next(r for r in rows if r["scheme"] == "lower_bound" and r["num_devices"] == 5)
    np.testing.assert_allclose(
        bound["energy_mean_j"], np.mean(outcomes["bcos"].lower_bound[1]), rtol=1e-5
    )
    fixed = next(r for r in rows if r["scheme"] == "bcos" and r["num_devices"] == 5)
    assert fixed["feasible_fraction"] == fixed["deadline_met_fraction"] == 1.0


def test_summary_leaves_infeasible_channels_out():
    """Two channels of three are feasible: means over two, a third infeasible."""
    leaf = lambda *x: jnp.array([x])  # noqa: E731
    outcome = sweep.Outcome(
        energy=leaf(2.0, jnp.inf, 4.0), lower_bound=leaf(1.0, jnp.inf, 2.0),
        feasible=leaf(True, False, False), sending_time=leaf(0.4, 9.0, 0.6),
        offloaded=leaf(0.5, 0.0, 1.0),
    )  # fmt: skip
    optimum = outcome._replace(energy=leaf(1.5, jnp.inf, 3.0))
    outcomes = {"bcos": outcome, "optimal": optimum}
    row, _, bound = sweep.summarise(outcomes, sweep.stack_systems([table1(4)]), seed=0)
    assert row["energy_mean_j"] == 3.0
    assert row["feasible_fraction"] == row["deadline_met_fraction"] == 0.5
    assert row["offload_fraction"] == 0.75
    assert row["gap_to_bound_mean"] == 1.0
    np.testing.assert_allclose(row["gap_to_optimum_mean"], 1 / 3)
    np.testing.assert_allclose(row["infeasible_fraction"], 1 / 3)
    np.testing.assert_allclose(row["energy_ci95_j"], 1.96 * 1.0 / np.sqrt(2))
    assert bound["energy_mean_j"] == 1.5
