import itertools
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import check_solution, pad_to, random_case

import meco_jax
from meco_jax import (
    GeneralPolicy,
    PolicyConfig,
    load_policy,
    pad_devices,
    pretrained,
    sample_channels,
    sample_systems,
    save_policy,
    solve,
    table1,
    train_policy,
)
from meco_jax.learned.case import energy
from meco_jax.learned.policy import DeviceNetwork, flips, init_params
from meco_jax.learned.training import advance_policy, start_policy
from meco_jax.runtime import policies
from meco_jax.runtime.checkpoints import OtherRunError
from meco_jax.system import leaves

TINY = PolicyConfig(
    batches=((8, 6), (4, 10)), network=DeviceNetwork(8, 1), steps_per_epoch=3, epochs=4
)


@pytest.fixture(scope="module")
def untrained():
    """With a correction, which training would start at nothing."""
    network = DeviceNetwork(8, 1, trust=0.0)
    return GeneralPolicy(init_params(network, jax.random.key(3)), network)


def test_permuting_devices_permutes_the_answer(rng):
    policy, decide = pretrained(), jax.jit(GeneralPolicy.decide, static_argnames="effort")
    for effort in (0, 3):
        system, h, _ = random_case(rng, 7, slot=0.5, log_base=np.e)
        order = rng.permutation(7)
        per_device = ("task_bits", "cycles_per_bit", "cpu_hz", "weight")
        permuted = system.replace(**{n: getattr(system, n)[order] for n in per_device})
        plain = decide(policy, system, h, effort=effort)
        other = decide(policy, permuted, h[order], effort=effort)
        np.testing.assert_array_equal(plain.offload[order], other.offload)
        np.testing.assert_allclose(plain.energy, other.energy, rtol=1e-6)


def test_padding_and_units_change_nothing(rng):
    """Idle devices, other units of energy, and a bandwidth that grows with the tasks."""
    policy = pretrained()
    system, h, _ = random_case(rng, 5, slot=0.5, log_base=np.e)
    scores = policy.scores(system, h)
    padded = policy.scores(*pad_to(system, h, 9))
    np.testing.assert_allclose(padded[:5], scores, rtol=1e-4, atol=1e-4)
    dearer = system.replace(weight=system.weight * 4)
    np.testing.assert_allclose(policy.scores(dearer, h), scores, rtol=1e-4, atol=1e-4)
    longer = system.replace(
        task_bits=system.task_bits * 2,
        cpu_hz=system.cpu_hz * 2,
        chip=system.chip / 8,
        bandwidth=2e7,
    )
    np.testing.assert_allclose(policy.scores(longer, h), scores, rtol=1e-3, atol=1e-3)


def test_always_feasible_and_checked(untrained):
    """Whatever the network says; random systems of all kinds."""
    systems, h = jax.tree.map(np.asarray, sample_systems(jax.random.key(5), 200, 12))
    reachable = solve(h, systems, method="optimal").feasible
    for policy, effort in ((untrained, 4), (pretrained(), 0)):
        solution = solve(h, systems, policy=policy, effort=effort)
        np.testing.assert_array_equal(solution.feasible, reachable)
        solution = jax.tree.map(np.asarray, solution)
        for i in np.flatnonzero(reachable)[:30]:
            one = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
            check_solution(one(systems), h[i], one(solution))
    assert 0.3 < np.mean(reachable) < 1


def test_effort_only_helps(untrained):
    system = table1(10)
    h = sample_channels(jax.random.key(1), system, 100)
    energies = [solve(h, system, policy=untrained, effort=n).energy for n in (0, 3, 10)]
    ok = np.isfinite(energies[0])
    for less, more in itertools.pairwise(energies):
        assert np.mean(more[ok]) <= np.mean(less[ok]) * (1 + 1e-6)
    best = solve(h, system, method="optimal").energy  # 2^10 sets: all of them
    np.testing.assert_allclose(energies[-1][ok], best[ok], rtol=2e-4)


def test_the_shipped_policy_is_near_the_optimum():
    """Mean gap at most 3 % without and 0.3 % with effort, as the results say, tasks unseen."""
    cases = [(k, seed) for k in (4, 14, 20) for seed in range(2**30, 2**30 + 100)]
    tables = [pad_devices(table1(k, seed=seed), 20) for k, seed in cases]
    systems = jax.tree.map(lambda *x: np.stack(x), *tables)
    h = sample_channels(jax.random.key(5), table1(20), len(cases))
    best = solve(h, systems, method="optimal")
    for effort, most in ((0, 0.03), (6, 0.003)):
        gap = np.asarray(solve(h, systems, effort=effort).energy / best.energy) - 1
        for few, ok in zip(gap.reshape(3, -1), np.asarray(best.feasible).reshape(3, -1)):
            assert few[ok].min() > -1e-5
            assert few[ok].mean() < most


@pytest.mark.parametrize(
    ("effort", "mean", "worst"), [(0, 0.01, 0.5), (4, 0.003, 0.1), (6, 0.0015, 0.1)]
)
def test_known_optima(known, effort, mean, worst):
    """Never below the optimum, above it by a stated gap, with the Lagrangian bound below."""
    systems, h, data = known
    ok = np.isfinite(data["energy"])
    true, lagrangian = (data[name][ok] for name in ("energy", "lagrangian"))
    solution = solve(h, systems, effort=effort)
    np.testing.assert_array_equal(solution.feasible, ok)
    assert np.all(np.isinf(solution.energy[~ok]) & np.isinf(solution.lower_bound[~ok]))
    gap = np.asarray(solution.energy)[ok] / true - 1
    assert gap.min() >= -2e-6
    assert gap.mean() <= mean
    assert gap.max() <= worst
    bound = np.asarray(solution.lower_bound, np.float64)[ok]
    np.testing.assert_allclose(bound, lagrangian, rtol=1e-5)
    assert np.all(bound <= true * (1 + 2e-6))


def test_flips_turn_the_least_certain():
    base = jnp.array([True, False, True])
    sets = flips(base, jnp.array([0.5, 0.1, 0.2]), 2)
    expected = {(1, 0, 1), (1, 1, 1), (1, 0, 0), (1, 1, 0)}  # devices 1 and 2, never 0
    assert {tuple(map(int, row)) for row in sets} == expected
    assert flips(base, jnp.zeros(3), 5).shape == (8, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": ("power",)}, "fields must be among noise_power, .*; got 'power'"),
        ({"access": "cdma"}, "access must be one of tdma, fdma; got 'cdma'"),
    ],
)
def test_bad_exports_are_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrained().export(tmp_path / "policy.bin", 3, **changes)


@pytest.mark.parametrize("effort", [-1, 13, 1.5, None])
def test_bad_effort_is_named(effort):
    with pytest.raises(ValueError, match="effort must be an integer from 0 to 12; got"):
        solve(jnp.ones(3), effort=effort)


def test_training_learns_and_repeats():
    config = TINY.replace(epochs=6, network=DeviceNetwork(8, 1, trust=0.0), learning_rate=1e-2)
    first, history = train_policy(1, config)
    again, _ = train_policy(1, config)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert list(history["step"]) == [3, 6, 9, 12, 15, 18]
    assert np.isfinite(history["loss"]).all()
    start = init_params(config.network, jax.random.split(jax.random.key(1))[0])
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), first.params, start)
    assert min(jax.tree.leaves(moved)) > 0


def test_resume_is_bitwise_equal(tmp_path):
    class KilledError(Exception):
        pass

    def kill(step, _):
        if step >= 6:
            raise KilledError

    whole, history = train_policy(0, TINY)
    keep = {"folder": tmp_path, "save_seconds": 0.0}
    with pytest.raises(KilledError):
        train_policy(0, TINY, **keep, report=kill)
    seen = []
    resumed, again = train_policy(0, TINY, **keep, report=lambda step, _: seen.append(step))
    assert seen == [9, 12]
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
    jax.tree.map(np.testing.assert_array_equal, history, again)
    with pytest.raises(OtherRunError, match="seed must be 0"):
        train_policy(1, TINY, **keep)


def relaxed(scores, case, key, progress):
    """An estimator of one function, as the recipe in CONTRIBUTING.md has it."""
    ratio = jnp.where(case.free, jax.nn.sigmoid(scores), case.forced.astype(scores.dtype))
    return energy(ratio, case)


def test_an_own_estimator_trains_and_is_known_by_its_name(tmp_path):
    config = TINY.replace(gradient=relaxed, batches=((8, 6),), epochs=1, learning_rate=1e-2)
    trained, history = train_policy(0, config, folder=tmp_path)
    assert np.isfinite(history["loss"]).all()
    start = init_params(config.network, jax.random.split(jax.random.key(0))[0])
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), trained.params, start)
    assert max(jax.tree.leaves(moved)) > 0
    with pytest.raises(OtherRunError, match=r"gradient must be test_policy\.relaxed to go on"):
        train_policy(0, config.replace(gradient="relaxed"), folder=tmp_path)
    for unnamed in (lambda *at: relaxed(*at), partial(relaxed)):
        with pytest.raises(ValueError, match="or a function with one, to be kept in a folder; got"):
            train_policy(0, config.replace(gradient=unnamed), folder=tmp_path)


def test_parts_of_the_whole_family_are_drawn():
    """All of it is traced, nothing is compiled."""
    config = TINY.replace(batches=((4, 3, "fdma"),))
    start = jax.eval_shape(partial(start_policy, config=config), jax.random.key(0))
    run, metrics = jax.eval_shape(partial(advance_policy, config=config), start, 0)
    assert jax.tree.map(np.shape, run) == jax.tree.map(np.shape, start)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient": "magic"}, r"config.gradient must be one of .*; got 'magic'"),
        ({"gradient": 3}, r"config.gradient must be one of .*, or a hashable function .*; got 3"),
        ({"gradient": lambda scores, *_: scores}, r"must return one loss, .*; got shape \(6,\)"),
        ({"learning_rate": -1.0}, r"config.learning_rate must be finite and at least 0; got -1"),
        ({"epochs": 0}, r"config.epochs must be at least 1; got 0"),
        ({"batches": ((8, 0),)}, r"config.batches must be pairs of at least 1; got"),
        ({"batches": ((8, 6, "cdma"),)}, r"must be pairs, or with one of tdma, fdma; got 'cdma'"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        train_policy(0, TINY.replace(**changes))


def test_policy_survives_a_file(untrained, tmp_path):
    save_policy(tmp_path / "p.npz", untrained, origin="by hand")
    loaded = load_policy(tmp_path / "p.npz")
    assert loaded.network == untrained.network
    jax.tree.map(np.testing.assert_array_equal, loaded.params, untrained.params)
    content = dict(np.load(tmp_path / "p.npz"))
    assert "by hand" in str(content["settings"])
    name = next(name for name in content if name.endswith("kernel"))
    np.savez(tmp_path / "bad.npz", **content | {name: content[name][:1]})
    with pytest.raises(ValueError, match=f"path must hold {name}"):
        load_policy(tmp_path / "bad.npz")


def test_shipped_file_says_how_it_was_made():
    path = Path(meco_jax.__file__).parent / policies.PRETRAINED
    assert path.stat().st_size < 1e6
    assert "experiments/train_policy.py" in str(np.load(path)["settings"])


def test_export_needs_jax_alone(tmp_path):
    """A process that imports jax and no package of ours answers as solve does."""
    system, path = table1(5).replace(max_power=np.linspace(0.1, 0.2, 5)), tmp_path / "policy.bin"
    system = system.replace(circuit_power=np.full(5, 0.1))
    pretrained().export(path, num_devices=5, effort=2, fields=("max_power", "circuit_power"))
    h = sample_channels(jax.random.key(0), system, 7)
    arrays = {n: x if n == "active" else np.float32(x) for n, x in leaves(system).items()}
    fields = {n: np.broadcast_to(x, (7, *np.shape(x))) for n, x in arrays.items()}
    np.savez(tmp_path / "in.npz", h=h, **fields)
    code = f"""
import sys, jax, numpy as np
from jax import export
file = np.load({str(tmp_path / "in.npz")!r})
policy = export.deserialize(bytearray(open({str(path)!r}, "rb").read()))
fields = dict(file)
h = fields.pop("h")
answer = jax.jit(policy.call)(h, fields)
assert not any(name.startswith(("meco_jax", "flax")) for name in sys.modules)
np.savez({str(tmp_path / "out.npz")!r}, **answer)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    answer, expected = np.load(tmp_path / "out.npz"), solve(h, system, effort=2)
    assert set(answer) == set(expected.as_dict())
    for name, values in expected.as_dict().items():
        np.testing.assert_allclose(answer[name], values, rtol=1e-4, atol=1e-7)


def test_scores_compile_once():
    run = jax.jit(partial(GeneralPolicy.decide, effort=1))
    for seed in range(3):
        system = table1(4, slot=0.5 + seed, seed=seed)
        run(pretrained(), system, jnp.ones(4) * 1e-3)
    assert run._cache_size() == 1
