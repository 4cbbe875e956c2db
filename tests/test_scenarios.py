import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meco_jax import (
    explain,
    sample_channels,
    sample_mixtures,
    sample_systems,
    table1,
    train,
    train_policy,
)
from meco_jax.runtime.settings import as_key
from meco_jax.system import ADDED_PER_DEVICE


def test_fewer_devices_are_a_prefix():
    """To rounding: each number of devices has a program of its own."""
    small, large = table1(4, seed=3), table1(9, seed=3)
    for name in ("task_bits", "cycles_per_bit", "cpu_hz"):
        np.testing.assert_allclose(getattr(small, name), getattr(large, name)[:4], rtol=1e-6)
    few, more = (sample_channels(jax.random.key(1), system, 5) for system in (small, large))
    np.testing.assert_allclose(few, more[:, :4], rtol=1e-6)
    assert not np.array_equal(table1(4, seed=4).task_bits, small.task_bits)


def test_table1_ranges():
    system = table1(2000, seed=1)
    for leaf, low, high in (
        (system.task_bits, 8e5, 2.4e6),
        (system.cycles_per_bit, 200, 400),
        (system.cpu_hz, 1e9, 2e9),
    ):
        assert low <= np.min(leaf) < 1.02 * low
        assert 0.98 * high < np.max(leaf) <= high
    assert float(system.max_power) == pytest.approx(0.19952623)


def test_channels_are_rayleigh(key):
    power_gain = np.asarray(sample_channels(key, table1(10), 20_000)) ** 2
    assert np.mean(power_gain) == pytest.approx(1e-6, rel=0.01)
    # exponential: P(x > mean) = 1 / e, variance = mean^2
    assert np.mean(power_gain > 1e-6) == pytest.approx(np.exp(-1), abs=0.005)
    assert np.std(power_gain) == pytest.approx(1e-6, rel=0.02)


def test_mixtures_extend_the_plain_draw(key):
    """Each field counts in half of the systems; the rest is the plain draw, to rounding."""
    system, h = sample_mixtures(key, 400, 6, access="fdma")
    plain, same = sample_systems(jax.random.split(jax.random.key(0))[0], 400, 6)
    np.testing.assert_allclose(h, same, rtol=1e-6)
    np.testing.assert_allclose(system.task_bits, plain.task_bits, rtol=1e-6)
    assert system.access == "fdma"
    cycles = np.sum(np.where(system.active, system.task_bits * system.cycles_per_bit, 0), axis=1)
    part = np.asarray(system.edge_cycles) / cycles
    assert part.min() >= 0.3
    neutral = {"max_power": 10**2.3 / 1e3, "noise_power": 1e-9, "chip": 1e-28}
    off = [np.all(np.isclose(getattr(system, name), neutral.get(name, 0.0), atol=0), axis=1)
           for name in (*neutral, *ADDED_PER_DEVICE)]  # fmt: skip
    np.testing.assert_allclose(np.mean([*off, part > 1], axis=1), 0.5, atol=0.1)
    assert explain(h, system).slips == ()  # nothing looks like a slip of unit


KEYS = {
    "Python": lambda: 5,
    "NumPy": lambda: np.uint8(5),
    "an array": lambda: jnp.asarray(5),
    "typed": lambda: jax.random.key(5),
    "raw": lambda: jax.random.PRNGKey(5),
    "raw, in NumPy": lambda: np.asarray(jax.random.PRNGKey(5)),
    "rbg": lambda: jax.random.key(5, impl="rbg"),
    "unsafe_rbg": lambda: jax.random.key(5, impl="unsafe_rbg"),
    "rbg, raw": lambda: jax.random.key_data(jax.random.key(5, impl="rbg")),
}


@pytest.mark.parametrize("kind", KEYS)
def test_seeds_and_keys_mean_the_same(kind):
    system = table1(3)
    uniform = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(jax.random.key(5), i), (4,)))
    gains = np.sqrt(-1e-6 * np.log1p(-np.asarray(uniform(jnp.arange(3))).T))
    np.testing.assert_allclose(sample_channels(KEYS[kind](), system, 4), gains, rtol=1e-6)
    same = jax.jit(lambda key: sample_channels(key, system, 4))(KEYS[kind]())
    np.testing.assert_allclose(same, gains, rtol=1e-6)


def test_seeds_count_modulo_two_to_the_32():
    small, large = (sample_channels(seed, table1(2), 3) for seed in (-1, 2**40 - 1))
    np.testing.assert_array_equal(small, large)


def test_all_words_of_a_key_count():
    """Keys of rbg whose second half differs, as those of unsafe_rbg do."""
    words = jnp.array([[1, 2, 1, 2], [1, 2, 3, 2], [1, 2, 1, 4], [1, 2, 1, 5]], jnp.uint32)
    keys = jax.random.wrap_key_data(words, impl="rbg")
    gains = jax.vmap(lambda key: sample_channels(key, table1(2), 3))(keys)
    assert len(np.unique(gains)) == gains.size
    for key, own in zip(keys, gains):
        np.testing.assert_allclose(sample_channels(key, table1(2), 3), own, rtol=1e-6)


def test_draws_are_those_of_jax():
    """Its default generator's, by which trainings were made."""
    ours, jaxs = as_key("key", 3), jax.random.key(3)
    for draw in (
        lambda key: jax.random.bits(key, (2, 3), np.uint8),
        lambda key: jax.random.bits(key, (5,), np.uint32),
        lambda key: jax.random.normal(key, (2, 3)),
        lambda key: jax.random.permutation(key, 50),
        lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
    ):
        np.testing.assert_array_equal(draw(jax.random.clone(ours)), draw(jax.random.clone(jaxs)))


@pytest.mark.parametrize(
    ("key", "got"),
    [
        (None, "None"),
        (True, "True"),
        (0.5, "0.5"),
        ("0", "'0'"),
        ([0, 1], r"\[0, 1\]"),
        (np.arange(3), "an array of int64 of shape"),
        (np.float32(1), "an array of float32 of shape"),
        (jnp.zeros(2, jnp.int32), "an array of int32 of shape"),
        (jax.random.split(jax.random.key(0), 2), "an array of key<fry> of shape"),
    ],
)
def test_other_keys_are_named(key, got):
    rule = f"must be an integer or one PRNG key; got {got}"
    with pytest.raises(ValueError, match=f"key {rule}"):
        sample_channels(key, table1(2), 3)
    with pytest.raises(ValueError, match=f"seed {rule}"):
        table1(2, seed=key)
    with pytest.raises(ValueError, match=f"key {rule}"):
        train(table1(2), key=key)
    with pytest.raises(ValueError, match=f"key {rule}"):
        sample_systems(key, 3, 2)
    with pytest.raises(ValueError, match=f"seed {rule}"):
        train_policy(key)


@pytest.mark.parametrize(("argument", "value"), [("num_devices", 0), ("slot", 0.0)])
def test_bad_table1(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be"):
        table1(**{argument: value})
