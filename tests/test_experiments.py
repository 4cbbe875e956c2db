"""The scripts as a user runs them, with tiny flags, in processes of their own."""

import csv
import itertools
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import quick_environment

from meco_jax import load_policy, sample_channels, solve, table1

ROOT = Path(__file__).parent.parent
TINY = (
    "--num_devices=2,3", "--seeds=0,1", "--num_channels=200", "--batch_size=100", "--epochs=6",
    "--hidden=8", "--test_channels=40",
)  # fmt: skip


def run(*flags, script="sweep_k", **keywords):
    command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *flags]
    keywords = {"env": quick_environment()} | keywords
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **keywords
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep_k")
    flagfile = folder / "tiny.flags"
    flagfile.write_text("\n".join(TINY))
    result = run(f"--flagfile={flagfile}", f"--output_dir={folder / 'out'}", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "out", result


def read(folder):
    with open(folder / "results.csv") as file:
        return list(csv.DictReader(file))


def test_sweep_k_writes_everything(finished):
    folder, result = finished
    rows = read(folder)
    # fmt: off
    assert list(rows[0]) == [
        "num_devices", "slot", "seed", "scheme", "energy_mean_j", "energy_ci95_j",
        "feasible_fraction", "deadline_met_fraction", "offload_fraction", "gap_to_bound_mean",
        "gap_to_optimum_mean", "infeasible_fraction",
    ]
    # fmt: on
    assert len(rows) == 2 * 2 * 8
    for file in ("figure4.png", "figure4.pdf", "training.png", "training.pdf"):
        assert (folder / file).stat().st_size > 5000
    record = json.loads((folder / "run.json").read_text())
    assert record["flags"]["epochs"] == 6
    assert record["flags"]["slot"] == 0.5
    assert {"versions", "device", "git_commit", "wall_seconds"} <= set(record)
    assert "100 %" in result.stdout
    assert "s left" in result.stdout


def test_sweep_k_rows_keep_the_order_of_the_schemes(finished):
    rows = read(finished[0])
    energy = {(r["num_devices"], r["seed"], r["scheme"]): float(r["energy_mean_j"]) for r in rows}
    for k in "23":
        for seed in "01":
            line = ("pcos", "lower_bound", "optimal", "bcos", "mcos")
            values = [energy[k, seed, scheme] for scheme in line]
            assert all(low <= high * (1 + 1e-5) for low, high in itertools.pairwise(values))
            assert energy[k, seed, "pcos_learned"] > 0


def test_sweep_k_draws_again_from_the_table(finished):
    folder = finished[0]
    (folder / "figure4.pdf").unlink()
    result = run(f"--output_dir={folder}", "--plot_only")
    assert result.returncode == 0, result.stderr
    assert (folder / "figure4.pdf").stat().st_size > 5000
    assert not result.stderr
    missing = run(f"--output_dir={folder / 'none'}", "--plot_only")
    assert missing.returncode == 2
    assert "results.csv cannot be read" in missing.stderr


def test_sweep_k_policies_can_be_used(finished):
    policy = load_policy(finished[0] / "bcos_k3_t0.5_seed1.npz")
    h = sample_channels(jax.random.key(0), table1(3, seed=1), 10)
    assert np.all(solve(h, policy=policy).feasible)


def test_help_explains():
    text = run("--help").stdout
    assert "seconds" in text or "[s]" in text
    for flag in ("--output_dir", "--num_devices", "--require_platform", "--epochs", "--slope"):
        assert flag in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--require_platform=tpu",), "--require_platform=tpu, but JAX runs on cpu"),
        (("--output_dir=/proc/none",), "--output_dir=/proc/none cannot be written"),
        (("--flagfile=/no/such.flags",), "/no/such.flags"),
        (("--num_devices=4,x",), "--num_devices must be different integers of at least 1"),
        (("--seeds=0,0",), "--seeds must be different integers of at least 0"),
        (("--epochs=0",), "epochs"),
        (("--batch_size=500",), "config.batch_size must be at most num_channels, 200; got 500"),
        (("stray",), "unknown arguments"),
    ],
)
def test_bad_flags_stop_at_once(flags, message, tmp_path):
    began = time.time()
    result = run(*TINY, f"--output_dir={tmp_path / 'out'}", *flags)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "results.csv").exists()
    assert time.time() - began < 60


def test_killed_at_any_moment_and_resumed(finished, tmp_path):
    """kill -9 while training, then the same command: the same table, bit for bit."""
    folder = tmp_path / "out"
    command = [sys.executable, str(ROOT / "experiments" / "sweep_k.py"), *TINY,
               f"--output_dir={folder}", "--save_seconds=0"]  # fmt: skip
    for moment in ("checkpoints/bcos/epochs/3", "checkpoints/pcos/epochs/3"):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=quick_environment()
        )
        deadline = time.time() + 240
        while not (folder / moment).exists() and time.time() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (folder / "results.csv").exists()
    result = run(*TINY, f"--output_dir={folder}")
    assert result.returncode == 0, result.stderr
    assert (folder / "results.csv").read_bytes() == (finished[0] / "results.csv").read_bytes()
    other = run(*TINY, "--learning_rate=0.5", f"--output_dir={folder}")
    assert other.returncode == 2
    assert "learning_rate must be 0.02 to go on with the run in" in other.stderr


def test_two_processes_share_the_lanes(finished, tmp_path):
    """Two processes with two devices each train as one process with one does, bit for bit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = quick_environment("--xla_force_host_platform_device_count=2")
    command = [sys.executable, str(ROOT / "experiments" / "sweep_k.py"), *TINY,
               f"--output_dir={tmp_path}", f"--coordinator_address={address}",
               "--num_processes=2"]  # fmt: skip
    both = [
        subprocess.Popen([*command, f"--process_id={i}"], stderr=subprocess.PIPE, env=environment)
        for i in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    policies = sorted(path.name for path in tmp_path.glob("?cos_k*.npz"))
    assert len(policies) == 2 * 4
    for name in policies:
        together, alone = (np.load(folder / name) for folder in (tmp_path, finished[0]))
        assert together.files == alone.files
        for leaf in together.files:
            np.testing.assert_array_equal(together[leaf], alone[leaf], err_msg=f"{name}, {leaf}")
    for together, alone in zip(read(tmp_path), read(finished[0]), strict=True):
        assert together.pop("scheme") == alone.pop("scheme")
        values = [[float(x or "nan") for x in row.values()] for row in (together, alone)]
        np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-6)  # optima in other batches


def test_interrupt_says_how_to_go_on(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "sweep_k.py"), *TINY, "--epochs=50000",
               f"--output_dir={tmp_path}", "--save_seconds=0"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=quick_environment())
    deadline = time.time() + 240
    while not list(tmp_path.glob("checkpoints/bcos/epochs/1*")) and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors


def test_sweep_t_draws_figure_5(tmp_path):
    flags = ("--num_devices=3", "--slots=0.3,1", "--seeds=0", *TINY[2:])
    result = run(*flags, f"--output_dir={tmp_path}", script="sweep_t")
    assert result.returncode == 0, result.stderr
    assert {row["slot"] for row in read(tmp_path)} == {"0.3", "1"}
    assert (tmp_path / "figure5.pdf").stat().st_size > 5000


def test_delay_cdf_draws_figure_6(tmp_path):
    flags = ("--num_devices=3", "--seeds=0,1", *TINY[2:])
    result = run(*flags, f"--output_dir={tmp_path}", script="delay_cdf")
    assert result.returncode == 0, result.stderr
    assert "beyond the deadline  breaks C1-C5" in result.stdout
    with open(tmp_path / "cdf.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["scheme"] == "optimal"]
    assert len(rows) == 501  # means over the seeds
    assert max(float(row["sending_time_s"]) for row in rows) <= 1.000001
    (tmp_path / "figure6.png").unlink()
    assert run(f"--output_dir={tmp_path}", "--plot_only", script="delay_cdf").returncode == 0
    assert (tmp_path / "figure6.png").stat().st_size > 5000


def test_grid_draws_the_plane(tmp_path):
    flags = ("--num_devices=2,3", "--slots=0.5,1", "--seeds=0", *TINY[2:])
    result = run(*flags, f"--output_dir={tmp_path}", script="grid")
    assert result.returncode == 0, result.stderr
    assert len(read(tmp_path)) == 4 * 8
    assert (tmp_path / "plane.png").stat().st_size > 5000


def test_constraints_judges_the_raw_networks(tmp_path):
    flags = ("--num_devices=2", "--multiplier_steps=5", "--margins=0,0.5", *TINY[2:])
    result = run(*flags, f"--output_dir={tmp_path}", script="constraints")
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "constraints.csv") as file:
        rows = list(csv.DictReader(file))
    place = [(row["scheme"], row["margin"]) for row in rows]
    assert place == [(name, m) for name in ("bcos_raw", "pcos_learned") for m in ("0", "0.5")]
    whole = {(row["scheme"], row["margin"]): row for row in read(tmp_path)}
    for row in rows:
        same = whole[row["scheme"], row["margin"]]
        assert row["kept"] == same["feasible_fraction"]
        assert float(row["kept"]) <= float(row["kept_realised"])
        if row["scheme"] == "bcos_raw":
            assert row["gap_mean"] == same["gap_to_optimum_mean"]
    assert len({row["gap_mean"] for row in rows}) == 4  # the margin reaches the training


def test_frontier_ranks_the_methods(tmp_path):
    flags = ("--num_devices=3", "--channels=16", "--slow_channels=4", "--nonlinear_channels=2",
             "--latency_calls=3", "--repeats=1", "--num_channels=200", "--batch_size=100",
             "--epochs=4", "--hidden=16,8", "--seconds=5", f"--output_dir={tmp_path}")  # fmt: skip
    result = run(*flags, script="frontier")
    assert result.returncode == 0, result.stderr
    rows = {row["method"]: row for row in read(tmp_path)}
    assert float(rows["solve, certified"]["gap_worst"]) < 2e-4
    assert float(rows["solve, certified"]["certified_fraction"]) == 1
    assert float(rows["search on the host"]["gap_worst"]) < 2e-4
    assert float(rows["Clarabel, branch and bound"]["gap_worst"]) < 2e-4
    assert float(rows["MCOS"]["gap_mean"]) > float(rows["repair of nothing"]["gap_mean"])
    for row in rows.values():
        assert 0 < float(row["p50_us"]) <= float(row["p99_us"])
        assert float(row["channels_per_second"]) > 0
    for file in ("frontier.png", "frontier.pdf", "run.json"):
        assert (tmp_path / file).stat().st_size > 500
    (tmp_path / "frontier.pdf").unlink()
    assert run(f"--output_dir={tmp_path}", "--plot_only", script="frontier").returncode == 0
    assert (tmp_path / "frontier.pdf").exists()


def test_certify_proves_every_row(tmp_path):
    flags = ("--num_devices=3", "--log_bases=e", "--slots=0.3,1", "--channels=20")
    result = run(*flags, f"--output_dir={tmp_path}", script="certify")
    assert result.returncode == 0, result.stderr
    rows = read(tmp_path)
    assert len(rows) == 2
    for row in rows:
        assert float(row["certified"]) == float(row["optimal_fraction"]) == 1
        assert int(row["false_bounds"]) == 0
    bad = run("--log_bases=1", f"--output_dir={tmp_path}", script="certify")
    assert "--log_bases must be finite numbers above 1" in bad.stderr


def test_scale_writes_time_and_memory(tmp_path):
    flags = ("--num_devices=4,16", "--work=64", "--repeats=1", f"--output_dir={tmp_path}")
    result = run(*flags, script="scale")
    assert result.returncode == 0, result.stderr
    assert "slope" in result.stdout
    rows = read(tmp_path)
    assert [int(row["num_devices"]) for row in rows] == [4, 16]
    assert all(float(row["bytes_per_channel"]) > 100 for row in rows)
    assert (tmp_path / "scale.pdf").stat().st_size > 5000


def test_lanes_measures_speed_memory_and_ratio(tmp_path):
    flags = ("--lanes=2", "--num_devices=3", "--ratio_devices=2", "--ratio_slots=0.5,1",
             "--ratio_seeds=1", "--ratio_epochs=2", "--num_channels=200", "--batch_size=100",
             "--epochs=4", "--hidden=8", f"--output_dir={tmp_path}")  # fmt: skip
    result = run(*flags, script="lanes")
    assert result.returncode == 0, result.stderr
    rows = read(tmp_path)
    assert [(row["method"], row["lanes"]) for row in rows] == [("lax.map", "2"), ("vmap", "2")]
    assert all(float(row["lane_steps_per_s"]) > 0 for row in rows)
    assert all(float(row["peak_mb"]) > 100 for row in rows)
    with open(tmp_path / "ratio.csv") as file:
        ratios = list(csv.DictReader(file))
    assert [(row["lanes"], row["steps"]) for row in ratios] == [("2", "2"), ("2", "4")]
    assert all(float(row["cpu_ratio"]) > 0.5 for row in ratios)
    assert (tmp_path / "lanes.pdf").stat().st_size > 5000


def test_kills_end_with_the_same_table(tmp_path):
    flags = ("--scripts=sweep_k", "--runs=1", "--kills=1", "--epochs=1", "--save_seconds=0",
             f"--output_dir={tmp_path}")  # fmt: skip
    result = run(*flags, script="kills")
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "kills.csv") as file:
        assert [row["identical"] for row in csv.DictReader(file)] == ["1"]


def test_claims_are_checked_against_the_committed_tables():
    result = run(f"--tables={ROOT / 'experiments' / 'figures'}", script="claims")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2 + 8 + 7 + 3
    assert set(lines) <= set((ROOT / "README.md").read_text().splitlines())
