"""What users stumble over: long reprs, dB, misspelt methods, seconds of compiling."""

import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import mypy.api
import numpy as np
import pytest
import scipy.io

import meco_jax
from meco_jax import Solution, System, batching, engine, solve, solver, table1, units, warmup
from meco_jax.exact import enumeration, search
from meco_jax.paper.network import Network, init_variables
from meco_jax.runtime import describe

PACKAGE = Path(meco_jax.__file__).parent
COMPILE = "/jax/core/compile/backend_compile_duration"


def classes():
    """All data classes, named tuples and dictionaries of the package."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = importlib.import_module(".".join(parts))
        for _, found in inspect.getmembers(module, inspect.isclass):
            holds = dataclasses.is_dataclass(found) or issubclass(found, (tuple, dict))
            if found.__module__ == module.__name__ and holds:
                yield found


def example(num=1000, num_devices=14):
    """A solution of NumPy arrays, four channels of it infeasible."""
    rng = np.random.default_rng(0)
    each = rng.uniform(0.001, 0.01, (num, num_devices)).astype(np.float32)
    bad = np.arange(num) < 4
    return Solution(
        offload=np.ones_like(each),
        power=10 * each,
        time=each,
        energy=np.where(bad, np.inf, each.sum(axis=1)),
        lower_bound=np.where(bad, np.inf, each.sum(axis=1)),
        feasible=~bad,
        energy_per_device=np.where(bad[:, None], np.inf, each),
    )


def tasks(num_devices, **fields):
    """A system without a draw; half a second is too short for some tasks."""
    part = np.linspace(0, 1, num_devices)
    return System(8e5 * (1 + 2 * part), 200 * (1 + part), 1e9 * (2 - part), **fields)


def raw_policy(hidden, num_devices):
    """A policy that has learned nothing."""
    network = Network(hidden)
    shapes = jax.eval_shape(lambda: init_variables(network, jax.random.key(0), num_devices))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)
    return meco_jax.Policy(variables, tasks(num_devices), network)


def test_every_class_has_the_short_repr():
    from flax import linen as nn

    found = {c for c in classes() if not issubclass(c, nn.Module)}  # Flax has its own
    assert {Solution, System, meco_jax.Policy, meco_jax.GeneralPolicy} < found
    assert len(found) > 15
    assert not [c for c in found if c.__repr__ is not describe._write]


def test_reprs_tell_what_matters():
    text = repr(example())
    assert len(text) < 800
    mean = example().energy[4:].mean()
    for words in ("offload=float32[1000,14] all 1", "996 of 1000", f"J, mean {mean:.4g}, 4 not"):
        assert words in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= describe.WIDTH
    text = repr(tasks(14))
    assert len(text) < 600
    assert "cpu_hz=float64[14] 1e+09 to 2e+09 Hz, mean 1.5e+09" in text
    assert "slot=0.5 s" in text
    policy = raw_policy((64, 32), 14)
    number = sum(leaf.size for leaf in jax.tree.leaves(policy.variables))
    assert f"variables={number} numbers in 70 arrays" in repr(policy)
    assert "network=Network(hidden=(64, 32), share_resources=False)" in " ".join(
        repr(policy).split()
    )
    assert len(repr(policy)) < 800
    points = tuple({"slot": slot, "seed": seed} for slot in (0.3, 0.5) for seed in range(45))
    systems = jax.tree.map(lambda leaf: np.repeat([leaf], 90, 0), tasks(14))
    text = repr(
        meco_jax.paper.sweep.Lanes(points, systems, np.arange(90), {"multiplier": np.ones(90)})
    )
    assert "points=90 from {'seed': 0, 'slot': 0.3} to {'seed': 44, 'slot': 0.5}" in " ".join(
        text.split()
    )
    assert len(text) < 1000
    history = meco_jax.runtime.loop.History(step=np.arange(400), gap=np.ones(400))
    assert len(repr(history)) < 100
    assert jax.tree.map(len, history) == {"step": 400, "gap": 400}


def test_reprs_of_anything_that_transformations_make():
    """Whatever leaves hold: shapes of what is not there, and never an error or a long text."""
    solution, system = example(8, 3), tasks(3)
    deleted = jax.tree.map(jnp.asarray, solution)
    deleted.energy.delete()
    for strange, words in (
        (jax.eval_shape(lambda: solution), "power=float32[8,3]"),
        (deleted, "energy=float32[8],"),
        (jax.tree.map(lambda x: None, solution), "power=None"),
        (jax.tree.map(np.shape, solution), "power=(8, 3)"),
        (jax.tree.map(lambda x: object(), solution), "power=<object"),
        (jax.tree.map(lambda x: "x" * 9999, solution), "xxx...xxx"),
        (jax.tree.map(lambda x: x[:0], solution), "power=float32[0,3]"),
        (jax.tree.map(lambda x: x * np.nan, solution), "energy=float32[8] none finite"),
        (jax.tree.map(lambda x: [x, x], solution), "power=48 numbers in 2 arrays"),
        (jax.tree.map(lambda x: jax.random.key(0), system), "slot=key<fry>[]"),
        (jax.tree.map(lambda x: np.zeros((), jax.dtypes.float0), system), "slot=["),
        (jax.tree.map(lambda x: jnp.bfloat16(0.5), system), "slot=0.5 s"),
        (jax.tree.map(lambda x: 1j * jnp.ones(2), system), "slot=complex64[2]"),
    ):
        text = " ".join(repr(strange).split())
        assert words in text
        assert len(text) < 1500
    seen = []

    @jax.jit
    def program(system, solution):
        seen.append(repr((system, solution)))
        jax.vmap(lambda x: seen.append(repr(x)))(solution)
        return solution.energy

    program(system, solution)
    assert "slot=float32[]" in seen[0]
    assert "energy=float32[8]" in seen[0]
    assert "energy=float32[]" in seen[1]


def test_units_of_reprs_are_those_of_the_comments():
    fields = re.compile(r"^    (\w+): .*\[([^\]]+)\]$", re.MULTILINE)
    seen = set()
    for public in (Solution, System, meco_jax.evaluation.Outcome, meco_jax.paper.network.Decision):
        source = inspect.getsource(public)
        source = re.sub(r"((?:    #.*\n)+)(    \w+: .*)", r"\2  \1", source)  # comments above
        for name, unit in fields.findall(source.replace(" = None  # type: ignore[assignment]", "")):
            unit = "-" if "base of" in unit else unit
            assert units.UNITS.get(name, "-") == unit, (public, name)
            seen.add(name)
    assert len(seen) > 15


def test_energy_per_device_where_there_is_no_answer():
    """Infinite for those with a task where infeasible, NaN where invalid, 0 for padding."""
    system = table1(3).replace(
        slot=np.array([0.5, 1e-3, 0.5]), active=np.array([True, True, False])
    )
    h = np.full((3, 3), 1e-3)
    eager = solve(h, system, method="mcos")
    assert list(eager.feasible) == [True, False, True]
    each = np.asarray(eager.energy_per_device)
    assert np.all(each[:, 2] == 0)
    assert np.all(np.isinf(each[1, :2]))
    np.testing.assert_allclose(each.sum(axis=1), eager.energy, rtol=1e-6)
    invalid = jax.jit(lambda h: solve(h, tasks(3), method="mcos"))(jnp.asarray(h) * jnp.nan)
    assert np.isnan(invalid.energy_per_device).all()


def test_energy_per_device_of_a_network_and_of_foreign_schemes():
    """Also where nobody computed it, and where a raw network is late but spends."""
    system, h = tasks(3), jnp.asarray([1e-3, 2e-3, 0.0])
    raw = raw_policy((4, 4), 3)(h)
    np.testing.assert_allclose(np.sum(raw.energy_per_device), raw.energy, rtol=1e-6)

    def foreign(system, h):
        known = meco_jax.mcos(h, system)
        return Solution(**{**vars(known), "energy_per_device": None})

    run = jax.jit(
        lambda system, h: (
            batching.checked_solutions(foreign, "method")(system, h),
            meco_jax.mcos(h, system),
        )
    )
    for slot in (2.0, 1e-3):
        filled, known = run(meco_jax.system.check_system(system.replace(slot=slot)), h)
        assert bool(known.feasible) == (slot == 2.0)
        np.testing.assert_allclose(filled.energy_per_device, known.energy_per_device, rtol=1e-6)


def test_energies_per_device_have_the_derivatives_of_the_energy():
    system, h = tasks(3, slot=2.0), jnp.asarray([1e-3, 2e-3, 5e-4])

    @jax.jit
    def gradients(h):
        found = partial(meco_jax.allocate, system=system, offload=jnp.asarray([1.0, 1.0, 0.0]))
        whole = jax.grad(lambda h: found(h).energy)(h)
        return whole, jax.grad(lambda h: jnp.sum(found(h).energy_per_device))(h)

    whole, parts = gradients(h)
    assert np.all(whole[:2] < 0)
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_solutions_as_plain_arrays(tmp_path):
    solution = jax.tree.map(jnp.asarray, example(5, 3))
    plain = solution.as_dict()
    names = [field.name for field in dataclasses.fields(Solution)]
    assert list(plain) == [name for name in names if name != "delay_cost"]  # without weights
    assert all(type(values) is np.ndarray for values in plain.values())
    np.savez(tmp_path / "solution.npz", **plain)
    scipy.io.savemat(tmp_path / "solution.mat", plain)
    for read in (np.load(tmp_path / "solution.npz"), scipy.io.loadmat(tmp_path / "solution.mat")):
        np.testing.assert_array_equal(read["power"], solution.power)
    assert "energy_per_device" not in solution.replace(energy_per_device=None).as_dict()


def test_decibels():
    assert meco_jax.from_dbm(23) == System(1, 1, 1).max_power == 10 ** (23 / 10 - 3)
    assert meco_jax.from_db(20) == 100
    assert meco_jax.from_db(1e6) == np.inf
    assert meco_jax.from_dbm(np.int64(30)) == 1
    for levels in (np.array([[0, 10], [20, -30]]), jnp.array([[0.0, 10], [20, -30]])):
        for ratios in (meco_jax.from_db(levels), jax.jit(meco_jax.from_db)(levels)):
            np.testing.assert_allclose(ratios, [[1, 10], [100, 1e-3]], rtol=1e-6)
        assert isinstance(meco_jax.from_db(levels), type(levels))
    # In dB a gain is one of power; h is its root.
    h = np.sqrt(meco_jax.from_db(np.full(3, -60.0)))
    np.testing.assert_allclose(h, 1e-3)
    np.testing.assert_allclose(jax.grad(meco_jax.from_db)(10.0), np.log(10), rtol=1e-6)
    np.testing.assert_allclose(meco_jax.from_db([10, 20]), [10, 100])
    for bad in ("20", None, 1j, True, ["20"], np.array("a"), np.array([1j]), jnp.array([True])):
        with pytest.raises(ValueError, match="db must be real numbers; got"):
            meco_jax.from_db(bad)
    with pytest.raises(ValueError, match="dbm must be real numbers"):
        meco_jax.from_dbm("23")


SNIPPET = """
import jax
import numpy as np

import meco_jax

table = meco_jax.System(np.ones(3), [200.0, 300.0, 400.0], 1e9, active=True, slot=np.float32(0.5))
system = meco_jax.System(
    task_bits=jax.numpy.ones(3), cycles_per_bit=1, cpu_hz=1.5, weight=1, bandwidth=1, chip=1,
    noise_power=meco_jax.from_dbm(-60), max_power=1, mean_gain=1, log_base=2,
)
h = np.sqrt(meco_jax.from_db(np.full((4, 3), -60.0)))
solution = meco_jax.solve(h, system.replace(slot=1.0), method="optimal")
energies: jax.Array = solution.energy_per_device[0] * system.num_devices
meco_jax.warm_up(3, method=["bcos", "pcos"], batch=[1, 8])
meco_jax.solve(h, system, method=lambda system, h: solution)
"""
ERRORS = """
meco_jax.solve(h, method="optimum")
meco_jax.System(task_bits="big", cycles_per_bit=1.0, cpu_hz=1e9)
meco_jax.System(task_bit=1.0, cycles_per_bit=1.0, cpu_hz=1e9)
system.replace(slot="short")
meco_jax.from_db("20")
meco_jax.warm_up(3, "optimal")
"""


def test_type_checkers_find_typing_errors(tmp_path, monkeypatch):
    """Quick where mypy has run before, as in CI: it finds JAX in its cache."""
    (tmp_path / "snippet.py").write_text(SNIPPET + ERRORS)
    monkeypatch.chdir(Path(__file__).parents[1])  # the settings and the sources are there
    found, _, _ = mypy.api.run([str(tmp_path / "snippet.py")])
    lines = [int(number) for number in re.findall(r"snippet.py:(\d+): error", found)]
    first = SNIPPET.count("\n") + 2
    assert sorted(set(lines)) == list(range(first, first + 6)), found
    assert {*get_args(solver.Method)} == {*solver.NAMES}


@pytest.fixture
def compiled():
    """Names of what is compiled from now on."""
    seen, on = [], [True]

    def listen(event, duration, **keywords):
        if on[0] and event == COMPILE:
            seen.append(keywords.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    on[0] = False


def test_after_warming_up_nothing_compiles(compiled, rng):
    jax.clear_caches()
    progress = []
    seconds = meco_jax.warm_up(2, [1, 3], "mcos", report=lambda *done: progress.append(done))
    assert list(seconds) == [
        "mcos, 1 devices, one channel", "mcos, 2 devices, one channel",
        "mcos, 8 devices, 8 channels",
    ]  # fmt: skip
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert len(compiled) > 4
    alone = table1(1)
    compiled.clear()
    programs = solver._solve._cache_size()
    draw = lambda *shape: rng.rayleigh(1e-3, shape)  # noqa: E731
    own = System(task_bits=draw(2) * 1e9, cycles_per_bit=300.0, cpu_hz=1e9, weight=2.0)
    jax_own = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.devices()[0]), own)
    for h, system in (
        (draw(1), None), (draw(2), None), (draw(2), own), (draw(2), jax_own), (draw(1, 2), own),
        (draw(4, 1), alone), (draw(3, 2), own.replace(slot=np.linspace(0.3, 0.6, 3))),
        (draw(2), own.replace(slot=np.linspace(0.3, 0.6, 4))), (draw(3, 2), jax_own),
    ):  # fmt: skip
        answers = [solve(h, system, method="mcos"), solve(jax.device_put(h), system, method="mcos")]
        np.testing.assert_array_equal(answers[0].energy, answers[1].energy)
    assert compiled == []
    assert solver._solve._cache_size() == programs


def test_warming_up_includes_what_the_optimum_may_need(compiled, rng, monkeypatch):
    """All later stages, the search on the host and what follows it."""
    monkeypatch.setattr(enumeration, "STAGES", (enumeration.Stage(1, 1), enumeration.Stage(2, 2)))
    jax.clear_caches()
    seconds = meco_jax.warm_up([8], method="optimal")
    assert list(seconds)[1:] == [
        "optimal, 8 devices, 1 channels, stage 2", "optimal, 8 devices, search",
    ]  # fmt: skip
    compiled.clear()
    searched, better = [], []
    look, allocate = search.search, search.solution_on_host
    monkeypatch.setattr(search, "search", lambda *a: searched.append(1) or look(*a))
    monkeypatch.setattr(search, "solution_on_host", lambda *a: better.append(1) or allocate(*a))
    busy = tasks(8, slot=0.15).replace(cpu_hz=4e9)  # none must send, and not all can
    for _ in range(30):
        solve(rng.rayleigh(7e-4, 8), busy, method="optimal", tolerance=1e-9)
    assert searched
    assert better
    assert compiled == []


def test_warming_up_knows_its_sizes():
    blocks, few = engine.BATCH_SIZES, engine.LATER_SIZES
    for number, size in ((1, 1), (2, 8), (40, 64), (100, 64), (520, 64), (1000, 512), (8192, 512)):
        assert warmup._blocks([number], blocks) == [size]
    assert warmup._blocks(range(1, 101), blocks) == [1, 8, 64]
    assert warmup._blocks([100, 8192 + 3], blocks) == [64, 512]
    assert warmup._blocks(range(1, 10_000), blocks) == list(blocks)
    assert warmup._blocks(range(1, 8), few) == [1, 8]
    assert warmup._blocks(range(1, 1000), few) == list(few)
    for bad in (0, -1, True, 1.5, [], [1, 0], "8"):
        with pytest.raises(ValueError, match="num_devices must be"):
            meco_jax.warm_up(bad)
        with pytest.raises(ValueError, match="batch must be"):
            meco_jax.warm_up(1, bad)
    with pytest.raises(ValueError, match="method must be one of"):
        meco_jax.warm_up(1, method="magic")


def test_a_second_process_compiles_nothing(tmp_path):
    """All programs of the first call come from JAX's persistent cache."""
    code = """
import json, time
import jax, numpy as np
from meco_jax import solve
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))
start = time.perf_counter()
energy = solve(np.full(3, 1e-3), method="mcos").energy.tolist()
seconds = time.perf_counter() - start
print(json.dumps([seconds, events.count("cache_hits"), events.count("cache_misses"), energy]))
"""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    runs = [
        json.loads(subprocess.check_output([sys.executable, "-c", code], env=environment))
        for _ in range(2)
    ]
    (slow, hits, misses, energy), (quick, later_hits, later_misses, same) = runs
    assert later_misses == 0
    assert later_hits == hits + misses
    assert misses > 0
    assert quick < slow
    assert energy == same
