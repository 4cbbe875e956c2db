"""What makes a call mean the same however JAX is set.

The library draws by Threefry, whatever the default generator is. A key's bits are hashes of
their places, so that ``jax_threefry_partitionable`` and ``jax.vmap`` change none of them; they
are JAX's own of its default settings. Draws are float32 in every precision, and widened after.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as jer

FORKED = (
    "meco_jax cannot compute in a fork of a process that used it, since JAX's threads are not "
    'copied; start processes by spawn, as multiprocessing.get_context("spawn") or '
    'AsyncVectorEnv(..., context="spawn"), or play all cells in one program by '
    "meco_jax.simulation.environment.make_vec(scenario, num_envs)"
)
GUARDS = "jax_transfer_guard_host_to_device", "jax_transfer_guard_device_to_host"
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_THREEFRY = jer.threefry_prng_impl
_SPREAD = np.uint32(0x9E3779B9)  # odd: no two words of a key become one


_process: int | None = None  # that uses the library


def is_forked() -> bool:
    """Tell whether this is a fork of a process that used the library.

    JAX's threads are not copied by a fork: the first computation would wait for them for ever.
    """
    global _process
    own = os.getpid()
    if _process is None:
        _process = own
    return _process != own


def moves_data(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a call move its caller's numbers to the device and back under ``jax_transfer_guard``.

    That is what the call is for: the guard looks for transfers that nobody asked for.

    Raises:
        RuntimeError: at a call in a forked process, which would hang.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if is_forked():
            raise RuntimeError(FORKED)
        if not any(getattr(jax.config, name) for name in GUARDS):
            return function(*args, **kwargs)  # sooner by 8 us
        with jax.transfer_guard("allow"):
            return function(*args, **kwargs)

    return call


def as_key(name: str, key: Any) -> jax.Array:
    """Take a seed or any PRNG key as a key whose draws depend on it alone.

    A seed, ``jax.random.key(seed)`` of the generators "threefry2x32", "rbg" and "unsafe_rbg",
    and ``jax.random.PRNGKey(seed)`` all mean the same.

    Args:
        name: of the argument, for the message.
        key: an integer, which counts modulo 2^32, a typed key or a raw one, ``uint32``; may be
            traced.

    Returns:
        A typed key for ``jax.random``.

    Raises:
        ValueError: if it is neither one integer nor one key.
    """
    shape, dtype = getattr(key, "shape", None), getattr(key, "dtype", bool)
    if type(key) is int or isinstance(key, np.integer):
        words = jnp.asarray(np.array([0, int(key) % 2**32], np.uint32))
    elif shape == () and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        words = jax.random.key_data(key).ravel()
    elif shape == () and jnp.issubdtype(dtype, np.integer):
        low = jnp.asarray(key).astype(np.uint32)
        words = jnp.stack([jnp.zeros_like(low), low])
    elif shape in ((2,), (4,)) and dtype == np.uint32:
        words = jnp.asarray(key)
    else:
        value = repr(key) if shape is None else f"an array of {dtype} of shape {shape}"
        raise ValueError(f"{name} must be an integer or one PRNG key; got {value}")
    return jax.random.wrap_key_data(_two_words(words), impl=_IMPL)


def _two_words(words: jax.Array) -> jax.Array:
    """Make a key of another generator one of Threefry: ``[W]`` words to ``[2]``.

    rbg repeats Threefry's two words: they stay. Where the halves differ all words count.
    """
    if len(words) == 2:
        return words
    first, *others = jnp.pad(words, (0, -len(words) % 2)).reshape(-1, 2)
    mixed = first
    for other in others:
        mixed = mixed ^ (first ^ other) * _SPREAD
    return mixed


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Hash the places of an array: raw keys ``[*shape, 2]``."""
    places = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    return jax.vmap(_THREEFRY.fold_in, (None, 0))(key, places).reshape(*shape, 2)


def _random_bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    words = _split(key, shape)
    if width == 64:
        high, low = (words[..., i].astype(jnp.uint64) for i in range(2))
        return high << jnp.uint64(32) | low
    return (words[..., 0] ^ words[..., 1]).astype(f"uint{width}")


_IMPL = jer.define_prng_impl(
    key_shape=(2,),
    seed=_THREEFRY.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_THREEFRY.fold_in,
    name="meco_jax threefry2x32",
    tag="meco",
)
