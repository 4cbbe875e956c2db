"""A learned baseline in the manner of DROO, written from its published description.

L. Huang, S. Bi, Y. J. Zhang, "Deep Reinforcement Learning for Online Computation Offloading in
Wireless Powered Mobile-Edge Computing Networks", IEEE Trans. Mobile Comput. 19(11), 2020: frame by
frame a small network proposes a relaxed mode, order-preserving quantisation makes k modes of it,
each is allocated exactly, and the best one is played and remembered; every few frames the network
takes a step on a batch of what it remembers.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meco_jax.wpmec import WPMEC
from meco_jax.wpmec.devices import allocate_set, make_devices

HIDDEN = 120, 80
MEMORY = 1024  # frames
BATCH = 128  # frames of a training step
INTERVAL = 10  # frames between steps
LEARNING_RATE = 0.01
LEAST_SCALE = 1e-30


class Run(NamedTuple):
    """What an online run over the frames achieved."""

    rate: np.ndarray  # [N] of the mode played in each frame [bit/s]
    seconds: float  # of the whole run, compilation left out
    decide_seconds: float  # of deciding all frames once more, without training


def quantise(relaxed: jax.Array, number: int) -> jax.Array:
    """Make ``number`` modes of a relaxed one ``[K]``, from 1 to K + 1, in its order: bool.

    The first rounds at 1/2. The others have the entries nearest to 1/2, one after the other, as
    their threshold, which itself falls on the other side than before.
    """
    order = jnp.argsort(jnp.abs(relaxed - 0.5))[: number - 1]
    at = relaxed[order][:, None]
    above = relaxed[None] > at
    equal = (relaxed[None] == at) & (at <= 0.5)
    return jnp.concatenate([(relaxed > 0.5)[None], above | equal])


def online(h: np.ndarray, system: WPMEC, number: int, seed: int) -> Run:
    """Run over frames ``[N, K]`` in order, N a multiple of ``INTERVAL``.

    Args:
        h: power gains [-].
        system: the physics, the same for all frames.
        number: candidates per frame.
        seed: of the weights and the batches.
    """
    num_devices = h.shape[1]
    scale = 1 / max(float(np.mean(h)), LEAST_SCALE)
    optimiser = optax.adam(LEARNING_RATE)
    weights = initial(jax.random.key(seed), (num_devices, *HIDDEN, num_devices))
    memory = jnp.zeros((2, MEMORY, num_devices))

    def decide(weights: Any, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        modes = quantise(jax.nn.sigmoid(network(weights, h * scale)), number)
        devices = make_devices(system, h)
        rates = jax.vmap(lambda mode: allocate_set(devices, mode).rate)(modes)
        best = jnp.argmax(rates)
        return rates[best], modes[best]

    def step(state: Any, block: Any) -> Any:
        weights, opt_state, memory = state
        place, h = block
        rate, mode = jax.vmap(partial(decide, weights))(h)
        rows = (place * INTERVAL + jnp.arange(INTERVAL)) % MEMORY
        memory = memory.at[:, rows].set(jnp.stack([h * scale, mode.astype(h.dtype)]))
        filled = jnp.minimum((place + 1) * INTERVAL, MEMORY)
        key = jax.random.fold_in(jax.random.key(seed), place)
        picked = jax.random.randint(key, (BATCH,), 0, filled)

        def loss(weights: Any) -> jax.Array:
            inputs, wanted = memory[:, picked]
            logits = jax.vmap(partial(network, weights))(inputs)
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, wanted))

        slope = jax.grad(loss)(weights)
        moves, opt_state = optimiser.update(slope, opt_state)
        return (optax.apply_updates(weights, moves), opt_state, memory), rate

    blocks = jnp.asarray(h, jnp.float32).reshape(-1, INTERVAL, num_devices)
    start = weights, optimiser.init(weights), memory
    run = jax.jit(partial(jax.lax.scan, step))
    given = start, (jnp.arange(len(blocks)), blocks)
    compiled = run.lower(*given).compile()
    began = time.perf_counter()
    (weights, *_), rate = jax.block_until_ready(compiled(*given))
    seconds = time.perf_counter() - began
    alone = jax.jit(lambda weights, h: jax.lax.map(lambda x: decide(weights, x)[0], h))
    gains = blocks.reshape(-1, num_devices)
    again = alone.lower(weights, gains).compile()
    began = time.perf_counter()
    jax.block_until_ready(again(weights, gains))
    return Run(np.asarray(rate, np.float64).ravel(), seconds, time.perf_counter() - began)


def initial(key: jax.Array, widths: tuple[int, ...]) -> Any:
    """Draw the weights and biases of every layer."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(k, (n, m)) * np.sqrt(2 / n), jnp.zeros(m))
        for k, n, m in zip(keys, widths[:-1], widths[1:])
    ]


def network(weights: Any, x: jax.Array) -> jax.Array:
    """Compute the logits of a relaxed mode ``[K]``."""
    for matrix, bias in weights[:-1]:
        x = jax.nn.relu(x @ matrix + bias)
    matrix, bias = weights[-1]
    return x @ matrix + bias
