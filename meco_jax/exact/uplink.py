"""The uplink of each device: what it can do, and what it does and costs at a price of the slot.

At x nats per symbol device k sends its task in t = D / (w x) with power p = (e^x - 1) / g and
pays t (beta p + mu) at a price mu [W] of slot time; the best x solves
e^x (x - 1) + 1 = mu g / beta. Prices are kept as their logarithm. Source: THEORY.md, section 4.

All is for one channel, ``[K]``. Where a function takes ``xp``, it is that of JAX or of NumPy: the
float64 search on the host uses the same formulas.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.exact.derivatives import at_best
from meco_jax.exact.equations import (
    band_nats,
    excess,
    nats_with_fixed,
    near_efficiency,
    solve_band,
)
from meco_jax.exact.residuals import Exact, exact_on_host, exact_terms, fixed_numbers, rests
from meco_jax.runtime.describe import short_repr
from meco_jax.system import System

LEAST_POWER = 1e-37  # less has no digits in float32; a task is through sooner with it [W]
LEAST_LOG_Y = -80.0  # x^2 must not underflow; at x = 6e-18 and below energies are the same
SMALLEST = 1e-36  # the rests of numbers so small are lost [-]
FREE = -200.0  # logarithm of a price of nothing [ln W]
BEYOND = 1 + 1e-6  # of the edge's cycles, one task's: too many in any rounding [-]
NEAR_NOTHING = 3e-4  # a slot price so small beside s is lost in their sum [-]


@short_repr
class Terms(NamedTuple):
    """What a device's choice costs besides its transmit energy, ``[K]`` each, None for nothing."""

    per_time: jax.Array | None  # while it sends [W]
    per_task: jax.Array | None  # if it sends [J]
    local: jax.Array  # if it does not [J]


@short_repr
class Uplink(NamedTuple):
    """The uplink of one channel in the symbols of THEORY.md, section 1: ``[K]`` each."""

    usable: jax.Array  # bool: real, with bits to send, and heard at all
    load: jax.Array  # D / w [s nat]
    gain: jax.Array  # g = h^2 / N0 [1/W]
    weight: jax.Array  # beta [-]
    log_scale: jax.Array  # ln(beta / g), of its prices [ln W]
    max_power: jax.Array  # p_max [W], [] or [K]
    max_efficiency: jax.Array  # x_max = ln(1 + p_max g) [nat]
    min_time: jax.Array  # t_min = D / (w x_max), infinite out of reach [s]
    local: jax.Array  # e: cost of computing locally, 0 for padding [J]
    slot: jax.Array  # T [s], []
    exact: Exact
    per_time: jax.Array | None = None  # s: cost of sending per second, beside the power's [W]
    fixed_time: jax.Array | None = None  # d: of the slot, per sent task [s]
    per_task: jax.Array | None = None  # Q: cost per sent task, beside that of its time [J]
    edge_share: Any = None  # z = B C / F, of the edge's cycles, ``[K]``, None without C6 [-]
    energies: Terms | None = None  # costs without those of delay, None where there are no others
    delays: Terms | None = None  # costs of delay alone
    band_power: jax.Array | None = None  # p_max of FDMA, where p = (e^x - 1) / g * t / T [W]


def make_uplink(system: System, h: Any, xp: ModuleType = jnp, *, whole: bool = False) -> Uplink:
    """Compute the terms of every uplink.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-]; any finite value is fine, 0 too.
        xp: jax.numpy, or numpy with all of float64, which leaves nothing to be ``Exact`` about.
        whole: whether no part of a task is sent: one beyond F alone, C6, cannot be then.
    """
    gain = sy.power_gain(system, h, xp)
    load = xp.where(system.active, system.task_bits / sy.nat_rate(system, xp), 0.0)
    if system.access == "tdma":
        max_efficiency = xp.log1p(system.max_power * gain)
    else:
        max_efficiency = _band_efficiency(system, gain, load, xp)
    # Slower is as good as never, and overflows.
    heard = max_efficiency * (1e12 * system.slot) > load
    usable = heard & (load > 0)
    if whole and system.edge_cycles is not None:
        usable &= system.task_bits * system.cycles_per_bit <= BEYOND * system.edge_cycles
    # 1 stands in where nothing is sent: values and gradients stay finite under the masks.
    used_load, used_nats = xp.where(usable, load, 1.0), xp.where(usable, max_efficiency, 1.0)
    used_gain, used_weight = xp.where(usable, gain, 1.0), xp.where(usable, system.weight, 1.0)
    if system.access == "fdma" and xp is jnp:  # at few nats the floats alone tell it badly
        more = rests(*fixed_numbers(system, h, used_load, used_gain, used_nats))[2]
        more = jnp.where(usable & (jnp.abs(more) < 1e-3), more, 0.0)
        used_nats = used_nats * (1 + jax.lax.stop_gradient(more))
    out_of_reach = xp.where(load > 0, xp.inf, 0.0)
    min_time = xp.where(usable, used_load / used_nats, out_of_reach)
    max_power, slot = xp.asarray(system.max_power, gain.dtype), xp.asarray(system.slot, gain.dtype)
    shared_band: dict[str, Any] = {}
    if system.access == "fdma":  # p_max T buys what sending at this power for t_min would
        shared_band = {"band_power": max_power}
        max_power = max_power * slot / (used_load / used_nats)
    costs = _costs(system, usable, xp)
    if xp is jnp:
        exact = exact_terms(system, h, usable, used_load, used_gain, used_nats)
    else:
        exact = exact_on_host(used_load, used_gain, min_time / slot, slot, costs)
    return Uplink(
        usable=usable,
        load=used_load,
        gain=used_gain,
        weight=used_weight,
        log_scale=xp.log(used_weight / used_gain),
        max_power=max_power,
        max_efficiency=used_nats,
        min_time=min_time,
        slot=slot,
        exact=exact,
        **costs,
        **shared_band,
    )


def _costs(system: System, usable: Any, xp: ModuleType) -> dict[str, Any]:
    """Compute what costs besides transmit power: fields of ``Uplink``, THEORY.md, section 10."""

    def each(name: str, scale: Any = 1.0) -> Any:
        value = getattr(system, name)
        return None if value is None else xp.where(usable, scale * value, 0.0)

    def add(a: Any, b: Any) -> Any:
        return a if b is None else b if a is None else a + b

    def times(a: Any, b: Any) -> Any:
        return None if a is None or b is None else a * b

    local = xp.where(system.active, sy.local_energy(system), 0.0)
    circuit, delay_weight = each("circuit_power", system.weight), each("delay_weight")
    fixed_time, fixed_energy = each("fixed_time"), each("fixed_energy", system.weight)
    in_turn = system.access == "tdma"  # or all send for the whole slot
    if in_turn:
        energies = Terms(circuit, fixed_energy, local)
    else:
        energies = Terms(None, add(fixed_energy, times(circuit, system.slot)), local)
    found: dict[str, Any] = {"fixed_time": fixed_time, "local": local}
    if system.edge_cycles is not None:
        cycles = system.task_bits * system.cycles_per_bit / system.edge_cycles
        found["edge_share"] = xp.where(usable, cycles, 0.0)
    if delay_weight is None:
        return found | {"per_time": energies.per_time, "per_task": energies.per_task}
    duration = sy.local_time(system, xp)
    kept = xp.where(system.active & (duration < xp.inf), system.delay_weight, 0.0)
    delays = Terms(
        per_time=delay_weight if in_turn else None,
        per_task=add(
            times(delay_weight, fixed_time), None if in_turn else delay_weight * system.slot
        ),
        local=kept * xp.where(duration < xp.inf, duration, 0.0),
    )
    return found | {
        "per_time": add(energies.per_time, delays.per_time),
        "per_task": add(energies.per_task, delays.per_task),
        "local": energies.local + delays.local,
        "energies": energies,
        "delays": delays,
    }


def _band_efficiency(system: System, gain: Any, load: Any, xp: ModuleType) -> Any:
    """x_max of FDMA, where all send for the whole slot: (e^x - 1) / x = p_max g T / l, ``[K]``.

    0 where the right side is at most 1: no share of the band is enough.
    """
    ratio = system.max_power * gain * system.slot / xp.where(load > 0, load, 1.0)
    reached = (ratio > 1) & (load > 0)
    log_ratio = xp.log(xp.where(reached, ratio, 2.0))
    nats = band_nats(log_ratio) if xp is jnp else solve_band(log_ratio, xp)
    return xp.where(reached, nats, 0.0)


def log_price(uplink: Uplink, nats: jax.Array, xp: ModuleType = jnp) -> jax.Array:
    """Price at which x nats are best, ln(beta / g (e^x (x - 1) + 1) - s): ``[K]`` [ln W].

    ``FREE`` where they are too many or just best for nothing.
    """
    log_own = uplink.log_scale + nats + xp.log(excess(nats, xp))
    if uplink.per_time is None:
        return log_own
    price = xp.exp(xp.minimum(log_own, 85.0)) - uplink.per_time
    return xp.where(price > SMALLEST, xp.log(xp.where(price > SMALLEST, price, 1.0)), FREE)


def own_price(uplink: Uplink, log_mu: Any, xp: ModuleType = jnp) -> Any:
    """What a second costs a device at a slot price, ln(mu + s): ``[K]`` [ln W]."""
    if uplink.per_time is None:
        return log_mu
    price = xp.exp(log_mu) + uplink.per_time
    known = (uplink.per_time > 0) & (price > SMALLEST)
    return xp.where(known, xp.log(xp.where(known, price, 1.0)), log_mu)


def raised_price(uplink: Uplink, log_mu: Any, rise: Any, xp: ModuleType = jnp) -> Any:
    """Multiply what a second costs a usual device, mu + s, by e^rise: the new ln mu.

    So steps make a difference where mu is nothing, too. With s = 0 it is ln mu + rise.
    """
    return moved_price(log_mu, rise, usual_shift(uplink, xp), xp)


def usual_shift(uplink: Uplink, xp: ModuleType = jnp) -> Any:
    """The mean of s over the devices that can send, ``[]`` [W]; None where there is none."""
    if uplink.per_time is None:
        return None
    number = xp.maximum(xp.sum(xp.where(uplink.usable, 1.0, 0.0)), 1.0)
    return xp.sum(xp.where(uplink.usable, uplink.per_time, 0.0)) / number


def moved_price(log_mu: Any, rise: Any, shift: Any, xp: ModuleType = jnp) -> Any:
    """Add ``rise`` to ln(mu + ``shift``): the new ln mu, at least ``FREE``."""
    if shift is None:
        return log_mu + rise
    mu = xp.exp(log_mu)
    mu = mu + (mu + shift) * xp.expm1(xp.minimum(rise, 80.0))
    return xp.where(mu > SMALLEST, xp.log(xp.where(mu > SMALLEST, mu, 1.0)), FREE)


def best_efficiency(uplink: Uplink, log_mu: jax.Array) -> jax.Array:
    """Nats per symbol that minimise E + (mu + s) t, at most x_max: ``[K]`` [nat]."""
    return _best_efficiency(uplink, own_price(uplink, log_mu))


@jax.custom_jvp
def _best_efficiency(uplink: Uplink, log_own: jax.Array) -> jax.Array:
    return _efficiency(uplink, log_own, jnp)


def efficiency_at(uplink: Uplink, log_mu: Any, xp: ModuleType = jnp) -> Any:
    """Compute ``best_efficiency``, without its derivatives, of any shape that broadcasts."""
    return _efficiency(uplink, own_price(uplink, log_mu, xp), xp)


def _efficiency(uplink: Uplink, log_own: Any, xp: ModuleType) -> Any:
    """Compute the nats that are best at the devices' own prices, at most x_max.

    Solves ``e^x (x - 1) + 1 = y``, y = mu g / beta (a Lambert function), by Halley steps on
    its logarithm ``x + ln(x - 1 + e^-x) = ln y``, which is nearly straight: one from nearby is
    exact to 1e-10, so two are to float64's last digits.
    """
    log_y = xp.maximum(log_own - uplink.log_scale, LEAST_LOG_Y)
    x = near_efficiency(log_y, xp)
    for _ in range(1 if xp is jnp and x.dtype == jnp.float32 else 2):
        rest, square = excess(x, xp), x * x
        error = x + xp.log(rest) - log_y
        x = x - 2 * error * rest * x / (2 * square - error * (rest * (1 + x) - square))
    return xp.minimum(x, uplink.max_efficiency)


@_best_efficiency.defjvp
def _best_efficiency_rule(
    primals: tuple[Uplink, jax.Array], tangents: tuple[Uplink, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """d(x + ln(x - 1 + e^-x)) = d ln y, and the left side is x / (x - 1 + e^-x) dx."""
    (uplink, log_own), (d_uplink, d_log_own) = primals, tangents
    nats = _best_efficiency(uplink, log_own)
    d_log_y = d_log_own - d_uplink.log_scale
    d_log_y = jnp.where(log_own - uplink.log_scale > LEAST_LOG_Y, d_log_y, 0.0)
    return nats, jnp.where(
        nats < uplink.max_efficiency, excess(nats) / nats * d_log_y, d_uplink.max_efficiency
    )


def priced_cost(uplink: Uplink, log_mu: jax.Array) -> jax.Array:
    """Least cost of sending each task at a price, c(mu) = min_t E(t) + mu t: ``[K]`` [J].

    More precisely E(t) + s t + Q + mu (t + d). Infinite out of reach. Its derivative in the price
    is what it takes of the slot.
    """
    return at_best(_cost, (uplink, log_mu), (best_efficiency(uplink, log_mu),))


def local_at(uplink: Uplink, edge_price: jax.Array | None) -> jax.Array:
    """Local cost less what sending pays for the edge's cycles, e - nu z: ``[K]`` [J]."""
    return uplink.local if edge_price is None else uplink.local - edge_price * uplink.edge_share


def _cost(uplink: Uplink, log_mu: jax.Array, best: jax.Array) -> jax.Array:
    """Cost of sending each task at a price with ``best`` nats a symbol, or x_max: ``[K]`` [J]."""
    nats = jnp.where(best < uplink.max_efficiency, best, uplink.max_efficiency)
    power = uplink.weight * jnp.expm1(nats) / uplink.gain
    mu = jnp.exp(log_mu)
    cost = uplink.load / nats * (power + (mu if uplink.per_time is None else mu + uplink.per_time))
    if uplink.fixed_time is not None:
        cost += mu * uplink.fixed_time
    if uplink.per_task is not None:
        cost += uplink.per_task
    return jnp.where(uplink.usable, cost, uplink.min_time)  # min_time is 0 or infinite there


def switch_price(uplink: Uplink, xp: ModuleType = jnp) -> jax.Array:
    """Price at which sending a task costs as much as keeping it, c(mu) = e: ``[K]`` [ln W].

    Sending costs less below it, -inf where it never does. With x = ln(e / c(0)) nats a symbol
    both cost the same, c(mu) = c(0) e^x; above x_max the cost grows by t_min for each W.
    """
    saved = uplink.local  # that sending may cost, beside what the slot's time does
    if uplink.per_task is not None:
        saved = saved - uplink.per_task
    if uplink.fixed_time is not None and uplink.per_time is not None:
        saved = saved + uplink.fixed_time * uplink.per_time
    never = ~uplink.usable | (saved <= 0)
    free = uplink.load * uplink.weight / uplink.gain  # c(0), what sending costs where time is free
    nats = xp.log(xp.where(never, 1.0, saved)) - xp.log(free)
    never |= nats <= 0
    nats = xp.where(never, uplink.max_efficiency, nats)
    if uplink.fixed_time is None:
        reached = xp.minimum(nats, uplink.max_efficiency)
        beyond = reached * xp.expm1(xp.minimum(nats - reached, 80.0))
    else:
        fixed = uplink.fixed_time / uplink.load
        reached = xp.minimum(nats_with_fixed(nats, fixed, xp), uplink.max_efficiency)
        rest = excess(reached, xp)
        over = xp.where(
            reached < uplink.max_efficiency, 0.0, nats - reached - xp.log1p(fixed * rest)
        )
        time = 1 / reached + fixed  # over the load
        beyond = (1 + fixed * rest) / time * xp.expm1(xp.clip(over, 0.0, 80.0))
    log_own = uplink.log_scale + reached + xp.log(excess(reached, xp) + beyond)
    if uplink.per_time is None:
        return xp.where(never, -xp.inf, log_own)
    price = xp.exp(xp.minimum(log_own, 85.0)) - uplink.per_time
    if uplink.fixed_time is not None:
        near = _switch_near_nothing(uplink, xp)
        price = xp.where(near < NEAR_NOTHING * uplink.per_time, near, price)
    never |= price <= SMALLEST
    return xp.where(never, -xp.inf, xp.log(xp.where(never, 1.0, price)))


def _switch_near_nothing(uplink: Uplink, xp: ModuleType) -> Any:
    """Estimate ``switch_price`` from below, (e - c) / (t + d) where the slot is free: ``[K]`` [W].

    Sending costs c there, and c(mu) is concave. A long d hides what is saved from differences.
    """
    nats = efficiency_at(uplink, xp.full_like(uplink.slot, FREE), xp)
    time = uplink.load / nats
    cost = time * (uplink.weight * xp.expm1(nats) / uplink.gain + uplink.per_time)
    if uplink.per_task is not None:
        cost = cost + uplink.per_task
    return (uplink.local - cost) / (time + uplink.fixed_time)


def send_power(uplink: Uplink, offload: jax.Array, time: jax.Array) -> jax.Array:
    """Power that sends the parts ``offload`` in ``time`` [s], (e^x - 1) / g: ``[K]`` [W]."""
    sends = uplink.usable & (offload > 0) & (time > 0)
    nats = jnp.where(sends, offload * uplink.load / jnp.where(sends, time, 1.0), 0.0)
    power = jnp.maximum(jnp.expm1(nats) / uplink.gain, jnp.where(sends, LEAST_POWER, 0.0))
    return jnp.where(nats < uplink.max_efficiency, power, uplink.max_power)


def cost_spent(uplink: Uplink, offload: jax.Array, time: jax.Array) -> jax.Array:
    """Cost of parts sent in times, sum beta p t + s t + a Q + (1 - a) e: ``[]`` [J]."""
    power = send_power(uplink, offload, time)
    terms = Terms(uplink.per_time, uplink.per_task, uplink.local)
    return jnp.sum(uplink.weight * power * time + sum_terms(terms, offload, time))


def device_energy(
    uplink: Uplink, offload: jax.Array, power: jax.Array, time: jax.Array
) -> jax.Array:
    """Weighted energy of each device, beta (p + p_c) t + a beta q + (1 - a) e: ``[K]`` [J]."""
    terms = uplink.energies or Terms(uplink.per_time, uplink.per_task, uplink.local)
    return uplink.weight * power * time + sum_terms(terms, offload, time)


def sum_terms(terms: Terms, offload: jax.Array, time: jax.Array) -> jax.Array:
    """What parts sent in times cost besides their transmit energy: ``[K]`` [J]."""
    cost = (1 - offload) * terms.local
    if terms.per_time is not None:
        cost = cost + terms.per_time * time
    if terms.per_task is not None:
        cost = cost + terms.per_task * offload  # 0 where nothing can be sent
    return cost


def pairwise_sum(terms: jax.Array, xp: ModuleType = jnp) -> jax.Array:
    """Sum over the first axis by halves, which rounds least."""
    while len(terms) > 1:
        half = len(terms) // 2
        rest = terms[2 * half :]
        terms = xp.concatenate([terms[:half] + terms[half : 2 * half], rest])
    return terms[0]


def rounding(uplink: Uplink) -> float:
    """Largest relative error of one operation."""
    return float(jnp.finfo(uplink.load.dtype).eps) / 2
