"""Ranks, and the sets of devices that are made of them: prefixes of a ranking, all subsets.

What each set of a family costs is summed without writing the family out where K is large.

Few numbers are ranked by counting how many are smaller, which costs less than a sort and a
scatter on every kind of device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax.runtime.describe import short_repr

FEW = 9  # so many are sooner taken one by one than by a sort
COUNTED = 64  # so many numbers are ranked by comparing all pairs


def rank(values: jax.Array) -> jax.Array:
    """Place of each value ``[N]`` in ascending order, the first of equals first: ``[N]`` int."""
    if len(values) > COUNTED:
        return inverse(jnp.argsort(values))
    places = jnp.arange(len(values))
    before = values[None] < values[:, None]
    before |= (values[None] == values[:, None]) & (places[None] < places[:, None])
    return jnp.sum(before, axis=1)


def inverse(order: jax.Array) -> jax.Array:
    """Turn an order ``[N]`` into ranks, or ranks into an order: ``[N]`` int."""
    return jnp.zeros_like(order).at[order].set(jnp.arange(len(order)), unique_indices=True)


def in_order(values: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Return what takes the n-th smallest of values ``[N]``, from 0 on."""
    if len(values) > COUNTED:
        ordered = jnp.sort(values)
        return lambda n: ordered[jnp.maximum(n, 0)]
    ranks = rank(values)
    return lambda n: jnp.sum(jnp.where(ranks == n, values, 0.0))


def members(ranks: jax.Array, number: int) -> jax.Array:
    """Devices of the ranks 0, 1, ... ``number`` - 1: indices ``[number]``."""
    places = jnp.arange(len(ranks))
    return jnp.sum(jnp.where(ranks[None] == jnp.arange(number)[:, None], places[None], 0), axis=1)


@short_repr
class Listed(NamedTuple):
    """Sets that are written out."""

    rows: jax.Array  # [M, K] bool

    def take(self, places: jax.Array) -> jax.Array:
        """Return sets by their places ``[m]``: ``[m, K]`` bool."""
        return self.rows[places]

    def flipped(self, base: jax.Array, values: jax.Array) -> jax.Array:
        """Sum values ``[K, V]`` over the devices in which each set differs from ``base``."""
        return total(self.rows ^ base[None], values)


@short_repr
class Prefixes(NamedTuple):
    """The first 0, 1, ... K devices in the order of a ranking: K + 1 sets."""

    ranks: jax.Array  # [K] of all devices, the first ones sent first
    free: jax.Array  # [K] bool: who takes part
    always: jax.Array  # [K] bool: of the others, who is in every set

    def take(self, places: jax.Array) -> jax.Array:
        """Return the sets of so many devices ``[m]``: ``[m, K]`` bool."""
        return jnp.where(self.free[None], self.ranks[None] < places[:, None], self.always[None])

    def listed(self) -> Listed:
        """Write all sets out."""
        return Listed(self.take(jnp.arange(len(self.ranks) + 1)))

    def flipped(self, base: jax.Array, values: jax.Array) -> jax.Array:
        """Sum values ``[K, V]`` over the devices in which each set differs from ``base``.

        Of many devices by running sums, which are as exact: of those that are missing, from the
        last rank on, and of those that are too many, from the first.
        """
        if len(self.ranks) <= COUNTED:
            return self.listed().flipped(base, values)
        fixed = jnp.sum(
            jnp.where((~self.free & (self.always ^ base))[:, None], values, 0.0), axis=0
        )
        order = inverse(self.ranks)
        moved = jnp.where(self.free[:, None], values, 0.0)[order]
        inside = base[order][:, None]
        nothing = jnp.zeros_like(values[:1])
        missing = jnp.cumsum(jnp.where(inside, moved, 0.0)[::-1], axis=0)[::-1]
        more = jnp.cumsum(jnp.where(inside, 0.0, moved), axis=0)
        missing, more = jnp.append(missing, nothing, axis=0), jnp.append(nothing, more, axis=0)
        return fixed[None] + missing + more


@short_repr
class Neighbours(NamedTuple):
    """A set, with one free device of it on the other side: K sets."""

    middle: jax.Array  # [K] bool
    free: jax.Array  # [K] bool: who may change

    def take(self, places: jax.Array) -> jax.Array:
        """Return the sets in which these devices ``[m]`` change: ``[m, K]`` bool."""
        changed = places[:, None] == jnp.arange(len(self.middle))[None]
        return self.middle[None] ^ (changed & self.free[None])

    def flipped(self, base: jax.Array, values: jax.Array) -> jax.Array:
        """Sum values ``[K, V]`` over the devices in which each set differs from ``base``."""
        if len(self.middle) <= COUNTED:
            return Listed(self.take(jnp.arange(len(self.middle)))).flipped(base, values)
        apart = (self.middle ^ base)[:, None]
        own = jnp.where(self.free[:, None], jnp.where(apart, -values, values), 0.0)
        return jnp.sum(jnp.where(apart, values, 0.0), axis=0)[None] + own


@short_repr
class Rankings(NamedTuple):
    """The ``Prefixes`` of R rankings: R (K + 1) sets."""

    ranks: jax.Array  # [R, K]
    free: jax.Array  # [R, K] bool
    always: jax.Array  # [K] bool

    def take(self, places: jax.Array) -> jax.Array:
        """Return sets by their places ``[m]``: ``[m, K]`` bool."""
        row, number = jnp.divmod(places, self.ranks.shape[1] + 1)
        return jnp.where(self.free[row], self.ranks[row] < number[:, None], self.always[None])

    def flipped(self, base: jax.Array, values: jax.Array) -> jax.Array:
        """Sum values ``[K, V]`` over the devices in which each set differs from ``base``."""

        def one(ranks: jax.Array, free: jax.Array) -> jax.Array:
            return Prefixes(ranks, free, self.always).flipped(base, values)

        return jax.vmap(one)(self.ranks, self.free).reshape(-1, values.shape[1])


Family = Listed | Prefixes | Neighbours | Rankings


def fill(ranks: jax.Array, sizes: jax.Array, capacity: jax.Array) -> jax.Array:
    """Take devices in the order of ``ranks``, without those that no longer fit: ``[K]`` bool.

    Args:
        ranks: of all devices ``[K]``.
        sizes: what each takes ``[K]``, infinite to leave it.
        capacity: of what there is ``[]``.
    """

    def take(place: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        taken, left = state
        here = ranks == place
        size = jnp.sum(jnp.where(here, sizes, 0.0))
        return taken | (here & (size <= left)), left - jnp.where(size <= left, size, 0.0)

    start = jnp.zeros(len(ranks), bool), capacity
    return jax.lax.fori_loop(0, len(ranks), take, start)[0]


def subsets(number: int) -> np.ndarray:
    """All subsets of the first ``number`` devices: ``[2^number, number]`` bool."""
    return (np.arange(2**number)[:, None] >> np.arange(number)) % 2 == 1


def flip(base: jax.Array, ranks: jax.Array, flips: jax.Array) -> jax.Array:
    """Flip devices by their ranks: sets ``[M, K]`` bool.

    Args:
        base: the set ``[K]`` bool.
        ranks: of all devices ``[K]``.
        flips: whether the devices of the ranks 0, 1, ... n - 1 change sides ``[M, n]`` bool.
    """
    number = flips.shape[1]
    flipped = flips[:, jnp.minimum(ranks, number - 1)] & (ranks < number)[None]
    return flipped ^ base[None]


def subset_sums(values: jax.Array) -> jax.Array:
    """Sum values ``[n, ...]`` over each of ``subsets``: ``[2^n, ...]``.

    One addition per subset: that of two sums, over the first half of the devices and the other.
    """
    number = len(values)
    if number == 1:
        return jnp.concatenate([jnp.zeros_like(values), values])
    first, other = subset_sums(values[: number // 2]), subset_sums(values[number // 2 :])
    sums = other[:, None] + first[None]
    return sums.reshape(2**number, *values.shape[1:])


def smallest(values: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    """Take the ``number`` smallest values ``[N]``: they and their indices, in ascending order."""
    if number > FEW:
        found, places = jax.lax.top_k(-values, number)
        return -found, places

    def take(i: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        rest, found, places = state
        place = jnp.argmin(rest)
        mine = jnp.arange(number) == i
        found = jnp.where(mine, jnp.min(rest), found)
        rest = jnp.where(jnp.arange(len(rest)) == place, jnp.inf, rest)
        return rest, found, jnp.where(mine, place, places)

    start = values, jnp.zeros(number, values.dtype), jnp.zeros(number, int)
    return jax.lax.fori_loop(0, number, take, start)[1:]


def total(sets: jax.Array, values: jax.Array) -> jax.Array:
    """Sum values ``[K, ...]`` over the members of sets ``[M, K]`` bool: ``[M, ...]``."""
    return jnp.matmul(sets.astype(values.dtype), values, precision=jax.lax.Precision.HIGHEST)
