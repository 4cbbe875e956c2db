"""A cell as an environment of Gymnasium, for reinforcement learning: ``pip install '.[gym]'``.

The agent says who sends; powers and times are the optimal ones. With every step comes what the
certified optimum of the slot would have spent and earned, so that an agent is compared with a
bound and not with another agent. Importing this module registers ``ID``::

    environment = gymnasium.make("meco_jax.simulation.environment:meco_jax/Offloading-v0")
    many = meco_jax.simulation.environment.make_vec(num_envs=64)  # one program for all
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, MultiBinary
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from meco_jax.runtime.checks import integer, one_number, real, refuse, require, zero_or_one
from meco_jax.runtime.settings import is_forked, moves_data
from meco_jax.scenarios import table1
from meco_jax.simulation.scenario import Scenario, check_scenario
from meco_jax.simulation.simulate import State
from meco_jax.simulation.wishes import FEATURES, INFEASIBLE, LARGEST, Turn, begin, play
from meco_jax.system import System

ID = "meco_jax/Offloading-v0"
DEVICES = 8  # of ``default_scenario``
PENALTY = 0.1  # of a missed task: as much as a slot at full power takes [J]
_vector: Any = gymnasium.vector
# Versions before 1.1 always reset at the step after the last, and have no name for that.
AUTORESET = {"autoreset_mode": _vector.AutoresetMode.NEXT_STEP} if hasattr(
    _vector, "AutoresetMode") else {}  # fmt: skip


def default_scenario(num_devices: int = DEVICES) -> Scenario:
    """Return the cell of ``ID``: neither everybody nor nobody had better send in it.

    Devices of Table 1 whose tasks differ from slot to slot by half of their size, and whose
    CPUs take a hundredth of the paper's energy. With the paper's CPUs "everybody sends" comes
    within 2 % of the optimum, so that there is little to learn.

    Args:
        num_devices: K, at least 1.
    """
    return Scenario(table1(num_devices).replace(chip=1e-30), size_spread=0.5)


class Rules:
    """The settings and spaces of an environment, checked."""

    def __init__(
        self,
        scenario: Scenario | None,
        num_slots: int,
        penalty: float,
        infeasible: str,
        render_mode: str | None,
    ) -> None:
        if is_forked():  # JAX would hang here; ``reset`` says so, where Gymnasium passes it on
            self.scenario = scenario or Scenario(System(np.zeros(DEVICES), 1.0, 1.0))
        else:
            self.scenario = _checked(default_scenario() if scenario is None else scenario)
        self.num_slots = integer("num_slots", num_slots, low=1)
        require("penalty", one_number("penalty", penalty), 0.0, included=True)
        if infeasible not in INFEASIBLE:
            raise refuse("infeasible", f"one of {', '.join(INFEASIBLE)}", infeasible)
        if render_mode is not None:
            raise refuse("render_mode", "None", render_mode)
        self.penalty, self.infeasible = float(penalty), infeasible
        number = self.scenario.system.num_devices
        self.action_space = MultiBinary(number)
        self.observation_space = Box(-LARGEST, LARGEST, (number, FEATURES), np.float32)


class OffloadingEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Decide slot by slot who sends.

    Observation ``[K, 5]``: ln(h^2 / E[h^2]) of the estimates, at least -50; bits of the task at
    hand over those of Table 1's mean task, 1.6e6; the part of the task that the CPU cannot
    finish in time; slots that the task was there before; tasks that wait. Action ``[K]``: 1 for
    who sends. Episodes are truncated after ``num_slots`` and end when all batteries are empty.

    Reward: minus the weighted energy of the slot [J], P1's objective, less ``penalty`` for every
    task that misses its deadline. A wish that fits is played as it is. Of one that does not,
    ``infeasible`` says what is done:

    - "repair": it is changed as little as makes it fit, as by ``meco_jax.repair``: who must send
      does, and devices leave one by one. Nobody is added because sending saves energy.
    - "penalty": it is played all the same. A device that should have sent and stays does nothing.
      If those that send do not fit into the slot, all send at full power in the order of their
      indices until it is over. Their energy is spent, and tasks that are not through miss their
      deadlines, or wait where ``scenario.deadline`` lets them.

    ``info`` holds the decision that was played, "offload" ``[K]``, whether the wish itself was
    "feasible", the "energy" of the slot, not weighted, and its weighted "cost" [J], the tasks that
    "missed"; of the plan, on the same estimates, the cost "planned", that of the certified
    "optimum" and its "lower_bound" [J], and the "gap" between plan and optimum [-]; and what the
    optimum would have earned in this very slot, "optimum_reward" [J]. Where estimates are wrong or
    batteries run low, more can be earned than that.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        scenario: Scenario | None = None,
        num_slots: int = 100,
        penalty: float = PENALTY,
        infeasible: str = "repair",
        render_mode: str | None = None,
    ) -> None:
        """Set up an environment.

        Args:
            scenario: what happens; by default ``default_scenario()``.
            num_slots: slots of an episode, at least 1.
            penalty: of a task that misses its deadline, at least 0 [J].
            infeasible: what is done about a wish that does not fit: "repair" or "penalty".
            render_mode: None.

        Raises:
            ValueError: as ``reset`` of ``meco_jax.simulation``, or if another argument is out of
                range.
        """
        self.rules = Rules(scenario, num_slots, penalty, infeasible, render_mode)
        self.action_space = self.rules.action_space
        self.observation_space = self.rules.observation_space
        self.render_mode = None
        self._states: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; the same seed, the same episode.

        Raises:
            RuntimeError: in a forked process, whose JAX cannot compute.
        """
        super().reset(seed=seed)
        _check_options(options)
        self._seeds = _draw([self.np_random])
        self._number = 0
        self._states, observations = _begin(self._seeds, self.rules)
        return observations[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play a slot.

        Raises:
            ValueError: before ``reset``, or if ``action`` is not 0 or 1 for each device.
        """
        if self._states is None:
            raise ValueError("step must be called after reset; got a call before")
        wishes = checked_wish("action", action, self.action_space.shape)[None]
        self._number += 1
        numbers, over = np.array([self._number], np.int32), np.zeros(1, bool)
        self._states, observations, turn = _advance(
            self._states, wishes, self._seeds, numbers, over, self.rules
        )
        info = {name: value[0] for name, value in turn._asdict().items()}
        info |= {name: value.item() for name, value in info.items() if not value.ndim}
        reward, ended = info.pop("reward"), info.pop("ended")
        return observations[0], reward, ended, self._number >= self.rules.num_slots, info


class OffloadingVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Play many cells at once, each as ``OffloadingEnv`` does, in one program: see ``make_vec``."""

    metadata = {"render_modes": [], **AUTORESET}  # noqa: RUF012

    def __init__(self, rules: Rules, num_envs: int) -> None:
        """Set up environments; ``make_vec`` checks the settings."""
        self.num_envs, self.rules = num_envs, rules
        self.single_action_space = rules.action_space
        self.single_observation_space = rules.observation_space
        self.action_space = batch_space(rules.action_space, num_envs)
        self.observation_space = batch_space(rules.observation_space, num_envs)
        self.render_mode = None
        self._generators: list[np.random.Generator] = []
        self._states: State | None = None

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes: environment i as an ``OffloadingEnv`` of seed ``seed + i``, or seed[i].

        Raises:
            ValueError: if ``seed`` is a list of another length.
            RuntimeError: in a forked process, whose JAX cannot compute.
        """
        super().reset(seed=int(seed) if isinstance(seed, (int, np.integer)) else None)
        _check_options(options)
        seeds = seeds_of(seed, self.num_envs)
        if not self._generators:
            self._generators = [seeding.np_random(own)[0] for own in seeds]
        for place, own in enumerate(seeds):
            if own is not None:
                self._generators[place] = seeding.np_random(own)[0]
        self._seeds = _draw(self._generators)
        self._numbers = np.zeros(self.num_envs, np.int32)
        self._over = np.zeros(self.num_envs, bool)
        self._states, observations = _begin(self._seeds, self.rules)
        return observations, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play a slot of every cell; one whose episode is over begins the next instead.

        The action for such a cell counts for nothing, its reward is 0, and its entry of
        ``info["_energy"]`` and its like is False: Gymnasium's "next step" autoreset.

        Raises:
            ValueError: before ``reset``, or if ``actions`` are not 0 or 1 for each device.
        """
        if self._states is None:
            raise ValueError("step must be called after reset; got a call before")
        wishes = checked_wish("actions", actions, self.action_space.shape)
        over = self._over
        for place in np.flatnonzero(over):
            self._seeds[place] = _draw([self._generators[place]])[0]
        self._numbers = np.where(over, 0, self._numbers + 1).astype(np.int32)
        self._states, observations, turn = _advance(
            self._states, wishes, self._seeds, self._numbers, over, self.rules
        )
        info = turn._asdict()
        rewards = np.where(over, 0.0, info.pop("reward").astype(np.float64))
        ended = info.pop("ended") & ~over
        truncated = self._numbers >= self.rules.num_slots
        self._over = ended | truncated
        info |= {f"_{name}": ~over for name in info}
        return observations, rewards, ended, truncated, info


def make_vec(
    scenario: Scenario | None = None,
    num_envs: int = 1,
    num_slots: int = 100,
    penalty: float = PENALTY,
    infeasible: str = "repair",
    render_mode: str | None = None,
) -> OffloadingVectorEnv:
    """Make many environments that one program plays at once, on any device.

    Each is an ``OffloadingEnv`` with randomness of its own: ``reset(seed=s)`` begins environment i
    as one of seed s + i begins. Observations ``[N, K, 5]``, actions ``[N, K]``, rewards ``[N]``.

    Args:
        scenario: what happens in each cell; by default ``default_scenario()``.
        num_envs: N, at least 1.
        num_slots: slots of an episode, at least 1.
        penalty: of a task that misses its deadline, at least 0 [J].
        infeasible: what is done about a wish that does not fit: "repair" or "penalty".
        render_mode: None.

    Returns:
        A ``gymnasium.vector.VectorEnv``, which resets cells by itself at the step after the last.

    Raises:
        ValueError: as ``OffloadingEnv``, or if ``num_envs`` is no positive integer.
    """
    rules = Rules(scenario, num_slots, penalty, infeasible, render_mode)
    return OffloadingVectorEnv(rules, integer("num_envs", num_envs, low=1))


def checked_wish(name: str, action: Any, shape: tuple[int, ...] | None) -> np.ndarray:
    """Return who is to send as float32.

    Args:
        name: of the argument.
        action: 0 or 1 for each device, numbers or booleans.
        shape: that it must have.

    Raises:
        ValueError: if it is something else.
    """
    flags = np.asarray(action)
    wish = flags if flags.dtype == bool else np.asarray(real(name, action))
    if wish.shape != shape:
        rule = f"0 or 1 for each device, of shape {shape}"
        raise ValueError(f"{name} must be {rule}; got shape {wish.shape}")
    zero_or_one(name, wish)
    return wish.astype(np.float32)


def seeds_of(seed: Any, number: int) -> list[int | None]:
    """Return a seed for each of several environments, None for those that go on.

    Raises:
        ValueError: if ``seed`` is neither None, one integer, nor one for each.
    """
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + i for i in range(number)]
    seeds = [None] * number if seed is None else list(seed)
    if len(seeds) != number:
        raise refuse("seed", f"one integer, or one for each of {number} cells", seed)
    return seeds


def _check_options(options: dict[str, Any] | None) -> None:
    if options:
        raise refuse("options", "None, since there are none", options)


def _draw(generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Draw the seeds of episodes ``[N]``."""
    return np.array([each.integers(2**32, dtype=np.uint32) for each in generators], np.uint32)


_checked = moves_data(check_scenario)


@moves_data
def _begin(seeds: np.ndarray, rules: Rules) -> tuple[State, np.ndarray]:
    states, observations = _begin_all(seeds, rules.scenario)
    return states, np.asarray(observations)


@moves_data
def _advance(
    states: State,
    wishes: np.ndarray,
    seeds: np.ndarray,
    numbers: np.ndarray,
    over: np.ndarray,
    rules: Rules,
) -> tuple[State, np.ndarray, Turn]:
    """Play a slot of each cell, or begin its next episode; what an agent sees is NumPy's."""
    states, observations, turn = _advance_all(
        states, rules.scenario, wishes, seeds, numbers, over, rules.penalty, rules.infeasible
    )
    return states, np.asarray(observations), jax.tree.map(np.asarray, turn)


_begin_all = jax.jit(jax.vmap(begin, (0, None)))


@partial(jax.jit, static_argnames="infeasible")
def _advance_all(
    states: State,
    scenario: Scenario,
    wishes: jax.Array,
    seeds: jax.Array,
    numbers: jax.Array,
    over: jax.Array,
    penalty: jax.Array,
    infeasible: str,
) -> tuple[State, jax.Array, Turn]:
    each = jax.vmap(partial(play, infeasible=infeasible), (0, 0, 0, 0, None))
    states, seen, turn = each(states, wishes, seeds, numbers, penalty)

    def begin_again() -> tuple[State, jax.Array]:
        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(over.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, _begin_all(seeds, scenario), (states, seen))

    states, seen = jax.lax.cond(jnp.any(over), begin_again, lambda: (states, seen))
    return states, seen, turn


if ID not in gymnasium.registry:  # a module may be loaded again
    gymnasium.register(
        ID,
        entry_point="meco_jax.simulation.environment:OffloadingEnv",
        vector_entry_point="meco_jax.simulation.environment:make_vec",
    )
