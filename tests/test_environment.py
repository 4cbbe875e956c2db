"""The environment for reinforcement learning, by Gymnasium's own checker."""

import warnings

import numpy as np
import pytest

from meco_jax import table1
from meco_jax.simulation import Scenario

gymnasium = pytest.importorskip("gymnasium")
SCENARIO = Scenario(table1(4), arrivals="bernoulli", rate=0.8, csi="estimated", csi_error=0.1)


def make(**settings):
    from meco_jax.simulation.environment import OffloadingEnv

    return OffloadingEnv(SCENARIO, **settings)


def test_gymnasiums_checker():
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        # It advises: an environment may be registered, and have all space that it needs.
        warnings.filterwarnings("ignore", category=UserWarning, module="gymnasium")
        check_env(make(), skip_render_check=True)


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
        assert reward == pytest.approx(-info["energy"] - 2.0 * info["missed"])
        assert not ended
        assert truncated == (number == 5)
        total.append(reward)
    environment.reset(seed=3)
    again = [environment.step(np.ones(4, np.int8))[1] for _ in range(6)]
    np.testing.assert_array_equal(total, again)


def test_bad_settings():
    for settings, message in (
        ({"num_slots": 0}, "num_slots must be at least 1; got 0"),
        ({"penalty": -1.0}, "penalty must be finite and at least 0; got -1"),
        ({"render_mode": "human"}, "render_mode must be None; got 'human'"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**settings)
