import inspect
import os
import subprocess
import sys
from pathlib import Path

# All test processes share what they compile, the scripts that they start too.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # the small are many
# Most of the time is compilation, which takes a quarter without LLVM's own optimisation of what XLA
# has optimised, and with the older of its two ways to emit code. XLA_FLAGS set to nothing leaves
# programs as users compile them; other flags, such as an instruction set, are added to these.
QUICK = "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false"


def is_known(flag):
    """Ask a process of its own: a flag that jaxlib does not know ends the process, saying so."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    return not subprocess.run(command, env=environment, capture_output=True).returncode


def quick_flags(given):
    """Add to the given flags those of ``QUICK`` that they do not set and jaxlib knows."""
    missing = [flag for flag in QUICK if flag.split("=")[0] not in given]
    if missing and not is_known(" ".join(missing)):
        missing = [flag for flag in missing if is_known(flag)]
    return " ".join([*given.split(), *missing])


# Workers of pytest-xdist have the environment of the process that starts them.
if os.environ.get("XLA_FLAGS") != "" and "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XLA_FLAGS"] = quick_flags(os.environ.get("XLA_FLAGS", ""))

import jax
import matplotlib
import numpy as np
import optima
import pytest
from cases import TINY, run
from hypothesis import settings

from meco_jax import train, train_grid, train_policy

matplotlib.use("Agg")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
LONG = subprocess, train, train_grid, train_policy  # what uses them is marked subprocess
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
settings.register_profile(  # at random, and as many as asked for
    "fuzz", deadline=None, max_examples=int(os.environ.get("MECO_FUZZ", "1")), print_blob=True
)
settings.load_profile("fuzz" if "MECO_FUZZ" in os.environ else "ci")


@pytest.hookimpl(tryfirst=True)  # before -m looks
def pytest_collection_modifyitems(items):
    """Mark what starts processes or trains, itself or by what it calls or its fixtures call."""
    known = {}
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        functions = [item.function, *(fixture.func for found in fixtures for fixture in found)]
        if any(is_long(function, known) for function in functions):
            item.add_marker("subprocess")


def is_long(value, known):
    """Whether it is one of ``LONG``, or a function of the tests that uses such."""
    function = inspect.unwrap(value)
    code = getattr(function, "__code__", None)
    if code is None or Path(code.co_filename).parent != Path(__file__).parent:
        return any(value is long for long in LONG)
    if code not in known:
        known[code] = False  # while it is looked into: functions may call each other
        used = names(code) & function.__globals__.keys()
        known[code] = any(is_long(function.__globals__[name], known) for name in used)
    return known[code]


def names(code):
    """Global names that a function uses, those inside it too."""
    inner = [part for part in code.co_consts if inspect.iscode(part)]
    return {*code.co_names, *(name for part in inner for name in names(part))}


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A tiny sweep that ran to its end: its folder, which stays as it is, and what it said."""
    folder = tmp_path_factory.mktemp("sweep_k")
    flagfile = folder / "tiny.flags"
    flagfile.write_text("\ufeff# tiny\n" + "\r\n".join(TINY))  # as other programs save it
    result = run(f"--flagfile={flagfile}", f"--output_dir={folder / 'out'}", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "out", result


@pytest.fixture(scope="session")
def known():
    """The 500 instances of data/README.md: stacked systems, gains and all columns."""
    data = optima.load()
    return *optima.systems(data), data
