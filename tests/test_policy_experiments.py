"""The scripts of the general policy as a user runs them, with tiny flags."""

import csv
import json

import numpy as np
import pytest
from cases import inside, one_line, read_results, run

from meco_jax import GeneralPolicy, load_policy, solve, table1


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_train_policy_goes_on_and_is_refused(tmp_path):
    tiny = ("--epochs=2", "--batches=8x4", "--width=8", "--rounds=1", f"--output_dir={tmp_path}")
    result = run(*tiny, script="train_policy")
    assert result.returncode == 0, result.stderr
    policy = load_policy(tmp_path / "policy.npz")
    assert isinstance(policy, GeneralPolicy)
    assert solve(np.full(4, 1e-3), table1(4), policy=policy).feasible
    assert [float(row["step"]) for row in table(tmp_path / "history.csv")] == [100, 200]
    assert (tmp_path / "training.pdf").stat().st_size > 3000
    again = run(*tiny, script="train_policy")  # nothing left to do
    assert again.returncode == 0, again.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    times = [session["wall_seconds"] for session in record["sessions"]]
    assert times[1] < times[0] < record["wall_seconds"] == pytest.approx(sum(times), abs=0.1)
    for flag, message in (
        ("--gradient=sign", "--gradient must be best_flips to go on"),
        ("--width=9", "--width must be 8 to go on"),
        ("--epochs=0", "--epochs"),
        ("--batches=8,4", "--batches must be like 256x24,32x20:fdma; got 8,4"),
    ):
        result = inside(*tiny, flag, script="train_policy")
        assert result.returncode
        assert message in result.stderr
    assert json.loads((tmp_path / "run.json").read_text()) == record


@pytest.mark.slow
def test_evaluate_policy_measures_gaps(tmp_path):
    result = run(
        "--num_devices=3", "--log_bases=2", "--slots=0.5", "--channels=20", "--beyond_channels=4",
        "--efforts=0,2", "--panels=slot", f"--output_dir={tmp_path}",
        script="evaluate_policy",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (row,) = table(tmp_path / "gaps.csv")
    assert row["missed"] == "0"
    assert 0 <= float(row["effort_2_gap_mean"]) <= float(row["effort_0_gap_mean"]) < 0.1
    late = [float(r["late_fraction"]) for r in table(tmp_path / "csi.csv") if r["error"] == "0.05"]
    assert late[-1] < late[0]  # a back-off pays
    assert {row["family"] for row in table(tmp_path / "beyond.csv")} == {"slot"}
    for name in ("beyond.png", "csi.pdf", "run.json"):
        assert (tmp_path / name).stat().st_size > 500
    flags = "--policy=nowhere.npz", f"--output_dir={tmp_path}"
    one_line(inside(*flags, script="evaluate_policy"), "--policy=nowhere.npz")


def test_gradients_compares_and_goes_on(tmp_path):
    tiny = ("--estimators=sign,exact", "--seeds=2", "--epochs=4", "--test_channels=20",
            "--validation_channels=10", "--learning_rates=1e-3,1e-2", "--num_devices=3",
            "--log_bases=10", "--batch_size=8", f"--output_dir={tmp_path}")  # fmt: skip
    result = run(*tiny, script="gradients")
    assert result.returncode == 0, result.stderr
    rows = read_results(tmp_path)
    assert [row["method"] for row in rows] == ["sign", "exact"]
    assert all(0 <= float(row["gap_mean"]) <= float(row["gap_worst"]) for row in rows)
    history = (tmp_path / "history.csv").read_text().splitlines()
    assert len(history) == 1 + 2 * (2 + 2) * 4
    assert len(table(tmp_path / "curves.csv")) == 2 * 4  # means over the seeds
    cut = tmp_path / "history.csv"
    cut.write_text("\n".join(history[:-4]) + "\n")  # the last training was cut off
    before = (tmp_path / "results.csv").read_bytes()
    again = run(*tiny, script="gradients")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "results.csv").read_bytes() == before
    for flag, message in (
        ("--test_channels=30", "--test_channels must be 20 to go on with the run in"),
        ("--learning_rates=1", "--learning_rates must be ['1e-3', '1e-2'] to go on"),
        ("--ways=magic", "--estimators must be different names among sign, "),  # deprecated
        ("--estimators=magic", "--estimators must be different names among sign, "),
    ):
        one_line(inside(*tiny, flag, script="gradients"), message)
