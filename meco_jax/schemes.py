"""The baselines that need no training: MCOS in both readings and the optimal PCOS.

Each is a pure function ``(system, h) -> Solution`` for one channel, ``h: [K]``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.allocation import Link, Solution, energy_spent, finish, fits, link, relax
from meco_jax.system import System


def mcos(system: System, h: jax.Array) -> Solution:
    """Offload only the tasks that miss the deadline locally, whole, at full power.

    Minimum computation offloading, paper section 5, its "remainder" read as devices.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].

    Returns:
        A ``Solution``; infeasible where the forced devices do not fit. ``lower_bound`` is P1's.
    """
    uplinks, must = link(system, h), sy.forced(system).astype(h.dtype)
    return _full_power(uplinks, must, relax(uplinks, must).bound)


def mcos_partial(system: System, h: jax.Array) -> Solution:
    """Offload only the part m^+ of each task that misses the deadline, at full power.

    Minimum computation offloading, paper section 5, its "remainder" read as bits.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].

    Returns:
        A ``Solution`` with ``offload`` = m^+. ``lower_bound`` is that of partial offloading.
    """
    uplinks, must = link(system, h), sy.required_ratio(system)
    return _full_power(uplinks, must, relax(uplinks, must).bound)


def pcos(system: System, h: jax.Array) -> Solution:
    """Offload any part of each task optimally: the convex relaxation of P1, math note 3d.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-].

    Returns:
        A ``Solution`` with ``offload`` in [m^+, 1]. ``lower_bound`` is the dual's value:
        the same number but for rounding.
    """
    uplinks = link(system, h)
    relaxed = relax(uplinks, sy.required_ratio(system))
    energy = energy_spent(uplinks, relaxed.offload, relaxed.time)
    # Strong duality: the derivative is the dual's, at a constant price.
    energy = relaxed.bound + jax.lax.stop_gradient(energy - relaxed.bound)
    energy = jnp.where(jnp.isfinite(relaxed.bound), energy, jnp.inf)
    return finish(uplinks, relaxed.offload, relaxed.time, energy, relaxed.bound)


def _full_power(uplinks: Link, offload: jax.Array, bound: jax.Array) -> Solution:
    """Send the parts ``offload`` as fast as possible."""
    fit = fits(uplinks, offload)
    time = jnp.where(uplinks.usable & fit, offload * uplinks.load / uplinks.max_nats, 0.0)
    energy = jnp.where(fit, energy_spent(uplinks, offload, time), jnp.inf)
    return finish(uplinks, offload, time, energy, bound)
