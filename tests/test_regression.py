"""Every method against 200 instances with proven optima, see data/README.md."""

import hashlib

import make_regression
import numpy as np
import pytest

from meco_jax import solve

# Of all numbers, so that no input or answer drifts unseen. After a change on purpose: make the
# file again and take the new value from the failing test.
DIGESTS = {
    "p1_known_optima": "84a96139cc1acc5cfe5048440a891651dee0a83508615e2dba6922178318b66a",
    "regression": "8bb9479d9ea5adb086ecc027a2017fcb7fe03a1fdd8a6724c623e605a7ba9bfc",
}
ROUNDING = 2e-6  # of float32 energies, relative


@pytest.fixture(scope="module")
def data():
    with np.load(make_regression.PATH, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def answers(data):
    """Solve all instances by every method once: float64 copies of the energies and bounds."""
    systems, h = make_regression.systems(data)

    def run(**settings):
        found = solve(h, systems, **settings)
        return {n: np.asarray(getattr(found, n), np.float64) for n in ("energy", "lower_bound")} | {
            "feasible": np.asarray(found.feasible)
        }

    methods = {name: run(method=name) for name in ("mcos", "mcos_partial", "pcos", "optimal")}
    return methods | {f"effort {n}": run(effort=n) for n in (0, 4, 6)}


@pytest.mark.parametrize("name", DIGESTS)
def test_nothing_drifts(name):
    digest = hashlib.sha256()
    with np.load(make_regression.PATH.with_name(f"{name}.npz"), allow_pickle=False) as file:
        for field, values in sorted(file.items()):
            digest.update(field.encode() + str(values.dtype).encode() + values.tobytes())
    assert digest.hexdigest() == DIGESTS[name]


def test_inputs_are_float32_and_drawn_again(data):
    again = make_regression.inputs()
    for name, values in again.items():
        if name not in ("kind", "K"):
            assert values.dtype == np.float32
            np.testing.assert_allclose(data[name], values, rtol=2e-7)  # powers are the platform's
        else:
            np.testing.assert_array_equal(data[name], values)
    kinds = dict(zip(*np.unique(data["kind"], return_counts=True)))
    assert kinds == make_regression.KINDS
    assert len(data["K"]) == 200
    assert data["K"].min() == 1
    assert data["K"].max() == 40


def test_optima_are_proven(data):
    """By the search's bound, in all; by brute force or Clarabel in half of them."""
    ok = np.isfinite(data["energy"])
    assert 130 < ok.sum() < 180
    gap = 1 - data["lower_bound"][ok] / data["energy"][ok]
    assert gap.min() >= 0
    assert gap.max() <= make_regression.PROVEN
    checked = data["cross_checked"]
    assert np.all(checked[data["K"] <= make_regression.BRUTE_FORCE] == "brute force")
    assert np.sum(checked == "Clarabel") == 30
    assert np.all(data["lagrangian"][ok] <= data["energy"][ok] * (1 + 1e-12))
    assert np.all(data["pcos"][ok] <= data["energy"][ok] * (1 + 1e-12))


def test_answers_are_found_again(data):
    """From the other schemes' formulas and by the exact search, in every fourth instance."""
    for index in range(0, 200, 4):
        k = data["K"][index]
        found = make_regression.answer(
            make_regression.take(data, index), data["offload"][index, :k]
        )
        np.testing.assert_array_equal(found.pop("offload"), data["offload"][index, :k])
        for name, value in found.items():
            np.testing.assert_allclose(value, data[name][index], rtol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("method", "truth"),
    [("mcos", "mcos"), ("mcos_partial", "mcos_partial"), ("pcos", "pcos"), ("optimal", "energy"),
     ("effort 0", "energy"), ("effort 4", "energy"), ("effort 6", "energy")],
)  # fmt: skip
def test_feasible_where_the_truth_is(data, answers, method, truth):
    found, ok = answers[method], np.isfinite(data[truth])
    np.testing.assert_array_equal(found["feasible"], ok)
    assert np.all(found["energy"][~ok] == np.inf)
    assert np.all(found["lower_bound"][~ok] == np.inf)
    assert np.all(np.isfinite(found["energy"][ok]))


@pytest.mark.parametrize("method", ["mcos", "mcos_partial", "pcos"])
def test_schemes(data, answers, method):
    ok = np.isfinite(data[method])
    np.testing.assert_allclose(
        answers[method]["energy"][ok], data[method][ok], rtol=ROUNDING if method != "pcos" else 1e-5
    )


def test_optimum(data, answers):
    """Certified to 1e-4, and never below the truth by more than rounding."""
    ok = np.isfinite(data["energy"])
    energy, bound, true = (
        x[ok] for x in (*(answers["optimal"][n] for n in ("energy", "lower_bound")), data["energy"])
    )
    assert np.all(energy >= true * (1 - ROUNDING))
    assert np.all(energy <= true * (1 + 1e-4))
    assert np.all(bound <= true * (1 + ROUNDING))
    assert np.all(bound >= energy * (1 - 1.01e-4))


@pytest.mark.parametrize(("method", "mean", "worst"), [
    ("effort 0", 0.01, 0.4), ("effort 4", 0.003, 0.1), ("effort 6", 0.0015, 0.1),
])  # fmt: skip
def test_policy(data, answers, method, mean, worst):
    """Never below the optimum, above it by a stated gap, with the Lagrangian bound below."""
    ok = np.isfinite(data["energy"])
    gap = answers[method]["energy"][ok] / data["energy"][ok] - 1
    assert gap.min() >= -ROUNDING
    assert gap.mean() <= mean
    assert gap.max() <= worst


@pytest.mark.parametrize("method", ["mcos", "effort 0", "effort 4", "effort 6"])
def test_lagrangian_bound(data, answers, method):
    ok = np.isfinite(data["energy"])
    bound = answers[method]["lower_bound"][ok]
    np.testing.assert_allclose(bound, data["lagrangian"][ok], rtol=1e-5)
    assert np.all(bound <= data["energy"][ok] * (1 + ROUNDING))
