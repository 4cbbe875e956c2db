"""Algorithm 1: losses (18), (20), (25), the teacher, student and multiplier steps, and ``train``.

A step is ``(state, batch) -> (state, metrics)``, a jitted chunk is some epochs of steps, with
randomness by ``fold_in(key, epoch)``. Where the paper leaves a choice: THEORY.md, section 9.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from meco_jax import system as sy
from meco_jax.exact.shares import fits
from meco_jax.exact.uplink import make_uplink
from meco_jax.paper import network as nw
from meco_jax.paper.network import Decision, Network, Policy, Role
from meco_jax.runtime.checks import outside_traces, require
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.loop import History, Metrics, Report, cosine_adam, train_loop, whole_chunk
from meco_jax.runtime.settings import as_key, moves_data
from meco_jax.scenarios import sample_channels
from meco_jax.system import System

ByScheme = Any  # a float, or None for the scheme's default


@short_repr
class TrainConfig(struct.PyTreeNode):
    """Settings of Algorithm 1. Numbers that fix no shape are traced and can be swept.

    Those that are None take the value of ``DEFAULTS`` for the scheme, if it has one.
    """

    learning_rate: ByScheme = None  # Adam's, at the start [-]
    final_learning_rate: float = 0.02  # of the start, reached by a cosine [-]
    frozen_after: ByScheme = None  # part of the training after which batch statistics rest [-]
    multiplier: float = 5.0  # lambda_A and lambda_B at the start [local powers]
    multiplier_step: ByScheme = None  # alpha of (21), rise per slot of violation [local powers]
    margin: float | None = None  # part of each slot time that the penalty asks to leave free [-]
    slope: str = struct.field(pytree_node=False, default="teacher")  # of ``SLOPES``, backward
    scheme: Literal["bcos", "pcos"] = struct.field(pytree_node=False, default="bcos")
    hidden: tuple[int, ...] = struct.field(pytree_node=False, default=(128, 64))
    share_resources: bool = struct.field(pytree_node=False, default=False)
    input_scaling: Literal["log", "raw"] = struct.field(pytree_node=False, default="log")
    num_channels: int = struct.field(pytree_node=False, default=20_000)
    batch_size: int = struct.field(pytree_node=False, default=1_000)
    epochs: int = struct.field(pytree_node=False, default=200)
    chunk_epochs: int = struct.field(pytree_node=False, default=5)  # most between two reports

    @property
    def steps_per_epoch(self) -> int:
        """Number of minibatches in an epoch."""
        return self.num_channels // self.batch_size

    def network(self) -> Network:
        """Return the network these settings describe."""
        return Network(self.hidden, self.share_resources)


# Partial offloading is smooth: it wants softer multipliers, and the later epochs with the
# statistics of inference, since the noise of a batch's makes it keep a costly distance from
# the deadline. To the binary student the same noise is a help.
DEFAULTS = {
    "bcos": {"learning_rate": 2e-2, "multiplier_step": 5.0, "frozen_after": 1.0},
    "pcos": {"learning_rate": 1e-2, "multiplier_step": 0.2, "frozen_after": 0.4},
}


@short_repr
class Learner(NamedTuple):
    """What teacher and student have each of their own besides parameters."""

    optimizer: optax.OptState
    multiplier: jax.Array  # [] lambda_A or lambda_B [J/s]
    violation: jax.Array  # [] E sum_k H of the latest step, (22) [s]


@short_repr
class TrainState(NamedTuple):
    """What a step carries: a plain pytree, so that lanes stack."""

    params: dict[str, Any]  # by branch
    batch_stats: dict[str, Any]
    teacher: Learner
    student: Learner


@short_repr
class Run(NamedTuple):
    """A training under way."""

    state: TrainState
    channel_key: jax.Array  # of the training channels
    order_key: jax.Array  # shuffles each epoch by fold_in(order_key, epoch)


def hinge(excess: jax.Array) -> jax.Array:
    """Keep what is positive, H(c), (18)."""
    return jnp.maximum(excess, 0.0)


def penalised_loss(
    system: System,
    h: jax.Array,
    decision: Decision,
    multiplier: jax.Array,
    margin: jax.Array | float | None = None,
) -> tuple[jax.Array, Metrics]:
    """Compute (20) and (25), E{ sum beta [p t + eps (1 - a) B C f^2] + lambda sum H(t' - t) }.

    The printed formulas drop B C f^2, which (17) has. With a margin the penalty is on
    H(t' - (1 - margin) t): a network meets t' = t up to an error of its own, and the mean (18)
    hardly feels the small excess that breaks C5. What the fields beyond the paper cost is
    charged as realised; cycles beyond the edge's count as time, in slots.

    Args:
        system: the physics.
        h: amplitude gains ``[N, K]`` [-].
        decision: the network's, ``[N, K]`` leaves.
        multiplier: lambda ``[]`` [J/s].
        margin: part of each slot time to leave free ``[]`` [-]. None is 0, and (18) as printed
            to the last bit.

    Returns:
        The loss ``[]`` [J] and metrics: "energy" [J], "violation" E sum H, (22) [s],
        "on_time", the share of channels with sum t' <= T [-].
    """

    def one(h: jax.Array, decision: Decision) -> tuple[jax.Array, jax.Array, jax.Array]:
        offload, power, time = decision
        used = sy.transmit_time(system, h, offload, power, time)
        charged = sy.allowed_time(system, time)
        paid = system.weight * power * charged + (1 - offload) * sy.local_energy(system)
        paid = sy.with_added_costs(system, paid, offload, used)
        cost = jnp.sum(jnp.where(system.active, paid, 0.0))
        allowed = charged if margin is None else (1 - margin) * charged
        violation = jnp.sum(jnp.where(system.active, hinge(used - allowed), 0.0))
        if system.edge_cycles is not None:
            violation += system.slot * hinge(-sy.edge_left(system, offload))
        return cost, violation, sy.last_arrival(system, offload, used) <= system.slot

    energy, violation, on_time = (jnp.mean(x) for x in jax.vmap(one)(h, decision))
    metrics = {"energy": energy, "violation": violation, "on_time": on_time}
    return energy + multiplier * violation, metrics


@moves_data
def train(
    system: System,
    *,
    key: jax.Array | int,
    config: TrainConfig | None = None,
    report: Report | None = None,
) -> tuple[Policy, History]:
    """Train the paper's network for one system: Algorithm 1.

    Args:
        system: the physics; the tasks stay fixed, the network sees the gains only.
        key: PRNG key, consumed, or a seed.
        config: the settings, ``TrainConfig()`` by default.
        report: called after every chunk with the number of steps done and the metrics.

    Returns:
        The policy, and the history: arrays ``[chunks]`` of "step" and of each metric's mean
        over the chunk's last epoch.

    Raises:
        ValueError: if ``key`` is neither, or a value of the system or the configuration is out
            of its range.
    """
    outside_traces("train", system, key)
    config = check_config(config or TrainConfig())
    system = sy.check_system(system)
    begin = partial(_start, as_key("key", key), system, config)
    run, history = train_loop(begin, lambda *at: _advance(*at, system, config), config, report)
    return make_policy(run.state, system, config), history


def make_policy(state: TrainState, system: System, config: TrainConfig) -> Policy:
    """Take the policy out of a training state: the student, or for PCOS the teacher."""
    return Policy(
        variables={"params": state.params, "batch_stats": state.batch_stats},
        system=system,
        network=config.network(),
        role="teacher" if config.scheme == "pcos" else "student",
        scaling=config.input_scaling,
    )


def start(key: jax.Array, system: System, config: TrainConfig) -> Run:
    """Initialise the networks: line 1 of Algorithm 1."""
    channel_key, network_key, order_key = jax.random.split(key, 3)
    return Run(init_state(network_key, system, config), channel_key, order_key)


def training_channels(key: jax.Array, system: System, config: TrainConfig) -> jax.Array:
    """Draw the amplitude gains ``[num_channels, K]`` [-]: line 2 of Algorithm 1.

    Infeasible channels make way for copies of feasible ones: their violation cannot be
    learned away, and would raise the multipliers, which only grow, without end.
    """
    channels = sample_channels(key, system, config.num_channels)
    must = sy.required_ratio(system)
    must = must if config.scheme == "pcos" else jnp.ceil(must)
    feasible = jax.vmap(lambda h: fits(make_uplink(system, h), must))(channels)
    number = jnp.maximum(jnp.sum(feasible), 1)
    return channels[jnp.argsort(~feasible)[jnp.arange(config.num_channels) % number]]


def advance(
    run: Run, first_epoch: jax.Array | int, system: System, config: TrainConfig
) -> tuple[Run, Metrics]:
    """Train for ``config.chunk_epochs`` epochs: the chunk to jit.

    The channels are drawn again in each chunk: of many trainings only those that run at the
    time hold theirs.

    Returns:
        The run and the metrics' means over the last epoch.
    """
    channels = training_channels(jax.random.clone(run.channel_key), system, config)

    def epoch(state: TrainState, number: jax.Array) -> tuple[TrainState, Metrics]:
        order_key = jax.random.fold_in(run.order_key, number)
        order = jax.random.permutation(order_key, config.num_channels)
        shape = (config.steps_per_epoch, config.batch_size)
        batches = channels[order[: shape[0] * shape[1]].reshape(shape)]
        frozen = number.astype(channels.dtype) >= config.frozen_after * config.epochs
        step = partial(alternating_step, system=system, config=config, frozen=frozen)
        state, metrics = jax.lax.scan(step, state, batches)
        return state, jax.tree.map(jnp.mean, metrics)

    numbers = first_epoch + jnp.arange(config.chunk_epochs)
    state, metrics = jax.lax.scan(epoch, run.state, numbers)
    return run._replace(state=state), jax.tree.map(lambda x: x[-1], metrics)


_start = jax.jit(start)
_advance = jax.jit(advance, donate_argnums=0)


def check_config(config: TrainConfig) -> TrainConfig:
    """Return the configuration with its scheme's defaults filled in, and chunks that fit.

    Raises:
        ValueError: if a setting is out of its range.
    """
    choices = {
        "slope": tuple(nw.SLOPES),
        "scheme": ("bcos", "pcos"),
        "input_scaling": ("log", "raw"),
    }
    for name, known in choices.items():
        if getattr(config, name) not in known:
            words = ", ".join(known)
            raise ValueError(f"config.{name} must be one of {words}; got {getattr(config, name)!r}")
    own = DEFAULTS[config.scheme]
    config = config.replace(**{n: v for n, v in own.items() if getattr(config, n) is None})
    for name in ("num_channels", "batch_size", "epochs", "chunk_epochs"):
        if getattr(config, name) < 1:
            raise ValueError(f"config.{name} must be at least 1; got {getattr(config, name)}")
    if not config.hidden or min(config.hidden) < 1:
        raise ValueError(f"config.hidden must be widths of at least 1; got {config.hidden}")
    for name in (*own, "final_learning_rate", "multiplier"):
        require(f"config.{name}", getattr(config, name), 0.0, included=True)
    if config.margin is not None and not 0 <= config.margin < 1:
        raise ValueError(f"config.margin must be at least 0 and below 1; got {config.margin}")
    if config.batch_size > config.num_channels:
        raise ValueError(
            f"config.batch_size must be at most num_channels, {config.num_channels}; "
            f"got {config.batch_size}"
        )
    if config.num_channels % config.batch_size:
        raise ValueError(
            f"config.num_channels must be a multiple of batch_size, {config.batch_size}; "
            f"got {config.num_channels}"
        )
    return config.replace(chunk_epochs=whole_chunk(config.epochs, config.chunk_epochs))


def local_power(system: System) -> jax.Array:
    """Mean weighted energy of a local task over the slot, mean(e) / T: the unit of lambda [W]."""
    local = jnp.where(system.active, sy.local_energy(system), 0.0)
    return jnp.sum(local) / (jnp.sum(system.active, dtype=local.dtype) * system.slot)


def init_state(key: jax.Array, system: System, config: TrainConfig) -> TrainState:
    """Initialise the networks, optimisers and multipliers from a consumed ``key``."""
    variables = nw.init_variables(config.network(), key, system.num_devices)
    params = variables["params"]

    def learner(role: Role) -> Learner:
        optimizer = cosine_adam(config).init(_own(params, role, config))
        return Learner(optimizer, config.multiplier * local_power(system), jnp.zeros(()))

    return TrainState(params, variables["batch_stats"], learner("teacher"), learner("student"))


def network_step(
    state: TrainState,
    batch: jax.Array,
    role: Role,
    *,
    system: System,
    config: TrainConfig,
    frozen: jax.Array | bool = False,
) -> tuple[TrainState, Metrics]:
    """Update one network by Adam: the teacher on (25), the student on (20), lines 4 and 5.

    The shared decision branch is among what ``role`` updates. See ``alternating_step``.
    """
    learner: Learner = getattr(state, role)

    def loss(own: dict[str, Any], train: bool) -> tuple[jax.Array, tuple[dict[str, Any], Metrics]]:
        variables = {"params": state.params | own, "batch_stats": state.batch_stats}
        decision, stats = nw.decide(
            config.network(), variables, system, batch, role,
            slope=config.slope, scaling=config.input_scaling, train=train,
        )  # fmt: skip
        value, metrics = penalised_loss(system, batch, decision, learner.multiplier, config.margin)
        # In units of a local task the loss is of order one, whatever the system.
        return value / (local_power(system) * system.slot), (stats, metrics | {"loss": value})

    own = _own(state.params, role, config)
    slope = jax.grad(loss, has_aux=True)
    gradient, (stats, metrics) = jax.lax.cond(
        frozen, partial(slope, train=False), partial(slope, train=True), own
    )
    updates, optimizer = cosine_adam(config).update(gradient, learner.optimizer, own)
    learner = learner._replace(optimizer=optimizer, violation=metrics["violation"])
    params = state.params | optax.apply_updates(own, updates)
    state = state._replace(params=params, batch_stats=stats, **{role: learner})
    return state, {f"{role}_{name}": value for name, value in metrics.items()}


def multiplier_step(
    state: TrainState, *, system: System, config: TrainConfig
) -> tuple[TrainState, Metrics]:
    """Raise the multipliers by dual ascent, lambda + alpha E sum H, (21)-(22): line 6."""
    step = config.multiplier_step * local_power(system) / system.slot

    def rise(learner: Learner) -> Learner:
        return learner._replace(multiplier=learner.multiplier + step * learner.violation)

    state = state._replace(teacher=rise(state.teacher), student=rise(state.student))
    multipliers = (state.teacher.multiplier, state.student.multiplier)
    return state, dict(zip(("teacher_multiplier", "student_multiplier"), multipliers))


def alternating_step(
    state: TrainState,
    batch: jax.Array,
    *,
    system: System,
    config: TrainConfig,
    frozen: jax.Array | bool = False,
) -> tuple[TrainState, Metrics]:
    """Do one iteration of Algorithm 1: teacher, student, multipliers.

    With ``config.scheme == "pcos"`` there is no student: the teacher alone learns partial
    offloading.

    Args:
        state: what training carries.
        batch: amplitude gains ``[N, K]`` [-].
        system: the physics.
        config: the settings.
        frozen: normalise by the running batch statistics, and leave them.

    Returns:
        The next state and a flat dictionary of scalar metrics.
    """
    step = partial(network_step, system=system, config=config, frozen=frozen)
    state, metrics = step(state, batch, "teacher")
    if config.scheme == "bcos":
        state, more = step(state, batch, "student")
        metrics |= more
    state, more = multiplier_step(state, system=system, config=config)
    return state, metrics | more


def _own(params: dict[str, Any], role: Role, config: TrainConfig) -> dict[str, Any]:
    """Select the branches that ``role`` updates."""
    owner = "student" if config.share_resources else role
    return {name: params[name] for name in ("decision", f"{owner}_time", f"{owner}_power")}
