"""Float32 against float64, matrix products, NaN checks, and a long load."""

import csv
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from cases import quick_environment, run, users_environment

from meco_jax import pretrained, system, table1
from meco_jax.exact import schemes
from meco_jax.exact.enumeration import STAGES, optimal

METHODS = {
    "mcos": schemes.mcos,
    "mcos_partial": schemes.mcos_partial,
    "pcos": schemes.pcos,
    "repair": lambda s, h: schemes.repair(s, h, h > 0),
    "improve": lambda s, h: schemes.improve(s, h, 0 * h),
    "stage 0": lambda s, h: optimal(s, h, STAGES[0]),
    "stage 2": lambda s, h: optimal(s, h, STAGES[2]),
    "bcos": lambda s, h: pretrained().decide(s, h, 4),
}  # fmt: skip
CHECKED = """
import jax, numpy as np
from instances import KINDS, Knobs, draw
from meco_jax import PolicyConfig, TrainConfig, solve, table1, train, train_policy
from meco_jax.learned import policy
assert jax.config.jax_debug_nans
def energy(h, system, method):
    energy = solve(h, system, method=method).energy
    return jax.numpy.sum(jax.numpy.where(jax.numpy.isfinite(energy), energy, 0.0))
slope = jax.jit(jax.grad(energy), static_argnums=2)
for number, kind in enumerate(KINDS):
    system, h = draw(Knobs(number, 8, kind, 3.0), 16)
    solve(h, system, method="optimal")  # escalates, and searches on the host
    for method in ("mcos", "mcos_partial", "pcos", "optimal", "bcos"):
        slope(h, system, method)
for scheme in ("bcos", "pcos"):
    config = TrainConfig(scheme=scheme, num_channels=40, batch_size=20, epochs=1, chunk_epochs=1,
                         hidden=(8,))
    train(table1(3), key=jax.random.key(0), config=config)
network = policy.DeviceNetwork(8, 1)
train_policy(0, PolicyConfig(batches=((8, 6),), network=network, steps_per_epoch=2, epochs=2))
"""


def test_float32_stays_within_its_budget(tmp_path):
    """Against a process in float64: the x64 run. Optimised, as users run it, since that rounds."""
    flags = ("--channels=200", "--num_devices=8", f"--output_dir={tmp_path}")
    result = run(*flags, script="precision", env=users_environment())
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "precision.csv") as file:
        rows = {row["quantity"]: row for row in csv.DictReader(file)}
    assert len(rows) == 8 + 5 * 4
    assert all(int(row["numbers"]) > 100 for row in rows.values())
    assert float(rows["optimal: energy"]["error_median"]) > 0  # two precisions indeed


@pytest.mark.parametrize("name", METHODS)
def test_matrix_products_of_the_physics_are_exact(name):
    """On accelerators the default is bfloat16 or TF32; the policy's network alone may use it."""
    table = system.check_system(table1(9))
    closed = jax.make_jaxpr(METHODS[name])(table, jnp.ones(9))
    products = list(dots(closed.jaxpr))
    highest = (jax.lax.Precision.HIGHEST,) * 2
    rough = [product for product in products if product.params["precision"] != highest]
    width = pretrained().network.width
    network = [product for product in rough if width in product.invars[1].aval.shape]
    last = [product for product in rough if product.outvars[0].aval.shape[-1:] == (1,)]
    assert len(rough) == len({id(product) for product in (*network, *last)})
    assert bool(rough) == (name == "bcos")


def dots(jaxpr):
    """All matrix products of a program, in loops and calls too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for part in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from dots(inner)


def test_no_nan_is_ever_computed():
    """Every method, its gradient and every training under JAX_DEBUG_NANS."""
    environment = quick_environment(JAX_DEBUG_NANS="1", PYTHONPATH=str(Path(__file__).parent))
    result = subprocess.run(
        [sys.executable, "-c", CHECKED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def soak(tmp_path, *flags):
    result = run(f"--output_dir={tmp_path}", *flags, script="soak")
    assert result.returncode == 0, result.stderr + result.stdout
    assert "wrong_answers 0" in result.stdout
    assert (tmp_path / "soak.pdf").stat().st_size > 3000


def test_threads_get_the_answers_of_one(tmp_path):
    soak(tmp_path, "--seconds=3", "--cases=3", "--largest_batch=8", "--most_devices=8",
         "--methods=bcos,optimal")  # fmt: skip
    with open(tmp_path / "latency.csv") as file:
        assert sum(int(row["calls"]) for row in csv.DictReader(file)) > 20


@pytest.mark.slow
def test_ten_minutes_of_load(tmp_path):
    """Ten minutes, since leaks are slow."""
    soak(tmp_path)
