import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meco_jax import System, pad_devices, solve, table1
from meco_jax import system as sy


def test_formulas_by_hand():
    """K = 2 with round numbers; each expected value is computed in its comment."""
    system = System(
        task_bits=jnp.array([1e6, 2e6]),
        cycles_per_bit=jnp.array([100.0, 300.0]),
        cpu_hz=jnp.array([1e9, 1e9]),
        weight=jnp.array([1.0, 2.0]),
        slot=0.4,
        noise_power=1e-9,
    )
    h = jnp.array([1e-3, 2e-3])
    # C B / f = 1e8 / 1e9 and 6e8 / 1e9
    np.testing.assert_allclose(sy.local_time(system), [0.1, 0.6], rtol=1e-6)
    # beta eps B C f^2 = 1e-28 * 1e8 * 1e18 = 0.01 and 2 * 1e-28 * 6e8 * 1e18 = 0.12
    np.testing.assert_allclose(sy.local_energy(system), [0.01, 0.12], rtol=1e-6)
    # 0.6 s > 0.4 s: the second must send 1 - 0.4 / 0.6 of its task
    np.testing.assert_array_equal(sy.forced(system), [False, True])
    np.testing.assert_allclose(sy.required_ratio(system), [0, 1 / 3], rtol=1e-6)
    # p h^2 / N0 = 3e-3 * 1e-6 / 1e-9 = 3 and 0.75e-3 * 4e-6 / 1e-9 = 3: log2(4) = 2, r = 2e7
    power = jnp.array([3e-3, 0.75e-3])
    np.testing.assert_allclose(sy.rate(system, h, power), [2e7, 2e7], rtol=1e-6)
    # t' = a B / r = 0 and 2e6 / 2e7 = 0.1; energy = 0.01 + 2 * 0.75e-3 * 0.1 = 0.01015
    offload = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(sy.transmit_time(system, h, offload, power), [0, 0.1], rtol=1e-6)
    np.testing.assert_allclose(sy.realised_energy(system, h, offload, power), 0.01015, rtol=1e-6)


def test_a_task_without_power_never_arrives():
    system, h = table1(2), jnp.array([1e-3, 1e-3])
    time = sy.transmit_time(system, h, jnp.ones(2), jnp.array([0.0, 0.1]))
    assert np.isinf(time[0])
    assert np.isfinite(time[1])
    assert np.isinf(sy.realised_energy(system, h, jnp.ones(2), jnp.array([0.0, 0.1])))


@pytest.mark.parametrize("method", ["mcos_partial", "pcos"])
def test_the_slot_has_a_slope_outside_jit(method):
    system, h = table1(2).replace(cpu_hz=jnp.array([5e8, 2e9])), jnp.full(2, 1e-3)
    energy = lambda slot: solve(h, system.replace(slot=slot), method=method).energy  # noqa: E731
    difference = (energy(0.502) - energy(0.498)) / 0.004
    np.testing.assert_allclose(jax.grad(energy)(0.5), difference, rtol=0.01)


def test_padding_is_inactive():
    padded = pad_devices(table1(3), 5)
    np.testing.assert_array_equal(padded.active, [True, True, True, False, False])
    np.testing.assert_array_equal(sy.forced(padded)[3:], False)
    np.testing.assert_array_equal(sy.required_ratio(padded)[3:], 0)
    with pytest.raises(ValueError, match="num_devices must be at least 5; got 4"):
        pad_devices(padded, 4)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("slot", 0.0, "above 0"),
        ("slot", -1.0, "above 0"),
        ("bandwidth", -1e7, "above 0"),
        ("noise_power", 0.0, "above 0"),
        ("max_power", -0.1, "at least 0"),
        ("log_base", 1.0, "above 1"),
        ("task_bits", jnp.array([1e6, -1.0]), "at least 0"),
        ("cycles_per_bit", jnp.array([1e6, jnp.nan]), "at least 0"),
        ("cpu_hz", jnp.array([jnp.inf, 1e9]), "at least 0"),
        ("weight", jnp.array([1.0, 0.0]), "above 0"),
    ],
)
def test_bad_systems_are_named(field, value, rule):
    system = table1(2).replace(**{field: value})
    with pytest.raises(ValueError, match=rf"system\.{field} must be finite and {rule}; got "):
        solve(jnp.full(2, 1e-3), system, method="mcos")


def test_padding_may_hold_anything():
    system = table1(2).replace(active=jnp.array([True, False]), task_bits=jnp.array([1e6, -1.0]))
    assert bool(solve(jnp.full(2, 1e-3), system, method="mcos").feasible)
