"""REINFORCE in the Gymnasium environment: what it learns from rewards, against the optimum.

Cells of ``default_scenario`` are played at once by ``make_vec``. A decision changes no later slot
there, so the return of an action is the reward of its slot. The agent sees what the environment
shows and learns from rewards alone; the certified optimum of every slot is what its curve is
measured by, on slots of its own that all schemes play. Writes learning.csv, learning.png/.pdf and
run.json into --output_dir. Needs Gymnasium, ``pip install '.[gym]'``. Example:

    python experiments/reinforce.py --output_dir=runs/reinforce
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import linen as nn
from support import agent_plots, common, csv_tables, list_flags, progress_bar

from meco_jax import figures
from meco_jax.simulation.environment import OffloadingVectorEnv, default_scenario, make_vec

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_integer("num_devices", 8, "K", lower_bound=1)
flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "of trainings, or a range first:last")
flags.DEFINE_integer("num_envs", 256, "cells at once: slots per update", lower_bound=1)
flags.DEFINE_integer("updates", 600, "steps of Adam", lower_bound=1)
flags.DEFINE_integer("test_slots", 16, "slots per cell that a point of the curve is measured on",
                     lower_bound=1)  # fmt: skip
flags.DEFINE_integer("hidden", 64, "width of the network", lower_bound=1)
flags.DEFINE_float("learning_rate", 3e-3, "of Adam, falling to 0", lower_bound=0)
flags.DEFINE_enum("infeasible", "repair", ["repair", "penalty"], "what becomes of such wishes")
flags.DEFINE_bool("plot_only", False, "draw again from --output_dir's csv")

POINTS = 14  # of a curve
TEST_SEED = 10**6  # of the slots that schemes are measured on, other than those of trainings
FAINTEST, LOUDEST = -6.0, 3.0  # logarithms of gains that the network tells apart
PLACE, COLUMNS = ("scheme", "seed", "slots"), ("loss",)
Decide = Callable[[np.ndarray], Any]  # observations [N, K, 5] to actions [N, K]


def main(argv: list[str]) -> None:
    """Train and measure, or draw again what is there."""
    common.begin(argv)
    path = Path(FLAGS.output_dir) / "learning.csv"
    if not FLAGS.plot_only:
        evaluate(path)
    rows = csv_tables.read_csv(path, (*PLACE, *COLUMNS), PLACE)
    figures.save_figure(agent_plots.agent_figure(rows), path.with_suffix(""))
    if not FLAGS.plot_only:
        common.write_run(path.with_name("run.json"))
        print(f"wrote {path.parent} in {common.seconds():.0f} s")
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        own = [row for row in rows if row["scheme"] == scheme]
        last = [row["loss"] for row in own if row["slots"] == max(r["slots"] for r in own)]
        print(f"{scheme:10} loses {np.mean(last):8.2%} to the optimum")


def evaluate(path: Path) -> None:
    """Measure what learns nothing, then train seed by seed; rows are in the csv at once."""
    seeds = list_flags.integers("seeds", low=0)
    common.prepare()
    rows = []
    for scheme, decide in untrained().items():
        rows.append({"scheme": scheme, "seed": 0, "slots": 0, **measure(decide)})
    with progress_bar.Bar(len(seeds) * FLAGS.updates) as bar:
        for seed in seeds:
            rows += train(seed, bar)
            csv_tables.write_csv(path, rows)
            common.write_run(path.with_name("run.json"), finished=False)


def cells() -> OffloadingVectorEnv:
    """Make the cells; the same scenario and number everywhere, so that one program plays all."""
    scenario = default_scenario(FLAGS.num_devices)
    return make_vec(scenario, FLAGS.num_envs, infeasible=FLAGS.infeasible)


def untrained() -> dict[str, Decide]:
    """Return the schemes that an agent must beat."""
    rng = np.random.default_rng(0)
    return {
        "nobody": lambda seen: np.zeros(seen.shape[:2]),
        "everybody": lambda seen: np.ones(seen.shape[:2]),
        "random": lambda seen: rng.integers(0, 2, seen.shape[:2]),
    }


def measure(decide: Decide) -> dict[str, float]:
    """Play the test slots by a scheme: mean rewards, and how far the scheme is behind."""
    environment = cells()
    seen, _ = environment.reset(seed=TEST_SEED)
    earned, best, fitted = 0.0, 0.0, 0.0
    for _ in range(FLAGS.test_slots):
        seen, reward, _, _, info = environment.step(decide(seen))
        earned += float(np.mean(reward)) / FLAGS.test_slots
        best += float(np.mean(info["optimum_reward"], dtype=float)) / FLAGS.test_slots
        fitted += float(np.mean(info["feasible"])) / FLAGS.test_slots
    return {"reward_j": earned, "optimum_j": best, "loss": earned / best - 1, "fitted": fitted}


class Network(nn.Module):
    """Log-odds that each device sends, and the reward that is expected: ``[N, K]``, ``[N]``.

    All devices share the weights. Each sees its own features, which device it is, and the mean of
    what the first layer makes of all.
    """

    hidden: int

    @nn.compact
    def __call__(self, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Decide on observations ``[N, K, 5]``."""
        number, devices, _ = seen.shape
        heard = jnp.clip(seen[..., :1], FAINTEST, LOUDEST)
        which = jnp.broadcast_to(jnp.eye(devices), (number, devices, devices))
        own = nn.relu(nn.Dense(self.hidden)(jnp.concatenate([heard, seen[..., 1:], which], -1)))
        all_ = jnp.broadcast_to(jnp.mean(own, axis=1, keepdims=True), own.shape)
        both = nn.relu(nn.Dense(self.hidden)(jnp.concatenate([own, all_], -1)))
        return nn.Dense(1)(both)[..., 0], nn.Dense(1)(jnp.mean(both, axis=1))[:, 0]


def train(seed: int, bar: progress_bar.Bar) -> list[dict[str, Any]]:
    """Train one agent: a row per point of its curve."""
    environment, network = cells(), Network(FLAGS.hidden)
    seen, _ = environment.reset(seed=1000 * seed)
    optimizer = optax.adam(optax.cosine_decay_schedule(FLAGS.learning_rate, FLAGS.updates))
    params = jax.jit(network.init)(jax.random.key(seed), seen)
    memory, unit, rows = optimizer.init(params), 0.0, []
    points = {int(x) for x in np.geomspace(1, FLAGS.updates, POINTS)}
    for number in range(1, FLAGS.updates + 1):
        key = jax.random.fold_in(jax.random.key(seed), number)
        action = np.asarray(sample(network, params, seen, key))
        following, reward, _, _, info = environment.step(action)
        played = info["_feasible"]  # not where an episode began
        unit = unit or -float(np.mean(reward[played]))  # so that rewards are about -1
        scaled = np.where(played, reward / unit, 0.0).astype(np.float32)
        params, memory = update(
            network, optimizer, params, memory, seen, action, scaled, played.astype(np.float32)
        )
        seen = following
        bar.advance(1, f"seed {seed}")
        if number in points:
            found = measure(partial(decide_by, network, params))
            slots = number * FLAGS.num_envs
            rows.append({"scheme": "reinforce", "seed": seed, "slots": slots, **found})
    return rows


@partial(jax.jit, static_argnums=0)
def sample(network: Network, params: Any, seen: jax.Array, key: jax.Array) -> jax.Array:
    """Draw who sends, each device on its own: ``[N, K]`` bool."""
    return jax.random.bernoulli(key, nn.sigmoid(network.apply(params, seen)[0]))


@partial(jax.jit, static_argnums=0)
def decide_by(network: Network, params: Any, seen: jax.Array) -> jax.Array:
    """Let those send that are likelier to send than to stay: ``[N, K]`` bool."""
    return network.apply(params, seen)[0] > 0  # type: ignore[no-any-return]


@partial(jax.jit, static_argnums=(0, 1))
def update(
    network: Network, optimizer: optax.GradientTransformation, params: Any, memory: Any,
    seen: jax.Array, action: jax.Array, reward: jax.Array, weight: jax.Array,
) -> tuple[Any, Any]:  # fmt: skip
    """Make a step of REINFORCE (Williams, Machine Learning 8, 1992) with a learned baseline."""

    def loss(params: Any) -> jax.Array:
        logits, expected = cast(tuple[jax.Array, jax.Array], network.apply(params, seen))
        likely = jnp.sum(nn.log_sigmoid(jnp.where(action, logits, -logits)), axis=1)
        advantage = reward - jax.lax.stop_gradient(expected)
        each = jnp.square(reward - expected) / 2 - advantage * likely
        return jnp.sum(weight * each) / jnp.maximum(jnp.sum(weight), 1.0)

    changes, memory = optimizer.update(jax.grad(loss)(params), memory, params)
    return optax.apply_updates(params, changes), memory


if __name__ == "__main__":
    common.launch(main)
