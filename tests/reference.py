"""P1 in plain float64 NumPy and SciPy: brute force, price by root finding. Imports no meco_jax."""

import itertools
from types import SimpleNamespace

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import lambertw

TABLE1 = SimpleNamespace(
    bandwidth=1e7, noise_power=1e-9, max_power=10 ** (23 / 10) / 1000, chip=1e-28
)


def instance(task_bits, cycles_per_bit, cpu_hz, weight, h, slot, log_base, physics=TABLE1):
    """The closed forms' coefficients of one instance: THEORY.md, section 1."""
    arrays = (task_bits, cycles_per_bit, cpu_hz, weight, h)
    bits, cycles, hz, beta, h = (np.asarray(x, np.float64) for x in arrays)
    gain = h**2 / physics.noise_power
    load = bits * np.log(log_base) / physics.bandwidth
    max_efficiency = np.log1p(physics.max_power * gain)
    with np.errstate(divide="ignore"):
        min_time = load / max_efficiency
    local_time = cycles * bits / hz
    return SimpleNamespace(
        slot=float(slot), gain=gain, load=load, beta=beta,
        max_efficiency=max_efficiency, min_time=min_time,
        max_power=physics.max_power, local=beta * physics.chip * bits * cycles * hz**2,
        forced=local_time > slot, required=np.maximum(0, 1 - slot / local_time),
    )  # fmt: skip


def of_system(system, h):
    """The coefficients of one channel of a ``System`` with fields ``[K]`` and ``[]``."""
    real = np.asarray(system.active) & (np.asarray(system.task_bits) > 0)
    names = ("task_bits", "cycles_per_bit", "cpu_hz", "weight")
    arrays = {name: np.asarray(getattr(system, name), np.float64)[real] for name in names}
    physics = SimpleNamespace(**{name: np.float64(getattr(system, name)) for name in vars(TABLE1)})
    with np.errstate(divide="ignore", invalid="ignore"):
        return instance(
            **arrays, h=np.asarray(h)[real], slot=np.float64(system.slot),
            log_base=np.float64(system.log_base), physics=physics,
        )  # fmt: skip


def efficiency_at(price, p):
    """x with e^x (x - 1) + 1 = price g / beta by SciPy's Lambert function, capped at x_max."""
    y = price * p.gain / p.beta
    large = 1 + lambertw(np.maximum(y - 1, -0.999) / np.e).real
    small = np.sqrt(2 * np.minimum(y, 0.01))  # Newton on the series x^2 / 2 + x^3 / 3 + ...
    for _ in range(5):
        series = small**2 * (
            1 / 2 + small * (1 / 3 + small * (1 / 8 + small * (1 / 30 + small / 144)))
        )
        small = small - (series - np.minimum(y, 0.01)) / np.maximum(small * np.exp(small), 1e-300)
    return np.minimum(np.where(y < 0.01, small, large), p.max_efficiency)


def allocate(p, offload):
    """Least energy of fixed parts, with powers and times; inf if they do not fit."""
    offload = np.asarray(offload, np.float64)
    s = offload > 0
    kept = np.sum((1 - offload) * p.local)
    zeros = np.zeros(len(s))
    if not s.any():
        return kept, zeros, zeros
    if np.sum(offload[s] * p.min_time[s]) > p.slot:
        return np.inf, zeros, zeros
    q = SimpleNamespace(**{k: v[s] for k, v in vars(p).items() if isinstance(v, np.ndarray)})

    def excess_time(log_price):
        return np.sum(offload[s] * q.load / efficiency_at(np.exp(log_price), q)) - p.slot

    low, high = -250.0, 100.0
    log_price = high if excess_time(high) >= 0 else brentq(excess_time, low, high, xtol=1e-13)
    nats = efficiency_at(np.exp(log_price), q)
    time, power = zeros.copy(), zeros.copy()
    time[s] = offload[s] * q.load / nats
    power[s] = np.expm1(nats) / q.gain
    return kept + np.sum(p.beta * power * time), power, time


def brute_force(p):
    """Optimum of P1 over all 2^K decisions: energy, decision."""
    best, decision = np.inf, None
    for bits in itertools.product((0.0, 1.0), repeat=len(p.load)):
        a = np.array(bits)
        if np.all(a[p.forced] == 1):
            energy = allocate(p, a)[0]
            if energy < best:
                best, decision = energy, a
    return best, decision


def dual(p, must, log_price):
    """The Lagrangian at a price: THEORY.md, section 5."""
    price = np.exp(log_price)
    nats = efficiency_at(price, p)
    cost = p.load / nats * (p.beta * np.expm1(nats) / p.gain + price)
    return np.sum(must * cost + (1 - must) * np.minimum(cost, p.local)) - price * p.slot


def relaxed_bound(p, must):
    """Maximum of the dual over the price; it is concave in the price."""
    if np.sum(np.where(must > 0, must * p.min_time, 0)) > p.slot:
        return np.inf
    grid = np.linspace(-30, 15, 46)
    best = int(np.argmax([dual(p, must, v) for v in grid]))
    low, high = np.exp(grid[max(best - 1, 0)]), np.exp(grid[min(best + 1, 45)])
    found = minimize_scalar(
        lambda price: -dual(p, must, np.log(price)), bounds=(low, high), method="bounded",
        options={"xatol": 1e-12 * high},
    )  # fmt: skip
    return max(-found.fun, dual(p, must, -60.0))


def mcos(p, part):
    """Energy of sending the parts ``part`` at full power; inf if they do not fit."""
    sent = np.where(part > 0, part * p.min_time, 0.0)
    if np.sum(sent) > p.slot:
        return np.inf
    return np.sum(p.beta * p.max_power * sent + (1 - part) * p.local)


def extended(system, h):
    """One channel ``[K]`` of a ``System`` with all its fields, from the model itself.

    Sending a task takes a time t, t / T the share of the slot or, with FDMA, of the band.
    """
    k = len(h)

    def field(name, default=0.0):
        value = getattr(system, name)
        return np.broadcast_to(np.asarray(default if value is None else value, np.float64), k)

    names = ("task_bits", "cycles_per_bit", "cpu_hz", "weight")
    bits, cycles, hz, beta = (field(name) for name in names)
    real = field("active").astype(bool) & (bits > 0)
    slot, width, base = (float(getattr(system, x)) for x in ("slot", "bandwidth", "log_base"))
    gain = np.asarray(h, np.float64) ** 2 / field("noise_power")
    power, load = field("max_power"), bits * np.log(base) / width
    circuit, weight = beta * field("circuit_power"), field("delay_weight")
    fixed, energy = field("fixed_time"), beta * field("fixed_energy")
    shared = system.access == "fdma"
    with np.errstate(divide="ignore", invalid="ignore"):
        duration = np.where(cycles * bits > 0, cycles * bits / hz, 0.0)
        required = np.where(duration > slot, 1 - slot / duration, 0)
        max_efficiency = np.log1p(power * gain)
        if shared:
            max_efficiency = np.array([_band_cap(r) for r in power * gain * slot / load])
        min_time = np.where(max_efficiency > 0, load / max_efficiency, np.inf)
    edge = np.inf if system.edge_cycles is None else float(system.edge_cycles)
    p = SimpleNamespace(
        slot=slot, gain=gain, load=load, beta=beta, fixed=fixed,
        max_efficiency=max_efficiency, min_time=min_time, power_limit=power, shared=shared,
        per_time=np.zeros(k) if shared else circuit + weight,
        per_task=energy + weight * fixed + ((circuit + weight) * slot if shared else 0),
        local=beta * field("chip") * bits * cycles * hz**2 + weight * np.where(hz > 0, duration, 0),
        forced=duration > slot, required=required,
        edge=bits * cycles / edge,
    )  # fmt: skip
    arrays = {n: x[real] if isinstance(x, np.ndarray) else x for n, x in vars(p).items()}
    return SimpleNamespace(**arrays), real


def _band_cap(ratio):
    """Root of (e^x - 1) / x = ratio; 0 where there is none."""
    if not 1 < ratio < np.inf:  # nothing is to be sent
        return 0.0
    return brentq(lambda x: np.log(np.expm1(x) / x) - np.log(ratio), 1e-12, 2 * np.log(ratio) + 1)


def sent_costs(p, time, part=1.0):
    """What sending parts in times costs each device."""
    spent = p.beta * np.expm1(part * p.load / time) / p.gain * time
    return spent + p.per_time * time + part * p.per_task


def extended_optimum(p):
    """Optimum over all 2^K decisions, all at once: cost, decision; inf if none is possible."""
    k = len(p.load)
    sets = (np.arange(2**k)[:, None] >> np.arange(k)) % 2 == 1
    least = np.where(np.isfinite(p.min_time), p.min_time + p.fixed, 1e30)
    possible = np.all(sets | ~p.forced, axis=1) & (sets @ p.edge <= 1 + 1e-9)
    sets = sets[possible & (sets @ least <= p.slot)]
    if not len(sets):
        return np.inf, None
    near = {n: np.where(np.isfinite(p.min_time), x, 1.0) for n, x in vars(p).items()
            if isinstance(x, np.ndarray) and x.dtype == float}  # fmt: skip
    q = SimpleNamespace(**vars(p) | near)

    def times(price):  # [S] -> [S, K]
        own = np.maximum(price[:, None] + q.per_time, 1e-300)
        return q.load / np.maximum(efficiency_at(own, q), 1e-12)

    low, high = np.full(len(sets), -60.0), np.full(len(sets), 40.0)
    for _ in range(60):
        middle = (low + high) / 2
        used = np.sum(np.where(sets, times(np.exp(middle)) + q.fixed, 0), axis=1)
        low, high = np.where(used > p.slot, middle, low), np.where(used > p.slot, high, middle)
    costs = sent_costs(q, times(np.exp(high)))
    totals = np.sum(np.where(sets, costs, p.local), axis=1)
    best = int(np.argmin(totals))
    return totals[best], sets[best]
