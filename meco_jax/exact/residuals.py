"""What rounding took from the numbers of an uplink, so that sums and bounds can be exact.

Source: THEORY.md, section 7. All is for one channel, ``[K]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.exact import twofold
from meco_jax.exact.equations import band_slope
from meco_jax.runtime.describe import short_repr
from meco_jax.system import System

SHARE_UNIT = 2.0**-20  # sums of its multiples are exact in float32, in any order, up to 16 slots


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


def exact_terms(
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
    system, h, load, gain, nats, log_base = fixed_numbers(system, h, load, gain, nats)
    load_rest, gain_rest, more_nats = rests(system, h, load, gain, nats, log_base)
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


def exact_on_host(load: Any, gain: Any, share: Any, slot: Any, costs: dict[str, Any]) -> Exact:
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


def fixed_numbers(system: System, h: Any, load: Any, gain: Any, nats: Any) -> tuple[Any, ...]:
    """Fix numbers: in two places compilers may round the same one in two ways."""
    log_base = jnp.log(system.log_base)
    given = jax.lax.stop_gradient((load, gain, nats, log_base, system, h))
    load, gain, nats, log_base, system, h = jax.lax.optimization_barrier(given)
    load, gain, nats, log_base = twofold.computed_once((load, gain, nats, log_base))
    return system, h, load, gain, nats, log_base


def rests(
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
        more_nats = more / (band_slope(nats, jnp) * nats)

    return load_rest, gain_rest, more_nats


def _excess_of(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    """(a b - c d) / (a b), without cancellation where both are nearly equal."""
    left, right = twofold.two_product(a, b), twofold.two_product(c, d)
    return ((left[0] - right[0]) + (left[1] - right[1])) / jnp.where(left[0] != 0, left[0], 1.0)


def _in_units(share: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cut a share, which truly has the part ``rest`` more, into whole ``SHARE_UNIT`` and less."""
    whole = jnp.round(share / SHARE_UNIT) * SHARE_UNIT
    return whole, (share - whole) + jnp.where(jnp.abs(rest) < 1e-4, share * rest, 0.0)
