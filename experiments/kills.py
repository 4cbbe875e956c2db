"""Kill a sweep at random moments, go on with it, and compare its table with that of a whole run.

Writes kills.csv and run.json into --output_dir; stops with status 1 if a table differs by a
single byte. Example:

    python experiments/kills.py --output_dir=runs/kills
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
common.define_flags()
flags.adopt_module_key_flags(common)
flags.DEFINE_integer("runs", 5, "runs to kill", lower_bound=1)
flags.DEFINE_integer("kills", 2, "kills of each run", lower_bound=1)
flags.DEFINE_integer("seed", 0, "of the moments", lower_bound=0)
flags.DEFINE_integer("epochs", 400, "of the sweep's trainings", lower_bound=1)
flags.DEFINE_float("save_seconds", 1.0, "least time between two checkpoints [s]", lower_bound=0)
STEPS_PER_EPOCH = 40
SWEEP = (
    "--num_devices=2,3", "--seeds=0,1", f"--num_channels={100 * STEPS_PER_EPOCH}",
    "--batch_size=100", "--hidden=16,8", "--test_channels=40",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Run the sweep whole, then kill and resume it, and print a line a kill."""
    common.begin(argv)
    started, folder, rows = time.time(), common.prepare(), list[dict[str, Any]]()
    run(folder / "first")  # compiles, for all that follow
    began = time.time()
    run(folder / "whole")
    seconds = time.time() - began
    print(f"a whole run takes {seconds:.1f} s", flush=True)
    print("run  killed after [s]  then at      epochs lost  seconds lost  same table")
    rng = np.random.default_rng(FLAGS.seed)
    for number in range(FLAGS.runs):
        own = folder / f"killed_{number}"
        moments = np.sort(rng.uniform(0, seconds, FLAGS.kills))
        cuts = [cut(own, wait) for wait in np.diff(moments, prepend=0)]
        run(own)
        same = (own / "results.csv").read_bytes() == (folder / "whole/results.csv").read_bytes()
        for row in cuts:
            rows.append({"run": number, **row, "identical": int(same)})
            place = f"{number:3}{row['seconds']:18.1f}  {row['method']:<11}"
            lost = f"{row['epochs_lost']:13}{row['seconds_lost']:14.1f}"
            print(f"{place}{lost}  {'yes' if same else 'NO'}", flush=True)
    common.write_csv(folder / "kills.csv", rows)
    common.write_run(folder / "run.json", started, whole_run_seconds=round(seconds, 1))
    if not all(row["identical"] for row in rows):
        common.stop("a resumed run ended with another table", 1)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the sweep, or go on with it; what it prints goes into ``folder``.log."""
    script = Path(__file__).parent / "sweep_k.py"
    settings = (f"--epochs={FLAGS.epochs}", f"--save_seconds={FLAGS.save_seconds}")
    command = [sys.executable, str(script), *SWEEP, *settings, f"--output_dir={folder}"]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    with open(f"{folder}.log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | compiled)


def run(folder: Path) -> None:
    """Let the sweep come to its end."""
    if start(folder).wait():
        common.stop(f"the sweep failed, see {folder}.log", 1)


def cut(folder: Path, seconds: float) -> dict[str, Any]:
    """Let the sweep run for some seconds, kill it, and tell where it was and what is lost."""
    began, process = time.time(), start(folder)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    now, log = time.time(), Path(f"{folder}.log").read_text()
    shown = re.findall(r"(bcos|pcos) step (\d+)", log)
    scheme, step = shown[-1] if shown else ("start", "0")
    epoch = int(step) // STEPS_PER_EPOCH
    saved = [p for p in folder.glob("checkpoints/*/epochs/*") if p.name.isdigit()]
    kept = max((int(p.name) for p in saved if p.parts[-3] == scheme), default=0)
    return {
        "seconds": seconds,
        "method": f"{scheme} {epoch}",
        "epochs_lost": max(epoch - kept, 0),  # of those that were shown
        "seconds_lost": now - max(began, *(p.stat().st_mtime for p in saved)) if saved else seconds,
    }


if __name__ == "__main__":
    app.run(main)
