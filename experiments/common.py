"""What the experiments share: flags, the output folder, progress, csv and run.json."""

from __future__ import annotations

import csv
import errno
import importlib.metadata
import io
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import jax
import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import meco_jax
from meco_jax.files import FolderLock, InUseError, write_atomically
from meco_jax.store import DamagedRunError, OtherRunError

FLAGS = flags.FLAGS
WORDS = ("scheme", "method", "family", "script", "quantity")  # columns that are no numbers
STARTED, BEGAN = datetime.now(UTC), time.monotonic()  # the second cannot be set back
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def define_flags() -> None:
    """Define the flags of every experiment."""
    flags.DEFINE_string("output_dir", None, "folder for csv, json and figures", required=True)
    flags.DEFINE_enum(
        "require_platform", None, ["cpu", "gpu", "tpu"],
        "stop unless JAX runs on this kind of device",
    )  # fmt: skip


def integers(name: str, low: int) -> list[int]:
    """Read a list flag as integers of at least ``low``, or stop with a clear line."""
    try:
        values = [int(text) for text in FLAGS[name].value or []]
    except ValueError:
        values = []
    if not values or min(values) < low or len(set(values)) < len(values) * (name != "hidden"):
        stop(f"--{name} must be different integers of at least {low}; got {FLAGS[name].value}")
    return values


def numbers(name: str, above: float) -> list[float]:
    """Read a list flag as numbers above a limit, "e" among them, or stop with a clear line."""
    try:
        values = [math.e if text == "e" else float(text) for text in FLAGS[name].value or []]
    except ValueError:
        values = []
    if not values or not above < min(values) <= max(values) < math.inf:
        stop(f"--{name} must be finite numbers above {above:g}; got {FLAGS[name].value}")
    return values


def stop(message: str, status: int = 2) -> NoReturn:
    """End the program with one line and a non-zero exit status."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def launch(main: Callable[[list[str]], None]) -> None:
    """Run a script; a folder that fails it is one line that says what to do."""

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
        except OtherRunError as error:
            stop(f"{error}; take another --output_dir, or the same flags")
        except (DamagedRunError, InUseError) as error:
            stop(f"--output_dir: {error}")
        except OSError as error:
            if not concerns_output(error):  # a closed pipe, say
                raise
            stop(unwritable(error))

    app.run(guarded)


def concerns_output(error: OSError) -> bool:
    """Tell whether an error is about a file below --output_dir, or a folder above."""
    if not isinstance(error.filename, str):
        return False
    file, folder = Path(error.filename).absolute(), Path(FLAGS.output_dir).absolute()
    return file == folder or folder in file.parents or file in folder.parents


def unwritable(error: OSError) -> str:
    """Say that --output_dir cannot be written, why, and what to do."""
    remedy = "free some" if error.errno in FULL else "make it writable"
    resumes = ", it goes on from the last checkpoint" if "save_seconds" in FLAGS else ""
    return (
        f"--output_dir={FLAGS.output_dir} cannot be written: {error.strerror}; "
        f"{remedy} and run the same command again{resumes}"
    )


def begin(argv: list[str]) -> None:
    """Refuse stray arguments, and keep libraries from chatting unless --verbosity says so."""
    if len(argv) > 1:
        stop(f"unknown arguments {argv[1:]}; all settings are flags, see --help")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)


def prepare() -> Path:
    """Check the platform, and make the output folder for this run alone, before any work.

    Of several processes that share the work the first one writes, and holds the folder until
    it ends.
    """
    platform, wanted = jax.default_backend(), FLAGS.require_platform
    if wanted and platform != wanted:
        stop(f"--require_platform={wanted}, but JAX runs on {platform} ({jax.devices()[0]})")
    folder = Path(FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        FolderLock(folder)
        write_atomically(folder / "run.json", lambda file: file.write(b"{}\n"))
    return folder


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns as csv; NaN is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Read what ``write_csv`` wrote: numbers but for the columns of words, NaN where empty."""
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        number = lambda text: float(text or "nan")  # noqa: E731
        return [{k: v if k in WORDS else number(v) for k, v in row.items()} for row in rows]
    except (OSError, ValueError) as error:
        stop(f"{path} cannot be read: {error}")


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.8g}"
    return value


def write_run(path: Path, **extra: Any) -> None:
    """Write run.json: flags, versions, device, git commit, start and seconds since."""
    packages = ("meco_jax", "jax", "jaxlib", "flax", "optax", "numpy", "matplotlib")
    device = jax.devices()[0]
    run = {
        "command": Path(sys.argv[0]).name,
        "flags": {f.name: f.value for f in FLAGS.get_key_flags_for_module(sys.argv[0])},
        "versions": {name: importlib.metadata.version(name) for name in packages}
        | {"python": sys.version.split()[0]},
        "device": {"platform": device.platform, "kind": device.device_kind,
                   "count": jax.device_count(), "cpu_cores": os.cpu_count()},
        "git_commit": _git_commit(),
        "started": STARTED.isoformat(timespec="seconds"),
        "wall_seconds": round(seconds(), 1),
        **extra,
    }  # fmt: skip
    write_atomically(path, lambda file: file.write((json.dumps(run, indent=2) + "\n").encode()))


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(meco_jax.__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def seconds() -> float:
    """Return the time since the script started [s]."""
    return time.monotonic() - BEGAN


def clock(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Time functions side by side: seconds of the first call, and of the fastest later one."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():  # in turn, so that a busy moment hits all of them
            began = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - began)
    return {name: (own[0], min(own[1:])) for name, own in times.items()}


def alone(
    function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Any:
    """Call a function in a new process, whose environment may differ."""
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


class Bar:
    """A progress bar with the time left; plain lines where the output is no terminal."""

    def __init__(self, total: float) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console()
        self._live = console.is_terminal
        self._progress = Progress(*columns, console=console, disable=not self._live)
        self._task = self._progress.add_task("", total=total)
        self._total, self._done, self._skipped, self._shown = total, 0.0, 0.0, 0
        self._start = time.monotonic()

    def skip(self, amount: float) -> None:
        """Count ``amount`` of the total as done by an earlier run."""
        self._skipped += amount
        self._done += amount

    def advance(self, amount: float, text: str) -> None:
        """Count ``amount`` more of the total as done and show ``text``."""
        self._done += amount
        self._progress.update(self._task, completed=self._done, description=text)
        percent = int(100 * self._done / self._total + 1e-9)
        if not self._live and percent // 5 > self._shown // 5:
            self._shown = percent
            elapsed = time.monotonic() - self._start
            left = elapsed * (self._total - self._done) / max(self._done - self._skipped, 1e-9)
            print(f"{percent:3d} %  {elapsed:5.0f} s done  {left:5.0f} s left  {text}", flush=True)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
