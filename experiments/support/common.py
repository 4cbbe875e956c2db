"""What the experiments share: flags, the output folder, progress and csv."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import itertools
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from meco_jax.runtime.atomic import FolderLock, InUseError, write_atomically
from meco_jax.runtime.checkpoints import DamagedRunError, OtherRunError
from support import records
from support.records import keep_time as keep_time
from support.records import seconds as seconds
from support.records import write_run as write_run

FLAGS = flags.FLAGS
WORDS = ("scheme", "method", "family", "script", "quantity")  # columns that are no numbers
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_FOLDER = (errno.EEXIST, errno.ENOTDIR)
MOST_VALUES = 10_000  # in a range of a list flag
MOST = 2**31 - 1  # of an integer: seeds beyond int32 would become others


def define_flags() -> None:
    """Define the flags of every experiment."""
    flags.DEFINE_string("output_dir", None, "folder for csv, json and figures", required=True)
    flags.register_validator("output_dir", bool, "must name a folder")
    flags.DEFINE_enum(
        "require_platform", None, ["cpu", "gpu", "tpu"],
        "stop unless JAX runs on this kind of device",
    )  # fmt: skip


def integers(name: str, low: int, different: bool = True) -> list[int]:
    """Read a list flag, see ``_listed``, as integers of at least ``low``, or stop with a line."""
    try:
        values = [int(text) for text in _listed(name)]
    except ValueError:
        values = []
    alike = different and len(set(values)) < len(values)
    if not values or alike or not low <= min(values) <= max(values) <= MOST:
        kind = "different integers" if different else "integers"
        stop(f"--{name} must be {kind} of at least {low}{_got(name)}")
    return values


def numbers(name: str, above: float) -> list[float]:
    """Read a list flag, see ``_listed``, as numbers above a limit, or stop with a clear line.

    "e" is a number too. They must differ as csv and file names show them.
    """
    try:
        values = [math.e if text == "e" else float(text) for text in _listed(name)]
    except ValueError:
        values = []
    alike = len({_cell(value) for value in values}) < len(values)
    if not values or alike or not all(above < value < math.inf for value in values):
        stop(f"--{name} must be different finite numbers above {above:g}{_got(name)}")
    return values


def _listed(name: str) -> list[str]:
    """Read a list flag whose parts may be ranges, "start:stop" or "start:stop:step".

    Both ends are included: "2,4:8:2" is 2, 4, 6, 8.
    """
    return [one for text in FLAGS[name].value or [] for one in _range(text)]


def _range(text: str) -> list[str]:
    """Spell out a range; what is none, or has no or too many members, stays as it is."""
    try:
        start, stop, *rest = map(Decimal, text.split(":"))  # decimal: 0.1 is a tenth
        (step,) = rest or (Decimal(1),)
        number = int((stop - start) / step) + 1
    except (ArithmeticError, ValueError):
        return [text]
    if not step.is_finite() or step < 0 or stop < start or number > MOST_VALUES:
        return [text]
    return [f"{start + i * step:f}" for i in range(number)]


def names(name: str, known: Sequence[str]) -> list[str]:
    """Read a list flag as different ones of the known names, or stop with a clear line."""
    values: list[str] = FLAGS[name].value or []
    if not values or not set(values) <= set(known) or len(set(values)) < len(values):
        stop(f"--{name} must be different names among {', '.join(known)}{_got(name)}")
    return values


def _got(name: str) -> str:
    return f"; got {','.join(FLAGS[name].value or []) or 'none'}"


def as_flags(error: Exception, prefix: str = "") -> str:
    """Name the flags in what the library says of its settings.

    Args:
        error: names fields, "config.hidden".
        prefix: of the flags of the scheme that it is about.
    """

    def flag(name: str, otherwise: str) -> str:
        tries = f"{prefix}{name}", name, f"{name}s"
        return next((f"--{each}" for each in tries if each in FLAGS), otherwise)

    if isinstance(error, OtherRunError):
        return flag(error.name, error.name) + str(error).removeprefix(error.name)
    fields = r"\b(?:config|system)\.([a-z_]+)|\b([a-z]+_[a-z_]+)"
    return re.sub(fields, lambda match: flag(match[1] or match[2], match[0]), str(error))


def stop(message: str, status: int = 2) -> NoReturn:
    """End the program with one line and a non-zero exit status."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def launch(main: Callable[[list[str]], None]) -> None:
    """Run a script; a folder that fails it is one line that says what to do."""

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
        except KeyboardInterrupt:
            _interrupted()
        except OtherRunError as error:
            other_run(error)
        except (DamagedRunError, InUseError, records.RefusedError) as error:
            stop(f"--output_dir: {error}")
        except OSError as error:
            if not concerns_output(error):  # a closed pipe, say
                raise
            stop(unwritable(error))

    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags; an editor may have put a byte order mark before those of a file."""
    try:
        argv = FLAGS.read_flags_from_files(argv, force_gnu=False)
    except (flags.Error, OSError, UnicodeError) as error:
        stop(f"--flagfile cannot be read: {error}")
    marked = [text for text in argv if text.startswith("\ufeff")]
    comments = [text for text in marked if text[1:].strip().startswith(("#", "//"))]
    return app.parse_flags_with_usage(
        [text.removeprefix("\ufeff") for text in argv if text not in comments and text != "\ufeff"]
    )


def other_run(error: OtherRunError, prefix: str = "") -> NoReturn:
    """Refuse to go on with a training that has other settings."""
    stop(f"{as_flags(error, prefix)}; take another --output_dir, or the same flags")


def _interrupted() -> NoReturn:
    """End at once, as a shell expects; a checkpoint under way is given up, and says nothing."""
    text = "interrupted"
    if _opened:
        folder, resumes, lock = _opened[-1]
        if lock:
            with contextlib.suppress(OSError, records.RefusedError):
                keep_time(folder / "run.json")
        goes_on = "goes on from there" if resumes else "begins again"
        text += f"; {folder} holds what was finished, and the same command {goes_on}"
    print(text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)


def concerns_output(error: OSError) -> bool:
    """Tell whether an error is about a file below --output_dir, or a folder above."""
    if not isinstance(error.filename, str) or "output_dir" not in FLAGS:
        return False
    file, folder = Path(error.filename).absolute(), Path(FLAGS.output_dir).absolute()
    return file == folder or folder in file.parents or file in folder.parents


def unwritable(error: OSError) -> str:
    """Say that --output_dir cannot be written, why, and what to do."""
    failure = f"--output_dir={FLAGS.output_dir} cannot be written: {error.strerror}"
    if error.errno in NO_FOLDER:
        return f"{failure}; take another folder"
    remedy = "free some" if error.errno in FULL else "make it writable"
    resumes = ", it goes on from the last checkpoint" if "save_seconds" in FLAGS else ""
    return f"{failure}; {remedy} and run the same command again{resumes}"


def begin(argv: list[str]) -> None:
    """Refuse what no experiment takes, and keep libraries from chatting without --verbosity."""
    if len(argv) > 1:
        stop(f"unknown arguments {argv[1:]}; all settings are flags, see --help")
    for name in FLAGS:
        value = FLAGS[name].value
        if isinstance(value, float) and not math.isfinite(value):
            stop(f"--{name} must be finite; got {value}")
        if isinstance(value, int) and value > MOST:
            stop(f"--{name} must be at most {MOST}; got {value}")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)


_opened: list[tuple[Path, bool, FolderLock | None]] = []  # output folder, whether its run goes on


def prepare(resumes: bool = False) -> Path:
    """Check the platform, and make the output folder for this run alone, before any work.

    Of several processes that share the work the first one writes, and holds the folder until
    it ends. What the folder holds stays as it is: the run may still be refused.

    Args:
        resumes: a run that is there goes on; otherwise one that is finished is kept.
    """
    platform, wanted = jax.default_backend(), FLAGS.require_platform
    if wanted and platform != wanted:
        stop(f"--require_platform={wanted}, but JAX runs on {platform} ({jax.devices()[0]})")
    folder = Path(FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder) if jax.process_index() == 0 else None
    _opened.append((folder, resumes, lock))
    if lock:
        records.open_run(folder / "run.json", resumes)
    return folder


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns as csv; NaN is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def read_csv(
    path: Path,
    columns: Sequence[str] = (),
    place: Sequence[str] = (),
    whole: bool = False,
    **needs: Sequence[Any],
) -> list[dict[str, Any]]:
    """Read what ``write_csv`` wrote, or stop with a line that names file, place and rule.

    Other programs may have added a byte order mark, CRLF, or columns that are not asked for.

    Args:
        path: the file.
        columns: those to read, by default all: numbers, empty ones NaN, but for those of words.
        place: columns that tell rows apart: no two rows are alike in all of them.
        whole: there is a row for every combination of the values in ``place``.
        needs: by column, values that must be there.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        stop(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        stop(f"{path} must be UTF-8 text")
    if not text.endswith(("\n", "\r")):
        stop(f"{path} must end with a line break; it is {'cut off' if text else 'empty'}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, fields) for fields in reader if any(fields)]
    except csv.Error as error:
        stop(f"{path}, line {reader.line_num}: {error}")
    header = lines[0][1] if lines else []
    if len(header) == 1 and ";" in header[0]:
        stop(f"{path} must have commas between its columns; got semicolons")
    for name in columns or header:
        if header.count(name) != 1:
            stop(f"{path} must have one column {name or 'by each name'}; got {', '.join(header)}")
    if len(lines) < 2:
        stop(f"{path} must have rows; got {'the header alone' if header else 'none'}")
    rows, seen = list[dict[str, Any]](), dict[tuple[Any, ...], int]()
    for line, fields in lines[1:]:
        if len(fields) != len(header):
            stop(f"{path}, line {line} must have {len(header)} fields; got {len(fields)}")
        cells = dict(zip(header, fields))
        rows.append({name: _value(path, line, name, cells[name]) for name in columns or header})
        at = tuple(rows[-1][name] for name in place)
        if any(value != value for value in at):
            stop(f"{path}, line {line} must have {' and '.join(place)}; got {_where(place, at)}")
        if place and at in seen:
            stop(f"{path}, line {line} must differ from line {seen[at]}; got {_where(place, at)}")
        seen[at] = line
    for at in itertools.product(*map(dict.fromkeys, zip(*seen))) if whole else ():
        if at not in seen:
            stop(f"{path} must have a row for {_where(place, at)}")
    for name, values in needs.items():
        for value in values:
            if not any(row[name] == value for row in rows):
                stop(f"{path} must have rows for {_where([name], [value])}")
    return rows


def _value(path: Path, line: int, name: str, text: str) -> Any:
    """Read a cell."""
    rule = "a number or empty"
    if name in WORDS:
        rule = "a name"
        if text:
            return text
    else:
        with contextlib.suppress(ValueError):
            return float(text or "nan")
    stop(f"{path}, line {line}: {name} must be {rule}; got {text!r}")


def _where(place: Sequence[str], at: Sequence[Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in zip(place, map(_cell, at)))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.8g}"
    return value


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

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
