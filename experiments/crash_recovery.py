"""Crash recovery: kill trainings at random moments, go on with them, and compare what they write.

A sweep and the training of the general policy run whole; others are killed (-9) and started
again, and must end with the same tables and weights. After every kill all files are read: none
may be half-written. Writes crash_recovery.csv and run.json into --output_dir; stops with status
1 if a file is damaged or ends otherwise, by a single byte. Example:

    python experiments/crash_recovery.py --output_dir=runs/crash_recovery
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from support import common, csv_tables, list_flags

from meco_jax import load_policy
from meco_jax.runtime.checkpoints import is_whole

FLAGS = flags.FLAGS
common.define_flags()
flags.DEFINE_list("scripts", ["sweep_k", "train_policy"], "the scripts to kill")
flags.DEFINE_integer("runs", 5, "runs of each to kill", lower_bound=1)
flags.DEFINE_integer("kills", 2, "kills of each run", lower_bound=1)
flags.DEFINE_integer("seed", 0, "of the moments", lower_bound=0)
flags.DEFINE_integer("epochs", 400, "of the trainings", lower_bound=1)
flags.DEFINE_float("save_seconds", 1.0, "least time between two checkpoints [s]", lower_bound=0)


class Script(NamedTuple):
    """A script to kill."""

    flags: tuple[str, ...]
    steps: int  # per epoch
    files: tuple[str, ...]  # that say what was learned


SCRIPTS = {
    "sweep_k": Script(
        ("--num_devices=2,3", "--seeds=0,1", "--num_channels=4000", "--batch_size=100",
         "--hidden=16,8", "--test_channels=40"),
        40, ("results.csv", "bcos_k3_t0.5_seed1.npz", "pcos_k3_t0.5_seed1.npz"),
    ),
    "train_policy": Script(
        ("--batches=8x4", "--width=8", "--rounds=1"), 100, ("history.csv", "policy.npz"),
    ),
}  # fmt: skip


def main(argv: list[str]) -> None:
    """Run every script whole, then kill and resume it, and print a line per kill."""
    common.begin(argv)
    scripts = list_flags.names("scripts", list(SCRIPTS))
    folder, rows, whole_seconds = common.prepare(), list[dict[str, Any]](), {}
    for name in scripts:
        place = folder / name
        place.mkdir(exist_ok=True)
        run(name, place / "first")  # compiles, for all that follow
        began = time.monotonic()
        run(name, place / "whole")
        whole_seconds[name] = round(time.monotonic() - began, 1)
        print(f"a whole run of {name} takes {whole_seconds[name]} s", flush=True)
        print("run  killed after [s]  then at      epochs lost  seconds lost  damaged  same")
        rng = np.random.default_rng(FLAGS.seed)
        for number in range(FLAGS.runs):
            moments = np.sort(rng.uniform(0, whole_seconds[name], FLAGS.kills))
            for row in kill(name, place / f"killed_{number}", np.diff(moments, prepend=0)):
                rows.append({"script": name, "run": number, **row})
                show(rows[-1])
            csv_tables.write_csv(folder / "crash_recovery.csv", rows)
    common.write_run(folder / "run.json", whole_run_seconds=whole_seconds)
    if not all(row["identical"] for row in rows):
        common.stop("a resumed run ended otherwise", 1)
    if any(row["damaged"] for row in rows):
        common.stop("a kill left a damaged file", 1)


def show(row: dict[str, Any]) -> None:
    """Print a line per kill."""
    lost = f"{row['epochs_lost']:13}{row['seconds_lost']:14.1f}{row['damaged']:9}"
    print(f"{row['run']:3}{row['seconds']:18.1f}  {row['method']:<11}{lost}  "
          f"{'yes' if row['identical'] else 'NO'}", flush=True)  # fmt: skip


def start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a script, or go on with it; what it prints goes into ``folder``.log."""
    script = Path(__file__).absolute().parent / f"{name}.py"
    settings = (f"--epochs={FLAGS.epochs}", f"--save_seconds={FLAGS.save_seconds}")
    # The weights hold the command: it is the same for every run.
    command = [sys.executable, str(script), *SCRIPTS[name].flags, *settings, "--output_dir=out"]
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.absolute().parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    folder.mkdir(exist_ok=True)
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | compiled, cwd=folder
        )


def run(name: str, folder: Path) -> None:
    """Let a script come to its end."""
    if start(name, folder).wait():
        common.stop(f"{name} failed, see {folder}/log", 1)


def kill(name: str, folder: Path, waits: np.ndarray) -> list[dict[str, Any]]:
    """Kill a run after each wait, let it end, and compare: a row per kill."""
    cuts = [cut(name, folder, wait) for wait in waits]
    run(name, folder)
    same = all(
        (folder / "out" / file).read_bytes() == (folder.parent / "whole/out" / file).read_bytes()
        for file in SCRIPTS[name].files
    )
    return [{**row, "identical": int(same)} for row in cuts]


def cut(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Let a script run for some seconds, kill it, and tell where it was and what is lost."""
    began, process = time.time(), start(name, folder)  # that of the files' times
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    now, log = time.time(), (folder / "log").read_text()
    shown = re.findall(r"(?:(bcos|pcos) )?step (\d+)", log)
    scheme, step = shown[-1] if shown else ("", "0")
    epoch = int(step) // SCRIPTS[name].steps
    saved = [p for p in folder.glob("out/checkpoints/**/epochs/*") if p.name.isdigit()]
    kept = max((int(p.name) for p in saved if scheme in ("", p.parts[-3])), default=0)
    return {
        "seconds": seconds,
        "method": f"{scheme} {epoch}".strip() if shown else "start",
        "epochs_lost": max(epoch - kept, 0),  # of those that were shown
        "seconds_lost": now - max(began, *(p.stat().st_mtime for p in saved)) if saved else seconds,
        "damaged": sum(not is_readable(path) for path in sorted(folder.rglob("*"))),
    }


def is_readable(path: Path) -> bool:
    """Tell whether a file or a checkpoint that bears its name is whole."""
    try:
        if path.parent.name == "epochs" and path.name.isdigit():
            return is_whole(path)
        if path.name.startswith("."):  # under way
            return True
        if path.suffix == ".npz":
            load_policy(path)
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        endings = {".csv": b"\n", ".png": b"IEND\xaeB`\x82", ".pdf": b"%%EOF\n"}
        return path.read_bytes().endswith(endings[path.suffix]) if path.suffix in endings else True
    except ValueError:
        return False


if __name__ == "__main__":
    common.launch(main)
