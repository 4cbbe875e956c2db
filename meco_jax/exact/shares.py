"""What is taken of the slot and of the edge's cycles, exactly, and the one rule of what fits.

Source: THEORY.md, section 7. All is for one channel, ``[K]``. Where a function takes ``xp``, it is
that of JAX or of NumPy.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from meco_jax.exact import twofold
from meco_jax.exact.residuals import SHARE_UNIT
from meco_jax.exact.uplink import Uplink

FIT_TOLERANCE = 5e-7  # a set whose fastest times exceed the slot by less still fits [-]


def fits(uplink: Uplink, offload: jax.Array) -> jax.Array:
    """Tell whether a decision ``[K]`` fits: sum a (t_min + d) <= T, and C6: bool."""
    sent = offload if offload.dtype == bool else offload > 0
    fit = room(least_shares(uplink, offload), sent) >= -FIT_TOLERANCE
    if uplink.edge_share is not None:
        fit &= room(edge_shares(uplink, offload), sent) >= -FIT_TOLERANCE
    return fit


def within(used: jax.Array) -> jax.Array:
    """Tell which sums of ``resources``, ``[2, ...]`` or ``[4, ...]``, are there: ``[...]`` bool."""
    enough = (1 - used[0]) - used[1] >= -FIT_TOLERANCE
    for row in range(2, len(used), 2):
        enough &= (1 - used[row]) - used[row + 1] >= -FIT_TOLERANCE
    return enough


def room(
    shares: tuple[jax.Array, jax.Array], members: jax.Array, xp: ModuleType = jnp
) -> jax.Array:
    """Compute what some of ``least_shares`` leave of the slot, less than 0 if they exceed it.

    Args:
        shares: of ``[K]``.
        members: which of them to count ``[K]`` bool.
        xp: jax.numpy, or numpy.
    """
    coarse, fine = (xp.sum(xp.where(members, share, 0.0)) for share in shares)
    return (1 - coarse) - fine


def resources(uplink: Uplink, xp: ModuleType = jnp) -> jax.Array:
    """What each device takes at least of the slot, and of the edge if its cycles are limited.

    Returns:
        ``[2, K]``, or ``[4, K]``: shares in multiples of ``SHARE_UNIT`` and their rests [-].
    """
    rows = [*least_shares(uplink, uplink.usable, xp)]
    if uplink.edge_share is not None:
        rows += edge_shares(uplink, uplink.usable, xp)
    return xp.stack(rows)


def least_shares(
    uplink: Uplink, offload: jax.Array, xp: ModuleType = jnp
) -> tuple[jax.Array, jax.Array]:
    """Compute the least part of the slot that each part ``offload`` takes, ``[K]`` [-].

    Returns:
        A multiple of ``SHARE_UNIT``, infinite out of reach, and the rest of it.
    """
    return _parts_of(uplink, (uplink.exact.coarse, uplink.exact.fine), offload, xp)


def fixed_shares(uplink: Uplink, offload: jax.Array) -> tuple[Any, Any]:
    """Compute what of ``least_shares`` is not the sending time, d / T, ``[K]`` or 0 [-]."""
    if uplink.exact.fixed is None:
        return 0.0, 0.0
    return _parts_of(uplink, uplink.exact.fixed, offload, jnp)


def edge_shares(uplink: Uplink, offload: jax.Array, xp: ModuleType = jnp) -> tuple[Any, Any]:
    """Compute what parts take of the edge's cycles, as ``least_shares``, ``[K]`` or 0 [-]."""
    if uplink.exact.edge is None:
        return 0.0, 0.0
    return _parts_of(uplink, uplink.exact.edge, offload, xp)


def _parts_of(
    uplink: Uplink, whole: twofold.Pair, offload: jax.Array, xp: ModuleType
) -> twofold.Pair:
    all_coarse, all_fine = whole
    if offload.dtype == bool:
        return xp.where(offload, all_coarse, 0.0), xp.where(offload, all_fine, 0.0)
    sent = offload > 0
    coarse = jnp.where(sent & uplink.usable, all_coarse, 0.0)
    share, rest = twofold.two_product(offload, coarse)
    units = jnp.round(share / SHARE_UNIT) * SHARE_UNIT
    fine = (share - units) + (rest + offload * all_fine)
    units, fine = jax.lax.stop_gradient((units, jnp.where(sent, fine, 0.0)))
    return jnp.where(sent & ~uplink.usable, all_coarse, units), fine
