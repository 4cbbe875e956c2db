"""What every experiment goes through: its common flags, its start and end, the output folder."""

from __future__ import annotations

import contextlib
import errno
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from meco_jax.runtime.atomic import FolderLock, InUseError
from meco_jax.runtime.checkpoints import DamagedRunError, OtherRunError
from support import records
from support.records import keep_time as keep_time
from support.records import seconds as seconds
from support.records import write_run as write_run

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # what is defined here is the calling script's
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_FOLDER = (errno.EEXIST, errno.ENOTDIR)
MOST = 2**31 - 1  # of an integer: seeds beyond int32 would become others


def define_flags() -> None:
    """Define the flags of every experiment."""
    flags.DEFINE_string("output_dir", None, "folder for csv, json and figures", required=True)
    flags.register_validator("output_dir", bool, "must name a folder")
    flags.DEFINE_enum(
        "require_platform", None, ["cpu", "gpu", "tpu"],
        "stop unless JAX runs on this kind of device",
    )  # fmt: skip


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
