"""Wireless powered offloading: answers, proofs, derivatives, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wpmec_reference as reference
from scipy.optimize import minimize

import meco_jax
from meco_jax import engine, wpmec
from meco_jax.wpmec import enumeration, search
from meco_jax.wpmec.devices import Devices, allocate_set, make_devices
from meco_jax.wpmec.solver import _solve, host_batch

PLAIN = {  # so that L = (w h)^(1/3) / phi, rho = h^2 and eps = 1
    "chip": 1.0, "harvest_efficiency": 1.0, "power": 1.0, "noise_power": 1.0,
    "bandwidth": np.log(2), "overhead": 1.0,
}  # fmt: skip


def family(rng, number, size, kind):
    """Gains and systems ``[N, K]`` of a kind: as published, or harder ones."""
    distance = np.broadcast_to(np.linspace(2.5, 5.2, size), (number, size))
    weight, chip, cycles = np.where(np.arange(size) % 2, 1.5, 1.0), 1e-26, 100.0
    if kind != "plain":
        weight = 10 ** rng.uniform(-0.7, 0.7, (number, size))
    if kind in ("devices", "wild"):
        chip = 10 ** rng.uniform(-27.5, -25, (number, size))
        cycles = 10 ** rng.uniform(1.3, 2.5, (number, size))
    if kind in ("distances", "wild"):
        distance = 10 ** rng.uniform(0.4, 1.0, (number, size))
    mean = 4.11 * (3e8 / (4 * np.pi * 915e6 * distance)) ** 2.8
    h = mean * rng.exponential(size=(number, size))
    system = wpmec.WPMEC(weight=weight, chip=chip, cycles_per_bit=cycles)
    return h.astype(np.float32), on_rows(system, np.float32)


def on_rows(system, function):
    """Apply a function to the per-device fields of many channels, ``[N, K]``."""
    return jax.tree.map(lambda x: function(x) if np.ndim(x) > 1 else x, system)


def terms(h, system, row=...):
    """The reference's terms of channels, or of one of them."""
    fields = {name: np.asarray(getattr(system, name), np.float64) for name in reference.CONSTANTS}
    fields["weight"] = np.asarray(system.weight, np.float64)
    fields = {n: x[row] if x.ndim > 1 else x for n, x in fields.items()}
    return reference.terms(np.asarray(h, np.float64)[row], **fields)


def check(found, h, system):
    """An answer keeps the frame, is what it says, and below its bound."""
    assert found.feasible.all()
    used = np.asarray(found.harvest, np.float64) + np.asarray(found.time, np.float64).sum(-1)
    np.testing.assert_array_less(used, 1 + 1e-6)
    assert np.all((np.asarray(found.offload) > 0) | (np.asarray(found.time) == 0))
    local, gain, speed = terms(h, system)
    a, time = np.asarray(found.harvest, np.float64)[..., None], np.asarray(found.time, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        sent = np.where(time > 0, speed * time * np.log1p(gain * a / time), 0)
    computed = np.where(np.asarray(found.offload) > 0, 0, local * np.cbrt(a))
    np.testing.assert_allclose(found.rate, (sent + computed).sum(-1), rtol=2e-6)
    assert np.all(found.rate <= found.upper_bound)


def test_two_devices_by_hand():
    # Device 1 at u = 1 and nu = 1 - 1 + 1/e: v = rho / e, s = rho / (e - 1). Device 2 computes;
    # at A = 3 (nu - v) / (1 + s)^(2/3) the price of time is nu. With rho = 1/2:
    rho, nu = 0.5, np.exp(-1)
    s = rho / (np.e - 1)
    local = 3 * (nu - rho / np.e) / (1 + s) ** (2 / 3)
    h = np.array([np.sqrt(rho), 1e-4])  # device 2 is heard at a rho of 1e-8
    cycles = np.array([1e4, np.cbrt(1e-4) / local])
    system = wpmec.WPMEC(weight=np.ones(2), cycles_per_bit=cycles, **PLAIN)
    found = wpmec.solve(h, system)
    np.testing.assert_array_equal(found.offload, [1, 0])
    np.testing.assert_allclose(found.harvest, 1 / (1 + s), rtol=1e-6)
    np.testing.assert_allclose(found.time, [s / (1 + s), 0], rtol=1e-6)
    expected = nu + 2 / 3 * local * (1 / (1 + s)) ** (1 / 3)
    np.testing.assert_allclose(found.rate, expected, rtol=1e-6)
    np.testing.assert_allclose(found.upper_bound, expected, rtol=1e-6)


def test_one_device_by_hand():
    # e^u (u - 1) + 1 = rho at u = 2: a rate of u - 1 + e^-u, if it sends.
    h = np.sqrt(np.array([np.exp(2) + 1]))
    rate = 1 + np.exp(-2)
    for cycles, offload in ((100.0, 1), (0.1, 0)):
        system = wpmec.WPMEC(weight=np.ones(1), cycles_per_bit=cycles, **PLAIN)
        found = wpmec.solve(h, system)
        np.testing.assert_array_equal(found.offload, [offload])
        best = rate if offload else np.cbrt(h[0]) / cycles
        np.testing.assert_allclose(found.rate, best, rtol=1e-6)
        np.testing.assert_allclose(found.upper_bound, best, rtol=1e-6)


def test_the_reference_against_slsqp(rng):
    local, gain, speed = terms(*family(rng, 1, 4, "wild"), 0)
    mode = np.array([True, False, True, True])

    def loss(x):
        a, time = x[0], np.where(mode, x[1:], 1.0)
        sent = np.where(mode, speed * time * np.log1p(gain * a / time), 0)
        return -(np.where(mode, 0, local).sum() * np.cbrt(a) + sent.sum()) / scale

    rate = reference.best_rates(mode[None], local, gain, speed)[0][0]
    scale = rate
    frame = {"type": "ineq", "fun": lambda x: 1 - x[0] - x[1:][mode].sum()}
    found = minimize(
        loss, np.full(5, 0.2), method="SLSQP", bounds=[(1e-9, 1)] * 5, constraints=frame,
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    np.testing.assert_allclose(-found.fun, 1, rtol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "weights", "devices", "distances", "wild"])
def test_against_brute_force(rng, kind):
    h, system = family(rng, 24, 7, kind)
    found = wpmec.solve(h, system)
    check(found, h, system)
    best = np.array([reference.brute_force(*terms(h, system, i))[0] for i in range(len(h))])
    np.testing.assert_allclose(found.rate, best, rtol=1e-6)
    assert np.all(np.asarray(found.upper_bound, np.float64) >= best * (1 - 1e-9))
    np.testing.assert_allclose(found.upper_bound, found.rate, rtol=1e-4)
    for method in ("prefix", "local", "offload"):
        other = wpmec.solve(h, system, method)
        check(other, h, system)
        assert np.all(np.asarray(other.rate) <= best * (1 + 1e-6))
        assert np.all(np.asarray(other.upper_bound, np.float64) >= best)


def test_larger_instances_are_certified(rng):
    h, system = family(rng, 8, 50, "wild")
    found = wpmec.solve(h, system)
    check(found, h, system)
    np.testing.assert_allclose(found.upper_bound, found.rate, rtol=1e-4)


def test_search_proves_what_a_stage_leaves_open(rng):
    h, system = family(rng, 6, 8, "wild")
    rows = host_batch(h, system, engine.DEVICE_MULTIPLE)
    for i in range(6):
        gains, one = rows.take(i)
        devices = search.host_devices(one, gains)
        mode, bound = search.search(devices, 1e-3, 1e-9)  # from nothing known
        best, expected, _ = reference.brute_force(*terms(h, system, i))
        np.testing.assert_array_equal(mode, expected)
        np.testing.assert_allclose(bound, best, rtol=3e-9)
        assert bound >= best * (1 - 1e-12)
    _, bound = search.search(devices, 1e-3, 1e-9, max_nodes=1)
    assert bound >= best
    single = enumeration.Stage(0, 1, 1, 5)  # next to nothing
    found, others = _solve(*rows.take(np.arange(6)), "optimal", single)
    assert np.all(np.asarray(found.upper_bound) >= np.asarray(wpmec.solve(h, system).rate))
    assert np.all(np.asarray(others) <= np.asarray(found.upper_bound) * (1 + 1e-6))


def test_allocate_is_the_best_of_a_mode(rng):
    h, system = family(rng, 16, 6, "wild")
    mode = rng.random((16, 6)) < 0.5
    found = wpmec.allocate(h, system, mode)
    check(found, h, system)
    np.testing.assert_array_equal(found.offload, mode)
    for i in range(16):
        rate, a = reference.best_rates(mode[i : i + 1], *terms(h, system, i))
        np.testing.assert_allclose(found.rate[i], rate[0], rtol=1e-6)
        np.testing.assert_allclose(found.harvest[i], a[0], rtol=1e-5)


def test_padding_and_permutation_change_nothing(rng):
    h, system = family(rng, 12, 6, "wild")
    found = wpmec.solve(h, system)
    order = rng.permutation(6)
    turned = on_rows(system, lambda x: x[:, order])
    again = wpmec.solve(h[:, order], turned)
    check(again, h[:, order], turned)  # where modes tie, rounding may choose another
    np.testing.assert_allclose(again.rate, found.rate, rtol=1e-6)
    active = np.arange(9) < 6
    padded = jax.tree.map(
        lambda x: np.pad(x, ((0, 0), (0, 3)), constant_values=7) if np.ndim(x) > 1 else x, system
    )
    again = wpmec.solve(
        np.pad(h, ((0, 0), (0, 3)), constant_values=1), padded.replace(active=active)
    )
    np.testing.assert_array_equal(np.asarray(again.offload)[:, 6:], 0)
    np.testing.assert_allclose(again.rate, found.rate, rtol=1e-6)


def test_units_scale(rng):
    h, system = family(rng, 12, 6, "wild")
    found = wpmec.solve(h, system)
    # All gains a thousandth of what they were, with noise and chips that make up for it.
    scaled = system.replace(
        chip=system.chip / 1e3, noise_power=system.noise_power / 1e6, weight=system.weight * 8
    )
    again = wpmec.solve(h / 1e3, scaled)
    check(again, h / 1e3, scaled)
    np.testing.assert_allclose(again.rate, 8 * found.rate, rtol=3e-6)


def test_calls_of_all_kinds_agree(rng):
    h, system = family(rng, 6, 6, "wild")
    eager = wpmec.solve(h, system)
    wrong = h.copy()
    wrong[1, 2] *= -1
    compiled = jax.jit(wpmec.solve)
    found = compiled(h, system)
    np.testing.assert_allclose(found.rate, eager.rate, rtol=1e-6)
    np.testing.assert_allclose(found.upper_bound, found.rate, rtol=1e-4)
    np.testing.assert_array_equal(np.isnan(compiled(wrong, system).rate), np.arange(6) == 1)
    np.testing.assert_array_equal(compiled(wrong, system).feasible, np.arange(6) != 1)
    axes = jax.tree.map(lambda x: 0 if np.ndim(x) > 1 else None, system)
    mapped = jax.vmap(partial(wpmec.solve, method="prefix"), in_axes=(0, axes))
    np.testing.assert_allclose(mapped(h, system).rate, wpmec.solve(h, system, "prefix").rate)
    single = wpmec.solve(h[0], on_rows(system, lambda x: x[0]))
    np.testing.assert_allclose(single.rate, eager.rate[0], rtol=1e-6)
    several = wpmec.solve(h[:, None], on_rows(system, lambda x: x[:, None]))
    np.testing.assert_allclose(several.rate[:, 0], eager.rate, rtol=1e-6)
    assert wpmec.solve(h[:0, :], wpmec.reference(6)).offload.shape == (0, 6)


def test_no_channel_at_all_and_extremes():
    found = wpmec.solve(np.array([[0.0, 0.0], [0.0, 1e-6], [1e-30, 1e-6], [1e3, 1e3]]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    np.testing.assert_array_equal(found.rate[0], 0)
    np.testing.assert_array_equal(found.harvest[0], 1)
    np.testing.assert_allclose(found.upper_bound, found.rate, rtol=1e-4)
    gradient = jax.grad(lambda h: wpmec.allocate(h, None, [0, 1]).rate)(jnp.array([0.0, 1e-6]))
    assert np.isfinite(gradient).all()


def test_derivatives_of_a_mode(rng):
    with jax.enable_x64(True):
        given = jnp.asarray(terms(*family(rng, 1, 4, "weights"), 0))
        mode = np.array([True, False, True, True])
        scale = reference.best_rates(mode[None], *np.asarray(given))[0][0]

        @jax.jit
        def answer(logs):
            local, gain, speed = given * jnp.exp(logs)
            found = allocate_set(Devices(np.ones(4, bool), local, gain, speed), mode)
            return jnp.stack([found.rate / scale, found.harvest, *found.time])

        def slopes(function, step=1e-4):
            moved = np.eye(12).reshape(12, 3, 4) * step
            pairs = [(function(x) - function(-x)) / (2 * step) for x in moved]
            return np.stack(pairs, axis=-1)

        zero = jnp.zeros((3, 4))
        first = jax.jit(jax.jacrev(answer))
        np.testing.assert_allclose(first(zero).reshape(-1, 12), slopes(answer), atol=1e-7)
        second = jax.jit(jax.hessian(lambda x: answer(x)[0]))(zero).reshape(12, 12)
        difference = slopes(lambda x: first(x)[0].ravel())
        np.testing.assert_allclose(second, difference, atol=1e-7)


def test_solve_is_differentiable(rng):
    with jax.enable_x64(True):
        h, system = family(rng, 1, 6, "weights")
        given = np.float64(h[0]), np.float64(system.weight[0]), np.float64(3.0)

        def rate(logs):  # of gains, weights and the power
            h, weight, power = (x * jnp.exp(y) for x, y in zip(given, logs))
            return wpmec.solve(h, system.replace(weight=weight, power=power)).rate / scale

        scale = 1.0
        zero = jnp.zeros(6), jnp.zeros(6), jnp.zeros(())
        scale, slopes = jax.jit(jax.value_and_grad(rate))(zero)
        slopes = np.concatenate([np.ravel(x) for x in slopes]) / scale
        moved = np.eye(13)[None] * np.array([1e-4, -1e-4])[:, None, None]
        logs = moved[..., :6], moved[..., 6:12], moved[..., 12]
        h, weight, power = (x * np.exp(y) for x, y in zip(given, logs))
        found = wpmec.solve(h, system.replace(weight=weight, power=power)).rate / scale
        np.testing.assert_allclose(slopes, (found[0] - found[1]) / 2e-4, atol=1e-6)
        np.testing.assert_allclose(slopes[6:12].sum(), 1, rtol=1e-9)  # homogeneous


def test_a_scheme_of_your_own(rng):
    h, system = family(rng, 5, 4, "weights")

    def strongest(system, h):
        return wpmec.allocate(h, system, h >= jnp.max(h))

    found = wpmec.solve(h, system, strongest)
    np.testing.assert_array_equal(found.offload, h == h.max(axis=1, keepdims=True))
    assert np.all(found.rate <= wpmec.solve(h, system).upper_bound)
    with pytest.raises(ValueError, match=r"method must be a function that returns"):
        wpmec.solve(h, system, lambda system, h: h)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wpmec.solve([1e-6, -1e-6]), r"gain must be finite and at least 0; got -1e-06"),
        (lambda: wpmec.solve([1e-6, np.nan]), r"gain must be finite and at least 0; got nan"),
        (lambda: wpmec.solve(1e-6), r"gain must have one entry per device.*shape \(\)"),
        (lambda: wpmec.solve([1e-6, 1j]), r"gain must be real numbers: pass abs"),
        (lambda: wpmec.solve([1e-6], wpmec.reference(2)), r"one entry for each of 2 devices"),
        (lambda: wpmec.solve([1e-6], meco_jax.table1(1)), r"system must be a meco_jax.wpmec.WPMEC"),
        (lambda: wpmec.solve([1e-6], wpmec.WPMEC([0.0])), r"system.weight must be .* above 0"),
        (lambda: wpmec.solve([1e-6], wpmec.WPMEC(1.0)), r"system.weight must have one entry"),
        (lambda: wpmec.solve([1e-6], wpmec.WPMEC([1.0], chip=[1, 1])), r"system.chip must be one"),
        (
            lambda: wpmec.solve([1e-6], wpmec.WPMEC([1.0], power="3 W")),
            r"system.power must be real",
        ),
        (lambda: wpmec.solve([1e-6], method="best"), r"method must be one of local, offload"),
        (lambda: wpmec.solve([1e-6], method=3), r"method must be one of local.*; got 3"),
        (lambda: wpmec.solve([1e-6], tolerance=0), r"tolerance must be finite and above 0"),
        (lambda: wpmec.solve([1e-6], max_nodes=-1), r"max_nodes must be at least 0; got -1"),
        (lambda: wpmec.allocate([1e-6], None, [0.5]), r"offload must be 0 or 1; got 0.5"),
        (
            lambda: wpmec.allocate([1e-6], None, [1, 0]),
            r"offload must have one decision for each of 1",
        ),
        (lambda: wpmec.reference(0), r"num_devices must be at least 1; got 0"),
        (lambda: wpmec.sample_channels(0, 3, 2, nearest=-1), r"nearest must be .* above 0"),
        (
            lambda: wpmec.solve(np.ones((3, 2)), wpmec.reference(2).replace(power=np.ones(2))),
            r"system.power must have batch axes that broadcast against \(3,\); got \(2,\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_channels_are_prefixes_of_more():
    few, many = (wpmec.sample_channels(3, 10, n) for n in (5, 5))
    np.testing.assert_array_equal(few, many)
    mean = wpmec.sample_channels(0, 10, 20000).mean(axis=0)
    distance = np.linspace(2.5, 5.2, 10)
    expected = 4.11 * (3e8 / (4 * np.pi * 915e6 * distance)) ** 2.8
    np.testing.assert_allclose(mean, expected, rtol=0.05)


def test_gains_that_are_not_heard_are_local():
    devices = make_devices(wpmec.reference(2), jnp.array([0.0, 1e-6]))
    np.testing.assert_array_equal(devices.usable, [False, True])
    np.testing.assert_array_equal(devices.local[0], 0)
