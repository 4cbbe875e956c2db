"""What happens from slot to slot: the physics, how channels move, tasks, CSI, batteries.

====================  ======================  ==============================================
symbol                field                   meaning [unit]
====================  ======================  ==============================================
f_d                   ``doppler``             maximum Doppler frequency [Hz]
kappa                 ``rice``                power of the fixed path over the scattered one [-]
v                     ``speed``               speed of a device [m/s]
R, d_0                ``radius``, ``reference``  of the cell; where E[h^2] is ``mean_gain`` [m]
alpha                 ``exponent``            of the path loss, (d / d_0)^-alpha [-]
sigma_s, d_s          ``shadowing_db``, ``decorrelation``  of the shadowing [dB], [m]
lambda                ``rate``                tasks per device and slot [-]
D                     ``deadline``            slots that a task may take [-]
eps_h                 ``csi_error``           deviation of the estimate over the scattered
                                              amplitude, (E[|e|^2] / E[|u|^2])^(1/2) [-]
====================  ======================  ==============================================
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from meco_jax.runtime.checks import as_floats, integer, is_traced, real, refuse, require
from meco_jax.runtime.describe import short_repr
from meco_jax.system import ADDED_RANGES, Leaf, System, check_system, leaves

FADINGS = "block", "gauss_markov"
MOBILITIES = "none", "waypoint"
CSI = "perfect", "estimated"
ARRIVALS = "every", "bernoulli", "poisson"
AFTER_MISS = "drop", "retry"
FALLBACKS = "none", "local"


def word(default: str) -> Any:
    """Make a field that chooses a formula: not traced, a program of its own."""
    return struct.field(pytree_node=False, default=default)


@short_repr
class Scenario(struct.PyTreeNode):
    """Hold what a simulation needs beside a scheme: a pytree, numbers as leaves, kinds as words.

    The defaults are the paper's: Rayleigh block fading, a task per device and slot, due at its
    end, perfect CSI. Numbers can be traced and swept; a word makes another program.
    """

    system: System  # the physics; ``task_bits`` [K] is the mean size of a device's tasks
    # The channel. Per device, [K] or one number: doppler, rice, speed, shadowing_db.
    doppler: Leaf = 0.0  # f_d of "gauss_markov" [Hz]
    rice: Leaf = 0.0  # kappa, 0 is Rayleigh fading [-]
    speed: Leaf = 0.0  # v of "waypoint" [m/s]
    radius: Leaf = 100.0  # R of the cell that "waypoint" moves in [m]
    reference: Leaf = 10.0  # d_0: nearer devices hear no better [m]
    exponent: Leaf = 3.0  # alpha [-]
    shadowing_db: Leaf = 0.0  # standard deviation [dB]
    decorrelation: Leaf = 20.0  # way after which shadowing is correlated by 1/e [m]
    # Tasks. Per device or one number: rate, battery.
    rate: Leaf = 1.0  # mean arrivals per slot; 1 for "every", at most 1 for "bernoulli" [-]
    size_spread: Leaf = 0.0  # sizes are uniform, this part of the mean around it [-]
    deadline: Leaf = 1.0  # D, slots that a task may take, math.inf for none [-]
    battery: Leaf = math.inf  # energy that a device has [J]
    csi_error: Leaf = 0.0  # eps_h of "estimated" [-]
    fading: str = word("block")  # or "gauss_markov"
    mobility: str = word("none")  # or "waypoint", random waypoints in a disc
    csi: str = word("perfect")  # or "estimated", with csi_error and csi_delay
    csi_delay: int = struct.field(pytree_node=False, default=0)  # slots that the estimate is old
    arrivals: str = word("every")  # or "bernoulli", "poisson"
    queue_size: int = struct.field(pytree_node=False, default=1)  # tasks per device; more are lost
    after_miss: str = word("drop")  # what is done with a late task: or "retry", until it is through
    fallback: str = word("none")  # after a late uplink: or "local", if time is left in the slot

    def __post_init__(self) -> None:
        """Check what chooses the program; the leaves may be placeholders of JAX here.

        Raises:
            ValueError: if a word is unknown or a size is no integer in its range.
        """
        for name, known in WORDS.items():
            if getattr(self, name) not in known:
                raise refuse(f"scenario.{name}", f"one of {', '.join(known)}", getattr(self, name))
        integer("scenario.csi_delay", self.csi_delay, low=0)
        integer("scenario.queue_size", self.queue_size, low=1)
        if self.csi_delay and self.csi == "perfect":
            raise refuse("scenario.csi_delay", 'zero for csi="perfect"', self.csi_delay)


RANGES = {  # name: (lower end, whether it is allowed); all must be finite
    "doppler": (0.0, True),
    "rice": (0.0, True),
    "speed": (0.0, True),
    "radius": (0.0, False),
    "reference": (0.0, False),
    "exponent": (0.0, True),
    "shadowing_db": (0.0, True),
    "decorrelation": (0.0, False),
    "rate": (0.0, True),
    "size_spread": (0.0, True),
    "deadline": (1.0, True),
    "battery": (0.0, False),
    "csi_error": (0.0, True),
}
AT_MOST_ONE = "size_spread", "csi_error"
MOST_RATE = {"bernoulli": 1.0, "poisson": 32.0}  # tasks per slot that the draws can bring [-]
MAY_BE_INFINITE = "deadline", "battery"
PER_DEVICE = "doppler", "rice", "speed", "shadowing_db", "rate", "battery"
WORDS = {
    "fading": FADINGS,
    "mobility": MOBILITIES,
    "csi": CSI,
    "arrivals": ARRIVALS,
    "after_miss": AFTER_MISS,
    "fallback": FALLBACKS,
}


def check_scenario(scenario: Scenario) -> Scenario:
    """Return a scenario of one cell with floating-point leaves, those per device ``[K]``.

    Raises:
        ValueError: if it is no ``Scenario``, a field has another shape, or a value is known (it is
            not under ``jax.jit``) and out of its range.
    """
    if not isinstance(scenario, Scenario):
        raise refuse("scenario", "a meco_jax.simulation.Scenario", scenario)
    system = check_system(scenario.system)
    devices = np.shape(system.task_bits)
    if system.access != "tdma":
        raise refuse("scenario.system.access", "'tdma', as slots are played so far", system.access)
    for name in ADDED_RANGES:
        if getattr(system, name) is not None:
            rule = "None: slots are played without it so far"
            raise refuse(f"scenario.system.{name}", rule, getattr(system, name))
    for name, leaf in leaves(system).items():
        if np.shape(leaf) not in ((), devices[-1:]):
            rule = "of one system; map over scenarios by jax.vmap"
            raise ValueError(f"scenario.system.{name} must be {rule}; got shape {np.shape(leaf)}")
    full = {name: jnp.broadcast_to(leaf, devices) for name, leaf in leaves(system).items()
            if name in ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "active")}  # fmt: skip
    numbers = {name: _number(scenario, name, devices) for name in RANGES}
    _check_rate(scenario)
    return scenario.replace(system=system.replace(**full), **numbers)


def is_in_range(scenario: Scenario) -> jax.Array:
    """Tell whether all numbers but those of the system are in range: the check under ``jax.jit``.

    Args:
        scenario: from ``check_scenario``.
    """
    good = jnp.ones((), bool)
    for name, (low, included) in RANGES.items():
        value = getattr(scenario, name)
        inside = (value >= low) if included else (value > low)
        if name not in MAY_BE_INFINITE:
            inside &= value < jnp.inf
        if name in AT_MOST_ONE:
            inside &= value <= 1
        good &= jnp.all(inside)
    if scenario.arrivals == "every":
        return good & jnp.all(scenario.rate == 1)
    return good & jnp.all(scenario.rate <= MOST_RATE[scenario.arrivals])


def _check_rate(scenario: Scenario) -> None:
    """Raise a ValueError if tasks cannot arrive at a known rate by the law of the arrivals."""
    rate, kind = real("scenario.rate", scenario.rate), scenario.arrivals
    if is_traced(rate):
        return
    known = np.atleast_1d(rate)
    if kind == "every":
        wrong, rule = known[known != 1], "1"
    else:
        wrong, rule = known[known > MOST_RATE[kind]], f"at most {MOST_RATE[kind]:g}"
    if wrong.size:
        raise refuse("scenario.rate", f'{rule} for arrivals="{kind}"', wrong[0].item())


def _number(scenario: Scenario, name: str, devices: tuple[int, ...]) -> Any:
    """Return a numerical field as floats, ``[K]`` where devices may differ."""
    low, included = RANGES[name]
    where = f"scenario.{name}"
    value = real(where, getattr(scenario, name))
    if value.shape not in (((), devices) if name in PER_DEVICE else ((),)):
        rule = f"one number or {devices[0]}, one per device" if name in PER_DEVICE else "one number"
        raise ValueError(f"{where} must be {rule}; got shape {value.shape}")
    if not is_traced(value):
        known = np.atleast_1d(value)
        finite = known[known < np.inf] if name in MAY_BE_INFINITE else known
        require(where, finite, low, included)
        if name in AT_MOST_ONE and np.any(known > 1):
            raise refuse(where, "at most 1", known[known > 1][0].item())
    value = as_floats(value)
    return jnp.broadcast_to(value, devices) if name in PER_DEVICE else value
