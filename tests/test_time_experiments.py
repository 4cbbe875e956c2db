"""The scripts of cells over time and of an agent in one, as a user runs them, with tiny flags."""

import csv

import pytest
from cases import inside, one_line

TINY = {
    "over_time": (
        "--num_devices=3", "--slot=0.25", "--schemes=mcos", "--hours=2", "--hour_slots=4",
        "--optimization_level=0",
        "--study_slots=4", "--outage_slots=4", "--calibration_slots=8",
        "--speeds=0.01,1", "--loads=0.5",
        "--outages=0.5", "--errors=0.2", "--backoffs=1,6",
    ),
    "interfering_cells": ("--num_devices=2", "--schemes=mcos", "--distances=100,400", "--draws=2"),
    "reinforce": (
        "--num_devices=3", "--num_envs=4", "--updates=3", "--seeds=0,1", "--test_slots=1",
        "--hidden=4",
    ),
    "simulation_speed": (
        "--num_devices=2", "--methods=mcos", "--cells=4", "--slots=2", "--repeats=1",
    ),
}  # fmt: skip


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_over_time_plays_and_draws_again(tmp_path):
    flags = (*TINY["over_time"], f"--output_dir={tmp_path}")
    result = inside(*flags, script="over_time")
    assert result.returncode == 0, result.stderr
    days = table(tmp_path / "day.csv")
    perfect = [row for row in days if float(row["error"]) == float(row["delay"]) == 0]
    assert {row["late_slots_fraction"] for row in perfect} <= {"0", ""}
    assert len(days) == 5 * 2
    assert {row["method"] for row in table(tmp_path / "outage.csv")} == {"backoff", "slot", "price"}
    for name in ("day", "speed", "queues", "outage", "filmstrip"):
        assert (tmp_path / f"{name}.pdf").stat().st_size > 3000
    before = (tmp_path / "day.png").read_bytes()
    again = inside(f"--output_dir={tmp_path}", "--plot_only", script="over_time")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "day.png").read_bytes() == before
    elsewhere = f"--output_dir={tmp_path / 'x'}"
    one_line(inside(*flags[:-1], "--errors=2", elsewhere, script="over_time"), "--errors must be")


@pytest.mark.parametrize(("script", "file"), [
    ("interfering_cells", "cells.csv"), ("simulation_speed", "speed.csv"),
    ("reinforce", "learning.csv"),
])  # fmt: skip
def test_small_scripts(script, file, tmp_path):
    result = inside(*TINY[script], f"--output_dir={tmp_path}", script=script)
    assert result.returncode == 0, result.stderr
    assert len(table(tmp_path / file)) >= 2
    assert (tmp_path / "run.json").exists()
