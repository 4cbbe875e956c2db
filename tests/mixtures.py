"""Systems with all the fields beyond P1, and the check of an answer on them."""

import jax
import numpy as np
import pytest
import reference
from cases import LEAST_ENERGY
from instances import draw

from meco_jax import System

NAMES = (
    "max_power", "noise_power", "chip", "circuit_power", "fixed_time", "fixed_energy",
    "delay_weight", "edge_cycles",
)  # fmt: skip


def mixtures(seed, number, num_devices, access="tdma", names=NAMES, without=0.4):
    """Systems ``[N, K]`` with the fields ``names``, gains ``[N, K]``.

    In a system each field is as if it were not there by the chance ``without``.
    """
    rng = np.random.default_rng(seed)
    shape, each = (number, num_devices), (number, 1)

    def maybe(value, neutral=0.0):
        return np.where(rng.random(each) < without, neutral, value)

    def spread(low, high):
        return 10 ** rng.uniform(low, high, shape)

    bits, cycles = rng.uniform(8e5, 2.4e6, shape), rng.uniform(200, 400, shape)
    slot, part = rng.uniform(0.15, 1.6, number), rng.uniform(0.3, 1, number)
    drawn = {
        "max_power": maybe(spread(-2, 0), 0.2),
        "noise_power": maybe(1e-9 * spread(-1, 1), 1e-9),
        "chip": maybe(1e-28 * rng.uniform(0.3, 3, shape), 1e-28),
        "circuit_power": maybe(spread(-3, 0)),
        "fixed_time": maybe(slot[:, None] * spread(-4, -0.8)),
        "fixed_energy": maybe(spread(-4, -1)),
        "delay_weight": maybe(spread(-3, 0.5)),
        "edge_cycles": np.sum(bits * cycles, axis=1) * part,
    }
    fields = {name: drawn[name] for name in names} | {
        "task_bits": bits,
        "cycles_per_bit": cycles,
        "cpu_hz": rng.uniform(1e9, 2e9, shape),
        "weight": maybe(rng.uniform(0.5, 2, shape), 1.0),
        "slot": slot,
        "bandwidth": 10 ** rng.uniform(6.7, 7.5, number),
        "log_base": rng.choice([2, np.e, 10], number),
        "mean_gain": np.full(number, 1e-6),
    }
    h = np.sqrt(1e-6 * 10 ** rng.uniform(-1, 1, each) * rng.exponential(size=shape))
    fields = {name: np.asarray(value, np.float32) for name, value in fields.items()}
    return System(**fields, active=np.ones(shape, bool), access=access), h.astype(np.float32)


def wild_mixtures(knobs, number, access):
    """``draw`` with all fields in decades far beyond the usual, and some as if not there."""
    system, h = draw(knobs, number)
    rng = np.random.default_rng([knobs.seed, 1])
    shape, each = h.shape, (number, 1)

    def decades(low, high):
        return 10 ** np.clip(
            rng.uniform(low, high, each) + knobs.spread * rng.uniform(-1, 1, shape), low, high
        )

    def maybe(value):
        return value * (rng.random(each) < 0.6)

    def around(name, least):  # of the system's own number
        value = getattr(system, name)[:, None] * np.ones(shape)
        near = np.maximum(value * decades(-1, 1), least)
        return np.where((rng.random(each) < 0.6) & (value > 0), near, value)

    slot = system.slot[:, None].astype(float)
    cycles = system.task_bits.astype(float) * system.cycles_per_bit * system.active
    total = np.maximum(np.sum(cycles, axis=1), 1.0)
    fields = {
        "max_power": np.minimum(around("max_power", 1e-4), 100),
        "noise_power": np.clip(around("noise_power", 1e-15), 1e-15, 1e-6),
        "chip": np.clip(around("chip", 0), 0, 1e-25),
        "circuit_power": maybe(decades(-4, 1)),
        "fixed_time": maybe(slot * decades(-6, 0)),
        "fixed_energy": maybe(decades(-8, 1)),
        "delay_weight": maybe(decades(-6, 2)),
        "edge_cycles": total * 10 ** rng.uniform(-1, 0.3, number),
    }
    fields = {name: np.asarray(value, np.float32) for name, value in fields.items()}
    return system.replace(**fields, access=access), h


def on_edge(system, h):
    """Whether what must be sent just fits the slot or the server, or just does not: ``[N]``."""
    found = []
    for i in range(len(h)):
        p, _ = reference.extended(one_of(system, i), h[i])
        must = p.required > 0
        parts, least = (1, p.required[must]), (p.min_time + p.fixed)[must] / p.slot
        sums = [np.sum(part * need) for part in parts for need in (least, p.edge[must])]
        found.append(any(abs(used - 1) < 4e-6 for used in sums))
    return np.array(found)


def one_of(system, place):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[place] if np.ndim(leaf) else leaf, system)


def optima(system, h):
    """Costs by brute force, infinite where infeasible ``[N]``."""
    found = [reference.extended_optimum(reference.extended(one_of(system, i), h[i])[0])[0]
             for i in range(len(h))]  # fmt: skip
    return np.array(found)


def check_constraints(system, h, found, whole=True):
    """Assert C1-C6 in float64 on the returned numbers, and that they cost what is said."""
    for i in np.flatnonzero(found.feasible):
        one = one_of(system, i)
        p, real = reference.extended(one, h[i])
        a, power, time, told = (
            np.asarray(x[i], np.float64)[real]
            for x in (found.offload, found.power, found.time, found.energy_per_device)
        )
        tight, sent = 1 + 1e-6, a > 0
        assert np.sum(time + a * p.fixed) <= p.slot * tight  # C1
        assert np.all(1 - a <= (1 - p.required) * tight)  # C2
        assert np.all((power >= 0) & (power <= p.power_limit * tight))  # C3
        assert np.all(np.isin(a, (0, 1)) if whole else (a >= 0) & (a <= 1))  # C4
        share = time / p.slot if p.shared else np.ones_like(time)
        with np.errstate(divide="ignore", invalid="ignore"):
            nats = np.log1p(power * p.gain / share)
            used = np.where(sent, a * p.load / (share * nats), 0.0)
        assert np.all(used <= np.where(p.shared, p.slot, time) * tight)  # C5
        assert np.sum(a * p.edge) <= tight  # C6
        with np.errstate(divide="ignore", invalid="ignore"):
            cost = np.sum(np.where(sent, reference.sent_costs(p, time, a), 0) + (1 - a) * p.local)
        assert cost == pytest.approx(found.cost[i], rel=1e-5, abs=LEAST_ENERGY)
        assert np.sum(told) == pytest.approx(found.energy[i], rel=1e-5, abs=LEAST_ENERGY)
        paid = p.beta * power * used  # and circuits and fixed energies, and what is computed
        assert np.all(told >= paid * (1 - 1e-5) - LEAST_ENERGY)
