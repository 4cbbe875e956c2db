"""Instances far beyond the usual: what the guide promises for, drawn from a few knobs."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from meco_jax import System
from meco_jax.system import leaves

KINDS = ("usual", "wild", "equal", "all forced", "none forced", "silent", "idle", "one")


class Knobs(NamedTuple):
    """What hypothesis turns, and shrinks: the rest is drawn by NumPy from ``seed``."""

    seed: int
    size: int  # of the arrays, K with padding
    kind: str
    spread: float  # decades that devices of a channel differ by


def knobs(sizes):
    """A strategy of ``Knobs``."""
    return st.builds(
        Knobs,
        seed=st.integers(0, 2**32 - 1),
        size=st.sampled_from(sizes),
        kind=st.sampled_from(KINDS),
        spread=st.sampled_from((0.0, 0.3, 1.0, 3.0, 12.0)),
    )


def draw(knobs, number):
    """Draw systems of ``number`` channels, ``[N, K]`` and ``[N]`` fields, and gains ``[N, K]``."""
    rng = np.random.default_rng(knobs.seed)
    kind, shape = knobs.kind, (number, knobs.size)

    def each(low, high):  # decades of a channel's own
        return 10 ** rng.uniform(low, high, number)

    def device(low, high):  # the channel's decade, and the devices around it
        middle = rng.uniform(low, high, (number, 1))
        return 10 ** np.clip(middle + knobs.spread * rng.uniform(-1, 1, shape), low, high)

    def sometimes(value, other, chance):
        return np.where(rng.random(shape) < chance * rng.integers(0, 2, (number, 1)), other, value)

    h = device(-9, 6)
    h = sometimes(sometimes(h, 0.0, 0.2), 1e-42, 0.2)  # deaf, and below the normal numbers
    system = {
        "task_bits": sometimes(device(0, 12), 0.0, 0.2),
        "cycles_per_bit": device(0, 4),
        "cpu_hz": device(6, 10.5),
        "weight": device(-3, 3),
        "slot": each(-6, 6),
        "bandwidth": each(3, 10),
        "noise_power": each(-15, -6),
        "max_power": each(-4, 2) * (rng.random(number) > 0.03),
        "chip": each(-31, -25) * (rng.random(number) > 0.03),
        "log_base": rng.choice([1.001, 2, np.e, 10], number),
    }
    rayleigh = np.sqrt(1e-6 * rng.exponential(size=shape))
    if kind != "wild":  # tasks and gains of Table 1's order, slots from hopeless to ample
        h = sometimes(rayleigh, h, 0.1)
        system |= {
            "task_bits": 10 ** rng.uniform(5.7, 6.5, shape),
            "cycles_per_bit": rng.uniform(200, 400, shape),
            "cpu_hz": rng.uniform(1e9, 2e9, shape),
            "slot": each(-1, 0.5),
            "bandwidth": each(6.5, 8),
            "noise_power": np.full(number, 1e-9),
            "max_power": np.full(number, 0.2),
            "chip": np.full(number, 1e-28),
        }
    if kind == "equal":
        for name in ("task_bits", "cycles_per_bit", "cpu_hz", "weight"):
            system[name] = np.repeat(system[name][:, :1], knobs.size, axis=1)
        h = np.repeat(h[:, :1], knobs.size, axis=1)
    elif kind == "all forced":
        system["cpu_hz"] = system["cpu_hz"] * rng.choice([0.0, 1e-2], (number, 1))
    elif kind == "none forced":
        system["cpu_hz"] = system["cpu_hz"] * 1e3
    elif kind == "silent":
        h = np.zeros(shape)
    devices = rng.integers(0, knobs.size + 1, (number, 1))
    if kind in ("idle", "one"):
        devices = np.full((number, 1), int(kind == "one"))
    active = np.arange(knobs.size)[None] < devices
    system = {name: np.asarray(value, np.float32) for name, value in system.items()}
    return System(active=active, **system), np.asarray(h, np.float32)


def on_edge(system, h):
    """Whether the fastest times of what must be sent just fit, or just do not: ``[N]`` bool.

    There float32 may say either; float64 tells by 2e-6.
    """
    values = {name: np.asarray(getattr(system, name), np.float64) for name in leaves(system)}
    row = {name: leaf[..., None] if leaf.ndim < 2 else leaf for name, leaf in values.items()}
    nats = np.log1p(row["max_power"] * np.asarray(h, np.float64) ** 2 / row["noise_power"])
    with np.errstate(divide="ignore", invalid="ignore"):
        least = row["task_bits"] * np.log(row["log_base"]) / row["bandwidth"] / nats
        ratio = 1 - row["slot"] * row["cpu_hz"] / (row["cycles_per_bit"] * row["task_bits"])
        must = (row["active"] > 0) & (ratio > 0)
        sums = [np.sum(np.where(must, part * least, 0), axis=-1) for part in (1, ratio)]
    return np.any([np.abs(used / values["slot"] - 1) < 2e-6 for used in sums], axis=0)
