"""What all problems share: batches in blocks of few sizes, stages for what is open, the search.

A problem brings its system and its answer, which are pytrees here, a program for each stage and
its bounds. ``map_rows`` maps a function of one channel inside a program, ``HostBatch`` cuts what
lies on the host into blocks, ``escalate`` sends what a stage leaves open to the next one and the
rest to the host, and ``BestFirst`` is how it is searched there.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax.runtime.checks import real, refuse

CHUNK_BYTES = 2**29  # working memory of a batch
DEVICE_MULTIPLE = 8  # K is padded to a multiple of it
BATCH_SIZES = 1, 8, 64, 512  # channels at once, on the host; more at once are no quicker
LATER_SIZES = BATCH_SIZES[:3]  # of later stages
CALL_COST = 10  # of a block, in channels
MOST_PROGRAMS = 64  # that are kept; called again, the others are compiled again
Physics = TypeVar("Physics")
Answer = TypeVar("Answer")
Node = TypeVar("Node")
Fields = dict[str, tuple[Any, int]]
"""A system's fields by name: arrays, and how many of the last axes belong to one channel."""


def map_rows(
    one: Callable[..., Answer],
    fields: Fields,
    arrays: tuple[jax.Array, ...],
    batch: tuple[int, ...],
    row_bytes: int,
) -> Answer:
    """Map ``one(fields, *arrays)`` of one channel over a batch, within ``CHUNK_BYTES``.

    Args:
        one: takes a field or array of each name ``[...]`` or ``[K]``.
        fields: ``[*batch, ...]``, or any part of the batch's axes.
        arrays: the same, ``[*batch, K]``.
        batch: the axes to which all of them broadcast.
        row_bytes: working memory of a channel.

    Returns:
        The answers, each leaf ``[*batch, ...]``.
    """
    own = {n: _flat(x, rank, batch) for n, (x, rank) in fields.items() if x.ndim > rank}
    shared = {n: x for n, (x, _) in fields.items()}
    rows = own, tuple(_flat(x, 1, batch) for x in arrays)

    def of_row(row: tuple[dict[str, jax.Array], tuple[jax.Array, ...]]) -> Answer:
        return one(shared | row[0], *row[1])

    chunk = max(1, CHUNK_BYTES // row_bytes)
    if math.prod(batch) > chunk:
        found = jax.lax.map(of_row, rows, batch_size=chunk)
    else:
        found = jax.vmap(of_row)(rows)
    return jax.tree.map(lambda x: x.reshape(batch + x.shape[1:]), found)  # type: ignore[no-any-return]


def _flat(leaf: jax.Array, rank: int, batch: tuple[int, ...]) -> jax.Array:
    """Broadcast a leaf of core rank ``rank`` to ``[N, ...]``."""
    tail = leaf.shape[max(leaf.ndim - rank, 0) :]
    return jnp.broadcast_to(leaf, batch + tail).reshape((-1, *tail))


class HostBatch(Generic[Physics]):
    """Channels ``[N]`` with all fields of their systems, on the host, to be taken in blocks.

    Blocks are padded to few shapes, so that many numbers of channels and devices share a
    compiled program: ``BATCH_SIZES`` of channels, a multiple of ``DEVICE_MULTIPLE`` devices.
    """

    def __init__(
        self,
        h: Any,
        fields: Fields,
        batch: tuple[int, ...],
        multiple: int,
        build: Callable[..., Physics],
    ) -> None:
        self.batch, self.num_devices = batch, h.shape[-1]
        self.number = math.prod(batch)
        missing = -self.num_devices % multiple

        def spread(leaf: Any, rank: int) -> np.ndarray:
            leaf = pad(leaf, self.num_devices, missing) if rank else np.asarray(leaf)
            tail = leaf.shape[max(leaf.ndim - rank, 0) :]
            return np.broadcast_to(leaf, (batch or (1,)) + tail)  # a view

        self._gains, self._build = spread(h, 1), build
        self._fields = {name: spread(*field) for name, field in fields.items()}

    def take(self, places: Any) -> tuple[np.ndarray, Physics]:
        """Take channels, or one, by their places in the flattened batch."""
        index = np.unravel_index(places, self.batch or (1,))
        fields = {name: leaf[index] for name, leaf in self._fields.items()}
        return self._gains[index], self._build(**fields)

    def run(
        self,
        program: Callable[[Any, Physics], Answer],
        places: np.ndarray,
        sizes: tuple[int, ...],
    ) -> Answer:
        """Solve channels block by block: an answer of writable NumPy arrays.

        Args:
            program: for each block.
            places: of the channels in the flattened batch ``[N]``, at least one.
            sizes: that a block may have.
        """
        size = block_size(len(places), sizes)
        blocks = np.resize(places, (-(-len(places) // size), size))
        # One alone has the program of a call with one channel, without a batch axis.
        taken = [self.take(block if size > 1 else block[0]) for block in blocks]
        found = [program(*channels) for channels in taken]

        def join(*leaves: jax.Array) -> np.ndarray:
            return np.concatenate([x if size > 1 else x[None] for x in map(np.asarray, leaves)])[
                : len(places)
            ]

        return jax.tree.map(join, *found)  # type: ignore[no-any-return]

    def unpack(self, found: Answer) -> Answer:
        """Give an answer of all channels its batch shape and its own devices."""

        def leaf(x: np.ndarray) -> np.ndarray:  # [N] or [N, padded K]
            x = x[:, : self.num_devices] if x.ndim > 1 else x
            return x.reshape(self.batch + x.shape[1:])

        # Unlike jnp.asarray, which compiles a copy for each shape.
        return jax.device_put(jax.tree.map(leaf, found))  # type: ignore[no-any-return]


def block_size(number: int, sizes: tuple[int, ...]) -> int:
    """Return the size of the blocks, all alike, in which so many channels are soonest through."""
    return min(sizes, key=lambda size: -(-number // size) * (CALL_COST + size))


def run_one(
    program: Callable[[Any, Physics], Answer],
    h: Any,
    padded: Callable[[int], Physics],
    multiple: int,
) -> Answer:
    """Solve one channel ``[K]`` as ``HostBatch`` does, padded alike, but quicker.

    Args:
        program: for one channel.
        h: gains ``[K]``.
        padded: returns the system on the host, with so many devices appended.
        multiple: to which K is padded.
    """
    number = h.shape[-1]
    missing = -number % multiple
    # On the host, since arrays that are committed or weakly typed have programs of their own.
    gains = np.asarray(h)
    if missing:
        gains = pad(gains, number, missing)
    found = program(gains, padded(missing))
    return _cut(found, number) if missing else found


@partial(jax.jit, static_argnames="number")
def _cut(found: Any, number: int) -> Any:
    """Take ``number`` devices of a channel's answer."""
    return jax.tree.map(lambda x: x[:number] if x.ndim else x, found)


def pad(leaf: Any, number: int, missing: int) -> np.ndarray:
    """Append ``missing`` zeros to ``[..., K]`` on the host."""
    leaf = np.asarray(leaf)
    padded = np.zeros((*leaf.shape[:-1], number + missing), leaf.dtype)
    padded[..., :number] = leaf
    return padded


def let_go(compiled: Any) -> None:
    """Let go of all programs of a jitted function before they are too many.

    Each holds some 50 MB and 200 to 500 memory mappings, of which Linux grants 65 530.
    """
    if compiled._cache_size() >= MOST_PROGRAMS:
        compiled.clear_cache()


def escalate(
    best: Any,
    is_open: Callable[[Any], np.ndarray],
    stages: Iterable[Callable[[np.ndarray], Any]],
    last: Callable[[int], Any],
) -> None:
    """Send what is open to one stage after the other, and the rest, one by one, to the last.

    Args:
        best: what is known of all channels, a pytree of arrays ``[N, ...]``, improved in place.
        is_open: tells of which channels more is to be looked for ``[N]`` bool.
        stages: of places ``[n]``, return what is known then ``[n, ...]``.
        last: of one place, returns what is known then.
    """

    def put(places: Any, known: Any) -> None:
        for old, new in zip(jax.tree.leaves(best), jax.tree.leaves(known)):
            old[places] = new

    for stage in stages:
        places = np.flatnonzero(is_open(best))
        if len(places):
            put(places, stage(places))
    for place in np.flatnonzero(is_open(best)):
        put(place, last(int(place)))


class BestFirst:
    """A search for the decision of least cost on the host: what is known by now.

    A node stands for decisions of which none costs less than its bound. To maximise, count
    costs below 0.
    """

    def __init__(self, cost: float, tolerance: float, nodes: int) -> None:
        self.cost, self.nodes = cost, nodes  # of the best decision known; what may be bounded
        self.better: np.ndarray | None = None  # a decision that was found here
        self.given_up = np.inf  # bound of what is left when the nodes run out
        self._worth = 1 - tolerance if cost > 0 else 1 + tolerance
        self._numbers = itertools.count(1)

    @property
    def cut(self) -> float:
        """What a decision must stay below to be worth finding."""
        return self.cost * self._worth

    @property
    def bound(self) -> float:
        """What no decision costs less than, once all nodes are taken."""
        return min(self.given_up, self.cut)

    def push(self, queue: list[tuple[float, int, Node]], bound: float, node: Node) -> None:
        """Put a node on a heap of (bound, number, node), if it may be worth it."""
        if bound < self.cut:
            heapq.heappush(queue, (bound, next(self._numbers), node))

    def take(self, queue: list[tuple[float, int, Node]]) -> Iterator[Node]:
        """Take the nodes of a heap that may be worth it, the lowest bound first.

        More may be pushed meanwhile. Where the nodes run out, what is left is given up.
        """
        while queue and queue[0][0] < self.cut:
            if self.nodes <= 0:
                self.give_up(queue[0][0])
                return
            yield heapq.heappop(queue)[2]

    def give_up(self, bound: float) -> None:
        """Leave decisions unsearched of which none costs less than a bound."""
        self.given_up = min(self.given_up, bound)


def rounded(bound: Any, kind: type[np.floating], up: bool) -> Any:
    """Round bounds to a precision, to the side on which they still hold."""
    near = np.asarray(bound, kind)
    wrong = near < bound if up else near > bound
    return np.where(wrong, np.nextafter(near, kind(np.inf if up else -np.inf)), near)


def check_method(method: Any, names: Iterable[str]) -> None:
    """Raise a ValueError unless a method is one of the names, or a function that can be hashed."""
    if callable(method):
        try:
            hash(method)
        except TypeError:
            raise refuse("method", "hashable: it is compiled once", method) from None
    elif not isinstance(method, str) or method not in names:
        known = ", ".join(sorted(names))
        raise refuse("method", f"one of {known}, or a function of a system and gains", method)


def one_solution(
    kind: type[Answer], name: str, found: Any, h: jax.Array, per_device: Iterable[str]
) -> Answer:
    """Return what a function says of one channel ``[K]`` as floats and booleans.

    Args:
        kind: the class of an answer; a field whose default is None may be left out.
        name: of the argument that the function is.
        found: what it returns.
        h: gains ``[K]``.
        per_device: names of the fields ``[K]``; the others are numbers.

    Raises:
        ValueError: if it is no answer of one channel.
    """
    if not isinstance(found, kind):
        public = f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}"
        raise refuse(name, f"a function that returns a {public}", found)
    fields = {}
    for field, value in vars(found).items():
        if value is None and getattr(kind, field, field) is None:
            continue
        rule, shape = ("[K]", h.shape) if field in per_device else ("[]", ())
        value = jnp.asarray(value) if isinstance(value, (bool, float, int)) else value
        truth = jnp.issubdtype(getattr(value, "dtype", float), jnp.bool_)
        if field == "feasible" and not truth:
            raise refuse(name, "a function that returns feasible as a boolean", value)
        if not truth:
            value = real(f"{field}, which {name} returns,", value)
        if value.shape != shape:
            raise ValueError(
                f"{name} must return {field} of shape {rule}, here {shape}, for one channel; "
                f"got shape {value.shape}"
            )
        fields[field] = jnp.asarray(value, bool if field == "feasible" else h.dtype)
    return kind(**fields)
