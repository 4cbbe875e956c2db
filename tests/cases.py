"""What tests share: scripts run here or in a process, random instances, the check of an answer."""

import contextlib
import csv
import io
import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import reference
from absl import app, flags

from meco_jax import Policy, Solution, System, table1
from meco_jax.paper.network import Network, init_variables
from meco_jax.system import check_system

BASES = (2.0, np.e, 10.0)
ROOT = Path(__file__).parent.parent
TINY = (
    "--num_devices=2,3", "--seeds=0,1", "--num_channels=200", "--batch_size=100", "--epochs=6",
    "--hidden=8", "--test_channels=40",
)  # fmt: skip
LEAST_ENERGY = 1e-30  # what is below counts as nothing: kT is 4e-21 [J]


def quick_environment(*flags, **more):
    """The environment of scripts under test, with XLA's flags of the tests and some more."""
    return os.environ | {"XLA_FLAGS": " ".join((os.environ.get("XLA_FLAGS", ""), *flags))} | more


def users_environment(**more):
    """The environment of scripts without flags of XLA: programs are compiled as users' are."""
    return {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"} | more


def run(*words, script="sweep_k", **keywords):
    """Run a script in a process of its own, as a user does."""
    command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *words]
    keywords = {"env": quick_environment()} | keywords
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **keywords
    )


@contextlib.contextmanager
def fresh_flags():
    """Let a script define its flags, whatever other scripts have defined."""
    own = flags.FLAGS
    module = {name: own.find_module_defining_flag(name) or "" for name in own}
    others = {name: own[name] for name in own if not module[name].startswith("absl")}
    own.remove_flag_values(others)
    before = set(own)
    try:
        yield
    finally:
        own.remove_flag_values(set(own) - before)
        for name, flag in others.items():
            own[name] = flag


def inside(*words, script="sweep_k"):
    """Run a script in this process: quick where little is compiled."""
    from support import common  # of experiments/

    text, argv = (io.StringIO(), io.StringIO()), [f"{script}.py", *words]
    start = lambda main, flags_parser: main(flags_parser(sys.argv))  # noqa: E731
    with (fresh_flags(), mock.patch.object(sys, "argv", argv), mock.patch.object(app, "run", start),
          contextlib.redirect_stdout(text[0]), contextlib.redirect_stderr(text[1])):  # fmt: skip
        try:
            runpy.run_path(str(ROOT / "experiments" / argv[0]), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
        finally:
            for _, _, lock in common._opened:
                lock.release()
            common._opened.clear()
    out, err = (part.getvalue() for part in text)
    return SimpleNamespace(returncode=status, stdout=out, stderr=err)


def one_line(result, *parts):
    """Assert that a script stopped with one line."""
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for part in ("error: ", *parts):
        assert part in result.stderr


def read_results(folder):
    """Read the table that a script wrote: a dict per row."""
    with open(folder / "results.csv") as file:
        return list(csv.DictReader(file))


def flip(data, rng):
    """Flip one bit."""
    place, data = rng.randrange(8 * len(data)), bytearray(data)
    data[place // 8] ^= 1 << place % 8
    return bytes(data)


def small(offload=(1.0, 0.0), time=(0.25, 0.0), power=(0.1, 0.0)):
    """Two devices by hand: 1e6 bit each, 0.4 s and 0.2 s to compute, 0.016 J and 0.128 J."""
    system = table1(2).replace(
        task_bits=jnp.full(2, 1e6), cycles_per_bit=jnp.array([400.0, 400.0]),
        cpu_hz=jnp.array([1e9, 2e9]), weight=jnp.ones(2), chip=4e-29,
    )  # fmt: skip
    zero = jnp.zeros(())
    arrays = (jnp.array(x) for x in (offload, power, time))
    return system, Solution(*arrays, zero, zero, jnp.array(True))


def untrained_policy(num_devices):
    """A policy of the paper's network with random weights: far less to compile than a training."""
    network = Network((8, 8))
    init = jax.jit(partial(init_variables, network, num_devices=num_devices))
    return Policy(init(jax.random.key(0)), check_system(table1(num_devices)), network)


def random_case(rng, num_devices, **fixed):
    """Draw (System, h, reference instance); both see the same float32 numbers."""
    k = num_devices
    draw = {
        "task_bits": rng.uniform(8e5, 2.4e6, k),
        "cycles_per_bit": rng.uniform(200, 400, k),
        "cpu_hz": rng.uniform(1e9, 2e9, k),
        "weight": rng.uniform(0.5, 2, k),
        "h": np.sqrt(1e-6 * rng.exponential(size=k)),
        "slot": rng.uniform(0.2, 2),
        "log_base": rng.choice(BASES),
    } | fixed
    draw = {name: np.float32(value) for name, value in draw.items()}
    h = draw.pop("h")
    return System(**draw), jnp.asarray(h), reference.instance(h=h, **draw)


def stack(systems):
    """Stack systems of one K on a leading axis."""
    systems = [s.replace(active=np.broadcast_to(s.active, np.shape(s.task_bits))) for s in systems]
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *systems)


def pad_to(system, h, num_devices):
    """Pad a case with idle devices that hold awkward data."""
    missing = num_devices - h.shape[-1]
    full = {name: np.broadcast_to(getattr(system, name), h.shape) for name in
            ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "active")}  # fmt: skip
    padding = {"task_bits": 5e6, "cycles_per_bit": 0, "cpu_hz": 0, "weight": 0, "active": False}

    def more(values, x):
        rest = np.full((*values.shape[:-1], missing), x, values.dtype)
        return np.concatenate([values, rest], axis=-1)

    padded = {name: more(values, padding[name]) for name, values in full.items()}
    return system.replace(**padded), jnp.asarray(more(np.asarray(h), 0))


def check_solution(system, h, solution, whole=True):
    """Assert C1-C5 in float64 on the returned numbers, and that the energy is what it costs.

    Of one channel ``[K]`` or many ``[N, K]``; where it is infeasible there is nothing to do.
    """
    a, p, t = (np.asarray(x, np.float64) for x in (solution.offload, solution.power, solution.time))
    energy, bound = (np.asarray(x, np.float64) for x in (solution.energy, solution.lower_bound))
    ok = np.asarray(solution.feasible)

    def field(name, rank):  # [..., K] or [..., 1]
        leaf = np.asarray(getattr(system, name), np.float64)
        return np.broadcast_to(leaf, a.shape) if rank else leaf[..., None]

    bits, cycles, hz, beta, active = (
        field(name, 1) for name in ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "active")
    )
    names = ("slot", "bandwidth", "noise_power", "max_power", "chip", "log_base")
    physics = {name: field(name, 0) for name in names}
    real, tight = active > 0, 1 + 1e-6
    gain = np.asarray(h, np.float64) ** 2 / physics["noise_power"]
    rate = physics["bandwidth"] * np.log1p(p * gain) / np.log(physics["log_base"])
    sends = real & (a * bits > 0)
    with np.errstate(divide="ignore"):
        used = np.where(sends, a * bits, 0) / np.where(sends, rate, 1)
    finite = np.where(np.isfinite(used), used, 0)
    left = np.where(real, (1 - a) * cycles * bits, 0)

    def holds(rule, *, where=ok):
        rule = np.all(rule, axis=-1) if np.ndim(rule) > np.ndim(ok) else rule
        assert np.all(rule | ~where), np.flatnonzero(~(rule | ~where))

    assert not any(np.isnan(x).any() for x in (a, p, t, energy, bound))
    holds((a == 0) | real)
    holds(np.sum(t, axis=-1) <= physics["slot"][..., 0] * tight)  # C1
    holds(left <= hz * physics["slot"] * tight)  # C2
    holds((p >= 0) & (p <= physics["max_power"] * tight))  # C3
    holds(np.isin(a, (0, 1)) if whole else (a >= 0) & (a <= 1))  # C4
    holds(used <= t * tight)  # C5
    each = beta * p * finite + beta * physics["chip"] * left * hz**2
    spent = np.sum(each, axis=-1)
    holds(np.abs(energy - spent) <= 3e-6 * spent + LEAST_ENERGY)
    told = np.asarray(solution.energy_per_device, np.float64)
    holds(np.abs(told - each) <= 3e-6 * spent[..., None] + LEAST_ENERGY)
    assert np.all(told[~real] == 0)
    holds(np.isinf(np.sum(told, axis=-1)), where=~ok)
    holds(bound <= energy)
    holds(np.isinf(energy) & np.all((p == 0) & (t == 0), axis=-1), where=~ok)
