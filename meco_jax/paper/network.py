"""The paper's network: three parallel FCNs (7)-(11) and output layers (13)-(15), (23).

The decision branch is shared by teacher and student up to its last activation: the
relaxed ratio (23) for the teacher, the binary layer (15) for the student. Inputs and outputs
of padding devices are 0 and their weights do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from meco_jax import system as sy
from meco_jax.exact.relaxation import relax
from meco_jax.exact.shares import FIT_TOLERANCE
from meco_jax.exact.uplink import make_uplink
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.settings import moves_data
from meco_jax.solution import Solution
from meco_jax.system import System

Role = Literal["teacher", "student"]
Times = Literal["network", "realised"]
Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}
SLOPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "teacher": lambda required: 1 - required,
    "zero": jnp.zeros_like,
    "straight_through": jnp.ones_like,
}
"""Slopes of the binary layer's backward pass by name, from m^+ ``[K]`` to ``[K]`` [-]."""
LOG_EXPONENTIAL_MEAN, LOG_EXPONENTIAL_STD = -float(np.euler_gamma), np.pi / np.sqrt(6)


@jax.custom_jvp
def binarize(ratio: jax.Array, required: jax.Array, slope: jax.Array) -> jax.Array:
    """Decide who offloads, a = sign[(sign(2 phi - 1) + 1) / 2 + sign(m^+)], (15)-(16).

    Forward: 1 where ``ratio`` >= 1/2 or ``required`` > 0, else 0. Backward: the gradient of
    the ratio is ``slope`` times that of the decision. The true slope of (15) is 0, that of
    the teacher's activation (23) is 1 - m^+, that of the straight-through estimator 1; the
    first two are the paper's, the last is of Bengio, Leonard and Courville 2013,
    arXiv:1308.3432.

    Args:
        ratio: phi, output of the decision branch ``[K]`` [-].
        required: m^+ ``[K]`` [-].
        slope: slope of the backward pass ``[K]`` [-].

    Returns:
        Decision ``[K]``, 0 or 1 [-].
    """
    del slope
    return ((ratio >= 0.5) | (required > 0)).astype(ratio.dtype)


@binarize.defjvp
def _binarize_rule(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    return binarize(*primals), primals[2] * tangents[0]


def relaxed_ratio(ratio: jax.Array, required: jax.Array) -> jax.Array:
    """Teacher's offloading ratio, a = phi (1 - m^+) + m^+, (23): ``[K]`` [-]."""
    return ratio * (1 - required) + required


def output_power(phi: jax.Array, max_power: jax.Array) -> jax.Array:
    """Transmit power p = p_max phi, (13): ``[K]`` [W]."""
    return max_power * phi


def output_time(phi: jax.Array, slot: jax.Array, active: jax.Array) -> jax.Array:
    """Slot times t = T min(1, |phi|_1) phi / |phi|_1, (14): ``[K]`` [s].

    The L1 norm, over real devices, is the one that implies sum t <= T (C1).
    """
    phi = jnp.where(active, phi, 0.0)
    return slot * phi / jnp.maximum(jnp.sum(phi), 1.0)


@short_repr
class Decision(NamedTuple):
    """What the network says, (11): ``[..., K]`` each."""

    offload: jax.Array  # a [-]
    power: jax.Array  # p [W]
    time: jax.Array  # t [s]


class Branch(nn.Module):
    """A fully connected network, (7)-(9): ``[N, K] -> [N, K]``, outputs in (0, 1)."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map features ``[N, K]`` to outputs ``[N, K]`` [-]; ``train`` as in ``Network``."""
        num_devices = x.shape[-1]
        for layer, width in enumerate(self.hidden):
            init = _per_device(0) if layer == 0 else nn.initializers.he_normal()
            x = nn.Dense(width, kernel_init=init)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.sigmoid(nn.Dense(num_devices, kernel_init=_per_device(1))(x))


class Network(nn.Module):
    """The DNN of Figs 2-3: a decision branch for both roles, time and power branches for each."""

    hidden: tuple[int, ...] = (128, 64)
    share_resources: bool = False  # teacher and student share their time and power branches

    @nn.compact
    def __call__(
        self, x: jax.Array, role: Role, train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Map features to the branches' outputs in (0, 1).

        Args:
            x: features ``[N, K]`` [-].
            role: whose time and power branches to use.
            train: normalise by the batch (and update the running statistics) or by these.

        Returns:
            Decision, time and power outputs, ``[N, K]`` each [-].
        """
        owner = "student" if self.share_resources else role
        names = ("decision", f"{owner}_time", f"{owner}_power")
        decision, time, power = (Branch(self.hidden, name=name)(x, train) for name in names)
        return decision, time, power


def features(system: System, h: jax.Array, scaling: str = "log") -> jax.Array:
    """Scale gains ``[K]`` for the network: 0 for padding.

    "log" takes ln(h^2 / E[h^2]) to mean 0 and variance 1 under Rayleigh fading, "raw" is
    the amplitude over its root mean square.
    """
    amplitude = h / jnp.sqrt(system.mean_gain)
    if scaling == "log":
        log_gain = 2 * jnp.log(jnp.maximum(amplitude, 1e-5))
        amplitude = (log_gain - LOG_EXPONENTIAL_MEAN) / LOG_EXPONENTIAL_STD
    return jnp.where(system.active, amplitude, 0.0)


def init_variables(network: Network, key: jax.Array, num_devices: int) -> Variables:
    """Initialise the branches of both roles from a consumed ``key``.

    The same float32 numbers in every precision, widened.
    """
    x = jnp.zeros((1, num_devices), jnp.float32)
    teacher = network.init(key, x, "teacher", False)
    student = network.init(key, x, "student", False)
    return widen({kind: teacher[kind] | student[kind] for kind in ("params", "batch_stats")})


def widen(variables: Variables) -> Variables:
    """Take a network's arrays to the precision that JAX runs in."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), variables)


def decide(
    network: Network,
    variables: Variables,
    system: System,
    h: jax.Array,
    role: Role,
    *,
    slope: str = "teacher",
    scaling: str = "log",
    train: bool = False,
) -> tuple[Decision, Variables]:
    """Map gains to (a, p, t) through the branches and the output layers, (11)-(15), (23).

    Args:
        network: the architecture.
        variables: its parameters and running statistics.
        system: the physics.
        h: amplitude gains ``[N, K]`` [-].
        role: the teacher's a is a ratio, the student's binary.
        slope: slope of the binary layer's backward pass, a name of ``SLOPES``.
        scaling: see ``features``.
        train: normalise by the batch.

    Returns:
        The decisions, ``[N, K]`` leaves, and the running statistics.
    """
    required = sy.required_ratio(system)

    def activate(ratio: jax.Array, time: jax.Array, power: jax.Array) -> Decision:
        if role == "teacher":
            offload = relaxed_ratio(ratio, required)
        else:
            offload = binarize(ratio, required, SLOPES[slope](required))
        offload = jnp.where(system.active, offload, 0.0)
        room = system.slot
        if system.fixed_time is not None:
            room = jnp.maximum(sy.slot_left(system, offload, jnp.zeros_like(time)), 0.0)
        time = output_time(time, room, system.active)
        return Decision(offload, output_power(power, system.max_power), time)

    x = jax.vmap(lambda h: features(system, h, scaling))(h)
    with jax.numpy_dtype_promotion("standard"):  # Flax counts on it
        outputs, updated = network.apply(variables, x, role, train, mutable=["batch_stats"])
    return jax.vmap(activate)(*outputs), updated["batch_stats"]


@short_repr
class Policy(struct.PyTreeNode):
    """A trained network and the system it was trained for: ``policy(h) -> Solution``."""

    variables: Variables
    system: System
    network: Network = struct.field(pytree_node=False)
    role: Role = struct.field(pytree_node=False, default="student")
    scaling: str = struct.field(pytree_node=False, default="log")

    @moves_data
    def __call__(self, h: jax.Array, times: Times = "network") -> Solution:
        """Return the network's own (a, p, t), its constraints only as good as it learned.

        Args:
            h: amplitude gains ``[..., K]`` [-].
            times: "network" keeps its t. "realised" keeps a and p alone and takes t' for t
                wherever sum t' <= T: then C1-C5 hold, at the same energy, since t' is what is
                paid for.

        Returns:
            A ``Solution``: the energy is the realised one, ``feasible`` tells whether C1-C6
            hold, ``lower_bound`` is that of P1 (of partial offloading for a teacher).

        Raises:
            ValueError: if h has another K, or negative or non-finite entries, or if ``times`` is
                neither of the two.
        """
        if times not in get_args(Times):
            raise ValueError(f"times must be one of network, realised; got {times!r}")
        h = sy.check_channels(h, self.system.num_devices)
        flat = _judge(self, h.reshape(-1, h.shape[-1]), times)
        return jax.tree.map(lambda x: x.reshape(h.shape[:-1] + x.shape[1:]), flat)

    def outputs(self, h: jax.Array) -> Decision:
        """Map gains ``[..., K]`` [-] to the network's decisions, ``[..., K]`` leaves."""
        flat = h.reshape(-1, h.shape[-1])
        arguments = (self.network, self.variables, self.system, flat, self.role)
        # Slope 0, the true one: another is for learning, and wrong as a derivative in h.
        decision = decide(*arguments, slope="zero", scaling=self.scaling)[0]
        return jax.tree.map(lambda x: x.reshape(h.shape), decision)


@partial(jax.jit, static_argnames="times")
def _judge(policy: Policy, h: jax.Array, times: Times) -> Solution:
    """Evaluate a policy's own outputs on channels ``[N, K]``."""
    system, role = policy.system, policy.role

    def judge(h: jax.Array, offload: jax.Array, power: jax.Array, time: jax.Array) -> Solution:
        used = sy.transmit_time(system, h, offload, power, time)
        if times == "realised" and system.access == "tdma":  # a share of the band is no time
            fits = sy.slot_left(system, offload, used) >= -FIT_TOLERANCE * system.slot
            time = jnp.where(fits, used, time)
        must = sy.forced(system).astype(h.dtype) if role == "student" else sy.required_ratio(system)
        allowed = sy.allowed_time(system, time)
        feasible = jnp.all(used <= allowed * (1 + FIT_TOLERANCE))  # C5; the layers keep C1-C4
        if system.fixed_time is not None:  # but for this
            feasible &= sy.slot_left(system, offload, time) >= -FIT_TOLERANCE * system.slot
        if system.edge_cycles is not None:
            feasible &= sy.edge_left(system, offload) >= -FIT_TOLERANCE
        energies = sy.realised_energies(system, h, offload, power, time)
        delay_cost = None
        if system.delay_weight is not None:
            delay_cost = jnp.sum(sy.realised_delays(system, h, offload, power, time))
        return Solution(
            offload=offload,
            power=power,
            time=time,
            energy=jnp.sum(energies),
            lower_bound=relax(make_uplink(system, h), must).bound,
            feasible=feasible,
            energy_per_device=energies,
            delay_cost=delay_cost,
        )

    return jax.vmap(judge)(h, *policy.outputs(h))


def _per_device(axis: int) -> Callable[..., jax.Array]:
    """Initialise a kernel so that a device's weights depend on its index alone.

    He's variance for the output side; for the input side a constant one, which the batch
    normalisation behind it takes out again.
    """

    def init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[axis]))
        draw = jax.vmap(lambda k: jax.random.normal(k, (shape[1 - axis],), dtype), out_axes=axis)
        return draw(keys) * (0.25 if axis == 0 else shape[0] ** -0.5)

    return init
