"""A cell as an environment of Gymnasium, for reinforcement learning: ``pip install '.[gym]'``.

The agent says who sends; powers and times are the optimal ones (``repair``). With every step
comes what the certified optimum of the slot would have spent, so that an agent is compared with
a bound and not with another agent.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, MultiBinary

from meco_jax import system as sy
from meco_jax.batching import map_channels
from meco_jax.exact import schemes
from meco_jax.runtime.checks import integer, one_number, refuse, require
from meco_jax.simulation.scenario import Scenario, check_scenario
from meco_jax.simulation.simulate import Observation, State, reset, step
from meco_jax.solution import Solution
from meco_jax.solver import solve

FEATURES = 5  # per device of an observation
LARGEST = 1e6  # of any feature


class OffloadingEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Decide slot by slot who sends.

    Observation ``[K, 5]``: ln(h^2 / E[h^2]) of the estimates, at least -50; bits of the task at
    hand over those of Table 1's mean task, 1.6e6; the part of the task that the CPU cannot
    finish in time; slots that the task was there before; tasks that wait. Action ``[K]``: 1 for
    who sends; it is made feasible. Reward: minus the energy of the slot [J], less ``penalty``
    for every task that misses its deadline. Episodes are truncated after ``num_slots`` and end
    when all batteries are empty.

    ``info`` holds the "energy" of the slot, what the agent planned to spend, "planned", the
    certified "optimum" and its "lower_bound" for the same estimates, all [J] and weighted but the
    first, the "gap" between plan and optimum [-], and how many tasks "missed".
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        scenario: Scenario,
        num_slots: int = 100,
        penalty: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        """Set up an environment.

        Args:
            scenario: what happens.
            num_slots: slots of an episode, at least 1.
            penalty: of a task that misses its deadline, at least 0 [J].
            render_mode: None.

        Raises:
            ValueError: as ``reset`` of ``meco_jax.simulation``, or if another argument is out of
                range.
        """
        self.scenario = check_scenario(scenario)
        self.num_slots = integer("num_slots", num_slots, low=1)
        require("penalty", one_number("penalty", penalty), 0.0, included=True)
        if render_mode is not None:
            raise refuse("render_mode", "None", render_mode)
        self.penalty, self.render_mode = float(penalty), None
        number = self.scenario.system.num_devices
        self.action_space = MultiBinary(number)
        self.observation_space = Box(-LARGEST, LARGEST, (number, FEATURES), np.float32)
        self._state: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; the same seed, the same episode."""
        super().reset(seed=seed)
        del options
        self._state, self._seen = reset(self._next_key(), self.scenario)
        self._slot = 0
        return self._features(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play a slot."""
        if self._state is None:
            raise ValueError("step must be called after reset; got a call before")
        wish = np.asarray(action, np.float32)
        plan, best = _plan(self._seen, wish)
        self._state, self._seen, outcome = step(self._next_key(), self._state, plan)
        self._slot += 1
        energy, missed = float(np.sum(outcome.energy)), int(np.sum(outcome.missed))
        planned, optimum = float(plan.energy), float(best.energy)
        info = {
            "energy": energy,
            "planned": planned,
            "optimum": optimum,
            "lower_bound": float(best.lower_bound),
            "gap": planned / optimum - 1 if 0 < optimum < np.inf else 0.0,
            "missed": missed,
        }
        ended = not np.any(outcome.alive)
        reward = -energy - self.penalty * missed
        return self._features(), reward, ended, self._slot >= self.num_slots, info

    def _next_key(self) -> int:
        return int(self.np_random.integers(2**32))

    def _features(self) -> np.ndarray:
        return np.asarray(_features(self._seen), np.float32)


@jax.jit
def _plan(seen: Observation, wish: jax.Array) -> tuple[Solution, Solution]:
    """Make a wish feasible, and solve the slot."""
    own = map_channels(schemes.repair, seen.h, seen.system, wish)
    return own, solve(seen.h, seen.system, method="optimal")


@jax.jit
def _features(seen: Observation) -> jax.Array:
    """Features of the devices ``[K, FEATURES]``."""
    relative = jnp.square(seen.h / jnp.sqrt(seen.system.mean_gain))
    waits = [seen.age.astype(relative.dtype), seen.backlog.astype(relative.dtype)]
    columns = [
        jnp.log(jnp.maximum(relative, jnp.exp(-50.0))),
        seen.system.task_bits / 1.6e6,
        sy.required_ratio(seen.system),
        *waits,
    ]
    return jnp.clip(jnp.stack(columns, axis=1), -LARGEST, LARGEST)
