"""Derivatives of every method in every field: first and second ones, by differences in float64.

A field or the gains move in one random direction of all devices, by parts of what they are.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick_environment

from meco_jax import Policy, System, allocate, pad_devices, sample_channels, solve, table1
from meco_jax import system as sy
from meco_jax.paper import network as nw

FIELDS = (*sy.SYSTEM_RANGES, "h")
OUTPUTS = {  # what is differentiated of each method's solution
    "mcos_partial": ("energy", "power", "time", "offload"),  # "mcos" but for the parts
    "pcos": ("energy", "power", "time", "offload", "lower_bound"),
    "allocate": ("energy", "power", "time"),
    "optimal": ("energy", "lower_bound"),
    "bcos": ("energy",),
}
NUM, EDGES, DEVICES, STEP = 24, 8, 5, 3e-4
STENCIL = np.array([1, -8, 8, -1]) / (12 * STEP)  # of f(-2 s), f(-s), f(s), f(2 s)


def draw():
    """Channels and the directions in which their fields move: dictionaries of arrays.

    ``NUM`` of Table 1's order, of which many are capped or forced, then ``EDGES`` of zeros.
    """
    rng = np.random.default_rng(5)
    shape, each = (NUM + EDGES, DEVICES), NUM + EDGES
    at = {
        "task_bits": rng.uniform(8e5, 2.4e6, shape),
        "cycles_per_bit": rng.uniform(200, 400, shape),
        "cpu_hz": rng.uniform(0.7e9, 2e9, shape),
        "weight": rng.uniform(0.5, 2, shape),
        "slot": rng.uniform(0.25, 0.6, each),
        "bandwidth": rng.uniform(1e7, 3e7, each),
        "noise_power": np.full(each, 1e-9),
        "max_power": rng.choice([0.003, 0.2], each),
        "mean_gain": np.full(each, 1e-6),
        "chip": np.full(each, 1e-28),
        "log_base": rng.choice([2, np.e, 10], each, p=[0.6, 0.3, 0.1]),
        "h": np.sqrt(1e-6 * rng.exponential(size=shape)),
    }
    at["chip"][: NUM // 2] = 3e-30  # staying is cheap: powers and parts of the relaxed problem
    along = {name: value * rng.uniform(0.5, 1.5, value.shape) for name, value in at.items()}
    for place, (name, device) in enumerate(
        (("h", 1), ("h", slice(None)), ("max_power", ...), ("chip", ...), ("cpu_hz", 1),
         ("cpu_hz", slice(None)), ("task_bits", 1), ("task_bits", slice(None))), NUM,
    ):  # fmt: skip
        if device is ...:
            at[name][place] = 0
        else:
            at[name][place, device] = 0
    return at, along


def answer(method, move, at, along):
    """What a method says after moves ``[F]``, each array times a fixed vector: ``[Y]``."""
    moved = {name: at[name] + move[i] * along[name] for i, name in enumerate(FIELDS)}
    h = jnp.concatenate([moved.pop("h"), jnp.zeros(1)])
    system = pad_devices(System(**moved), DEVICES + 1)
    system = system.replace(active=jnp.arange(DEVICES + 1) < DEVICES)
    chosen = jnp.array([1.0, 0, 1, 0, 1, 1])
    if method == "allocate":
        chosen = jnp.maximum(chosen, sy.forced(system))
        found = allocate(h, system, chosen)
    else:
        found = solve(h, system, method=method, effort=2)
    weights = jnp.cos(jnp.arange(DEVICES + 1.0))
    leaves = [getattr(found, name) for name in OUTPUTS[method]]
    answer = jnp.stack([x if x.ndim == 0 else x @ weights for x in leaves])
    answer = jnp.where(found.feasible, answer, 0.0)
    least = sy.required_ratio(system) if method == "pcos" else 0.0
    pattern = jnp.stack([  # where it turns, so do derivatives
        found.offload > least, found.offload < 1, found.power < system.max_power * (1 - 1e-6)
    ])  # fmt: skip
    return answer, (answer, found.feasible, pattern)


def measure(method, moves, at, along, over=jax.jacfwd):
    """First and second derivatives, ``[N, M, Y, F]`` and more, and what ``answer`` adds."""

    def one(at, along, move):
        def first(move):
            slope, more = jax.jacrev(partial(answer, method), has_aux=True)(move, at, along)
            return slope, (slope, *more)

        curve, more = over(first, has_aux=True)(move)
        return curve, *more

    channels = jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None))
    return jax.device_get(jax.jit(channels)(at, along, moves))


def write(path, methods):
    """Measure around every channel in this process's precision, and write it all to a file."""
    steps = np.concatenate([[0], np.repeat(np.arange(len(FIELDS)), 4)])
    size = np.concatenate([[0], np.tile([-2, -1, 1, 2], len(FIELDS))]) * STEP
    moves = size[:, None] * np.eye(len(FIELDS))[steps]
    found = {}
    for method in methods:
        curve, slope, value, feasible, pattern = measure(
            method, moves, *jax.tree.map(jnp.asarray, draw())
        )
        still = np.all(pattern == pattern[:, :1], axis=(1, 2, 3)) & feasible.all(1)
        row = {
            "value": value[:, 0], "slope": slope[:, 0], "curve": curve[:, 0],
            "slope by differences": differences(value),
            "curve by differences": differences(slope),
            "still": still, "pattern": pattern[:, 0],
        }  # fmt: skip
        found |= {f"{method} {name}": x for name, x in row.items()}
    np.savez(path, **found)


def differences(values):
    """Fourth-order central differences of rows ``[N, 1 + 4 F, ...]``: ``[N, ..., F]``."""
    rows = values[:, 1:].reshape(len(values), len(FIELDS), 4, *values.shape[2:])
    return np.moveaxis(np.tensordot(STENCIL, rows, (0, 2)), 1, -1)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """All of float64, from a process of its own."""
    path = tmp_path_factory.mktemp("derivatives") / "found.npz"
    code = f"import test_derivatives as t; t.write({str(path)!r}, t.OUTPUTS)"
    environment = quick_environment(JAX_ENABLE_X64="1", PYTHONPATH=str(Path(__file__).parent))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    with np.load(path) as file:
        return dict(file)


def errors(found, method, part, wanted):
    """Largest difference of each answer of a channel that stays as it is: ``[N, Y]``.

    Over the answer's largest derivative, or itself.
    """
    still = found[f"{method} still"][:NUM]
    found, value = found[f"{method} {part}"], np.abs(found[f"{method} value"])
    axes = tuple(range(2, found.ndim))
    largest = np.maximum(np.max(np.abs(wanted), axis=axes), value)
    return (np.max(np.abs(found - wanted), axis=axes) / np.where(largest > 0, largest, 1.0))[:NUM][
        still
    ]


@pytest.mark.parametrize("method", OUTPUTS)
def test_first_and_second_derivatives_are_those_of_differences(exact, method):
    for part in ("slope", "curve"):
        assert np.isfinite(exact[f"{method} {part}"]).all()  # where all is 0 or infeasible too
        error = errors(exact, method, part, exact[f"{method} {part} by differences"])
        assert len(error) >= 10
        # A relaxed price is bisected to 1e-9, and so good are differences of what hangs on it.
        assert np.max(error) < 3e-5, (part, np.max(error, axis=0))
    assert np.max(np.abs(exact[f"{method} curve"])) > 0.01 * np.max(exact[f"{method} value"])


def test_all_kinds_of_answers_are_among_them(exact):
    for method in ("pcos", "optimal", "bcos"):
        pattern = exact[f"{method} pattern"][:NUM, :, :DEVICES]
        sends, part, below = np.moveaxis(pattern, 1, 0)
        assert np.sum(np.any(sends & ~below, axis=1)) >= 1  # capped
        assert np.sum(np.any(sends & below, axis=1)) >= 5
        if method == "pcos":  # with a device at its switching price, and without
            assert 3 <= np.sum(np.any(sends & part, axis=1)) <= NUM - 3


@pytest.mark.parametrize("method", ["pcos"])
def test_float32_and_reverse_over_reverse_give_the_same(exact, method):
    moves = np.zeros((1, len(FIELDS)), np.float32)
    arguments = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), draw())
    curve, slope, *_ = (x[:, 0] for x in measure(method, moves, *arguments, over=jax.jacrev))
    for part, found, tolerance in (("slope", slope, 1e-4), ("curve", curve, 1e-2)):
        assert np.isfinite(found).all()
        mine = exact | {f"{method} {part}": found}
        error = errors(mine, method, part, exact[f"{method} {part}"])
        assert np.max(error[:, 0]) < tolerance, np.max(error, axis=0)


def test_fields_may_be_numbers_scalars_or_batched():
    bits, h = jnp.array([1e6, 2e6]), jnp.array([1e-3, 2e-3])

    def energy(slot, weight, h=h, **fields):
        system = System(bits, 300, jnp.full(2, 4e8), weight, slot=slot, log_base=2, **fields)
        return jnp.sum(solve(h, system, method="mcos").energy)

    slope = jax.jit(jax.grad(energy, argnums=(0, 1)))
    one = slope(1.0, 1.0)
    for slot, weight in ((jnp.array(1.0), np.float32(1.0)), (jnp.ones(3), jnp.ones((3, 2)))):
        many = slope(slot, weight, jnp.broadcast_to(h, (*jnp.shape(slot), 2)))
        times = max(1, jnp.size(slot))
        for found, wanted in zip(many, one):
            np.testing.assert_allclose(jnp.sum(found), times * wanted, rtol=1e-5, atol=1e-9)


def test_formulas_at_zero():
    """Right, and no NaN, where a gain, a power, a part, a clock or a task is nothing."""
    system = System(jnp.array([1e6, 0.0]), jnp.full(2, 300.0), jnp.full(2, 1e9))
    h, offload, power = jnp.array([1e-3, 1e-3]), jnp.array([0.0, 0.5]), jnp.array([0.1, 0.1])
    # r = 1e7 log2(1 + 0.1 * 1e-6 / 1e-9) = 6.658211e7 bit/s, e = 1e-28 * 3e8 * 1e18 = 0.03 J
    spent = jax.grad(sy.realised_energy, argnums=2)(system, h, offload, power)
    np.testing.assert_allclose(spent, [0.1 * 1e6 / 6.658211e7 - 0.03, 0], rtol=1e-6)
    at = lambda f: lambda hz: jnp.sum(f(system.replace(cpu_hz=hz)))  # noqa: E731
    # m = 1 - f T / (C B) falls by T / (C B) = 0.5 / 3e8 per Hz
    ratio = jax.grad(at(sy.required_ratio))(jnp.array([0.0, 0.0]))
    np.testing.assert_allclose(ratio, [-0.5 / 3e8, 0], rtol=1e-6)
    np.testing.assert_allclose(jax.hessian(at(sy.required_ratio))(jnp.full(2, 1e8)), 0)
    for formula in (sy.local_time, sy.local_energy):
        assert np.isfinite(jax.grad(at(formula))(jnp.zeros(2))).all()
    for gains, power in ((0 * h, 0.1), (h, 0.0)):
        for formula in (sy.rate, partial(sy.transmit_time, offload=jnp.ones(2))):
            total = lambda h, p, f=formula: jnp.sum(f(system, h=h, power=p))  # noqa: E731
            for leaf in jax.grad(total, argnums=(0, 1))(gains, jnp.full(2, power)):
                assert np.isfinite(leaf).all()


def test_gradients_of_a_decision(rng):
    """d energy / d a = c - e at the slot's price, of those that stay too."""
    system = System(jnp.full(3, 1e6), jnp.full(3, 300.0), jnp.full(3, 1e9))
    h, offload = jnp.array([1e-3, 2e-3, 5e-4]), jnp.array([1.0, 0.0, 0.0])
    energy = jax.jit(jax.value_and_grad(lambda a: allocate(h, system, a).energy))
    value, slope = energy(offload)
    for k in range(3):
        step = 1e-2 * jnp.eye(3)[k] * (1 - 2 * offload[k])
        change = 4 * energy(offload + step / 2)[0] - energy(offload + step)[0] - 3 * value
        np.testing.assert_allclose(slope[k], change / jnp.sum(step), rtol=2e-3)


def test_policy_energies_have_their_own_slope(rng):
    """The slopes of the binary layer are for learning; the decision does not move with h."""
    system = sy.check_system(table1(4))
    variables = nw.init_variables(nw.Network((8,)), jax.random.key(0), 4)
    h = jnp.asarray(np.sqrt(1e-6 * rng.exponential(size=(6, 4))), jnp.float32)
    for role in ("student", "teacher"):
        policy = Policy(variables, system, nw.Network((8,)), role)
        energy = lambda log_h, p=policy: p(jnp.exp(log_h)).energy  # noqa: E731
        slope = jax.jit(jax.jacfwd(energy))(jnp.log(h))
        plus, minus = energy(jnp.log(h) + 2e-3), energy(jnp.log(h) - 2e-3)
        wanted = (plus - minus) / 4e-3
        scale = np.max(np.abs(energy(jnp.log(h))))
        np.testing.assert_allclose(jnp.sum(slope, axis=(1, 2)), wanted, atol=1e-3 * scale)


def test_a_gain_of_nothing_has_a_derivative_in_its_mean(monkeypatch):
    system = table1(1)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.array([0.0, 0.5]))
    total = lambda mean: jnp.sum(sample_channels(  # noqa: E731
        jax.random.key(0), system.replace(mean_gain=mean), 2
    ))  # fmt: skip
    wanted = 0.5 * np.sqrt(np.log(2) / 1e-6)
    np.testing.assert_allclose(jax.grad(total)(1e-6), wanted, rtol=1e-5)
