"""The library call: ``solve(h) -> Solution`` by any method, one channel or many.

This is the one place that names the methods, and that decides what runs where: in the host's
blocks, or as a part of a program that is being recorded.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax import engine
from meco_jax import system as sy
from meco_jax.batching import Program, host_batch, invalidate, map_checked, padded_on_host
from meco_jax.engine import LATER_SIZES, HostBatch
from meco_jax.exact import allocation as one_channel
from meco_jax.exact import enumeration, schemes, search
from meco_jax.learned.policy import LARGEST_EFFORT, GeneralPolicy
from meco_jax.paper.network import Policy
from meco_jax.runtime.arguments import (
    batch_shape,
    check_call,
    check_decision,
    check_order,
    gains_first,
)
from meco_jax.runtime.checks import (
    inside_trace,
    integer,
    is_traced,
    one_number,
    real,
    refuse,
    require,
    zero_or_one,
)
from meco_jax.runtime.policies import pretrained
from meco_jax.runtime.settings import moves_data
from meco_jax.scenarios import table1
from meco_jax.solution import Solution
from meco_jax.system import ArrayLike, System

Method = Literal["policy", "bcos", "mcos", "mcos_partial", "optimal", "pcos"]
Scheme = Callable[[System, jax.Array], Solution]  # of one channel
METHODS: dict[str, Scheme] = {
    "mcos": schemes.mcos,
    "mcos_partial": schemes.mcos_partial,
    "pcos": schemes.pcos,
    "optimal": enumeration.optimal,
}
POLICY = "policy", "bcos"  # two names of one method
NAMES = *METHODS, *POLICY


@moves_data
def solve(
    h: ArrayLike,
    system: System | None = None,
    method: Method | Scheme = "policy",
    policy: Policy | GeneralPolicy | None = None,
    tolerance: float = 1e-4,
    effort: int = 4,
    max_nodes: int = search.MAX_NODES,
) -> Solution:
    """Decide who offloads, at what powers and in which slot times: P1, (6).

    Works eagerly, under ``jax.jit`` and under ``jax.vmap``. The numbers of a ``Solution`` can be
    differentiated, twice too: as those of the decision that is found, 0 where it is infeasible.
    ``lower_bound`` has the derivative of the bound that holds, of the energy where they meet.

    Args:
        h: amplitude gains ``[..., K]`` [-].
        system: the physics, any field with leading batch axes that broadcast against h's.
            By default the policy's, or ``table1(K)``.
        method: "policy", the decision of a policy, with optimal powers and times; "bcos" is an
            older name of it. "mcos" or "mcos_partial", no more offloading than the deadline asks
            for; "pcos", the optimum if tasks could be split; "optimal", the optimum with a proof:
            ``lower_bound`` comes within ``tolerance`` of the energy. Under ``jax.jit`` only
            the first stage runs, and ``lower_bound`` says what it proves. Or a scheme of your
            own, ``method(system, h) -> Solution`` of one channel: gains ``[K]`` and fields as
            ``System`` has them, of your devices alone. The function is compiled once per K, so
            it must be hashable; a lambda made anew per call is compiled anew, and numbers that
            it closes over stay as they were. ``solve`` does not check its answer;
            ``energy_per_device`` may be left out.
        policy: for "policy" alone, from ``meco_jax.train`` or ``train_policy``; by default the
            one that is shipped, which serves any system and searches near its decision as
            ``effort`` says. The decision of a network from ``train`` is what ``repair`` makes of
            it; ``improve`` searches for a better one.
        tolerance: relative gap up to which "optimal" goes on looking [-].
        effort: of a general policy, 0-12: n compares the 2^n sets that differ in the n least
            certain devices; 0 is the fastest.
        max_nodes: work of the search in float64 that "optimal" ends with, a channel: partial
            decisions that it may bound, at least 0. The default takes about a second where
            nothing is proven before; ``lower_bound`` says what is proven by then.

    Returns:
        A ``Solution``. A channel whose forced devices do not fit, into the slot or into the
        edge's cycles, is infeasible:
        ``feasible`` False, ``energy`` and ``lower_bound`` infinite, powers and times 0.
        ``meco_jax.explain`` says why.

    Raises:
        ValueError: eagerly, if a value is out of range; at any time, if a shape is wrong, the
            method is unknown, or the policy was trained for another K or is not used; if your
            own method is not hashable or returns no ``Solution`` of one channel. Under
            ``jax.jit`` values out of range give ``feasible`` False and NaN energy.
    """
    method = _check_method(method, policy)
    check_order("solve", h)
    effort = integer("effort", effort, 0, LARGEST_EFFORT)
    max_nodes = integer("max_nodes", max_nodes, low=0)
    require("tolerance", one_number("tolerance", tolerance), 0.0, included=False)
    if system is None:
        system = _default_system(h, policy)
    h, system = check_call(h, system)
    if isinstance(policy, Policy) and policy.system.num_devices != system.num_devices:
        raise ValueError(
            f"policy must be trained for {system.num_devices} devices, like h; "
            f"got one trained for {policy.system.num_devices}"
        )
    own = (policy or pretrained()) if method == "policy" else None
    batch = batch_shape(system, h)
    effort = effort if isinstance(own, GeneralPolicy) else 0
    if _is_recorded(h, system, own):
        # A function may close over what is being recorded: no program of its own may keep that.
        solve_all: Any = _solve
        if callable(method) and inside_trace():
            solve_all = solve_all.__wrapped__
        return solve_all(h, system, own, method, effort=effort)
    if _stays_on_device(h, method) or 0 in batch:
        return _program(own, method, enumeration.ONLY_STAGE, effort)(h, system)
    multiple = devices_multiple(method, own)
    program = _program(own, method, enumeration.STAGES[0], effort)
    if not batch:
        found = engine.run_one(program, h, partial(padded_on_host, system), multiple)
        if method != "optimal" or not _is_open(found, tolerance):
            return found
    rows = host_batch(h, system, multiple)
    found = rows.run(program, np.arange(rows.number), engine.BATCH_SIZES)
    if method == "optimal":
        _escalate(rows, found, tolerance, max_nodes)
    return rows.unpack(found)


def _check_method(method: Any, policy: Any) -> Any:
    """Return the method, or raise a ValueError unless it and the policy go together."""
    engine.check_method(method, NAMES)
    method = "policy" if isinstance(method, str) and method in POLICY else method
    if not isinstance(policy, (Policy, GeneralPolicy, type(None))):
        rule = "trained or from meco_jax.load_policy"
        if isinstance(policy, (str, os.PathLike)):
            rule = f"read first, as by meco_jax.load_policy({str(policy)!r})"
        elif callable(policy):
            rule = "trained or from meco_jax.load_policy; a function goes through method="
        raise refuse("policy", rule, policy)
    if policy is not None and method != "policy":
        raise refuse("policy", f"None for method {name_of(method)!r}, which uses none", policy)
    return method


def devices_multiple(method: str | Scheme, policy: Policy | GeneralPolicy | None) -> int:
    """Return to what K is padded: a network and a function of the user see their own devices."""
    return 1 if callable(method) or isinstance(policy, Policy) else engine.DEVICE_MULTIPLE


def name_of(method: Method | Scheme) -> str:
    """Return the name of a method or of a function."""
    return method if isinstance(method, str) else getattr(method, "__name__", repr(method))


@gains_first
def mcos(h: ArrayLike, system: System) -> Solution:
    """Offload only the tasks that miss the deadline locally: ``solve(h, system, "mcos")``."""
    return solve(h, system, "mcos")


@gains_first
def mcos_partial(h: ArrayLike, system: System) -> Solution:
    """Offload only what misses the deadline locally: ``solve(h, system, "mcos_partial")``."""
    return solve(h, system, "mcos_partial")


@gains_first
def pcos(h: ArrayLike, system: System) -> Solution:
    """Offload any part of each task optimally: ``solve(h, system, "pcos")``."""
    return solve(h, system, "pcos")


@gains_first
@moves_data
def allocate(h: ArrayLike, system: System, offload: ArrayLike) -> Solution:
    """Give decisions their optimal powers and times as they are: P1, (6), with a fixed.

    Example::

        nobody = meco_jax.allocate(h, system, np.zeros(system.num_devices))

    Args:
        h: amplitude gains ``[..., K]`` [-].
        system: the physics, any field with leading batch axes.
        offload: decisions ``[..., K]``, 0 or 1 [-]; padding is ignored.

    Returns:
        A ``Solution`` of the broadcast batch shape, see ``solve``. Infeasible where a decision
        does not fit or a forced device stays.

    Raises:
        ValueError: as ``solve``, and if ``offload`` is not 0 or 1 everywhere.
    """
    h, system = check_call(h, system)
    offload = check_decision(offload, system, h)
    zero_or_one("offload", offload)
    return _map_decisions(one_channel.allocate, h, system, offload)


@gains_first
@moves_data
def repair(h: ArrayLike, system: System, offload: ArrayLike) -> Solution:
    """Change decisions as little as makes them feasible, with optimal powers and times.

    A decision that is feasible comes back bit for bit. Else the devices that must send are added,
    and if the decision does not fit, devices leave one after the other: the one whose leaving
    costs least per what it frees. No device is added because sending saves energy, so the answer
    says how good the decision is. ``improve`` searches for a better one.

    Example::

        projected = meco_jax.repair(h, system, policy(h).offload)

    Args:
        h: amplitude gains ``[..., K]`` [-].
        system: the physics, any field with leading batch axes.
        offload: decisions ``[..., K]``, 0 to 1; a device is chosen to send above 1/2 [-].

    Returns:
        A ``Solution`` of the broadcast batch shape, see ``solve``; infeasible only where the
        forced devices do not fit.

    Raises:
        ValueError: as ``solve``, and if ``offload`` is not from 0 to 1 everywhere.
    """
    h, system = check_call(h, system)
    offload = check_decision(offload, system, h)
    return _map_decisions(schemes.repair, h, system, offload)


@gains_first
@moves_data
def improve(h: ArrayLike, system: System, offload: ArrayLike) -> Solution:
    """Search for better decisions from given ones: a fast method, and no judge of them.

    The devices are ranked, those that were chosen first; the best number of them sends, and then
    one device may change. The answer is close to the optimum whatever the decision was, so it
    says nothing about a scheme: ``repair`` and ``allocate`` judge.

    Args:
        h: amplitude gains ``[..., K]`` [-].
        system: the physics, any field with leading batch axes.
        offload: decisions ``[..., K]``, 0 to 1; a device is chosen to send above 1/2 [-].

    Returns:
        A ``Solution`` of the broadcast batch shape, see ``solve``; it costs no more than what
        ``repair`` returns, and no more than sending the forced devices alone.

    Raises:
        ValueError: as ``solve``, and if ``offload`` is not from 0 to 1 everywhere.
    """
    h, system = check_call(h, system)
    offload = check_decision(offload, system, h)
    return _map_decisions(schemes.improve, h, system, offload)


@partial(jax.jit, static_argnums=0)
def _map_decisions(
    function: Callable[..., Solution], h: jax.Array, system: System, offload: jax.Array
) -> Solution:
    """Map a one-channel function of a decision, and answer bad values under jit with NaN."""

    def checked(system: System, h: jax.Array, offload: jax.Array) -> Solution:
        valid = jnp.all((offload >= 0) & (offload <= 1) | ~system.active)
        decided = function(system, h, jnp.where(valid, offload, 0.0))
        return invalidate(decided, valid, system.active)

    return map_checked(checked, "function", system, h, offload)


def _default_system(h: ArrayLike, policy: Policy | GeneralPolicy | None) -> System:
    """Return the system that a call without one means: the policy's, or Table 1."""
    if isinstance(policy, Policy):
        return policy.system
    shape = real("h", h, sy.COMPLEX_HINT).shape
    if not shape or not shape[-1]:
        raise ValueError(f"h must have one gain per device, [..., K]; got shape {shape}")
    if shape[-1] == 1 and len(shape) > 1 and shape[-2] > 1:
        raise ValueError(
            f"h must have its devices on the last axis; got a column of shape {shape}: pass h.T, "
            f"or system=table1(1) for as many channels of one device"
        )
    return _table1(shape[-1], jax.config.jax_enable_x64)  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=64)
def _table1(num_devices: int, x64: bool) -> System:
    """Draw Table 1 once per size and precision, as numbers wherever the call stands."""
    del x64
    with jax.ensure_compile_time_eval():
        return table1(num_devices)


@partial(jax.jit, static_argnames=("method", "stage", "effort"))
def _solve(
    h: jax.Array,
    system: System,
    policy: Policy | GeneralPolicy | None,
    method: str | Scheme,
    stage: enumeration.Stage = enumeration.ONLY_STAGE,
    effort: int = 0,
) -> Solution:
    """Solve channels of any batch shape, each with its own system where fields are batched."""
    if isinstance(policy, GeneralPolicy):
        return map_checked(partial(policy.decide, effort=effort), "policy", system, h)
    if policy is not None:
        return map_checked(schemes.repair, "policy", system, h, policy.outputs(h).offload)
    function = METHODS[method] if isinstance(method, str) else method
    if function is enumeration.optimal:
        function = partial(enumeration.optimal, stage=stage)
    return map_checked(function, "method", system, h, multiple=devices_multiple(method, None))


def _program(
    policy: Policy | GeneralPolicy | None,
    method: str | Scheme,
    stage: enumeration.Stage,
    effort: int = 0,
) -> Program:
    """Return ``_solve`` of gains and systems, which lets go of all programs before too many."""

    def run(h: Any, system: System) -> Solution:
        engine.let_go(_solve)
        return _solve(h, system, policy, method, stage, effort)

    return run


def later_stage(stage: enumeration.Stage) -> Program:
    """Return the program of a later stage of the optimum."""
    return _program(None, "optimal", stage)


def _is_open(found: Solution, tolerance: float) -> Any:
    """Tell whether more is to be looked for, ``[...]`` bool."""
    cost, bound = np.asarray(found.cost), np.asarray(found.lower_bound)
    with np.errstate(invalid="ignore"):  # inf - inf where nothing is feasible
        return cost - bound > tolerance * cost


def _escalate(rows: HostBatch[System], best: Solution, tolerance: float, max_nodes: int) -> None:
    """Send the channels whose gap is open to larger stages, and the last ones to the host.

    Args:
        rows: all channels.
        best: what is known of them, improved in place.
        tolerance: relative gap that is good enough [-].
        max_nodes: work of the search a channel.
    """

    def enumerated(stage: enumeration.Stage, places: np.ndarray) -> Solution:
        return rows.run(later_stage(stage), places, LATER_SIZES)

    def searched(place: int) -> Solution:
        gains, one = rows.take(place)
        known = jax.tree.map(lambda x: x[place], best)
        cost, kind = float(known.cost), known.energy.dtype.type
        decision, bound = search.search(one, gains, cost, tolerance / 2, max_nodes)
        if decision is not None:
            known = search.solution_on_host(one, gains, decision)
        low = engine.rounded(bound, kind, up=False)
        return known.replace(lower_bound=np.clip(low, best.lower_bound[place], known.cost))

    stages = [partial(enumerated, stage) for stage in enumeration.STAGES[1:]]
    engine.escalate(best, partial(_is_open, tolerance=tolerance), stages, searched)


def _stays_on_device(h: jax.Array, method: str | Scheme) -> bool:
    """Whether moving gains to the host and back costs more than a program for their shape."""
    return isinstance(h, jax.Array) and jax.default_backend() != "cpu" and method != "optimal"


def _is_recorded(*trees: object) -> bool:
    """Tell whether a call becomes a part of a program: nothing can be looked at on the host."""
    return is_traced(trees) or inside_trace()
