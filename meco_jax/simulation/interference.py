"""Several cells on the same band: each solves its own slot in the mean interference of the others.

The paper has one station. With more of them a cell hears the devices of the others as noise,
of mean power sum p t / T g over all that send there, which depends on what those decide.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.batching import invalidate
from meco_jax.runtime.arguments import batch_shape, check_call, core_leaves
from meco_jax.runtime.checks import (
    as_floats,
    in_range,
    inside_trace,
    integer,
    is_traced,
    one_number,
    real,
    refuse,
    require,
)
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.settings import moves_data
from meco_jax.simulation.margins import check_scheme
from meco_jax.solution import Solution
from meco_jax.solver import Scheme, solve
from meco_jax.system import CHANNEL_RANGE, ArrayLike, System


@short_repr
class Cells(NamedTuple):
    """The answer for cells that hear each other."""

    solution: Solution  # of every cell ``[C]``, for the noise below
    noise_power: jax.Array  # [C], [C, K] where N0 is per device: with the mean interference [W]
    change: jax.Array  # [] largest relative change of it that one more round would make [-]
    converged: jax.Array  # [] bool: it is at most the tolerance, and all numbers are in range
    rounds: jax.Array  # [] int32: that were made


@moves_data
def solve_cells(
    h: ArrayLike,
    system: System,
    cross: ArrayLike,
    method: str | Scheme = "optimal",
    rounds: int = 50,
    damping: float = 0.5,
    tolerance: float = 1e-3,
) -> Cells:
    """Solve cells that interfere, by iteration of a fixed point.

    N_c = N0 + sum over other cells j and their devices k of p_k t_k / T g_jkc: all cells solve
    their slots for the noise that they hear, which gives the noise of the next round, and so on.
    ln N goes ``1 - damping`` of the way each time. With fixed decisions and powers that grow with
    the noise the iteration is a standard interference function (Yates, IEEE JSAC 13, 1995) and
    converges if anything is a fixed point; decisions are binary, so that it may circle: look at
    ``converged``. A cell without a feasible answer sends nothing.

    Works under ``jax.jit`` and ``jax.vmap``; ``method`` runs its jitted form in every round. Gains
    that are known under these alone, and out of range, give NaN energies in all cells.

    Args:
        h: amplitude gains to the own station ``[C, K]`` [-].
        system: the physics, any field with a leading axis of C cells; ``noise_power`` is N0.
        cross: amplitude gains ``[C, C, K]`` of device k of cell j at station c, at [j, c, k] [-];
            those at [c, c] are not used.
        method: a method of ``solve`` by name, or a function ``f(system, h)`` of one channel.
        rounds: most rounds, at least 1.
        damping: part of ln N that stays in a round, 0 to below 1 [-].
        tolerance: relative change of the noise at which it ends [-].

    Returns:
        The answers in their interference, and whether it is a fixed point.

    Raises:
        ValueError: if a shape is wrong or a value is known and out of range, or as ``solve``.
    """
    check_scheme(method)
    rounds = integer("rounds", rounds, low=1)
    require("tolerance", one_number("tolerance", tolerance), 0.0, included=False)
    damping_ = one_number("damping", damping)
    if not is_traced(damping_) and not 0 <= damping_ < 1:
        raise refuse("damping", "from 0 to below 1", damping)
    gains, system = check_call(h, system)
    if len(gains.shape) != 2:
        raise ValueError(f"h must have gains of cells and devices, [C, K]; got shape {gains.shape}")
    batch = batch_shape(system, gains)
    if batch != gains.shape[:1]:
        rule = f"fields of {len(gains)} cells at most, as h has"
        raise ValueError(f"system must have {rule}; got a batch of shape {batch}")
    others = real("cross", cross)
    wanted = (gains.shape[0], *gains.shape)
    if others.shape != wanted:
        raise ValueError(f"cross must have shape [C, C, K], here {wanted}; got {others.shape}")
    require("cross", others, *CHANNEL_RANGE)
    run: Any = _iterate
    if inside_trace() and callable(method):
        run = run.__wrapped__  # it may close over what is being recorded
    return run(gains, system, as_floats(others), method, rounds, damping_, tolerance)


@partial(jax.jit, static_argnames="method")
def _iterate(
    h: jax.Array, system: System, cross: jax.Array, method: Any, rounds: Any, damping: Any,
    tolerance: Any,
) -> Cells:  # fmt: skip
    number = h.shape[0]
    own = jnp.eye(number, dtype=bool)[:, :, None]
    power_gain = jnp.where(own, 0.0, jnp.square(cross))
    valid = jnp.all(in_range(cross, *CHANNEL_RANGE) | own)
    fields = core_leaves(system, jnp.asarray)
    own_noise, rank = fields.pop("noise_power")
    of_cells = {name: 0 if leaf.ndim > tail else None for name, (leaf, tail) in fields.items()}
    leaves = {name: leaf for name, (leaf, _) in fields.items()}
    tail = own_noise.shape[own_noise.ndim - rank :]  # of devices, where each has its own
    quiet = jnp.broadcast_to(own_noise.astype(h.dtype), (number, *tail))
    slot = jnp.broadcast_to(jnp.asarray(system.slot, h.dtype), (number,))
    stays = jnp.asarray(damping, h.dtype)

    # Cell by cell: in a batch of as many cells as devices one number per cell could be either's.
    @partial(jax.vmap, in_axes=(of_cells, 0, 0))
    def solve_each(leaves: dict[str, jax.Array], noise: jax.Array, h: jax.Array) -> Solution:
        one = System(**leaves, noise_power=noise, access=system.access)
        return solve(h, one, method=method)

    def answer(noise: jax.Array) -> tuple[Solution, jax.Array]:
        found = solve_each(leaves, noise, h)
        mean_power = found.power
        if system.access == "tdma":  # with bands all send for the whole slot
            mean_power = mean_power * found.time / slot[:, None]
        heard = jnp.einsum("jk,jck->c", mean_power, power_gain, precision="highest")
        return found, quiet + (heard[:, None] if rank else heard)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, noise, _, _, change = carry
        found, heard = answer(noise)
        change = jnp.max(jnp.abs(heard / noise - 1))
        following = jnp.exp(stays * jnp.log(noise) + (1 - stays) * jnp.log(heard))
        return count + 1, following, noise, found, change

    def goes_on(carry: tuple[Any, ...]) -> jax.Array:
        return (carry[0] < rounds) & (carry[-1] > tolerance)

    shapes = jax.eval_shape(lambda: answer(quiet)[0])
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    none = jnp.zeros((), jnp.int32)
    first = none, quiet, quiet, nothing, jnp.asarray(jnp.inf, quiet.dtype)
    count, _, noise, found, change = jax.lax.while_loop(goes_on, step, first)
    valid &= ~jnp.any(jnp.isnan(found.energy))  # of a cell with gains out of range
    active = jnp.broadcast_to(system.active, h.shape)
    found = jax.vmap(invalidate, (0, None, 0))(found, valid, active)
    converged = valid & jnp.all(jnp.isfinite(noise)) & (change <= tolerance)
    return Cells(found, noise, change, converged, count)
