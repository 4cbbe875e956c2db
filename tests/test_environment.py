"""The environments for reinforcement learning: they play the wish, and many are as one alone."""

import os
import select
import signal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import small

from meco_jax import sample_channels, table1
from meco_jax.simulation import Scenario, reset
from meco_jax.simulation.simulate import Observation
from meco_jax.simulation.wishes import unrepaired
from meco_jax.system import check_system

gymnasium = pytest.importorskip("gymnasium")
SCENARIO = Scenario(table1(4), arrivals="bernoulli", rate=0.8, csi="estimated", csi_error=0.1)
ID = "meco_jax.simulation.environment:meco_jax/Offloading-v0"


def make(**settings):
    from meco_jax.simulation.environment import OffloadingEnv

    return OffloadingEnv(SCENARIO, **settings)


def make_vec(**settings):
    from meco_jax.simulation.environment import make_vec

    return make_vec(SCENARIO, **settings)


def test_gymnasiums_checker():
    from gymnasium.utils.env_checker import check_env

    check_env(gymnasium.make(ID, scenario=SCENARIO).unwrapped, skip_render_check=True)


def test_ids_are_registered():
    assert gymnasium.make(ID).unwrapped.rules.scenario.system.num_devices == 8
    many = gymnasium.make_vec(ID, num_envs=3, num_slots=7)
    assert (many.num_envs, many.rules.num_slots) == (3, 7)
    assert many.observation_space.shape == (3, 8, 5)
    assert many.action_space.shape == (3, 8)


def test_an_episode_against_the_optimum():
    environment = make(num_slots=6, penalty=2.0)
    with pytest.raises(ValueError, match="step must be called after reset"):
        environment.step(np.ones(4))
    observation, _ = environment.reset(seed=3)
    assert observation.shape == (4, 5)
    total = []
    for number in range(6):
        _, reward, ended, truncated, info = environment.step(np.ones(4, np.int8))
        assert info["lower_bound"] <= info["optimum"] * (1 + 1e-5)
        assert info["gap"] > -1e-5
        assert reward == pytest.approx(-info["cost"] - 2.0 * info["missed"])
        assert not ended
        assert truncated == (number == 5)
        total.append(reward)
    environment.reset(seed=3)
    seed = int(np.random.default_rng(3).integers(2**32))  # as simulate begins with this key
    _, seen = reset(jax.random.fold_in(jax.random.key(seed), 0), SCENARIO)
    np.testing.assert_allclose(observation[:, 1], seen.system.task_bits / 1.6e6, rtol=1e-6)
    again = [environment.step([True] * 4)[1] for _ in range(6)]
    np.testing.assert_array_equal(total, again)


def test_the_wish_is_played():
    """Who stays stays, unless it must send; nobody sends because that saves energy."""
    scenario = SCENARIO.replace(csi_error=0.0, rate=1.0)  # what is planned is spent
    environment = gymnasium.make(ID, scenario=scenario).unwrapped
    observation, _ = environment.reset(seed=0)
    must = observation[:, 2] > 0
    assert 0 < np.sum(must) < 4
    for wish in (0 * must, must, ~must, 1 | must):
        _, reward, _, _, info = environment.step(wish)
        played = info["offload"]
        np.testing.assert_array_equal(played, wish | must)
        assert info["feasible"] == np.all(wish | ~must)
        assert info["planned"] == pytest.approx(info["cost"], rel=1e-5)
        assert info["optimum_reward"] == pytest.approx(-info["optimum"], rel=1e-5)
        worse = info["optimum_reward"] - reward
        assert worse < 1e-6 if played.all() else worse > 1e-3  # sending is cheap in Table 1


def test_many_are_as_one():
    """Two cells in one program, over the end of an episode, against each alone."""
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(make_vec(num_envs=2, num_slots=2))
    seen, _ = wrapped.reset(seed=7)
    alone = [make(num_slots=2) for _ in range(2)]
    first = [one.reset(seed=7 + i)[0] for i, one in enumerate(alone)]
    np.testing.assert_allclose(seen, first, rtol=1e-5, atol=1e-5)
    wishes = np.array([[1, 0, 1, 0], [0, 1, 1, 1]])
    for number in range(5):  # two slots, the reset, two slots
        seen, rewards, _, truncated, info = wrapped.step(wishes)
        assert list(truncated) == 2 * [number in (1, 4)]
        assert ("episode" in info) == (number in (1, 4))
        assert list(info["_energy"]) == 2 * [number != 2]
        for i, one in enumerate(alone):
            if number == 2:
                own, reward = one.reset()[0], 0.0
            else:
                own, reward, _, _, known = one.step(wishes[i])
                np.testing.assert_array_equal(info["offload"][i], known["offload"])
                assert info["optimum"][i] == pytest.approx(known["optimum"], rel=1e-5)
            np.testing.assert_allclose(seen[i], own, rtol=1e-5, atol=1e-5)
            assert rewards[i] == pytest.approx(reward, rel=1e-5)


def test_a_wish_that_does_not_fit_is_played_all_the_same():
    """Without repair, by hand: device 1 takes 0.4 s to compute, device 2 takes 0.2 s."""
    system, _ = small()
    system = check_system(system.replace(slot=0.3))  # device 1 must send
    plan = jax.jit(lambda h, wish: unrepaired(seen(system, h), wish))

    def seen(system, h):
        none = jnp.zeros(2, jnp.int32)
        return Observation(system, h, h, 0 * h, none, none)

    strong = jnp.array([1e-3, 1e-3])
    found, fits = plan(strong, jnp.array([1.0, 0.0]))
    assert bool(fits)
    assert float(found.time[0]) == pytest.approx(0.3, rel=1e-5)
    found, fits = plan(strong, jnp.array([0.0, 1.0]))  # device 1 does nothing
    assert not bool(fits)
    np.testing.assert_allclose(found.time, [0.0, 0.3], rtol=1e-5)
    assert np.isinf(found.energy)
    # With p h^2 / N0 = 1 a task takes 0.1 s, and 1 s with a fifteenth of it: 1e7 log2(16/15).
    weak = jnp.sqrt(1e-9 / system.max_power * jnp.array([1.0, 1 / 15]))
    found, fits = plan(weak, jnp.array([1.0, 1.0]))
    assert not bool(fits)
    np.testing.assert_allclose(found.time, [0.1, 0.3], rtol=1e-5)
    np.testing.assert_allclose(found.power, 2 * [float(system.max_power)])


@pytest.mark.parametrize(("action", "rule"), [
    ([1, 0, 0.3, 1], "0 or 1; got 0.3"), ([1, 0, -1, 1], "0 or 1; got -1"),
    ([1, 0, np.nan, 1], "0 or 1; got nan"), (np.ones(3), r"of shape \(4,\); got shape \(3,\)"),
    (1, r"of shape \(4,\); got shape \(\)"), ("all", "real numbers; got 'all'"),
])  # fmt: skip
def test_bad_actions(action, rule):
    from meco_jax.simulation.environment import checked_wish

    with pytest.raises(ValueError, match=f"^action must be .*{rule}"):
        checked_wish("action", action, (4,))


def test_bad_settings():
    for settings, message in (
        ({"num_slots": 0}, "num_slots must be at least 1; got 0"),
        ({"penalty": -1.0}, "penalty must be finite and at least 0; got -1"),
        ({"infeasible": "refuse"}, "infeasible must be one of repair, penalty; got 'refuse'"),
        ({"render_mode": "human"}, "render_mode must be None; got 'human'"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**settings)
    with pytest.raises(ValueError, match="num_envs must be at least 1; got 0"):
        make_vec(num_envs=0)
    with pytest.raises(ValueError, match="seed must be one integer, or one for each of 2 cells"):
        make_vec(num_envs=2).reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="options must be None"):
        make_vec(num_envs=2).reset(options={"reset_mask": np.ones(2, bool)})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_fork_says_why_it_cannot():
    """AsyncVectorEnv forks by default, and waited for ever."""
    sample_channels(0, table1(2), 1)  # JAX runs
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks, and so does Python
        child = os.fork()
    if not child:
        try:
            make().reset(seed=0)
        except RuntimeError as error:
            os.write(writes, str(error).encode())
        finally:
            os._exit(0)
    os.close(writes)
    ready, _, _ = select.select([reads], [], [], 30)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = os.read(reads, 1000).decode() if ready else "nothing"
    os.close(reads)
    assert 'context="spawn"' in said
    assert "make_vec" in said
