"""What ran before, and how JAX is set, must not matter: fresh processes against a plain one.

Each setting has processes of its own, which run cases of first_use.py.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import quick_environment

SCRIPT = Path(__file__).with_name("first_use.py")
FOUR = "--xla_force_host_platform_device_count=4"
ALL = ("mcos", "mcos_partial", "pcos", "optimal", "bcos", "one channel", "draws",
       "bcos training", "pcos training", "general training", "grid", "one slot", "slots", "margins",
       "several", "score", "environment")  # fmt: skip
QUICK = ("mcos", "draws", "bcos training", "traced training", "one slot")
OVER_TIME = ("slots", "environment")
# Batteries without an end are infinite, and so is the delay of a task that does not get through.
INFINITE = ("one slot", "slots", "margins", "several", "environment")

# name: setup of first_use.py, flags of XLA, variables of the environment
SETTINGS = {
    "float64": ("plain", (), {"JAX_ENABLE_X64": "1"}),
    "rbg": ("plain", (), {
        "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_THREEFRY_PARTITIONABLE": "0"}),
    "unsafe_rbg": ("plain", (), {"JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg"}),
    "strict": ("plain", (), {
        "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"}),
    "transfer guard": ("plain", (), {"JAX_TRANSFER_GUARD": "disallow"}),
    "infinities": ("plain", (), {"JAX_DEBUG_INFS": "1"}),
    "NaN": ("plain", (), {"JAX_DEBUG_NANS": "1"}),
    "disabled jit": ("plain", (), {"JAX_DISABLE_JIT": "1"}),
    "leaks": ("plain", (), {"JAX_CHECK_TRACER_LEAKS": "1"}),
    "bfloat16 products": ("plain", (), {"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"}),
    "highest products": ("plain", (), {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}),
    "second device": ("second device", (FOUR,), {}),
    "default device": ("default device", (FOUR,), {}),
    "2 of 4 devices": ("2 of 4", (FOUR,), {}),
    "4 of 4 devices": ("4 of 4", (FOUR,), {}),
    "spread over K": ("over K", (FOUR,), {}),
    "ambient mesh": ("ambient mesh", (FOUR,), {}),
}  # fmt: skip
TOGETHER = "rbg", "strict", "transfer guard", "NaN"  # in one process: none hides another
# Names of answers, and how far they may be from those of the plain process: relative to the
# largest number of the kind. A network's training multiplies what rounding leaves.
NEAR = {"training": 1e-2, "grid": 1e-2, "": 5e-6}


def first_use(output, setup, names, flags=(), **environment):
    """Run cases in a fresh process, and return their answers by name."""
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(output), setup, *names],
        env=quick_environment(*flags, **environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout} done; {result.stderr}"
    with np.load(output) as file:
        return dict(file)


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """Answers of a plain process, case by case when they are asked for."""
    folder, known = tmp_path_factory.mktemp("plain"), {}

    def answers(names):
        missing = [name for name in names if name not in known]
        if missing:
            found = first_use(folder / "plain.npz", "plain", missing)
            known.update({name: {} for name in missing})
            for path, leaf in found.items():
                known[path.split("[")[0]][path] = leaf
        return {path: leaf for name in names for path, leaf in known[name].items()}

    return answers


def compare(found, wanted):
    assert found.keys() == wanted.keys()
    for path, value in found.items():
        near = next(limit for word, limit in NEAR.items() if word in path)
        expected = np.asarray(wanted[path], np.float64)
        scale = np.max(np.abs(expected), initial=1e-30, where=np.isfinite(expected))
        np.testing.assert_allclose(value, expected, rtol=0, atol=near * scale, err_msg=path)


@pytest.mark.parametrize(
    ("names", "cases"), [(("float64",), QUICK), (TOGETHER, (*QUICK, *OVER_TIME))]
)
def test_settings_change_no_answer(names, cases, plain, tmp_path):
    environment = {key: word for name in names for key, word in SETTINGS[name][2].items()}
    compare(first_use(tmp_path / "found.npz", "plain", cases, **environment), plain(cases))


ELSEWHERE = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("cond", "remat", "disabled jit")
]


@pytest.mark.parametrize("name", ["jit", "scan", "vmap", "grad", *ELSEWHERE])
def test_the_first_call_may_stand_anywhere(name, plain, tmp_path):
    """In a program that is recorded, constants are none; what is kept must not be of it."""
    found = first_use(tmp_path / "found.npz", "plain", (f"first in {name}",))
    wanted = plain(("first in nothing",))
    compare({path.replace(name, "nothing", 1): leaf for path, leaf in found.items()}, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_change_no_answer_of_any_case(name, plain, tmp_path):
    """Every case under every setting: minutes, since each compiles anew."""
    setup, flags, environment = SETTINGS[name]
    for case in ALL if name != "infinities" else [case for case in ALL if case not in INFINITE]:
        found = first_use(tmp_path / "found.npz", setup, (case,), flags, **environment)
        compare(found, plain((case,)))
