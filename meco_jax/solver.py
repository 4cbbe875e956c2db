"""The library call: ``solve(h) -> Solution`` by any method, one channel or many.

This is the one place that checks arguments, broadcasts systems against channels and maps
the one-channel functions over batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import schemes
from meco_jax import system as sy
from meco_jax.allocation import Solution
from meco_jax.network import Policy
from meco_jax.system import ArrayLike, System

METHODS: dict[str, Callable[[System, jax.Array], Solution]] = {
    "mcos": schemes.mcos,
    "mcos_partial": schemes.mcos_partial,
    "pcos": schemes.pcos,
}


def solve(
    h: ArrayLike, system: System | None = None, method: str = "bcos", policy: Policy | None = None
) -> Solution:
    """Decide who offloads, at what powers and in which slot times: P1, (6).

    Works eagerly, under ``jax.jit`` and under ``jax.vmap``; the energy can be differentiated.

    Args:
        h: amplitude gains ``[..., K]`` [-].
        system: the physics, any field with leading batch axes that broadcast against h's.
            By default the policy's, or ``table1(K)``.
        method: "bcos", a policy's decision made feasible, with optimal powers and times;
            "mcos" or "mcos_partial", no more offloading than the deadline asks for;
            "pcos", the optimum if tasks could be split.
        policy: the trained policy for "bcos", from ``meco_jax.train``.

    Returns:
        A ``Solution``. A channel whose forced devices do not fit into the slot is infeasible:
        ``feasible`` False, ``energy`` and ``lower_bound`` infinite, powers and times 0.

    Raises:
        ValueError: eagerly, if a value is out of range; at any time, if a shape is wrong, the
            method is unknown, or the policy is missing or was trained for another K. Under
            ``jax.jit`` values out of range give ``feasible`` False and NaN energy.
    """
    if method not in (*METHODS, "bcos"):
        known = ", ".join(sorted((*METHODS, "bcos")))
        raise ValueError(f"method must be one of {known}; got {method!r}")
    if method == "bcos" and policy is None:
        raise ValueError(
            "policy must be given for method 'bcos'; train one with "
            "`policy, history = meco_jax.train(system, key=jax.random.key(0))`; got None"
        )
    if system is None:
        num_devices = (np.shape(h) or (0,))[-1]
        system = policy.system if policy else sy.table1(num_devices)
    system = sy.check_system(system)
    h = sy.check_channels(h, system.num_devices)
    if policy and policy.system.num_devices != system.num_devices:
        raise ValueError(
            f"policy must be trained for {system.num_devices} devices, like h; "
            f"got one trained for {policy.system.num_devices}"
        )
    return _solve(h, system, policy if method == "bcos" else None, method)


@partial(jax.jit, static_argnames="method")
def _solve(h: jax.Array, system: System, policy: Policy | None, method: str) -> Solution:
    """Solve channels of any batch shape, each with its own system where fields are batched."""
    if policy is not None:
        offload, _, _ = policy.outputs(h.reshape(-1, h.shape[-1]))
        offload = offload.reshape(h.shape)
        return _for_each(_checked(schemes.repair), system, h, offload)
    return _for_each(_checked(METHODS[method]), system, h)


def _checked(function: Callable[..., Solution]) -> Callable[..., Solution]:
    """Answer a channel whose values are out of range with NaN energy."""

    def checked(system: System, h: jax.Array, *arguments: jax.Array) -> Solution:
        solution, valid = function(system, h, *arguments), sy.is_valid(system, h)
        return Solution(
            offload=jnp.where(valid, solution.offload, 0.0),
            power=jnp.where(valid, solution.power, 0.0),
            time=jnp.where(valid, solution.time, 0.0),
            energy=jnp.where(valid, solution.energy, jnp.nan),
            lower_bound=jnp.where(valid, solution.lower_bound, jnp.nan),
            feasible=solution.feasible & valid,
        )

    return checked


def _for_each(function: Callable[..., Solution], system: System, *arrays: jax.Array) -> Solution:
    """Map a function of one channel over leading axes of ``arrays`` ``[..., K]`` and ``system``."""
    core = {name: int(name in sy.PER_DEVICE) for name in (*sy.SYSTEM_RANGES, "active")}
    leaves = {name: jnp.asarray(getattr(system, name)) for name in core}
    batches = [leaf.shape[: leaf.ndim - core[name]] for name, leaf in leaves.items()]
    batch = jnp.broadcast_shapes(*batches, *(array.shape[:-1] for array in arrays))

    def flat(leaf: jax.Array, rank: int) -> jax.Array:
        tail = leaf.shape[leaf.ndim - rank :]
        return jnp.broadcast_to(leaf, batch + tail).reshape((-1, *tail))

    axes = {name: 0 if leaf.ndim > core[name] else None for name, leaf in leaves.items()}
    for name, axis in axes.items():
        if axis == 0:
            leaves[name] = flat(leaves[name], core[name])
    solutions = jax.vmap(function, (System(**axes), *[0] * len(arrays)))(
        System(**leaves), *(flat(array, 1) for array in arrays)
    )
    return jax.tree.map(lambda x: x.reshape(batch + x.shape[1:]), solutions)
