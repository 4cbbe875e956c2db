"""Random numbers of a slot: each depends on (key, device, purpose) alone.

So padding and other devices change none of them, and other CSI or arrivals leave the channels as
they are. All come from uniform float32 draws, the same in every precision and with every
generator of JAX.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from meco_jax import propagation

FADING, MEASURING, ARRIVING, SIZES, MOVING, SHADOWING = range(6)  # what a draw is for


def uniform(key: jax.Array, devices: jax.Array, purpose: int, number: int) -> jax.Array:
    """Draw uniform numbers below 1 for devices of given indices ``[K]``: ``[K, number]``."""

    def draw(device: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, device), purpose)
        return jax.random.uniform(own, (number,), jnp.float32)

    return jax.vmap(draw)(devices).astype(jnp.result_type(float))


def complex_normal(key: jax.Array, devices: jax.Array, purpose: int) -> jax.Array:
    """Draw complex normal numbers of unit power, real and imaginary part: ``[K, 2]``."""
    u = uniform(key, devices, purpose, 2)
    return propagation.complex_normal(u[:, 0], u[:, 1])
