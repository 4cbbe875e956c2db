"""The scripts as a user runs them, with tiny flags, in processes of their own."""

import csv
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from cases import ROOT, TINY, flip, inside, one_line, quick_environment, read_results, run
from support import csv_tables, trainings

from meco_jax import load_policy, sample_channels, solve, table1
from meco_jax.runtime.checkpoints import is_whole


def test_sweep_k_writes_everything(finished):
    folder, result = finished
    rows = read_results(folder)
    # fmt: off
    assert list(rows[0]) == [
        "num_devices", "slot", "seed", "scheme", "cost_mean_j", "cost_ci95_j",
        "feasible_fraction", "deadline_met_fraction", "offload_fraction", "gap_to_bound_mean",
        "gap_to_optimum_mean", "infeasible_fraction",
    ]
    # fmt: on
    assert len(rows) == 2 * 2 * 9
    for file in ("figure4.png", "figure4.pdf", "training.png", "training.pdf"):
        assert (folder / file).stat().st_size > 5000
    record = json.loads((folder / "run.json").read_text())
    assert record["flags"]["epochs"] == 6
    assert record["flags"]["slot"] == 0.5
    assert {"versions", "device", "source", "wall_seconds"} <= set(record)
    assert [session["finished"] for session in record["sessions"]] == [record["finished"]] == [True]
    assert "100 %" in result.stdout
    assert "s left" in result.stdout


def test_sweep_k_rows_keep_the_order_of_the_schemes(finished):
    rows = read_results(finished[0])
    energy = {(r["num_devices"], r["seed"], r["scheme"]): float(r["cost_mean_j"]) for r in rows}
    for k in "23":
        for seed in "01":
            line = ("pcos", "lower_bound", "optimal", "bcos_improved", "mcos")
            values = [energy[k, seed, scheme] for scheme in line]
            assert all(low <= high * (1 + 1e-5) for low, high in itertools.pairwise(values))
            assert energy[k, seed, "bcos_improved"] <= energy[k, seed, "bcos"] * (1 + 1e-6)
            assert energy[k, seed, "pcos_learned"] > 0


def test_sweep_k_draws_again_from_the_table(finished, tmp_path):
    for name in ("results.csv", "run.json"):
        (tmp_path / name).write_bytes((finished[0] / name).read_bytes())
    result = inside(f"--output_dir={tmp_path}", "--plot_only")
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    for name in ("figure4.png", "results.csv", "run.json"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()
    one_line(
        inside(f"--output_dir={tmp_path / 'none'}", "--plot_only"), "results.csv cannot be read"
    )


def test_sweep_k_policies_can_be_used(finished):
    policy = load_policy(finished[0] / "bcos_k3_t0.5_seed1.npz")
    h = sample_channels(jax.random.key(0), table1(3, seed=1), 10)
    assert np.all(solve(h, policy=policy).feasible)


def test_help_explains():
    text = run("--help").stdout
    assert "seconds" in text or "[s]" in text
    for flag in ("--output_dir", "--num_devices", "--require_platform", "--epochs", "--scheme"):
        assert flag in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--require_platform=tpu",), "--require_platform=tpu, but JAX runs on cpu"),
        (("--output_dir=/proc/none",), "--output_dir=/proc/none cannot be written"),
        (("--flagfile=/no/such.flags",), "/no/such.flags"),
        (("--num_devices=4,x",), "--num_devices must be different integers of at least 1"),
        (("--seeds=0,0",), "--seeds must be different integers of at least 0; got 0,0"),
        (("--seeds=4294967296",), "--seeds must be different integers of at least 0"),
        (("--hidden=",), "--hidden must be integers of at least 1; got none"),
        (("--slot=nan",), "--slot must be finite; got nan"),
        (("--learning_rate=inf",), "--learning_rate must be finite; got inf"),
        (("--batch_size=500",), "--batch_size must be at most --num_channels, 200; got 500"),
        (("--batch_size=150",), "--num_channels must be a multiple of --batch_size, 150; got 200"),
        (("stray",), "unknown arguments"),
    ],
)
def test_bad_flags_stop_at_once(flags, message, tmp_path):
    one_line(inside(*TINY, f"--output_dir={tmp_path / 'out'}", *flags), message)
    assert not (tmp_path / "out").exists()


def test_what_absl_refuses(tmp_path):
    for flags, message in ((("--epochs=0",), "epochs"), (("--output_dir=",), "must name a folder")):
        result = inside(*TINY, f"--output_dir={tmp_path / 'out'}", *flags)
        assert result.returncode == 1
        assert message in result.stderr
    assert not (tmp_path / "out").exists()


def start(*flags, moment, **keywords):
    """Start a sweep, and return its process once a file is there."""
    command = [sys.executable, str(ROOT / "experiments" / "sweep_k.py"), *TINY, *flags]
    keywords = {"env": quick_environment(), "stdout": subprocess.DEVNULL} | keywords
    process, deadline = subprocess.Popen(command, **keywords), time.monotonic() + 240
    while not moment() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    return process


def odd_environment(folder):
    """A clock that runs backwards, no display, no fonts, no home."""
    home = folder / "none"
    home.write_text("")
    (folder / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "later = itertools.count(2e9, -10)\n"
        "time.time = lambda: next(later)\n"
    )
    (folder / "matplotlibrc").write_text(
        "font.family: No Such Font\nfont.sans-serif: None Either\nbackend: TkAgg\n"
    )
    quick = quick_environment()
    path = os.pathsep.join([str(folder), *filter(None, [quick.get("PYTHONPATH")])])
    odd = {"PYTHONPATH": path, "HOME": str(home), "MPLCONFIGDIR": str(home / "config"),
           "MATPLOTLIBRC": str(folder), "MPLBACKEND": "TkAgg"}  # fmt: skip
    return {name: text for name, text in quick.items() if name != "DISPLAY"} | odd


def test_killed_damaged_and_resumed(finished, tmp_path):
    """kill -9 while training, twice, and damage: the same table, bit for bit.

    The second time a run beside it stops, the last checkpoint is damaged, and clock, fonts and
    display are gone. What a run had is in its record; a command that does not fit is refused and
    spoils nothing.
    """
    folder, odd = tmp_path / "out", odd_environment(tmp_path)
    flags = f"--output_dir={folder}", "--save_seconds=0"
    saved = folder / "checkpoints/bcos/epochs/3", folder / "run.json"  # in this order
    first = start(*flags, moment=lambda: all(path.exists() for path in saved))
    first.kill()
    first.wait()
    last = folder / "checkpoints/pcos/epochs/6"
    second = start(*flags, moment=last.exists, env=odd)
    second.send_signal(signal.SIGSTOP)
    one_line(inside(*TINY, *flags), f"is in use by another run (process {second.pid}); wait")
    second.kill()
    second.wait()
    assert not (folder / "results.csv").exists()
    assert is_whole(last)
    file = next(last.glob("state/ocdbt.process_0/d/*"))
    file.write_bytes(flip(file.read_bytes(), random.Random(0)))
    result = run(*TINY, *flags, env=odd)
    assert result.returncode == 0, result.stderr
    assert f"checkpoint {last} is damaged; trying the one before" in result.stderr
    assert "Traceback" not in result.stderr
    assert "findfont" not in result.stderr
    assert "-" not in "".join(line[:30] for line in result.stdout.splitlines() if " left " in line)
    assert (folder / "results.csv").read_bytes() == (finished[0] / "results.csv").read_bytes()
    for file in ("figure4.png", "figure4.pdf", "training.png", "training.pdf"):
        assert (folder / file).stat().st_size > 5000
    record = json.loads((folder / "run.json").read_text())
    sessions = record["sessions"]
    assert [session["finished"] for session in sessions] == [False, False, True]
    times = [session["wall_seconds"] for session in sessions]
    assert 0 < min(times) <= max(times) < record["wall_seconds"] < 600
    assert record["wall_seconds"] == pytest.approx(sum(times), abs=0.1)
    kept = {path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}
    for flag, message in (
        ("--epochs=7", "--epochs must be 6 to go on with the run in"),
        ("--learning_rate=0.5", "--learning_rate must be 0.02 to go on"),
        ("--seeds=0,1,2", "--seeds must be 0,1 to go on"),
        ("--num_devices=2,4", "--num_devices must be 2,3 to go on"),
    ):
        one_line(
            inside(*TINY, *flags, flag), message, "take another --output_dir, or the same flags"
        )
    one_line(
        inside(*flags, "--slots=0.5", script="sweep_t"), "holds a run of sweep_k.py; take another"
    )
    assert kept == {path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def test_two_processes_share_the_lanes(finished, tmp_path):
    """With as many lanes each as one process had: its program, and so its bits.

    Programs for other numbers of lanes round otherwise, and biases in front of a normalisation
    have no slope but rounding, which Adam makes steps of.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(ROOT / "experiments" / "sweep_k.py"), *TINY, "--seeds=0,1,2,3",
               f"--output_dir={tmp_path}", f"--coordinator_address={address}",
               "--num_processes=2"]  # fmt: skip
    both = [
        subprocess.Popen(
            [*command, f"--process_id={i}"], stderr=subprocess.PIPE, env=quick_environment()
        )
        for i in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], errors
    assert len(list(tmp_path.glob("?cos_k*.npz"))) == 2 * 8
    policies = sorted(path.name for path in finished[0].glob("?cos_k*.npz"))
    assert len(policies) == 2 * 4
    for name in policies:
        together, alone = (np.load(folder / name) for folder in (tmp_path, finished[0]))
        assert together.files == alone.files
        for leaf in together.files:
            np.testing.assert_array_equal(together[leaf], alone[leaf], err_msg=f"{name}, {leaf}")
    rows = [row for row in read_results(tmp_path) if row["seed"] in "01"]
    for together, alone in zip(rows, read_results(finished[0]), strict=True):
        assert together.pop("scheme") == alone.pop("scheme")
        values = [[float(x or "nan") for x in row.values()] for row in (together, alone)]
        np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-6)  # optima in other batches


def test_interrupt_says_how_to_go_on(tmp_path):
    saved = lambda: list(tmp_path.glob("checkpoints/bcos/epochs/1*"))  # noqa: E731
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs of a shell ignore it
    process = start("--epochs=50000", f"--output_dir={tmp_path}", "--save_seconds=0", moment=saved,
                    stderr=subprocess.PIPE, text=True)  # fmt: skip
    signal.signal(signal.SIGINT, before)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert len(errors.splitlines()) == 1
    record = json.loads((tmp_path / "run.json").read_text())
    assert not record["finished"]
    assert record["wall_seconds"] > 0


def test_sweep_t_draws_figure_5(tmp_path, monkeypatch):
    """Its training is that of the other sweeps: only what it asks for is looked at."""
    asked = []
    monkeypatch.setattr(trainings, "train_and_evaluate", lambda *at: asked.append(at) or sys.exit())
    flags = ("--num_devices=3", "--slots=0.3,1", "--seeds=0,1", *TINY[2:])
    result = inside(*flags, f"--output_dir={tmp_path}", script="sweep_t")
    assert not result.returncode
    ((lanes, configs, folder, schemes),) = asked
    assert [(point["slot"], point["seed"]) for point in lanes.points] == [
        (0.3, 0), (0.3, 1), (1.0, 0), (1.0, 1),
    ]  # fmt: skip
    assert all(point["num_devices"] == 3 for point in lanes.points)
    assert [(config.scheme, config.epochs) for config in configs.values()] == [
        ("bcos", 6), ("pcos", 6),
    ]  # fmt: skip
    assert (folder, schemes) == (tmp_path, {})
    table = (ROOT / "experiments/figures/figure5.csv").read_bytes()
    (tmp_path / "results.csv").write_bytes(table)
    result = inside(f"--output_dir={tmp_path}", "--plot_only", script="sweep_t")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "figure5.pdf").stat().st_size > 5000


def test_delay_cdf_draws_figure_6(tmp_path):
    flags = ("--num_devices=3", "--seeds=0,1,2,3", *TINY[2:])  # programs of the other sweeps
    result = run(*flags, f"--output_dir={tmp_path}", script="delay_cdf")
    assert result.returncode == 0, result.stderr
    assert "beyond the deadline  breaks C1-C5" in result.stdout
    with open(tmp_path / "cdf.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["scheme"] == "optimal"]
    assert len(rows) == 501  # means over the seeds
    assert max(float(row["sending_time_s"]) for row in rows) <= 1.000001
    (tmp_path / "figure6.png").unlink()
    assert inside(f"--output_dir={tmp_path}", "--plot_only", script="delay_cdf").returncode == 0
    assert (tmp_path / "figure6.png").stat().st_size > 5000


@pytest.mark.slow
def test_plane_draws_savings_and_gaps(tmp_path):
    flags = ("--num_devices=2,3", "--slots=0.5,1", "--seeds=0", *TINY[2:])
    result = run(*flags, f"--output_dir={tmp_path}", script="plane")
    assert result.returncode == 0, result.stderr
    assert len(read_results(tmp_path)) == 4 * 9
    assert (tmp_path / "plane.png").stat().st_size > 5000


@pytest.mark.slow
def test_constraints_judges_the_raw_networks(tmp_path):
    flags = ("--num_devices=3", "--multiplier_steps=5", "--margins=0,0.5", *TINY[2:])
    result = run(*flags, f"--output_dir={tmp_path}", script="constraints")
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "constraints.csv") as file:
        rows = list(csv.DictReader(file))
    place = [(row["scheme"], row["margin"]) for row in rows]
    assert place == [(name, m) for name in ("bcos_raw", "pcos_learned") for m in ("0", "0.5")]
    whole = {(row["scheme"], row["margin"]): row for row in read_results(tmp_path)}
    for row in rows:
        same = whole[row["scheme"], row["margin"]]
        assert row["kept"] == same["feasible_fraction"]
        assert float(row["kept"]) <= float(row["kept_realised"])
        if row["scheme"] == "bcos_raw":
            assert row["gap_mean"] == same["gap_to_optimum_mean"]
    assert len({row["gap_mean"] for row in rows}) == 4  # the margin reaches the training


@pytest.mark.slow
def test_frontier_ranks_the_methods(tmp_path):
    flags = ("--num_devices=3", "--channels=16", "--slow_channels=4", "--nonlinear_channels=2",
             "--latency_calls=3", "--repeats=1", "--num_channels=200", "--batch_size=100",
             "--epochs=4", "--hidden=16,8", "--seconds=5", f"--output_dir={tmp_path}")  # fmt: skip
    chosen = ("MCOS", "improved from all-local", "BCOS, raw", "solve, certified",
              "search on the host", "Clarabel, branch and bound")  # fmt: skip
    flags += tuple(f"--method={name}" for name in chosen)
    one_line(inside(*flags, "--method=magic", script="frontier"), "--method must be among MCOS; ")
    result = run(*flags, script="frontier")
    assert result.returncode == 0, result.stderr
    rows = {row["method"]: row for row in read_results(tmp_path)}
    assert set(rows) == set(chosen)
    assert float(rows["solve, certified"]["gap_worst"]) < 2e-4
    assert float(rows["solve, certified"]["certified_fraction"]) == 1
    assert float(rows["search on the host"]["gap_worst"]) < 2e-4
    assert float(rows["Clarabel, branch and bound"]["gap_worst"]) < 2e-4
    assert float(rows["MCOS"]["gap_mean"]) > float(rows["improved from all-local"]["gap_mean"])
    for row in rows.values():
        assert 0 < float(row["p50_us"]) <= float(row["p99_us"])
        assert float(row["channels_per_second"]) > 0
    for file in ("frontier.png", "frontier.pdf", "run.json"):
        assert (tmp_path / file).stat().st_size > 500
    (tmp_path / "frontier.pdf").unlink()
    assert inside(f"--output_dir={tmp_path}", "--plot_only", script="frontier").returncode == 0
    assert (tmp_path / "frontier.pdf").exists()


def test_certify_proves_every_row(tmp_path):
    flags = ("--num_devices=3", "--log_bases=e", "--slots=0.3,1", "--channels=20",
             f"--output_dir={tmp_path}")  # fmt: skip
    result = inside(*flags, script="certify")
    assert result.returncode == 0, result.stderr
    rows = read_results(tmp_path)
    assert len(rows) == 2
    for row in rows:
        assert float(row["certified"]) == float(row["optimal_fraction"]) == 1
        assert int(row["false_bounds"]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["finished"]
    kept = {path: path.read_bytes() for path in tmp_path.glob("[!.]*")}
    one_line(
        inside(*flags, script="certify"), f"{tmp_path} holds a finished run; take another folder"
    )
    bad = inside(*flags, "--log_bases=1", script="certify")
    one_line(bad, "--log_bases must be different finite numbers above 1; got 1")
    assert kept == {path: path.read_bytes() for path in tmp_path.glob("[!.]*")}


@pytest.mark.slow
def test_scale_writes_time_and_memory(tmp_path):
    flags = ("--num_devices=4,16", "--work=64", "--repeats=1", f"--output_dir={tmp_path}")
    result = run(*flags, script="scale")
    assert result.returncode == 0, result.stderr
    assert "slope" in result.stdout
    rows = read_results(tmp_path)
    assert [int(row["num_devices"]) for row in rows] == [4, 16]
    assert all(float(row["bytes_per_channel"]) > 100 for row in rows)
    assert (tmp_path / "scale.pdf").stat().st_size > 5000


@pytest.mark.slow
def test_lanes_measures_speed_memory_and_ratio(tmp_path):
    flags = ("--lanes=2", "--num_devices=3", "--ratio_devices=2", "--ratio_slots=0.5,1",
             "--ratio_seeds=1", "--ratio_epochs=2", "--num_channels=200", "--batch_size=100",
             "--epochs=4", "--hidden=8", f"--output_dir={tmp_path}")  # fmt: skip
    result = run(*flags, script="lanes")
    assert result.returncode == 0, result.stderr
    rows = read_results(tmp_path)
    assert [(row["method"], row["lanes"]) for row in rows] == [("lax.map", "2"), ("vmap", "2")]
    assert all(float(row["lane_steps_per_s"]) > 0 for row in rows)
    assert all(float(row["peak_mb"]) > 100 for row in rows)
    with open(tmp_path / "ratio.csv") as file:
        ratios = list(csv.DictReader(file))
    assert [(row["lanes"], row["steps"]) for row in ratios] == [("2", "2"), ("2", "4")]
    assert all(float(row["cpu_ratio"]) > 0.5 for row in ratios)
    assert (tmp_path / "lanes.pdf").stat().st_size > 5000


def test_claims_are_checked_against_the_committed_tables():
    result = inside(f"--tables={ROOT / 'experiments' / 'figures'}", script="paper_claims")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2 + 8 + 7 + 3
    assert set(lines) <= set((ROOT / "experiments" / "RESULTS.md").read_text().splitlines())


def test_slopes_compares_finished_runs(finished, tmp_path):
    """On Figure 4's table at K = 20, and two records that differ in the slope."""
    with open(ROOT / "experiments" / "figures" / "figure4.csv") as file:
        header, *lines = file.read().splitlines(keepends=True)
    record = json.loads((finished[0] / "run.json").read_text())
    for name in ("zero", "teacher"):
        record["flags"]["slope"] = name
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        rows = [line for line in lines if line.startswith("20,")]
        (tmp_path / name / "results.csv").write_text("".join([header, *rows]))
    out = f"--output_dir={tmp_path / 'out'}"
    result = inside(f"--runs={tmp_path}/zero,{tmp_path}/teacher", out, script="slopes")
    assert result.returncode == 0, result.stderr
    zero, teacher = csv_tables.read_csv(tmp_path / "out" / "slopes.csv")
    assert (zero.pop("method"), teacher.pop("method")) == ("zero", "teacher")
    assert zero == teacher
    energy = {name: [float(line.split(",")[4]) for line in rows if f",{name}," in line]
              for name in ("bcos_raw", "bcos", "optimal")}  # fmt: skip
    over = {name: sum(each) / sum(energy["optimal"]) - 1 for name, each in energy.items()}
    assert zero["energy_raw"] == pytest.approx(over["bcos_raw"], rel=1e-6)
    assert zero["energy_projected"] == pytest.approx(over["bcos"], rel=1e-5)
    assert 0 < zero["feasible_fraction"] < zero["deadline_met_fraction"] < 1
    twice = inside(f"--runs={tmp_path}/zero,{tmp_path}/zero", out, script="slopes")
    one_line(twice, "--runs must have settings of their own; got zero, zero")
    (tmp_path / "zero" / "run.json").write_text("{}")
    broken = inside(f"--runs={tmp_path}/zero", out, script="slopes")
    one_line(broken, "zero/run.json must be the record of a run of sweep_k.py")
