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
from meco_jax.runtime.checks import integer, refuse
from meco_jax.scenarios import table1
from meco_jax.solver import Method, Scheme, name_of, solve

Sizes = int | Sequence[int]
NEVER = 1e30  # a tolerance that no gap exceeds: later stages are compiled on their own


def warm_up(
    num_devices: Sizes,
    batch: Sizes = 1,
    method: Method | Scheme | Sequence[Method | Scheme] = "bcos",
    policy: Policy | GeneralPolicy | None = None,
    effort: int = 4,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Compile every program that later calls of ``solve`` in this process need.

    Holds for any system and gains, but for JAX arrays on an accelerator, which have a program
    per shape, and for ``solve`` inside your own ``jax.jit``. A program takes seconds to compile;
    with JAX's persistent cache, ``JAX_COMPILATION_CACHE_DIR``, only once per machine.

    Args:
        num_devices: K of the calls: a number stands for all up to it, a sequence for its members.
            A policy of one system has its own K only.
        batch: channels per call, in the same way; 1 is also one channel ``[K]``.
        method: as in ``solve``, one or several; functions of your own too.
        policy: as in ``solve``.
        effort: as in ``solve``.
        report: called after every program with the number done and the number of all.

    Returns:
        What each program took by its name: compiling and a first run [s].

    Raises:
        ValueError: if a size is no positive integer, or as ``solve``.
    """
    devices, channels = _sizes("num_devices", num_devices), _sizes("batch", batch)
    methods = [method] if isinstance(method, str) or callable(method) else method
    calls = [
        call
        for name in methods
        for call in _calls(name, devices, channels, policy if name == "bcos" else None, effort)
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
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and make the calls that run each program of a method once."""
    if isinstance(policy, Policy):
        devices = [policy.system.num_devices]

    def call(*shape: int) -> Callable[[], Any]:
        return lambda: solve(np.full(shape, 1e-3), None, method, policy, NEVER, effort)

    if 1 in channels:
        for number in devices:  # a padded answer is cut to each K by a small program of its own
            yield f"{name_of(method)}, {number} devices, one channel", call(number)
    multiple = 1 if isinstance(policy, Policy) else engine.DEVICE_MULTIPLE
    for number in sorted({-(-number // multiple) * multiple for number in devices}):
        for size in _blocks(channels, engine.BATCH_SIZES):
            if size == 1:
                continue  # the program of one channel
            yield f"{name_of(method)}, {number} devices, {size} channels", call(size, number)
        if method == "optimal":
            yield from _later_calls(
                number, _blocks(range(1, max(channels) + 1), engine.LATER_SIZES)
            )


def _later_calls(number: int, sizes: Sequence[int]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and make the calls of what follows the first stage of the optimum."""
    h, system = np.full((1, number), 1e-3), sy.check_system(table1(number))
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
