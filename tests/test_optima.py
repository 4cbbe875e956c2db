"""The instances with known optima are what data/README.md says of them."""

import hashlib

import make_optima
import numpy as np
import optima
import pytest

# Of all numbers, so that no input or answer drifts unseen. After a change on purpose: make the
# file again and take the new value from the failing test.
DIGEST = "7a8da13b0383339f617b226cc52704757b33b0b1f8917e3160cda78d9b2a50f5"


@pytest.fixture(scope="module")
def searched(known):
    """The rows that ``make_optima`` makes."""
    data = known[2]
    return {name: x[data["source"] != optima.INDEPENDENT] for name, x in data.items()}


def test_nothing_drifts(known):
    digest = hashlib.sha256()
    for field, values in sorted(known[2].items()):
        digest.update(field.encode() + str(values.dtype).encode() + values.tobytes())
    assert digest.hexdigest() == DIGEST


def test_inputs_are_float32_and_drawn_again(searched):
    again = make_optima.inputs()
    for name, values in again.items():
        if name not in ("kind", "K"):
            assert values.dtype == searched[name].dtype == np.float32
            np.testing.assert_allclose(searched[name], values, rtol=2e-7)  # powers: the platform's
        else:
            np.testing.assert_array_equal(searched[name], values)
    kinds = dict(zip(*np.unique(searched["kind"], return_counts=True)))
    assert kinds == make_optima.KINDS
    assert len(searched["K"]) == 200
    assert searched["K"].min() == 1
    assert searched["K"].max() == 40


def test_optima_are_proven(searched):
    """By the search's bound, in all; by brute force or Clarabel in half of them."""
    ok = np.isfinite(searched["energy"])
    assert 130 < ok.sum() < 180
    gap = 1 - searched["lower_bound"][ok] / searched["energy"][ok]
    assert gap.min() >= 0
    assert gap.max() <= make_optima.PROVEN
    small = searched["K"] <= make_optima.BRUTE_FORCE
    assert np.all((searched["source"] == f"{make_optima.SOURCE}, brute force") == small)
    assert np.sum(searched["source"] == f"{make_optima.SOURCE}, Clarabel") == 30


def test_bounds_are_below_the_optima(known):
    data = known[2]
    ok = np.isfinite(data["energy"])
    for name in ("lagrangian", "pcos"):
        assert np.all(data[name][ok] <= data["energy"][ok] * (1 + 1e-12))


def test_answers_are_found_again(searched):
    """From the other schemes' formulas and by the exact search, in every fourth instance."""
    for index in range(0, 200, 4):
        k = searched["K"][index]
        found = make_optima.answer(optima.take(searched, index), searched["offload"][index, :k])
        np.testing.assert_array_equal(found.pop("offload"), searched["offload"][index, :k])
        for name, value in found.items():
            stored = searched[name][index]
            np.testing.assert_allclose(
                value, stored[:k] if stored.ndim else stored, rtol=1e-10, err_msg=name
            )
