"""Many trainings as one program: a grid of lanes, over devices, resumable.

A lane is one training: a system, a seed, and any settings of its own. Lanes stand in groups
``[G, B]``: the G groups run one after another (``lax.map``), the B lanes of a group at once
(``vmap``). On accelerators all lanes that fit run at once, spread over all devices of this
process by a one-axis mesh. On a CPU B = 1, since batched small matrix products are slower there,
and each device has a program of its own: a lane is the same, but for rounding, however many devices
and processes there are, and has the same bits where each has as many lanes. Only lanes that
run hold training channels.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from meco_jax import system as sy
from meco_jax.paper.network import Policy
from meco_jax.paper.training import (
    Run,
    TrainConfig,
    TrainState,
    advance,
    check_config,
    make_policy,
    start,
)
from meco_jax.runtime.checks import outside_traces, refuse
from meco_jax.runtime.describe import short_repr
from meco_jax.runtime.loop import History, Keep, Metrics, Report, train_loop
from meco_jax.runtime.settings import as_key, moves_data
from meco_jax.scenarios import table1
from meco_jax.system import System

SEEDS = "seed", "task_seed", "train_seed"
NUMBERS = (
    "learning_rate", "final_learning_rate", "frozen_after", "multiplier", "multiplier_step",
    "margin",
)  # fmt: skip
DRAWS = {"bcos": 0, "pcos": 1, "test": 2}  # folded into a lane's key
LANE_BYTES = 4 * 2**30  # of the channels of the lanes that run at once


@short_repr
class Lanes(NamedTuple):
    """Trainings that run as one program, ``[L]`` of them; see ``make_grid``."""

    points: tuple[dict[str, float], ...]  # by axis, where each lane stands in the grid
    systems: System  # [L, ...] leaves, padded to the largest K
    seeds: np.ndarray  # [L] training seeds
    settings: dict[str, np.ndarray]  # numeric fields of TrainConfig that the grid sets, [L]
    digest: str = ""  # of devices that are not Table 1's

    def part(self, which: Sequence[int] | np.ndarray) -> Lanes:
        """Take some of the lanes, by their numbers."""
        take = partial(jax.tree.map, lambda leaf: leaf[np.asarray(which)])
        points = tuple(self.points[i] for i in which)
        return Lanes(points, take(self.systems), take(self.seeds), take(self.settings), self.digest)


@moves_data
def make_grid(axes: Mapping[str, Sequence[float]], system: System | None = None) -> Lanes:
    """Make the lanes of a full grid, the last axis fastest.

    Args:
        axes: values by name: "num_devices" K (14 by default), "slot" T [s] and any other numeric
            field of ``System``, the same for all devices, any numeric field of ``TrainConfig``,
            "task_seed" and "train_seed", or "seed" for both (0 by default).
        system: your own devices instead of Table 1's, of which a lane takes the first K; what
            the axes leave out is as it is here, but for K.

    Raises:
        ValueError: if a name is unknown, an axis is empty, or a value is out of its range; if
            ``system`` has batch axes, padding or too few devices.
    """
    known = ("num_devices", *SEEDS, *sy.RANGES, *NUMBERS)
    for name, values in axes.items():
        if name not in known:
            raise ValueError(f"axes must be among {', '.join(known)}; got {name!r}")
        if not len(values):
            raise ValueError(f"axes must have values each; got none for {name!r}")
        if name in ("num_devices", *SEEDS):
            for value in values:  # a part of a device, or a seed beyond int32, would become another
                if not (abs(value) < 2**31 and value == int(value)):
                    raise ValueError(f"{name} must be integers below 2^31; got {value}")
    points = tuple(dict(zip(axes, point)) for point in itertools.product(*axes.values()))
    column = lambda name, default: np.array([p.get(name, default) for p in points])  # noqa: E731
    seeds = column("seed", 0)
    task_seeds, train_seeds = (
        column(name, 0) if name in axes else seeds for name in ("task_seed", "train_seed")
    )
    num_devices = column("num_devices", 14)
    if np.min(num_devices) < 1:
        raise ValueError(f"num_devices must be at least 1; got {np.min(num_devices)}")
    most, digest = int(np.max(num_devices)), ""
    with jax.ensure_compile_time_eval():  # host data, inside other jitted code too
        if system is None:
            systems = jax.vmap(lambda seed: table1(most, seed=seed))(task_seeds)
        else:
            system = _first_devices(system, most)
            digest = _digest(system)
            spread = lambda leaf: np.broadcast_to(leaf, (len(points), *leaf.shape))  # noqa: E731
            systems = jax.tree.map(spread, system)
        active = np.arange(systems.num_devices) < num_devices[:, None]
        given = {name: column(name, 0.0) for name in sy.RANGES if name in axes}
        for name in given.keys() & {*sy.PER_DEVICE, *sy.ADDED_PER_DEVICE}:
            given[name] = np.broadcast_to(given[name][:, None], active.shape)
        systems = sy.check_system(systems.replace(active=active, **given))
        padded = {name: np.where(active, getattr(systems, name), 0)
                  for name in (*sy.PER_DEVICE, *sy.ADDED_PER_DEVICE)
                  if getattr(systems, name) is not None}  # fmt: skip
        kind = jnp.result_type(float)
        settings = {name: column(name, 0.0).astype(kind) for name in NUMBERS if name in axes}
        systems = sy.check_system(systems.replace(**padded))
        return Lanes(points, systems, train_seeds, settings, digest)


def _first_devices(system: System, num_devices: int) -> System:
    """Take devices of one system as NumPy arrays, per-device fields ``[K]``."""
    system = jax.tree.map(np.asarray, sy.check_system(system))
    for name, leaf in sy.leaves(system).items():
        if leaf.ndim > sy.core_rank(system, name):
            raise ValueError(f"system must have no batch axes; got {name} of shape {leaf.shape}")
    if not np.all(system.active):
        raise refuse("system", "without padding", system.active)
    own = system.num_devices
    if own < num_devices:
        raise ValueError(f"num_devices must be at most {own}, as system has; got {num_devices}")
    first = {name: np.broadcast_to(getattr(system, name), own)[:num_devices]
             for name in sy.per_device(system)}  # fmt: skip
    return system.replace(**first)


def _digest(system: System) -> str:
    """Tell systems apart in the settings of a training."""
    whole = hashlib.sha256()
    for name, leaf in sorted(sy.leaves(system).items()):
        whole.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode() + leaf.tobytes())
    if system.access != "tdma":
        whole.update(system.access.encode())
    return whole.hexdigest()[:16]


@moves_data
def train_grid(
    lanes: Lanes,
    config: TrainConfig | None = None,
    *,
    batch_size: int | None = None,
    report: Report | None = None,
    folder: str | PathLike[str] | None = None,
    save_seconds: float = 20.0,
) -> tuple[Policy, History]:
    """Train one policy per lane, all in one program.

    A lane equals ``train`` with the key ``lane_key(seed, config.scheme)``.

    Args:
        lanes: from ``make_grid``.
        config: the settings that all lanes share.
        batch_size: lanes that run at once; by default ``lane_batch_size``.
        report: called after every chunk with the number of steps done and the metrics ``[L]``.
        folder: keeps checkpoints here; a run that they hold goes on where it ended.
        save_seconds: least time between two checkpoints [s].

    Returns:
        The stacked policies, see ``take_lane``, and the history, arrays ``[chunks, L]``.

    Raises:
        ValueError: if a value is out of its range; ``OtherRunError`` if ``folder`` holds a
            run with other settings, ``DamagedRunError`` if it cannot be read, ``InUseError`` if
            another process trains in it.
        OSError: if a checkpoint cannot be written; those before stay.
    """
    outside_traces("train_grid", lanes)
    config = check_config(config or TrainConfig())
    for name, values in lanes.settings.items():
        for value in (np.min(values), np.max(values)):
            check_config(config.replace(**{name: float(value)}))
    groups = Groups(len(lanes.points), batch_size or lane_batch_size(lanes, config))
    arrays = groups.split((lanes.systems, lanes.seeds, lanes.settings))
    begin = partial(groups.run, partial(_start_lanes, config=config, size=groups.size), arrays)

    def step(runs: Parts, epoch: int) -> tuple[Parts, Metrics]:
        advance = partial(_advance_lanes, first_epoch=epoch, config=config, size=groups.size)
        runs, metrics = zip(*groups.run(advance, runs, arrays))
        return runs, groups.join(metrics)

    def with_states(runs: Parts, states: TrainState) -> Parts:
        return groups.run(lambda run, own: run._replace(state=own), runs, groups.split(states))

    keep = None
    if folder is not None:
        settings, states = _describe(lanes, config), partial(_states, groups)
        keep = Keep(Path(folder), settings, save_seconds, states, with_states)
    runs, history = train_loop(begin, step, config, report, keep)
    policies = make_policy(_states(groups, runs), lanes.systems, config)
    return jax.tree.map(jnp.asarray, policies), history


Parts = tuple[Any, ...]  # a tree of [G, B, ...] leaves per place


class Groups:
    """How L lanes stand as ``[G, B]`` in every place: a CPU device, or all accelerators."""

    def __init__(self, num_lanes: int, size: int) -> None:
        devices = np.array(jax.local_devices())
        # A program over several CPU devices rounds differently from that of one.
        places = np.split(devices, len(devices) if jax.default_backend() == "cpu" else 1)
        self.lanes = num_lanes
        self.size = -(-min(size, num_lanes) // len(devices)) * len(places[0])  # B
        self.number = -(-num_lanes // (self.size * len(places)))  # G
        spread = PartitionSpec(None, "lane")
        self._shardings = [NamedSharding(Mesh(place, ("lane",)), spread) for place in places]

    def split(self, tree: Any) -> Parts:
        """Lay out ``[L, ...]`` leaves as ``[G, B, ...]``; copies of the first lanes fill up."""
        shape = (len(self._shardings), self.number, self.size)
        return tuple(
            jax.tree.map(lambda x, i=i, to=to: jax.device_put(np.asarray(x)[i], to), tree)
            for i, to in zip(np.resize(np.arange(self.lanes), shape), self._shardings)
        )

    def run(self, program: Callable[..., Any], *parts: Parts) -> Parts:
        """Run a program in every place on its parts; none waits for another."""
        return tuple(program(*own) for own in zip(*parts))

    def join(self, parts: Parts) -> Any:
        """Take ``[G, B, ...]`` leaves back to ``[L, ...]`` on the host."""

        def flat(*leaves: jax.Array) -> np.ndarray:
            whole = [np.asarray(x).reshape(-1, *x.shape[2:]) for x in leaves]
            return np.concatenate(whole)[: self.lanes]

        return jax.tree.map(flat, *parts)


def share(lanes: Lanes) -> Lanes:
    """Take the lanes of this process: every n-th of n processes, as many for each."""
    count = jax.process_count()
    each = -(-len(lanes.points) // count)
    numbers = np.resize(np.arange(len(lanes.points)), each * count)
    return lanes.part(numbers[jax.process_index() :: count])


def gather(tree: Any, num_lanes: int) -> Any:
    """Put ``[L / n, ...]`` leaves of all n processes, see ``share``, together: ``[L, ...]``."""
    if jax.process_count() == 1:
        return tree

    def interleave(leaf: np.ndarray) -> np.ndarray:  # [n, L / n, ...]
        return np.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])[:num_lanes]

    return jax.tree.map(interleave, multihost_utils.process_allgather(tree))


def map_groups(function: Callable[..., Any], grouped: Any, size: int) -> Any:
    """Map ``function`` of one lane over ``[G, B, ...]`` leaves, B = ``size`` at once."""

    def group(lanes: Any) -> Any:
        if size > 1:
            return jax.vmap(function)(lanes)
        one = function(jax.tree.map(lambda leaf: leaf[0], lanes))
        return jax.tree.map(lambda leaf: leaf[None], one)

    return jax.lax.map(group, grouped)


def lane_batch_size(lanes: Lanes, config: TrainConfig) -> int:
    """Return how many lanes should run at once here: a device each on a CPU, elsewhere all."""
    if jax.default_backend() == "cpu":
        return len(jax.local_devices())
    lane_bytes = 4 * config.num_channels * lanes.systems.num_devices
    return max(1, min(len(lanes.points), LANE_BYTES * len(jax.local_devices()) // lane_bytes))


@moves_data
def lane_key(seed: jax.Array | int, draw: str) -> jax.Array:
    """Key of a lane's "bcos" or "pcos" training, or of its "test" channels."""
    return jax.random.fold_in(as_key("seed", seed), DRAWS[draw])


def take_lane(policies: Policy, lane: int) -> Policy:
    """Take one policy out of stacked ones, without its padding devices."""
    policy: Policy = jax.tree.map(lambda leaf: leaf[lane], policies)
    num_devices = int(jnp.sum(policy.system.active))
    system = jax.tree.map(lambda leaf: leaf[:num_devices] if leaf.ndim else leaf, policy.system)

    def trim(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        layer, kind = path[-2].key, path[-1].key
        if layer == "Dense_0" and kind == "kernel":
            return leaf[:num_devices]  # the features of real devices
        if layer == f"Dense_{len(policy.network.hidden)}":
            return leaf[..., :num_devices]  # their outputs
        return leaf

    return policy.replace(
        system=system, variables=jax.tree_util.tree_map_with_path(trim, policy.variables)
    )


def _describe(lanes: Lanes, config: TrainConfig) -> dict[str, Any]:
    """Name all that a training depends on, as JSON: resuming with other values is wrong."""
    settings = {name: getattr(config, name) for name in config.__dataclass_fields__}
    settings["hidden"] = list(config.hidden)
    axes = {name: [float(p[name]) for p in lanes.points] for name in lanes.points[0]}
    return settings | axes | ({"system": f"one with digest {lanes.digest}"} if lanes.digest else {})


def _states(groups: Groups, runs: Parts) -> TrainState:
    """Take the states ``[L, ...]`` of all lanes to the host."""
    return groups.join(groups.run(lambda run: run.state, runs))


@partial(jax.jit, static_argnames="size")
def _start_lanes(arrays: Any, config: TrainConfig, size: int) -> Run:
    def lane(arrays: Any) -> Run:
        system, seed, settings = arrays
        return start(lane_key(seed, config.scheme), system, config.replace(**settings))

    return map_groups(lane, arrays, size)


@partial(jax.jit, static_argnames="size", donate_argnums=0)
def _advance_lanes(
    runs: Run, arrays: Any, first_epoch: jax.Array, config: TrainConfig, size: int
) -> tuple[Run, Metrics]:
    def lane(both: Any) -> tuple[Run, Metrics]:
        run, (system, _, settings) = both
        return advance(run, first_epoch, system, config.replace(**settings))

    return map_groups(lane, (runs, arrays), size)
