import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meco_jax import (
    TrainConfig,
    evaluate_grid,
    make_grid,
    pcos,
    sample_channels,
    solve,
    table1,
    train,
    train_grid,
)
from meco_jax.evaluation import Outcome, summarise
from meco_jax.exact import schemes
from meco_jax.paper import sweep
from meco_jax.runtime import checkpoints

CONFIG = TrainConfig(
    num_channels=200, batch_size=50, epochs=2, chunk_epochs=1, hidden=(8,), learning_rate=1e-3
)
DEVICES = (2, 5, 3)


def lanes():
    return make_grid({"num_devices": DEVICES, "seed": [4]})


def test_grid_is_the_product_of_its_axes():
    grid = make_grid({"slot": [0.5, 1.0], "num_devices": [3, 2], "task_seed": [7],
                      "learning_rate": [1e-3], "bandwidth": [2e7]})  # fmt: skip
    points = [(p["slot"], p["num_devices"]) for p in grid.points]
    assert points == [(0.5, 3), (0.5, 2), (1.0, 3), (1.0, 2)]
    np.testing.assert_allclose(grid.settings["learning_rate"], 1e-3)
    np.testing.assert_array_equal(grid.seeds, 0)
    for lane, (slot, num_devices) in enumerate(points):
        alone = table1(num_devices, slot, seed=7)
        task_bits = grid.systems.task_bits[lane, :num_devices]
        np.testing.assert_allclose(task_bits, alone.task_bits, rtol=1e-6)  # drawn alone
        np.testing.assert_array_equal(grid.systems.task_bits[lane, num_devices:], 0)
        assert np.sum(grid.systems.active[lane]) == num_devices
        assert grid.systems.slot[lane] == np.float32(slot)
        assert grid.systems.bandwidth[lane] == 2e7
    assert grid.part([2, 1]).points == (grid.points[2], grid.points[1])


def test_grid_is_host_data_inside_other_jitted_code():
    axes = {"num_devices": [2, 3], "slot": [0.3, 0.5]}
    inside = jax.jit(lambda: make_grid(axes).systems.task_bits)()
    np.testing.assert_allclose(inside, make_grid(axes).systems.task_bits, rtol=1e-6)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"speed": [1]}, "axes must be among .*; got 'speed'"),
        ({"slot": []}, "axes must have values each; got none for 'slot'"),
        ({"slot": [0.5, -1]}, "system.slot must be finite and above 0; got -1"),
        ({"num_devices": [0]}, "num_devices must be at least 1; got 0"),
    ],
)
def test_bad_axes_are_named(axes, message):
    with pytest.raises(ValueError, match=message):
        make_grid(axes)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"config\.multiplier must be finite and at least 0"):
        train_grid(make_grid({"num_devices": [2], "multiplier": [1.0, -1.0]}), CONFIG)


def test_lanes_equal_single_runs():
    """By lax.map and by vmap, padded to K = 5; the single runs are not padded."""
    grid = make_grid({"num_devices": [2, 5], "train_seed": [4, 6]})
    together = [  # 3: groups of three, the last one filled up
        train_grid(grid, CONFIG, batch_size=size) for size in (1, 3)
    ]
    for lane, point in enumerate(grid.points):
        if point["num_devices"] == 5:
            continue  # whatever its padding does would be no other
        system, key = table1(point["num_devices"]), sweep.lane_key(point["train_seed"], "bcos")
        single, alone = train(system, key=key, config=CONFIG)
        h = sample_channels(jax.random.key(7), system, 20)
        for policies, history in together:
            for name, values in alone.items():
                own = history[name] if name == "step" else history[name][:, lane]
                np.testing.assert_allclose(own, values, rtol=2e-3, atol=1e-5, err_msg=name)
            taken = sweep.take_lane(policies, lane)
            shapes = lambda p: jax.tree.map(jnp.shape, p.variables)  # noqa: E731
            assert shapes(taken) == shapes(single)
            np.testing.assert_allclose(taken(h).power, single(h).power, rtol=5e-3, atol=1e-4)
            np.testing.assert_allclose(taken(h).time, single(h).time, rtol=5e-3, atol=1e-4)


def test_settings_of_a_lane_are_its_own():
    # Without frozen statistics: biases in front of a normalisation have no slope but rounding,
    # which Adam makes steps of, and these count once the statistics stand still.
    config = CONFIG.replace(scheme="pcos", frozen_after=1.0)
    points = ((1e-3, 2.0), (3e-2, 0.5))
    rates, multipliers = zip(*points)
    grid = make_grid({"num_devices": [3], "learning_rate": rates, "multiplier": multipliers})
    _, together = train_grid(grid.part([0, 3]), config)
    for lane, (rate, multiplier) in enumerate(points):
        own = config.replace(learning_rate=rate, multiplier=multiplier)
        _, alone = train(table1(3), key=sweep.lane_key(0, "pcos"), config=own)
        np.testing.assert_allclose(
            together["teacher_energy"][:, lane], alone["teacher_energy"], rtol=1e-5
        )


def test_grid_compiles_once():
    before = sweep._advance_lanes._cache_size()
    config = CONFIG.replace(scheme="pcos", hidden=(12,))
    train_grid(lanes(), config)
    train_grid(lanes(), config.replace(multiplier=1.0))
    assert sweep._advance_lanes._cache_size() == before + 1


class KilledError(Exception):
    pass


def test_resume_is_bitwise_equal(tmp_path):
    keep = {"folder": tmp_path, "save_seconds": 0.0}
    config = CONFIG.replace(epochs=4, scheme="pcos")
    whole, history = train_grid(lanes(), config)

    def kill(step, _):
        if step >= 8:
            raise KilledError

    with pytest.raises(KilledError):
        train_grid(lanes(), config, **keep, report=kill)
    seen = []
    resumed, again = train_grid(lanes(), config, **keep, report=lambda step, _: seen.append(step))
    assert seen == [12, 16]
    for name, values in history.items():
        np.testing.assert_array_equal(values, again[name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, whole.variables, resumed.variables)
    finished, _ = train_grid(lanes(), config, **keep, report=kill)  # nothing left to do
    jax.tree.map(np.testing.assert_array_equal, whole.variables, finished.variables)
    with pytest.raises(
        checkpoints.OtherRunError, match=r"batch_size must be 50 to go on with the run in .*; got"
    ):
        train_grid(lanes(), config.replace(batch_size=25), folder=tmp_path)
    with pytest.raises(ValueError, match="num_devices must be"):
        train_grid(make_grid({"num_devices": [2, 5]}), config, folder=tmp_path)
    record = tmp_path / "settings.json"  # as a process in the other precision leaves it
    record.write_text(record.read_text().replace('"float32"', '"float64"'))
    with pytest.raises(
        checkpoints.OtherRunError, match=r"precision must be float64 to go on .*float32"
    ):
        train_grid(lanes(), config, folder=tmp_path)


def own_mcos(system, h):
    """A scheme of one's own, which leaves out what each device spends."""
    return schemes.mcos(system, h).replace(energy_per_device=None)


def test_every_scheme_on_the_same_channels():
    policies = {
        scheme: train_grid(lanes(), CONFIG.replace(scheme=scheme))[0] for scheme in ("bcos", "pcos")
    }
    with pytest.raises(ValueError, match=r"schemes must be named otherwise than .*; got 'bcos'"):
        evaluate_grid(policies, lanes(), 40, schemes={"bcos": own_mcos})
    outcomes = evaluate_grid(policies, lanes(), 40, schemes={"mine": own_mcos})
    for mine, known in zip(outcomes.pop("mine"), outcomes["mcos"]):
        np.testing.assert_allclose(mine, known, rtol=1e-6)
    learned = {"pcos_learned", "bcos_raw", "bcos", "bcos_improved"}
    assert set(outcomes) == {"mcos", "mcos_partial", "pcos", "optimal"} | learned
    for lane, num_devices in [(1, DEVICES[1])]:  # the others differ by padding only
        system = table1(num_devices, seed=4)
        h = sample_channels(sweep.lane_key(4, "test"), system, 40)
        alone = solve(h, system, policy=sweep.take_lane(policies["bcos"], lane))
        np.testing.assert_allclose(outcomes["bcos"].cost[lane], alone.energy, rtol=1e-5)
        np.testing.assert_allclose(outcomes["bcos"].lower_bound[lane], alone.lower_bound, rtol=1e-5)
        best = jax.vmap(lambda h, s=system: pcos(h, s))(h)
        np.testing.assert_allclose(outcomes["pcos"].cost[lane], best.energy, rtol=1e-5)
        certified = solve(h, system, method="optimal")
        np.testing.assert_allclose(outcomes["optimal"].cost[lane], certified.energy, rtol=1e-5)
        share = np.mean(alone.offload, axis=1)
        np.testing.assert_allclose(outcomes["bcos"].offloaded[lane], share, rtol=1e-5)
        np.testing.assert_allclose(
            outcomes["bcos"].sending_time[lane], np.sum(alone.time, axis=1), rtol=1e-5
        )
    assert np.all(outcomes["bcos_improved"].cost <= outcomes["bcos"].cost * (1 + 1e-6))
    rows = summarise(outcomes, lanes())
    assert len(rows) == 3 * 9
    assert all(row["seed"] == 4 for row in rows)
    bound = next(r for r in rows if r["scheme"] == "lower_bound" and r["num_devices"] == 5)
    np.testing.assert_allclose(
        bound["cost_mean_j"], np.mean(outcomes["bcos"].lower_bound[1]), rtol=1e-5
    )
    fixed = next(r for r in rows if r["scheme"] == "bcos" and r["num_devices"] == 5)
    assert fixed["feasible_fraction"] == fixed["deadline_met_fraction"] == 1.0


def test_summary_leaves_infeasible_channels_out():
    """Two channels of three are feasible: means over two, a third infeasible."""
    leaf = lambda *x: jnp.array([x])  # noqa: E731
    outcome = Outcome(
        cost=leaf(2.0, jnp.inf, 4.0), lower_bound=leaf(1.0, jnp.inf, 2.0),
        feasible=leaf(True, False, False), sending_time=leaf(0.4, 9.0, 0.6),
        offloaded=leaf(0.5, 0.0, 1.0),
    )  # fmt: skip
    optimum = outcome._replace(cost=leaf(1.5, jnp.inf, 3.0))
    outcomes = {"bcos": outcome, "optimal": optimum}
    row, _, bound = summarise(outcomes, make_grid({"num_devices": [4]}))
    assert row["cost_mean_j"] == 3.0
    assert row["feasible_fraction"] == row["deadline_met_fraction"] == 0.5
    assert row["offload_fraction"] == 0.75
    assert row["gap_to_bound_mean"] == 1.0
    np.testing.assert_allclose(row["gap_to_optimum_mean"], 1 / 3)
    np.testing.assert_allclose(row["infeasible_fraction"], 1 / 3)
    np.testing.assert_allclose(row["cost_ci95_j"], 1.96 * 1.0 / np.sqrt(2))
    assert bound["cost_mean_j"] == 1.5


@pytest.mark.parametrize("number", [0, 1])
def test_summary_of_hardly_any_feasible_channel(number):
    """None: NaN, without a warning; one: its own mean."""
    feasible = np.arange(3)[None] < number
    energy = np.where(feasible, 2.0, np.inf)
    outcome = Outcome(energy, energy / 2, feasible, 0.1 * feasible, 1.0 * feasible)
    row, _ = summarise({"optimal": outcome}, make_grid({"num_devices": [4]}))
    means = [value for name, value in row.items() if name.startswith(("cost", "gap"))]
    np.testing.assert_array_equal(means, [2.0, 0.0, 1.0, 0.0] if number else 4 * [np.nan])
    assert row["infeasible_fraction"] == 1 - number / 3
