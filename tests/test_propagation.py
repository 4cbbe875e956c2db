import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from meco_jax import (
    System,
    drop_devices,
    from_db,
    path_gain,
    sample_channels,
    scale_frequency,
    table1,
)
from meco_jax import system as physics


def fits(law, sample):
    return scipy.stats.kstest(np.asarray(sample, np.float64).ravel(), law.cdf).pvalue > 0.01


# Losses in dB by hand. At 1 km the logarithm is 0; at 100 m it is -1: 128.1 - 37.6 = 90.5 and
# 140.7 - 36.7 = 104. Free space at 2 GHz and 1 km: 20 lg(4 pi 1e3 2e9 / c) = 98.468; at 1 GHz
# 6.021 less. From 1 m, where it is 38.468 at 2 GHz, exponent 3.5 loses 35 dB per decade.
@pytest.mark.parametrize(
    ("arguments", "loss_db"),
    [
        ((1000.0,), 128.1),
        ((100.0, "3gpp-macro"), 90.5),
        ((250.0, "3gpp-macro"), 105.463),
        ((1000.0, "3gpp-pico"), 140.7),
        ((100, "3gpp-pico"), 104.0),
        ((1000.0, "free-space"), 98.468),
        ((1000.0, "free-space", {"carrier": 1e9}), 92.447),
        ((1.0, "exponent"), 38.468),
        ((10.0, "exponent"), 68.468),
        ((100.0, "exponent", {"exponent": 3.5}), 108.468),
        ((100.0, "exponent", {"exponent": 3.5, "reference": 10.0, "carrier": 1e9}), 87.447),
    ],
)
def test_path_losses_by_hand(arguments, loss_db):
    *plain, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    gain = path_gain(*plain, **options)
    assert gain.shape == ()
    assert -10 * np.log10(float(gain)) == pytest.approx(loss_db, abs=1e-3)


@pytest.mark.parametrize("model", ["3gpp-macro", "3gpp-pico", "free-space", "exponent"])
def test_path_gain_of_any_shape_has_its_derivative(model):
    """d gain / d d = -alpha gain / d."""
    distance = jnp.array([[35.0, 100.0], [250.0, 2000.0]])
    gain = path_gain(distance, model)
    alpha = {"3gpp-macro": 3.76, "3gpp-pico": 3.67, "free-space": 2.0, "exponent": 3.0}[model]
    slope = jax.jit(jax.grad(lambda d: jnp.sum(path_gain(d, model))))(distance)
    np.testing.assert_allclose(slope, -alpha * gain / distance, rtol=1e-5)
    np.testing.assert_allclose(path_gain(distance.tolist(), model), gain, rtol=1e-6)


def test_free_space_is_the_exponent_two():
    distance = np.geomspace(1.0, 1e4, 7)
    same = path_gain(distance, "exponent", exponent=2.0, carrier=9e8, reference=30.0)
    np.testing.assert_allclose(path_gain(distance, "free-space", carrier=9e8), same, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0.0,), {}, "distance_m must be finite and above 0; got 0.0"),
        (([3.0, -1.0],), {}, "distance_m must be finite and above 0; got -1.0"),
        (("far",), {}, "distance_m must be real numbers; got 'far'"),
        ((9.0, "hata"), {}, "model must be one of 3gpp-macro, .*, exponent; got 'hata'"),
        ((9.0, None), {}, "model must be one of .*; got None"),
        ((9.0,), {"carrier": 1e9}, "carrier must be left out for model '3gpp-macro'; got 1000000"),
        ((9.0, "free-space"), {"exponent": 3}, "exponent must be left out for model 'free-space'"),
        ((9.0, "free-space"), {"carrier": 0}, "carrier must be finite and above 0; got 0"),
        ((9.0, "exponent"), {"exponent": -2}, "exponent must be finite and above 0; got -2"),
        ((9.0, "exponent"), {"reference": [1, 2]}, "reference must be one number; got"),
    ],
)
def test_bad_path_gain(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        path_gain(*arguments, **options)


def test_devices_are_uniform_over_the_ring():
    radius, inner = 250.0, 35.0
    distance = np.asarray(drop_devices(0, 20_000, radius, inner=inner), np.float64)
    assert inner < distance.min() < distance.max() <= radius * (1 + 1e-6)
    area = (distance**2 - inner**2) / (radius**2 - inner**2)
    assert fits(scipy.stats.uniform(), area)
    np.testing.assert_allclose(drop_devices(0, 5, radius, inner=inner), distance[:5], rtol=1e-6)
    disc = drop_devices(1, 20_000, radius)
    assert disc.min() > 0
    assert np.mean(disc) == pytest.approx(2 / 3 * radius, rel=0.01)
    slope = jax.jit(jax.grad(lambda r: jnp.sum(drop_devices(0, 5, r))))(radius)
    np.testing.assert_allclose(slope, jnp.sum(drop_devices(0, 5, 1.0)), rtol=1e-5)


def test_a_seed_does_not_bind_places_to_channels():
    place = drop_devices(3, 20_000, 1.0)
    (gain,) = sample_channels(3, System(np.ones(20_000), 0.0, 1e9, mean_gain=1.0), 1)
    assert abs(scipy.stats.spearmanr(place, gain).statistic) < 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 9.0), "num_devices must be at least 1; got 0"),
        ((0, 3, 0.0), "radius must be finite and above 0; got 0.0"),
        ((0, 3, [9.0, 9.0]), "radius must be one number; got"),
        ((0, 3, 9.0, -1.0), "inner must be finite and at least 0; got -1.0"),
        ((0, 3, 9.0, 9.0), "inner must be below radius, 9.0; got 9.0"),
        (("0", 3, 9.0), "key must be an integer or one PRNG key; got '0'"),
    ],
)
def test_bad_cells(arguments, message):
    with pytest.raises(ValueError, match=message):
        drop_devices(*arguments)


@pytest.mark.parametrize(("antennas", "kappa"), [(1, 0.0), (4, 0.0), (1, 3.0), (3, 2.0)])
def test_laws_of_fading(antennas, kappa):
    """2 (kappa + 1) h^2 / mean: chi^2, 2 M degrees of freedom, noncentrality 2 kappa M."""
    h = np.asarray(sample_channels(4, table1(2), 10_000, antennas, kappa), np.float64)
    assert h.shape == (10_000, 2)
    relative = h**2 / 1e-6
    law = scipy.stats.gamma(antennas)
    if kappa:
        scale = 1 / (2 * (kappa + 1))
        law = scipy.stats.ncx2(2 * antennas, 2 * kappa * antennas, scale=scale)
    assert np.mean(relative) == pytest.approx(antennas, rel=0.02)
    # Per antenna (2 kappa + 1) / (kappa + 1)^2, 1 for Rayleigh fading.
    variance = antennas * (2 * kappa + 1) / (kappa + 1) ** 2
    assert np.var(relative) == pytest.approx(variance, rel=0.04)
    assert fits(law, relative)
    if antennas == 1 and kappa:  # what scipy calls Rice
        scale = (1e-6 / (2 * (kappa + 1))) ** 0.5
        assert fits(scipy.stats.rice((2 * kappa) ** 0.5, scale=scale), h)


def test_defaults_are_the_draws_they_were():
    """-mean ln(1 - u), u from the device's own key, to the rounding of other programs."""
    system = table1(3)
    uniform = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(jax.random.key(5), i), (9,)))
    power = -jnp.log1p(-uniform(jnp.arange(3)).T) * jnp.float32(1e-6)
    found = sample_channels(5, system, 9)
    np.testing.assert_allclose(found, jnp.sqrt(power), rtol=1e-6)
    np.testing.assert_allclose(sample_channels(5, system, 9, 1, [0, 0, 0]), found, rtol=1e-6)
    traced = jax.jit(lambda kappa: sample_channels(5, system, 9, rice_factor=kappa))
    np.testing.assert_allclose(traced(0.0), found, rtol=1e-6)


def test_more_devices_and_antennas_add_to_the_fewer():
    small, large = table1(2), table1(5)
    kappa = np.array([0.0, 2.0, 1.0, 0.0, 3.0])
    one, two = (sample_channels(2, large, 6, antennas, kappa) for antennas in (1, 2))
    few = sample_channels(2, small, 6, 2, kappa[:2])
    np.testing.assert_allclose(few, two[:, :2], rtol=1e-6)
    first = np.asarray(one, np.float64) ** 2 / 1e-6
    second = np.asarray(two, np.float64) ** 2 / 1e-6 - first
    assert second.min() > 0
    both = np.round(np.stack([first, second]), 4)
    assert len(np.unique(both)) == both.size  # each antenna draws its own


def test_mean_gains_per_device():
    """Padding may hold anything."""
    gains = np.array([1e-6, 1e-9, 2e-7, 0.0, np.nan], np.float32)
    system = physics.pad_devices(table1(3), 5)
    own = sample_channels(1, system.replace(mean_gain=gains), 8, rice_factor=1.0)
    one = sample_channels(1, system.replace(mean_gain=1.0), 8, rice_factor=1.0)
    wanted = np.asarray(one[:, :3]) * np.sqrt(gains[:3])
    np.testing.assert_allclose(own[:, :3], wanted, rtol=1e-6)
    assert not np.any(own[:, 3:])


def test_fading_has_derivatives():
    system = table1(3)

    def total(log_gain, kappa):
        gains = system.replace(mean_gain=jnp.exp(log_gain))
        return jnp.sum(sample_channels(1, gains, 50, antennas=2, rice_factor=kappa))

    log_gain = jnp.log(jnp.array([1e-6, 1e-7, 1e-5]))
    slopes = jax.jit(jax.value_and_grad(total, (0, 1)))
    for kappa in (0.0, 0.5):
        value, (by_gain, by_kappa) = slopes(log_gain, kappa)
        assert np.all(by_gain > 0)
        half = float(value) / 2  # h grows as the root of its gain
        assert float(jnp.sum(by_gain)) == pytest.approx(half, rel=1e-4)
        assert np.isfinite(by_kappa)


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({}, {"antennas": 0}, "antennas must be at least 1; got 0"),
        ({}, {"antennas": 2.0}, "antennas must be an integer of at least 1; got 2.0"),
        ({}, {"rice_factor": -1.0}, "rice_factor must be finite and at least 0; got -1.0"),
        ({}, {"rice_factor": "rice"}, "rice_factor must be real numbers; got 'rice'"),
        ({}, {"rice_factor": [1, 2]}, r"rice_factor must be one number or 3, .*; got shape \(2,\)"),
        ({"mean_gain": np.ones(2)}, {}, r"mean_gain must be one number or 3, .*; got shape \(2,\)"),
        ({"mean_gain": np.ones((1, 3))}, {}, r"mean_gain must be one number or 3, .* \(1, 3\)"),
        ({"mean_gain": [1, 0, 1]}, {}, "mean_gain must be finite and above 0; got 0.0"),
    ],
)
def test_bad_fading(fields, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_channels(0, table1(3).replace(**fields), 2, **arguments)


def test_scaled_frequencies_by_hand():
    """C B / T = 1e6 300 / 0.5 = 600 MHz: 1 GHz becomes 600 MHz, energy (0.6)^2; 500 MHz is late.

    The third device has nothing to compute.
    """
    system = System(np.array([1e6, 1e6, 0.0]), 300.0, np.array([1e9, 5e8, 1e9]), slot=0.5)
    scaled = scale_frequency(system)
    np.testing.assert_allclose(scaled.cpu_hz, [6e8, 5e8, 0.0], rtol=1e-6)
    assert scaled.cpu_hz[1] == 5e8
    np.testing.assert_array_equal(physics.forced(scaled), [False, True, False])
    energy = np.array([1e-28 * 3e8 * 6e8**2, 1e-28 * 3e8 * 5e8**2, 0.0])
    np.testing.assert_allclose(physics.local_energy(scaled), energy, rtol=2e-6)
    again = scale_frequency(scaled)
    np.testing.assert_array_equal(again.cpu_hz, scaled.cpu_hz)


def test_no_device_becomes_late(rng):
    """In float32's arithmetic, and for the exact product of the numbers that it has."""
    shape = (200, 50)
    system = System(
        np.float32(rng.uniform(2e5, 1e7, shape)),
        np.float32(rng.uniform(50, 1000, shape)),
        np.float32(rng.uniform(5e8, 4e9, shape)),
        slot=np.float32(rng.uniform(0.2, 2.0, 200)),
        active=np.ones(shape, bool),
    )
    slot = system.slot[:, None]
    before = np.asarray(physics.local_time(system) > slot)
    for scale in (scale_frequency, jax.jit(scale_frequency)):
        hz = np.asarray(scale(system).cpu_hz)
        assert hz.dtype == np.float32
        late = physics.local_time(system.replace(cpu_hz=hz)) > slot
        np.testing.assert_array_equal(late, before)
        exact = np.float64(system.task_bits) * system.cycles_per_bit / hz
        np.testing.assert_array_equal(exact > slot, before)
        slower = hz < system.cpu_hz
        assert 0.1 < np.mean(slower) < 0.9
        np.testing.assert_allclose((exact / slot)[slower], 1, rtol=1e-6)


def test_scaled_frequencies_over_slots_and_their_derivatives():
    system = table1(3)
    slots = np.array([0.3, 0.5, 1.0, 2.0])
    many = scale_frequency(system.replace(slot=slots))
    assert many.cpu_hz.shape == (4, 3)
    for slot, hz in zip(slots, many.cpu_hz):
        alone = scale_frequency(system.replace(slot=slot)).cpu_hz
        np.testing.assert_allclose(alone, hz, rtol=1e-6)  # a program of another shape
    local = lambda slot: jnp.sum(physics.local_energy(scale_frequency(system.replace(slot=slot))))  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(local))(2.0)
    np.testing.assert_allclose(slope, -2 * value / 2.0, rtol=1e-5)  # e = eps (C B)^3 / T^2


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ("table1", "system must be a meco_jax.System; got 'table1'"),
        (System([1e6], 300.0, 1e9, slot=0.0), "system.slot must be finite and above 0; got 0.0"),
        (System([1e6], 300.0, -1.0), "system.cpu_hz must be finite and at least 0; got -1.0"),
    ],
)
def test_bad_systems_are_not_scaled(system, message):
    with pytest.raises(ValueError, match=message):
        scale_frequency(system)


def test_decibels_and_gains_fit_together():
    assert float(path_gain(1000.0)) == pytest.approx(from_db(-128.1), rel=1e-6)
