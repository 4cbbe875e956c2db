"""The margin of least energy among those that are late in a given share of all slots."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meco_jax.runtime.checks import integer, one_number, outside_traces, refuse
from meco_jax.runtime.settings import as_key, moves_data
from meco_jax.simulation.margins import Robust
from meco_jax.simulation.scenario import Scenario, check_scenario
from meco_jax.simulation.simulate import simulate

PRICES, ROUNDS = 16, 3  # tried at once, and how often, each time between the last two
DECADES = -6.0, 6.0  # of the price, over the mean local energy of a task


@moves_data
def calibrate(
    scheme: Robust, scenario: Scenario, key: jax.Array | int, num_slots: int = 1000
) -> Robust:
    """Let some slots be late more often than others, where that saves energy.

    ``robust`` keeps its outage in every slot, given the estimates of that slot. Over many slots
    the same share costs least if one price of risk holds in all of them: slots with a weak
    uplink then take more risk, the others next to none. The price is found by simulation; the
    share counts what is known of the channels, not what happens, so few slots do.

    Args:
        scheme: from ``robust``, without ``error``; its ``outage`` is the share of the slots with
            uplinks that may have a late one.
        scenario: what happens; another one needs another price.
        key: PRNG key or seed.
        num_slots: slots that each price is tried on, at least 1.

    Returns:
        The scheme with a price: on the slots that were tried its outage is kept in the mean.

    Raises:
        ValueError: if ``scheme`` is none of ``robust``, has an ``error`` or is per uplink, no price
            keeps the outage, or as ``simulate``; under ``jax.jit``.
    """
    outside_traces("calibrate", scheme, scenario)
    if not isinstance(scheme, Robust) or scheme.error is not None or scheme.per != "slot":
        raise refuse("scheme", 'from robust, per="slot", without error', scheme)
    integer("num_slots", num_slots, low=1)
    scenario = check_scenario(scenario)
    system = scenario.system
    key = as_key("key", key)
    local = np.asarray(system.chip * system.cpu_hz**2 * system.cycles_per_bit * system.task_bits)
    usual = float(np.mean(local[np.asarray(system.active)])) or 1.0
    low, high = DECADES
    outage = float(one_number("scheme.outage", scheme.outage))
    for _ in range(ROUNDS):
        decades = np.linspace(low, high, PRICES)
        prices = jnp.asarray(usual * 10.0**decades, jnp.result_type(float))
        shares = np.asarray(_shares(key, scenario, scheme, prices, num_slots), np.float64)
        good = shares <= outage
        if not good[-1]:
            raise ValueError(
                f"scheme.outage must be one that a price of risk keeps; got {outage} where "
                f"{shares[-1]:.3g} is the least"
            )
        first = int(np.argmin(good[::-1]))  # below it all prices keep the outage
        place = len(good) - first if first else 0
        high, low = decades[place], decades[max(place - 1, 0)]
    return scheme.replace(price=float(prices[place]))


@jax.jit
def _mean_risk(risk: jax.Array, sent: jax.Array) -> jax.Array:
    slots = jnp.any(sent, axis=-1)
    number = jnp.maximum(jnp.sum(slots, dtype=risk.dtype), 1.0)
    return jnp.sum(jnp.where(slots, risk, 0.0)) / number


def _shares(
    key: jax.Array, scenario: Scenario, scheme: Robust, prices: jax.Array, num_slots: int
) -> Any:
    """Mean risk of the slots with uplinks at each of several prices."""

    def share(price: jax.Array) -> jax.Array:
        _, outcome = simulate(scenario, scheme.replace(price=price), key, num_slots)
        return _mean_risk(outcome.risk, outcome.sent)

    return jax.vmap(share)(prices)
