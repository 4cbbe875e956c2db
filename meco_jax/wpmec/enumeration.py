"""The certified optimum with fixed shapes, for jit, vmap and accelerators.

Bounds over intervals of the harvesting time tell most devices' side. The undecided ones are
enumerated; grids of prices bound every such mode, the best are allocated exactly, and what was
left out is bounded: the answer comes with a proof. Source: THEORY.md, section 11. All is for one
channel, ``[K]``.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.exact.sets import subsets
from meco_jax.exact.uplink import pairwise_sum
from meco_jax.runtime.describe import short_repr
from meco_jax.wpmec.bounds import (
    Path,
    middle_price,
    price_path,
    relaxed_bound,
    set_bounds,
    side_bounds,
)
from meco_jax.wpmec.devices import (
    Allocated,
    Devices,
    allocate_set,
    inflate,
    make_devices,
    offers,
    rounding,
    summing,
)
from meco_jax.wpmec.system import WPMEC, Solution

FINE = 17, 0.3  # prices of the second grid, around that of the best mode; half its width [ln]
CLEAR = 10.0  # see ``criticality``
LAST_STEPS = 3  # Newton for a price, from one of the grids


@short_repr
class Stage(NamedTuple):
    """How much to enumerate: shapes, so static."""

    num_branched: int  # devices that are fixed first, one after the other: 2^b branches
    num_enumerated: int  # devices whose modes are enumerated in a branch, 2^n patterns
    num_exact: int  # patterns of a branch that are allocated exactly
    num_prices: int  # of the intervals, odd


STAGES = (Stage(0, 5, 2, 17), Stage(2, 5, 4, 33))  # for what the last leaves
ONLY_STAGE = STAGES[1]  # where no other can follow: under jit


@short_repr
class Found(NamedTuple):
    """The best mode of a stage or of a branch."""

    offload: jax.Array  # [K] bool: who sends
    allocated: Allocated
    others: jax.Array  # [] bound of all other modes [bit/s]


def optimal(system: WPMEC, h: jax.Array, stage: Stage = ONLY_STAGE) -> Solution:
    """Find the best mode among those of the undecided devices, and prove how good it is.

    Args:
        system: the physics.
        h: power gains ``[K]`` [-].
        stage: how much to enumerate.
    """
    return best_mode(system, h, stage)[0]


def best_mode(system: WPMEC, h: jax.Array, stage: Stage) -> tuple[Solution, jax.Array]:
    """Find what ``optimal`` does, and a bound of all other modes ``[]`` [bit/s]."""
    devices = make_devices(system, h)
    held = jax.lax.stop_gradient(devices)
    sends = jnp.asarray(subsets(stage.num_branched))  # [2^b, b]
    branches = jax.vmap(partial(_branch, held, num_prices=stage.num_prices))(sends)
    each = jax.vmap(partial(_enumerate, held, stage=stage))(branches.devices, branches.sides)
    relaxed = branches.relaxed[0]
    best = jnp.argmax(each.allocated.rate)
    mine = jnp.arange(len(each.others)) == best
    bounds = jnp.maximum(each.others, jnp.where(mine, -jnp.inf, each.allocated.bound))
    found, others = jax.tree.map(lambda x: x[best], each), jnp.max(bounds)
    # Once more, with derivatives.
    allocated = allocate_set(devices, found.offload, found.allocated.nu, LAST_STEPS)
    return finish(found.offload, allocated, others, relaxed), others


@short_repr
class _Sides(NamedTuple):
    """A path, and the bounds of the modes in which each device sends, and computes."""

    path: Path
    sent: jax.Array  # [K] [bit/s]
    kept: jax.Array  # [K] [bit/s]


def _sides(devices: Devices, num_prices: int) -> _Sides:
    """Lay a path, and bound each device's sides by it."""
    path = price_path(devices, middle_price(devices), num_prices)
    sent, kept = side_bounds(devices, path)
    return _Sides(path, jnp.where(devices.usable, sent, -jnp.inf), kept)


@short_repr
class _Branch(NamedTuple):
    """The modes in which some devices have their sides fixed."""

    devices: Devices  # who must send earns nothing by computing, who must not is not usable
    sides: _Sides
    relaxed: jax.Array  # [] bound of all modes of all branches [bit/s]


def _branch(devices: Devices, sends: jax.Array, num_prices: int) -> _Branch:
    """Fix the most critical device, and again with the prices that follow.

    Args:
        devices: the devices.
        sends: whether the first, the second, ... to be fixed sends ``[b]`` bool.
        num_prices: of each path.
    """

    def fix(i: jax.Array, branch: _Branch) -> _Branch:
        devices, sides, relaxed = branch
        critical = jnp.argmax(criticality(sides.path, sides.sent, sides.kept))
        here = (jnp.arange(len(sides.sent)) == critical) & (i > 0)
        send = sends[jnp.maximum(i - 1, 0)]
        devices = devices._replace(
            local=jnp.where(here & send, 0.0, devices.local),
            usable=devices.usable & (~here | send),
        )
        sides = _sides(devices, num_prices)
        root = relaxed_bound(devices, sides.sent, sides.kept)
        return _Branch(devices, sides, jnp.where(i == 0, root, relaxed))

    if not len(sends):
        sides = _sides(devices, num_prices)
        return _Branch(devices, sides, relaxed_bound(devices, sides.sent, sides.kept))
    shapes = jax.eval_shape(partial(_sides, num_prices=num_prices), devices)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    start = _Branch(devices, nothing, jnp.zeros_like(devices.local[0]))
    found: _Branch = jax.lax.fori_loop(0, len(sends) + 1, fix, start)
    return found


def criticality(path: Path, sent: Any, kept: Any, xp: ModuleType = jnp) -> Any:
    """Tell whose side matters and is not clear: ``[K]`` [bit/s].

    The price of the optimum is far from that of the relaxed problem where a device is undecided
    that earns much: no other can be told a side before. What it earns, less what it costs to
    leave its side; nothing of those that are fixed.
    """
    middle = len(path.nu) // 2
    earned = path.worth[middle] * path.high[middle] ** 3
    clear = xp.maximum(sent, kept) - xp.minimum(sent, kept)
    free = (earned > 0) & (path.local[0] > 0)
    return xp.where(free, earned - CLEAR * clear, -xp.inf)


def _enumerate(devices: Devices, branch: Devices, sides: _Sides, stage: Stage) -> Found:
    """Enumerate the modes of the undecided devices of a branch, see ``best_mode``.

    Args:
        devices: the devices.
        branch: the devices as the branch has them, see ``_branch``.
        sides: theirs.
        stage: how much to enumerate.
    """
    path, sent, kept = sides
    must = branch.usable & (branch.local <= 0)
    base = must | (sent > kept)  # each device on the side that may earn more
    lower = jnp.where(must, -jnp.inf, jnp.minimum(sent, kept))
    _, order = jax.lax.top_k(lower, len(lower))
    undecided, clear = order[: stage.num_enumerated], order[stage.num_enumerated :]
    left_out = jnp.max(lower[clear], initial=-jnp.inf)

    sets = jnp.asarray(subsets(len(undecided)))  # [P, n] who of the undecided sends
    impossible = sets & ~branch.usable[undecided][None] | ~sets & must[undecided][None]
    impossible = jnp.any(impossible, axis=1)
    settled = base.at[undecided].set(False)
    bounds, start = _bounds(branch, path.nu, path.worth, sets, undecided, settled)
    bounds = jnp.where(impossible, -jnp.inf, bounds)
    spread = jnp.linspace(-1, 1, FINE[0], dtype=bounds.dtype)
    prices = start[jnp.argmax(bounds)] * jnp.exp(FINE[1] * spread**3)
    worth, _, nats = offers(branch, prices)
    worth = inflate(branch, worth, nats)[1]
    finer, again = _bounds(branch, prices, worth, sets, undecided, settled)
    start, bounds = jnp.where(finer < bounds, again, start), jnp.minimum(bounds, finer)

    highest, picked = jax.lax.top_k(bounds, min(stage.num_exact + 1, len(sets)))
    if len(sets) > stage.num_exact:
        left_out = jnp.maximum(left_out, highest[-1])
        picked = picked[:-1]
    offload = jax.vmap(lambda s: base.at[undecided].set(s))(sets[picked])
    allocate = partial(allocate_set, devices, steps=LAST_STEPS)
    found = jax.vmap(allocate)(offload, start[picked])
    allowed = jnp.isfinite(bounds[picked])
    best = jnp.argmax(jnp.where(allowed, found.rate, -jnp.inf))
    other = allowed & (jnp.arange(len(picked)) != best)
    others = jnp.max(jnp.where(other, found.bound, -jnp.inf), initial=-jnp.inf)
    one = jax.tree.map(lambda x: x[best], found)
    return Found(offload[best], one, jnp.maximum(others, left_out))


def finish(offload: jax.Array, found: Allocated, others: jax.Array, relaxed: jax.Array) -> Solution:
    """Make a ``Solution`` of an allocated mode ``[K]`` and bounds of the others and of all."""
    bound = jnp.maximum(found.bound, others)
    bound = jnp.maximum(jnp.minimum(bound, relaxed), found.rate)
    return Solution(
        offload=offload.astype(found.time.dtype),
        harvest=found.harvest,
        time=found.time,
        rate=found.rate,
        upper_bound=bound,
        feasible=jnp.isfinite(found.rate),
    )


def _bounds(
    devices: Devices,
    nu: jax.Array,
    worth: jax.Array,
    sets: jax.Array,
    undecided: jax.Array,
    settled: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Bound modes at prices ``[J]``, see ``set_bounds``, and return which price is best ``[P]``.

    Args:
        devices: the devices.
        nu: prices ``[J]`` [bit/s].
        worth: v, raised by what rounding may take ``[J, K]`` [bit/s].
        sets: who of the undecided devices sends ``[P, n]`` bool.
        undecided: indices of the undecided devices ``[n]``.
        settled: who of the others sends ``[K]`` bool.
    """
    local, _ = inflate(devices, worth, 0.0)
    others = jnp.ones_like(settled).at[undecided].set(False)
    fixed_local = pairwise_sum(jnp.where(others & ~settled, local, 0.0))
    fixed_worth = pairwise_sum(jnp.where(settled[:, None], worth.T, 0.0))
    local = fixed_local + _product(~sets, local[undecided])
    worth = fixed_worth[None] + _product(sets, worth.T[undecided])
    bounds, places = set_bounds(nu, local, worth)
    return bounds * (1 + summing(devices) + sets.shape[1] * rounding(devices)), nu[places]


def _product(sets: jax.Array, values: jax.Array) -> jax.Array:
    """Sum values ``[n, ...]`` over the members of sets ``[..., n]`` bool."""
    return jnp.matmul(sets.astype(values.dtype), values, precision=jax.lax.Precision.HIGHEST)
