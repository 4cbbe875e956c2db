"""The uplink of each device: everything with e^x, and the rule of what fits the slot.

At x nats per symbol device k sends its task in t = D / (w x) with power p = (e^x - 1) / g and
pays t (beta p + mu) at a price mu [W] of slot time; the best x solves
e^x (x - 1) + 1 = mu g / beta. Prices are kept as their logarithm. Source: THEORY.md, section 4.

All is for one channel, ``[K]``. Where a function takes ``xp``, it is that of JAX or of NumPy: the
float64 search on the host uses the same formulas.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meco_jax import system as sy
from meco_jax.exact import twofold
from meco_jax.exact.derivatives import at_best
from meco_jax.runtime.describe import short_repr
from meco_jax.system import System

FIT_TOLERANCE = 5e-7  # a set whose fastest times exceed the slot by less still fits [-]
NEAR = 2.1e-4  # largest relative error of ``near_efficiency``, fitted for ln y up to 100
SMALL_Y = (0.0, 1.0, 0.30338298, 0.00338781), (1.0, 0.63568729, 0.06587861)  # in sqrt(2 y)
LARGE_Y = (1.20830537, 0.364993291, 0.178662429, 0.0), (1.0, 0.182570117, -1.46422376e-5)  # ln y
BETWEEN = 3.6  # ln y where the two meet
EXCESS = [(-1) ** n / math.factorial(n) for n in range(12, 1, -1)]  # of x^10, ... x, 1
LEAST_POWER = 1e-37  # less has no digits in float32; a task is through sooner with it [W]
LEAST_LOG_Y = -80.0  # x^2 must not underflow; at x = 6e-18 and below energies are the same
SHARE_UNIT = 2.0**-20  # sums of its multiples are exact in float32, in any order, up to 16 slots
SMALLEST = 1e-36  # the rests of numbers so small are lost [-]
FREE = -200.0  # logarithm of a price of nothing [ln W]
BAND_STEPS = 5  # Newton's, for what the band's share lets through at full power
FIXED_STEPS = 8  # Newton's, for the switching price where a sent task takes a fixed time


@short_repr
class Terms(NamedTuple):
    """What a device's choice costs besides its transmit energy, ``[K]`` each, None for nothing."""

    per_time: jax.Array | None  # while it sends [W]
    per_task: jax.Array | None  # if it sends [J]
    local: jax.Array  # if it does not [J]


@short_repr
class Exact(NamedTuple):
    """What single floats of ``Uplink`` leave away, ``[K]`` each; constants to derivatives."""

    load: jax.Array  # the float of the same name [s nat]
    gain: jax.Array  # the float of the same name [1/W]
    load_rest: jax.Array  # what the true one has more, in relation [-]
    gain_rest: jax.Array  # the same [-]
    coarse: jax.Array  # (t_min + d) / T, a multiple of SHARE_UNIT, infinite out of reach [-]
    fine: jax.Array  # the rest of it [-]
    fixed: twofold.Pair | None = None  # d / T, in the same way
    edge: twofold.Pair | None = None  # B C / F, in the same way


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


def make_uplink(system: System, h: Any, xp: ModuleType = jnp) -> Uplink:
    """Compute the terms of every uplink.

    Args:
        system: the physics.
        h: amplitude gains ``[K]`` [-]; any finite value is fine, 0 too.
        xp: jax.numpy, or numpy with all of float64, which leaves nothing to be ``Exact`` about.
    """
    gain = sy.power_gain(system, h, xp)
    load = xp.where(system.active, system.task_bits / sy.nat_rate(system, xp), 0.0)
    if system.access == "tdma":
        max_efficiency = xp.log1p(system.max_power * gain)
    else:
        max_efficiency = _band_efficiency(system, gain, load, xp)
    heard = (
        max_efficiency * (1e12 * system.slot) > load
    )  # slower is as good as never, and overflows
    usable = heard & (load > 0)
    # 1 stands in where nothing is sent: values and gradients stay finite under the masks.
    used_load, used_nats = xp.where(usable, load, 1.0), xp.where(usable, max_efficiency, 1.0)
    used_gain, used_weight = xp.where(usable, gain, 1.0), xp.where(usable, system.weight, 1.0)
    if system.access == "fdma" and xp is jnp:  # at few nats the floats alone tell it badly
        more = _rests(*_given(system, h, used_load, used_gain, used_nats))[2]
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
        exact = _exact(system, h, usable, used_load, used_gain, used_nats)
    else:
        exact = _exact_on_host(used_load, used_gain, min_time / slot, slot, costs)
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
    nats = _band_nats(log_ratio) if xp is jnp else _solve_band(log_ratio, xp)
    return xp.where(reached, nats, 0.0)


@jax.custom_jvp
def _band_nats(log_ratio: jax.Array) -> jax.Array:
    return _solve_band(log_ratio, jnp)


@_band_nats.defjvp
def _band_nats_rule(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    nats = _band_nats(*primals)
    return nats, tangents[0] / _band_slope(nats, jnp)


def _solve_band(log_ratio: Any, xp: ModuleType) -> Any:
    """Solve ln((e^x - 1) / x) = ``log_ratio`` > 0 for x.

    The left side is convex and rises by 1/2 to 1, from 0 at x = 0: Newton's method falls from
    2 ``log_ratio``, which is beyond the root, and does not pass it.
    """
    x = 2 * log_ratio
    for _ in range(BAND_STEPS):
        error = x + xp.log(-xp.expm1(-x) / x) - log_ratio
        x = xp.maximum(x - error / _band_slope(x, xp), log_ratio)
    return x


def _band_slope(nats: Any, xp: ModuleType) -> Any:
    """d ln((e^x - 1) / x) / dx = (x - 1 + e^-x) / (x (1 - e^-x)), 1/2 to 1."""
    return excess(nats, xp) / (-nats * xp.expm1(-nats))


def _exact_on_host(load: Any, gain: Any, share: Any, slot: Any, costs: dict[str, Any]) -> Exact:
    """Float64 is exact enough as it is."""
    nothing = 0.0 * load
    fixed, edge = costs["fixed_time"], costs.get("edge_share")
    return Exact(
        load=load,
        gain=gain,
        load_rest=nothing,
        gain_rest=nothing,
        coarse=share if fixed is None else share + fixed / slot,
        fine=nothing,
        fixed=None if fixed is None else (fixed / slot, nothing),
        edge=None if edge is None else (edge, nothing),
    )


def _exact(
    system: System,
    h: jax.Array,
    usable: jax.Array,
    load: jax.Array,
    gain: jax.Array,
    nats: jax.Array,
) -> Exact:
    """Compute what rounding took from load, gain and fastest times: ``[K]``.

    Each residual is that of the equation which defines the number, in pairs of floats.
    """
    system, h, load, gain, nats, log_base = _given(system, h, load, gain, nats)
    load_rest, gain_rest, more_nats = _rests(system, h, load, gain, nats, log_base)
    share = load / (system.slot * nats)
    fastest = twofold.two_product(system.slot, nats)
    used = twofold.two_product(share, fastest[0])
    left = ((load - used[0]) - used[1] - share * fastest[1]) / load
    load_rest, gain_rest, rest = (
        jnp.where(usable & (jnp.abs(x) < 1e-4), x, 0.0)
        for x in (load_rest, gain_rest, left + load_rest - more_nats)
    )
    coarse = jnp.round(share / SHARE_UNIT) * SHARE_UNIT
    fine = (share - coarse) + share * rest
    added: dict[str, twofold.Pair] = {}
    if system.fixed_time is not None:
        share = system.fixed_time / system.slot
        pair = _in_units(
            share, _excess_of(system.fixed_time, jnp.ones_like(share), share, system.slot)
        )
        coarse, fine = coarse + pair[0], fine + pair[1]
        added["fixed"] = pair
    if system.edge_cycles is not None:
        share = system.task_bits * system.cycles_per_bit / system.edge_cycles
        rest = _excess_of(system.task_bits, system.cycles_per_bit, share, system.edge_cycles)
        pair = _in_units(share, rest)
        added["edge"] = pair
    out_of_reach = jnp.where(system.active & (system.task_bits > 0), jnp.inf, 0.0)
    exact = Exact(
        load=load,
        gain=gain,
        load_rest=load_rest,
        gain_rest=gain_rest,
        coarse=jnp.where(usable, coarse, out_of_reach),
        fine=jnp.where(usable, fine, 0.0),
        **{n: tuple(jnp.where(usable, x, 0.0) for x in pair) for n, pair in added.items()},  # type: ignore[arg-type]
    )
    return jax.lax.optimization_barrier(exact)


def _in_units(share: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cut a share, which truly has the part ``rest`` more, into whole ``SHARE_UNIT`` and less."""
    whole = jnp.round(share / SHARE_UNIT) * SHARE_UNIT
    return whole, (share - whole) + jnp.where(jnp.abs(rest) < 1e-4, share * rest, 0.0)


def _given(system: System, h: Any, load: Any, gain: Any, nats: Any) -> tuple[Any, ...]:
    """Fix numbers: in two places compilers may round the same one in two ways."""
    log_base = jnp.log(system.log_base)
    given = jax.lax.stop_gradient((load, gain, nats, log_base, system, h))
    load, gain, nats, log_base, system, h = jax.lax.optimization_barrier(given)
    load, gain, nats, log_base = twofold.computed_once((load, gain, nats, log_base))
    return system, h, load, gain, nats, log_base


def _rests(
    system: System, h: jax.Array, load: jax.Array, gain: jax.Array, nats: jax.Array, log_base: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the true load, gain and x_max have more than their floats, in relation: ``[K]`` [-]."""
    all_nats = jnp.append(jnp.minimum(nats, 87.0), log_base)
    growth = twofold.expm1(all_nats)
    grown, last = (growth[0][:-1], growth[1][:-1]), (growth[0][-1], growth[1][-1])

    more_base = ((system.log_base - 1 - last[0]) - last[1]) / (system.log_base * log_base)
    load_rest = _excess_of(system.task_bits, log_base, load, system.bandwidth) + more_base
    scale = 2.0**24  # exact, and keeps the squares of small gains from underflow
    noise = system.noise_power * scale * scale
    gain_rest = _excess_of(h * scale, h * scale, gain, noise)
    power = twofold.two_product(system.max_power, gain)
    if system.access == "tdma":
        more = (power[0] - grown[0]) + (power[1] - grown[1]) + gain_rest * power[0]
        more = more / (1 + grown[0])
        more_nats = more * (1 - more / 2) / nats
    else:  # (e^x - 1) l = p_max g T x
        nothing = jnp.zeros_like(nats)
        taken = twofold.multiply(grown, (load, nothing))
        given_energy = twofold.multiply(power, twofold.two_product(system.slot, nats))
        more = (given_energy[0] - taken[0]) + (given_energy[1] - taken[1])
        more = more / jnp.where(taken[0] > 0, taken[0], 1.0) + gain_rest - load_rest
        more_nats = more / (_band_slope(nats, jnp) * nats)

    return load_rest, gain_rest, more_nats


def _excess_of(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    """(a b - c d) / (a b), without cancellation where both are nearly equal."""
    left, right = twofold.two_product(a, b), twofold.two_product(c, d)
    return ((left[0] - right[0]) + (left[1] - right[1])) / jnp.where(left[0] != 0, left[0], 1.0)


def least_shares(
    uplink: Uplink, offload: jax.Array, xp: ModuleType = jnp
) -> tuple[jax.Array, jax.Array]:
    """Compute the least part of the slot that each part ``offload`` takes, ``[K]`` [-].

    Returns:
        A multiple of ``SHARE_UNIT``, infinite out of reach, and the rest of it.
    """
    return _parts_of(uplink, (uplink.exact.coarse, uplink.exact.fine), offload, xp)


def fixed_shares(uplink: Uplink, offload: jax.Array) -> tuple[Any, Any]:
    """Compute what of ``least_shares`` is not the sending time, d / T, ``[K]`` or 0 [-]."""
    if uplink.exact.fixed is None:
        return 0.0, 0.0
    return _parts_of(uplink, uplink.exact.fixed, offload, jnp)


def edge_shares(uplink: Uplink, offload: jax.Array, xp: ModuleType = jnp) -> tuple[Any, Any]:
    """Compute what parts take of the edge's cycles, as ``least_shares``, ``[K]`` or 0 [-]."""
    if uplink.exact.edge is None:
        return 0.0, 0.0
    return _parts_of(uplink, uplink.exact.edge, offload, xp)


def _parts_of(
    uplink: Uplink, whole: twofold.Pair, offload: jax.Array, xp: ModuleType
) -> twofold.Pair:
    all_coarse, all_fine = whole
    if offload.dtype == bool:
        return xp.where(offload, all_coarse, 0.0), xp.where(offload, all_fine, 0.0)
    sent = offload > 0
    coarse = jnp.where(sent & uplink.usable, all_coarse, 0.0)
    share, rest = twofold.two_product(offload, coarse)
    units = jnp.round(share / SHARE_UNIT) * SHARE_UNIT
    fine = (share - units) + (rest + offload * all_fine)
    units, fine = jax.lax.stop_gradient((units, jnp.where(sent, fine, 0.0)))
    return jnp.where(sent & ~uplink.usable, all_coarse, units), fine


def resources(uplink: Uplink, xp: ModuleType = jnp) -> jax.Array:
    """What each device takes at least of the slot, and of the edge if its cycles are limited.

    Returns:
        ``[2, K]``, or ``[4, K]``: shares in multiples of ``SHARE_UNIT`` and their rests [-].
    """
    rows = [*least_shares(uplink, uplink.usable, xp)]
    if uplink.edge_share is not None:
        rows += edge_shares(uplink, uplink.usable, xp)
    return xp.stack(rows)


def within(used: jax.Array) -> jax.Array:
    """Tell which sums of ``resources``, ``[2, ...]`` or ``[4, ...]``, are there: ``[...]`` bool."""
    enough = (1 - used[0]) - used[1] >= -FIT_TOLERANCE
    for row in range(2, len(used), 2):
        enough &= (1 - used[row]) - used[row + 1] >= -FIT_TOLERANCE
    return enough


def room(
    shares: tuple[jax.Array, jax.Array], members: jax.Array, xp: ModuleType = jnp
) -> jax.Array:
    """Compute what some of ``least_shares`` leave of the slot, less than 0 if they exceed it.

    Args:
        shares: of ``[K]``.
        members: which of them to count ``[K]`` bool.
        xp: jax.numpy, or numpy.
    """
    coarse, fine = (xp.sum(xp.where(members, share, 0.0)) for share in shares)
    return (1 - coarse) - fine


def fits(uplink: Uplink, offload: jax.Array) -> jax.Array:
    """Tell whether a decision ``[K]`` fits: sum a (t_min + d) <= T, and C6: bool."""
    sent = offload if offload.dtype == bool else offload > 0
    fit = room(least_shares(uplink, offload), sent) >= -FIT_TOLERANCE
    if uplink.edge_share is not None:
        fit &= room(edge_shares(uplink, offload), sent) >= -FIT_TOLERANCE
    return fit


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


def near_efficiency(log_y: Any, xp: ModuleType = jnp) -> Any:
    """Nats x per symbol that are best at ln y > -90, to ``NEAR`` of them, by two fractions."""
    small = log_y < BETWEEN
    root = xp.exp((xp.minimum(log_y, BETWEEN) + math.log(2)) / 2)  # x ~ sqrt(2 y) for small y
    u = xp.where(small, root, log_y)
    top, bottom = (_polynomial(u, small, *pair, xp) for pair in zip(SMALL_Y, LARGE_Y))
    return top / bottom


def _polynomial(
    u: Any, small: Any, these: tuple[float, ...], others: tuple[float, ...], xp: ModuleType
) -> Any:
    """Evaluate ``these`` coefficients, from u^0 on, at u where it is ``small``, else ``others``."""
    value = 0.0
    for pair in reversed([*zip(these, others)]):
        value = value * u + xp.where(small, *pair)
    return value


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
        reached = xp.minimum(_nats_with_fixed(nats, fixed, xp), uplink.max_efficiency)
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
    never |= price <= SMALLEST
    return xp.where(never, -xp.inf, xp.log(xp.where(never, 1.0, price)))


def _nats_with_fixed(total: Any, fixed: Any, xp: ModuleType) -> Any:
    """Solve x + ln(1 + r (x - 1 + e^-x)) = ``total`` > 0 for x, r = ``fixed``, ``[K]`` [nat].

    Newton's method, kept between bounds on the root: x - 1 + e^-x is at most (e^total - 1) / r.
    """
    grown = xp.expm1(xp.minimum(total, 80.0)) / xp.where(fixed > 0, fixed, 1.0)
    high = xp.where(fixed > 0, xp.minimum(total, xp.sqrt(2 * grown) + grown), total)
    low, x = 0.0 * high, high
    for _ in range(FIXED_STEPS):
        rest = 1 + fixed * excess(x, xp)
        error = x + xp.log(rest) - total
        low, high = xp.where(error < 0, x, low), xp.where(error < 0, high, x)
        step = x - error / (1 - fixed * xp.expm1(-x) / rest)
        x = xp.where((step > low) & (step <= high), step, (low + high) / 2)
    return x


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


def excess(nats: Any, xp: ModuleType = jnp) -> Any:
    """x - 1 + e^-x for x > 0, without cancellation, of any shape."""
    small = xp.where(nats < 1, nats, 0.0)
    series = xp.zeros_like(small)
    for coefficient in EXCESS:
        series = series * small + coefficient
    return xp.where(nats < 1, small * small * series, (nats - 1) + xp.exp(-nats))
