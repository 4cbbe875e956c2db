"""Compile what ``solve`` needs before it is called: for services that answer at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from meco_jax import engine, solver
from meco_jax import system as sy
from meco_jax.batching import host_batch
from meco_jax.exact import enumeration, search
from meco_jax.learned.policy import GeneralPolicy
from meco_jax.paper.network import Policy
from meco_jax.runtime.arguments import core_leaves
from meco_jax.runtime.checks import integer, refuse
from meco_jax.scenarios import table1
from meco_jax.solver import Method, Scheme, name_of, solve
from meco_jax.system import System

Sizes = int | Sequence[int]
NEVER = 1e30  # a tolerance that no gap exceeds: later stages are compiled on their own


def warm_up(
    num_devices: Sizes | None = None,
    batch: Sizes = 1,
    method: Method | Scheme | Sequence[Method | Scheme] = "policy",
    policy: Policy | GeneralPolicy | None = None,
    effort: int = 4,
    report: Callable[[int, int], None] | None = None,
    system: System | None = None,
) -> dict[str, float]:
    """Compile every program that later calls of ``solve`` in this process need.

    Holds for all gains, and for all systems that leave out the same fields as ``system``, have
    the same ones per device and the same ``access``: each such kind has programs of its own. Does
    not hold for JAX arrays on an accelerator, which have a program per shape, and for ``solve``
    inside your own ``jax.jit``. A program takes seconds to compile; with JAX's persistent cache,
    ``JAX_COMPILATION_CACHE_DIR``, only once per machine. Example::

        real = meco_jax.table1(14).replace(circuit_power=0.05, edge_cycles=2e9)
        meco_jax.warm_up(batch=64, system=real)

    Args:
        num_devices: K of the calls: a number stands for all up to it, a sequence for its members.
            By default the K of ``system``. A policy of one system has its own K only.
        batch: channels per call, in the same way; 1 is also one channel ``[K]``.
        method: as in ``solve``, one or several; functions of your own too.
        policy: as in ``solve``.
        effort: as in ``solve``.
        report: called after every program with the number done and the number of all.
        system: one of the kind that the calls will have, of any K; by default one like Table 1.

    Returns:
        What each program took by its name: compiling and a first run [s].

    Raises:
        ValueError: if a size is no positive integer, neither ``num_devices`` nor ``system`` is
            given, or as ``solve``.
    """
    if system is not None:
        system = sy.check_system(system)
    if num_devices is None:
        if system is None:
            raise refuse("num_devices", "given where system is not", num_devices)
        num_devices = [system.num_devices]
    devices, channels = _sizes("num_devices", num_devices), _sizes("batch", batch)
    methods = [method] if isinstance(method, str) or callable(method) else method
    calls = [
        call
        for name in methods
        for call in _calls(
            name, devices, channels, policy if name in solver.POLICY else None, effort, system
        )
    ]
    seconds = {}
    for done, (name, call) in enumerate(calls, 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds[name] = time.perf_counter() - start
        if report is not None:
            report(done, len(calls))
    return seconds


def _calls(
    method: Method | Scheme,
    devices: Sequence[int],
    channels: Sequence[int],
    policy: Policy | GeneralPolicy | None,
    effort: int,
    system: System | None,
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and make the calls that run each program of a method once."""
    if isinstance(policy, Policy):
        devices = [policy.system.num_devices]

    def call(*shape: int) -> Callable[[], Any]:
        like = None if system is None else resized(system, shape[-1])
        return lambda: solve(np.full(shape, 1e-3), like, method, policy, NEVER, effort)

    if 1 in channels:
        for number in devices:  # a padded answer is cut to each K by a small program of its own
            yield f"{name_of(method)}, {number} devices, one channel", call(number)
    multiple = solver.devices_multiple(method, policy)
    for number in sorted({-(-number // multiple) * multiple for number in devices}):
        for size in _blocks(channels, engine.BATCH_SIZES):
            if size == 1:
                continue  # the program of one channel
            yield f"{name_of(method)}, {number} devices, {size} channels", call(size, number)
        if method == "optimal":
            blocks = _blocks(range(1, max(channels) + 1), engine.LATER_SIZES)
            like = resized(system or sy.check_system(table1(number)), number)
            yield from _later_calls(like, blocks)


def resized(system: System, number: int) -> System:
    """Make a system of the same kind with ``number`` devices, all like the first one."""
    fields = {}
    for name, (leaf, rank) in core_leaves(system, np.asarray).items():
        one = leaf[(0,) * (leaf.ndim - rank)]
        each = name in sy.per_device(system) and rank
        fields[name] = np.full(number, one.ravel()[0]) if each else one
    return System(**fields, access=system.access)


def _later_calls(system: System, sizes: Sequence[int]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and make the calls of what follows the first stage of the optimum."""
    number = system.num_devices
    h = np.full((1, number), 1e-3)
    rows = host_batch(sy.check_channels(h, number), system, 1)
    for place, stage in enumerate(enumeration.STAGES[1:], 2):
        for size in sizes:
            name = f"optimal, {number} devices, {size} channels, stage {place}"
            repeated = np.zeros(size, int)
            yield name, partial(rows.run, solver.later_stage(stage), repeated, engine.LATER_SIZES)
    gains, one = rows.take(np.array(0))

    def call() -> Any:
        decision = np.zeros(number, bool)
        return search.search(one, gains, 1.0, 1.0), search.solution_on_host(one, gains, decision)

    yield f"optimal, {number} devices, search", call


def _blocks(channels: Sequence[int], sizes: tuple[int, ...]) -> list[int]:
    """Return the sizes into which the solver cuts these numbers of channels."""
    return sorted({engine.block_size(number, sizes) for number in channels})


def _sizes(name: str, sizes: Sizes) -> Sequence[int]:
    """Return all sizes that are meant."""
    if not np.iterable(sizes):
        return range(1, integer(name, sizes, low=1) + 1)
    given = [integer(name, size, low=1) for size in sizes]
    if not given:
        raise refuse(name, "one size or several", sizes)
    return given
