"""The benchmark: its files, its optima by independent means, its scores and its script."""

import csv
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import wpmec_reference
from cases import inside, one_line

import meco_jax
from meco_jax import benchmarks, wpmec
from meco_jax.judge import judge

FOLDER = Path(meco_jax.__file__).parent / benchmarks.FOLDER


def test_all_families_load_and_are_proven():
    assert len(benchmarks.names()) >= 8
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 700_000
    for name in benchmarks.names():
        family = benchmarks.load(name)
        assert family.h.shape == family.offload.shape
        gap = np.abs(family.bound / family.optimum - 1)
        assert gap.max() <= 1e-9
        assert family.problem == name.split("-")[0]


def test_optima_are_those_of_brute_force():
    family = benchmarks.load("wpmec-k10-hard-v1")
    fields = {n: np.asarray(x, np.float64) for n, x in vars(family.system).items() if n != "active"}
    for i in range(2):
        terms = wpmec_reference.terms(
            np.float64(family.h[i]), **{n: x[i] for n, x in fields.items()}
        )
        best, mode, _ = wpmec_reference.brute_force(*terms)
        np.testing.assert_allclose(family.optimum[i], best, rtol=1e-9)
        np.testing.assert_array_equal(family.offload[i], mode)
    family = benchmarks.load("p1-k10-v1")
    one = jax.tree.map(lambda x: x[0], family.system)
    p = reference.of_system(one, family.h[0])
    np.testing.assert_allclose(family.optimum[0], reference.brute_force(p)[0], rtol=1e-8)


@pytest.mark.parametrize("name", ["p1-k14-edge-v1", "p1-k14-real-v1", "p1-k14-fdma-v1"])
def test_optima_beyond_p1_are_those_of_brute_force(name):
    family = benchmarks.load(name)
    assert family.system.access == ("fdma" if "fdma" in name else "tdma")
    forced = np.asarray(family.system.task_bits * family.system.cycles_per_bit)
    forced = forced > family.system.cpu_hz * family.system.slot[:, None]
    i = int(np.argmax(forced.sum(axis=1)))  # few sets, so that it is quick
    p, _ = reference.extended(jax.tree.map(lambda x: x[i], family.system), family.h[i])
    best, sent = reference.extended_optimum(p)
    np.testing.assert_allclose(family.optimum[i], best, rtol=1e-9)
    np.testing.assert_array_equal(family.offload[i], sent)
    cycles = family.system.task_bits * family.system.cycles_per_bit
    assert np.any(np.sum(cycles, axis=1) > family.system.edge_cycles)


def test_what_delays_cost_counts(monkeypatch):
    family = benchmarks.load("p1-k14-real-v1")
    best = meco_jax.allocate(family.h, family.system, family.offload)
    assert np.all(best.delay_cost > 0)
    score = benchmarks.score(family.offload, family)
    assert score.gap_worst < 1e-8
    assert score.impossible == score.infeasible == score.misstated == 0
    cheaper = best.replace(delay_cost=0 * best.delay_cost)  # a claim that leaves the delays out
    problem = benchmarks.PROBLEMS["p1"]._replace(allocate=lambda *_: cheaper)
    monkeypatch.setitem(benchmarks.PROBLEMS, "p1", problem)
    score = benchmarks.score(family.offload, family)
    assert score.gap_worst < 1e-8
    assert score.impossible == score.misstated == len(family.h)


def test_scores():
    family = benchmarks.load("wpmec-k10-v1")
    best = benchmarks.score("optimal", family, repeats=1)
    assert best.gap_worst < 2e-6
    assert best.infeasible == best.impossible == 0
    own = benchmarks.score(loudest, family, repeats=1)
    assert own.gap_worst > own.gap_95 > own.gap_mean > 0.01
    assert own.us_per_channel > 0
    lies = benchmarks.score(boasts, family, repeats=1)
    assert lies.impossible == lies.misstated == len(family.h)
    assert lies[1:4] == own[1:4]  # what it claims does not count


def loudest(system, h):
    """Send from the device that is heard best, alone."""
    return wpmec.allocate(h, system, h >= jnp.max(h))


def boasts(system, h):
    found = loudest(system, h)
    return found.replace(rate=10 * found.rate, upper_bound=10 * found.rate)


def test_claims_do_not_count():
    """Sending nothing at the bound's energy is no optimum, and no broken constraint is missed."""
    family = benchmarks.load("p1-k10-v1")

    def free(system, h):
        found = meco_jax.allocate(h, system, jnp.zeros_like(h))
        return found.replace(energy=found.lower_bound, feasible=True)

    score = benchmarks.score(free, family, repeats=1)
    alone = benchmarks.score(np.zeros(family.h.shape, bool), family)
    assert score.gap_mean == pytest.approx(alone.gap_mean)
    assert score.gap_mean > 50
    assert score.infeasible == alone.infeasible > 50
    assert score.misstated == len(family.h)
    assert alone.misstated == alone.impossible == 0


def test_judge_against_the_checks_of_the_tests():
    """Random answers: the costs are those of an independent computation, each fault is seen."""
    family = benchmarks.load("p1-k14-fdma-v1")
    best = meco_jax.allocate(family.h, family.system, family.offload)
    good = judge(family.h, family.system, best)
    assert good.feasible.all()
    np.testing.assert_allclose(good.value, family.optimum, rtol=1e-6)
    sends, power = np.asarray(best.offload), np.asarray(best.power)
    for fault in (
        {"power": 1e3 * power},  # C3
        {"power": 0.999 * power},  # C5
        {"time": 1.001 * np.asarray(best.time)},  # C1 where the band is full
        {"offload": 0.5 * sends},  # C4
        {"offload": 0 * sends},  # C2 where somebody must send
        {"power": np.where(sends > 0, np.nan, power)},
    ):
        bad = judge(family.h, family.system, best.replace(**fault))
        assert not bad.feasible.all(), fault.keys()


def test_decisions_from_elsewhere():
    family = benchmarks.load("p1-k10-v1")

    def upper_half(system, h):
        assert isinstance(h, np.ndarray)
        return h > np.median(h)

    rows = family.h > np.median(family.h, axis=1, keepdims=True)
    mine, same = benchmarks.score(upper_half, family, host=True), benchmarks.score(rows, family)
    assert mine[1:-1] == same[1:-1]
    assert mine.us_per_channel > 0
    answers = benchmarks.score(
        lambda s, h: meco_jax.allocate(h, s, h > np.median(h)), family, host=True
    )
    assert answers.gap_mean == pytest.approx(same.gap_mean)
    for scheme, message in (
        (rows[:3], r"scheme must be decisions of shape \(100, 10\).*; got shape \(3, 10\)"),
        (0.5 * rows, "scheme must be 0 or 1; got 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            benchmarks.score(scheme, family)
    with pytest.raises(ValueError, match="scheme must be a function where host is True"):
        benchmarks.score(rows, family, host=True)
    with pytest.raises(ValueError, match=r"scheme must return a decision of shape \(10,\)"):
        benchmarks.score(lambda s, h: h[:3] > 0, family, host=True)


def test_bad_names_and_files(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"name must be one of .*p1-k10-v1.*; got 'p2'"):
        benchmarks.load("p2")
    with pytest.raises(ValueError, match=r"name must be the name of a family, or a family"):
        benchmarks.score("optimal", 3)
    with pytest.raises(ValueError, match=r"repeats must be at least 1"):
        benchmarks.score("optimal", "p1-k10-v1", repeats=0)
    copy = tmp_path / "copy"
    shutil.copytree(FOLDER, copy)
    (copy / "p1-k10-v1.npz").write_bytes(b"cut off")
    monkeypatch.setattr(benchmarks, "_folder", lambda: copy)
    with pytest.raises(ValueError, match=r"p1-k10-v1.npz must have the SHA-256"):
        benchmarks.load("p1-k10-v1")


def test_script_scores_a_scheme_of_your_own(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import jax.numpy as jnp\nfrom meco_jax import wpmec\n\n\n"
        "def loudest(system, h):\n    return wpmec.allocate(h, system, h >= jnp.max(h))\n"
    )
    flags = f"--scheme={mine}:loudest", "--family=wpmec-k10-v1", "--repeats=1"
    result = inside(*flags, f"--output_dir={tmp_path / 'out'}", script="benchmark")
    assert not result.returncode, result.stderr
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["optimal", "prefix", "local", "offload", "loudest"]
    assert float(rows[0]["gap_worst"]) < 2e-6
    assert (tmp_path / "out" / "benchmark.png").stat().st_size > 5000
    wrong = inside(f"--scheme={mine}:loudest", f"--output_dir={tmp_path / 'b'}", script="benchmark")
    one_line(wrong, "--problem must say whose --scheme is")
    wrong = inside("--family=p3", f"--output_dir={tmp_path / 'b'}", script="benchmark")
    one_line(wrong, "--family must be different names among")


def test_make_benchmarks_proves_what_it_draws(tmp_path):
    flags = "--family=wpmec-k10-hard-v1,p1-k10-v1", "--instances=2"
    result = inside(*flags, f"--output_dir={tmp_path}", script="make_benchmarks")
    assert not result.returncode, result.stderr
    assert len((tmp_path / "index.txt").read_text().splitlines()) == 2
    with np.load(tmp_path / "p1-k10-v1.npz") as made:
        family = benchmarks.load("p1-k10-v1")
        np.testing.assert_allclose(made["h"], family.h[:2], rtol=1e-6)
        np.testing.assert_allclose(made["optimum"], family.optimum[:2], rtol=1e-6)
