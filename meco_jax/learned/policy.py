"""The learned policy for any system: who offloads, from the gains and the whole of ``System``.

A small network looks at every device in the same way, at what sending and staying cost at
prices around the relaxed problem's, and at a summary of all devices: permuting the devices
permutes the answer, and any K will do. Its scores rank the devices; the best prefix of the
ranking is sent and allocated exactly, so that the answer is feasible whenever the channel is.
All is for one channel, ``[K]``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from meco_jax import system as sy
from meco_jax.exact import sets
from meco_jax.exact.allocation import finish, prepare
from meco_jax.exact.duals import price_grid
from meco_jax.exact.pricing import slot_time
from meco_jax.exact.relaxation import Relaxed
from meco_jax.exact.schemes import cheapest, prefixes_of
from meco_jax.exact.uplink import Uplink, local_at, priced_cost, raised_price, usual_shift
from meco_jax.paper.network import Variables, widen
from meco_jax.runtime.atomic import write_atomically
from meco_jax.runtime.checks import integer, refuse
from meco_jax.runtime.describe import short_repr
from meco_jax.solution import Solution
from meco_jax.system import System

PRICES = 0.0, -1.0, 1.0  # at which devices are looked at, over mu* [ln]
COMPARING = 17, 3.0  # prices and half width [ln W] of the grid that compares decisions
LARGEST_EFFORT = 12
FEATURES = 4 * len(PRICES) - 1 + 6  # see ``device_features``


def device_features(uplink: Uplink, forced: jax.Array, relaxed: Relaxed) -> jax.Array:
    """Describe every device without units, at prices around the relaxed problem's: ``[K, F]``.

    The first is what sending saves at mu* over the price of the whole slot; an arcsinh or a
    logarithm tames each. Devices that cannot send are all zeros. Staying costs less by the price
    of the edge's cycles, C6.

    Args:
        uplink: terms of every uplink ``[K]``.
        forced: C2, ``[K]`` bool.
        relaxed: the relaxed P1's answer.
    """
    usable, local = uplink.usable, local_at(uplink, relaxed.edge_price)
    worth = jnp.exp(relaxed.log_mu)
    if uplink.per_time is not None:  # where the price is nothing it would say nothing
        worth += usual_shift(uplink)
    whole = worth * uplink.slot  # what the slot is worth [J]
    columns, shares = [], []
    for shift in PRICES:
        log_mu = raised_price(uplink, relaxed.log_mu, shift)
        cost = jnp.where(usable, priced_cost(uplink, log_mu), 1.0)
        shares.append(slot_time(uplink, log_mu) / uplink.slot)
        if shift == 0:
            columns.append(_squash(jnp.arcsinh(10 * (local - cost) / whole)))
        columns += [_squash_log(local / cost), _squash_log(8 * shares[-1])]
    least = uplink.min_time / uplink.slot
    if uplink.fixed_time is not None:
        least += uplink.fixed_time / uplink.slot
    flags = [forced.astype(least.dtype), usable.astype(least.dtype)]
    columns += [*flags, relaxed.offload, _squash_log(8 * least)]
    # Who is indifferent at mu* stays: to compare its costs here would compare roundings.
    sends = usable & relaxed.sends
    slack = 1 - jnp.sum(jnp.where(sends, shares[0], 0.0))
    everywhere = (
        _squash(4 * slack),
        _squash_log(8 * slack),
        jnp.sum(jnp.where(sends, least, 0.0)),
        jnp.sum(jnp.where(forced & usable, least, 0.0)),
        _squash_log(relaxed.bound / whole),
        _squash_log(jnp.sum(usable, dtype=least.dtype)),
    )
    columns += [jnp.broadcast_to(x, usable.shape) for x in everywhere]
    return jnp.stack([jnp.where(usable, x, 0.0) for x in columns], axis=-1)


class DeviceNetwork(nn.Module):
    """The same small network for every device, with a summary of all devices between layers."""

    width: int = 32
    rounds: int = 2
    trust: float = 8.0  # weight of the cost difference at mu*, which the network corrects

    @nn.compact
    def __call__(self, x: jax.Array, usable: jax.Array) -> jax.Array:
        """Map features ``[K, F]`` and usable devices ``[K]`` to scores ``[K]``: send above 0."""
        inputs, number = x, jnp.maximum(jnp.sum(usable), 1).astype(x.dtype)
        for _ in range(self.rounds):
            x = nn.relu(nn.Dense(self.width)(x))
            seen = jnp.where(usable[:, None], x, 0.0)
            summary = jnp.concatenate([jnp.sum(seen, axis=0) / number, jnp.max(seen, axis=0)])
            context = nn.Dense(self.width, use_bias=False)(summary)
            x = nn.relu(nn.Dense(self.width)(x) + context[None])
        # A correction of what the relaxed problem says starts at nothing.
        init = nn.initializers.zeros if self.trust else nn.initializers.lecun_normal()
        correction = nn.Dense(1, kernel_init=init)(jnp.concatenate([x, inputs], axis=-1))
        return self.trust * inputs[:, 0] + correction[:, 0]


def init_params(network: DeviceNetwork, key: jax.Array) -> Variables:
    """Initialise a network from a consumed ``key``: the same numbers in every precision."""
    x = jnp.zeros((1, FEATURES), jnp.float32)
    return widen(dict(network.init(key, x, jnp.ones(1, bool))))


@short_repr
class GeneralPolicy(struct.PyTreeNode):
    """A trained network that serves any system; ``meco_jax.solve`` uses it."""

    params: Variables
    network: DeviceNetwork = struct.field(pytree_node=False, default=DeviceNetwork())

    def scores(self, system: System, h: jax.Array) -> jax.Array:
        """Score the devices of one channel ``[K]``: the network would send those above 0."""
        _check_one_channel(h)
        uplink, forced, relaxed = prepare(system, h)
        return self._scores(device_features(uplink, forced, relaxed), uplink.usable)

    def decide(self, system: System, h: jax.Array, effort: int = 0) -> Solution:
        """Decide for one channel; feasible whenever the channel is.

        Args:
            system: the physics.
            h: amplitude gains ``[K]`` [-].
            effort: with n > 0 the best of the 2^n sets is taken that differ in the n devices
                for which the relaxed problem is least certain.

        Returns:
            A ``Solution`` with optimal powers and times and the Lagrangian lower bound.

        Raises:
            ValueError: if h is a batch; ``meco_jax.solve`` takes them.
        """
        _check_one_channel(h)
        uplink, forced, relaxed = prepare(system, h)
        features = device_features(uplink, forced, relaxed)
        scores = self._scores(features, uplink.usable)
        grid = price_grid(uplink, relaxed.sends, relaxed.log_mu, *COMPARING)
        free = uplink.usable & ~forced
        ranks = sets.rank(-jnp.where(free, scores, -jnp.inf))
        certainty = jnp.where(free, price_certainty(features), jnp.inf)
        candidates = prefixes_of(uplink, ranks, free, forced, certainty)
        best, time, energy = cheapest(uplink, grid, candidates, exact=1)
        if effort:
            rows = flips(best, certainty, effort)
            candidates = sets.Listed(jnp.where(free[None], rows, best[None]))
            best, time, energy = cheapest(uplink, grid, candidates, exact=2, known=best[None])
        return finish(uplink, best.astype(h.dtype), time, energy, relaxed.bound)

    def export(
        self,
        path: str | os.PathLike[str],
        num_devices: int,
        effort: int = 0,
        fields: Sequence[str] = (),
        access: str = "tdma",
    ) -> None:
        """Write the policy as a ``jax.export`` artifact, for programs that have JAX alone.

        ``jax.export.deserialize(bytearray(bytes)).call(h, system)`` then maps gains ``[N, K]``
        and a dictionary of the paper's fields of ``System``, ``[N, K]`` and ``[N]`` each, to one of
        the fields of ``Solution``. It runs on CPU, GPU and TPU with any N. All are float32 but
        ``active``, and the dictionary holds ``fields``, too.

        Args:
            path: the file, written atomically.
            num_devices: K; fewer devices are padded by ``active`` False.
            effort: as in ``decide``.
            fields: names of further fields of ``System``, or of those that are one number
                otherwise, as "max_power": ``[N, K]`` each, and "edge_cycles" ``[N]``.
            access: "tdma" or "fdma".

        Raises:
            ValueError: if ``num_devices`` or ``effort`` is no integer in its range, there is no
                such ``access``, or a field is not one of these.
        """
        from jax import export

        num_devices = integer("num_devices", num_devices, low=1)
        effort = integer("effort", effort, 0, LARGEST_EFFORT)
        known = (*sy.FLEXIBLE, *sy.ADDED_RANGES)
        for name in fields:
            if name not in known:
                raise refuse("fields", f"among {', '.join(known)}", name)
        if access not in sy.ACCESS:
            raise refuse("access", f"one of {', '.join(sy.ACCESS)}", access)

        number = export.symbolic_shape("N")[0]
        each = {*sy.PER_DEVICE, *fields} - {"edge_cycles"}

        def shape(name: str) -> jax.ShapeDtypeStruct:
            tail = (num_devices,) if name in each else ()
            return jax.ShapeDtypeStruct((number, *tail), bool if name == "active" else np.float32)

        def run(h: jax.Array, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
            one = lambda h, at: self.decide(System(**at, access=access), h, effort)  # noqa: E731
            found = vars(jax.vmap(one)(h, fields))
            return {name: leaf for name, leaf in found.items() if leaf is not None}

        shapes = {name: shape(name) for name in (*sy.SYSTEM_RANGES, *fields, "active")}
        exported = export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(
            jax.ShapeDtypeStruct((number, num_devices), np.float32), shapes
        )
        write_atomically(path, lambda file: file.write(exported.serialize()))

    def _scores(self, features: jax.Array, usable: jax.Array) -> jax.Array:
        return jnp.asarray(self.network.apply(self.params, features, usable))


def _check_one_channel(h: jax.Array) -> None:
    if np.ndim(h) != 1:
        rule = "one channel, [K]; batches go through meco_jax.solve"
        raise ValueError(f"h must be {rule}; got shape {np.shape(h)}")


def price_certainty(features: jax.Array) -> jax.Array:
    """How far the costs of sending and staying are apart at mu*, from ``[K, F]``: ``[K]``.

    Better than the network's own scores for what to flip, since these mix it with the order.
    """
    return jnp.abs(features[..., 0])


def flips(base: jax.Array, certainty: jax.Array, effort: int, first: int = 0) -> jax.Array:
    """Flip every subset of the least certain devices: ``[2^n, K]`` bool sets.

    Args:
        base: a set ``[K]`` bool.
        certainty: ``[K]``, the lower the sooner flipped.
        effort: n, how many devices to flip; at most K.
        first: rank of the first of these; after the most certain come the least again.
    """
    number, ranks = min(effort, len(base)), (sets.rank(certainty) - first) % len(base)
    return sets.flip(base, ranks, jnp.asarray(sets.subsets(number)))


def _squash(x: jax.Array) -> jax.Array:
    return jnp.clip(x / 4, -2.0, 2.0)


def _squash_log(x: jax.Array) -> jax.Array:
    return _squash(jnp.log(jnp.maximum(x, 1e-6)))
