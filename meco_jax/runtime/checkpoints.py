"""Trainings to resume: the latest checkpoints of each in a folder of its own, by Orbax.

A checkpoint counts once it bears its number as a name, and bears it once it is whole: it is
written under another name, with a digest of all its files inside. What does not match its
digest is never given to Orbax, which would read a flipped bit of an array without a word.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging as python_logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from meco_jax.runtime.atomic import FolderLock, json_text, write_atomically

KEPT = 2  # checkpoints: the latest, and one to fall back on
DIGEST = "sha256"  # file beside those of Orbax
PRECISION = {"precision": "float32"}  # of the versions that did not record it
Saved = tuple[int, Any, list[dict[str, np.ndarray]]]  # epochs done, state, history


class OtherRunError(ValueError):
    """The folder holds a training with other settings; ``name`` is one that differs."""

    def __init__(self, name: str, known: str, got: str, folder: Path) -> None:
        super().__init__(f"{name} must be {known} to go on with the run in {folder}; got {got}")
        self.name = name


class DamagedRunError(ValueError):
    """The folder holds a training that cannot be read; the message says what to do."""


class RunStore:
    """The latest checkpoints of one training, in a folder that this process alone writes."""

    def __init__(self, folder: Path, settings: dict[str, Any], save_seconds: float) -> None:
        """Open or make the folder.

        Args:
            folder: of this training alone.
            settings: all that the training depends on, JSON values by name.
            save_seconds: least time between two checkpoints [s].

        Raises:
            OtherRunError: if the folder holds a training with other settings.
            DamagedRunError: if its settings cannot be read.
            InUseError: if another process trains in it.
            OSError: if it cannot be written.
        """
        self._folder = folder.absolute()
        self._epochs = self._folder / "epochs"
        self._epochs.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self._folder)
        try:
            settings = settings | {"precision": str(jnp.result_type(float))}
            _keep_settings(self._folder, json_text(settings))
            for path in self._epochs.iterdir():
                if not path.name.isdigit():  # a killed run was writing it
                    shutil.rmtree(path)
            self._orbax = _Orbax()
        except BaseException:
            self._lock.release()
            raise
        self._save_seconds, self._saved = save_seconds, time.monotonic()

    def load(self, state: Any) -> Saved | None:
        """Return what the latest whole checkpoint holds, if there is any.

        Damaged ones are passed over with a warning, and deleted once an earlier one is whole.

        Args:
            state: its like is returned.

        Raises:
            DamagedRunError: if there are checkpoints, and none can be read.
        """
        damaged: list[Path] = []
        for place in reversed(self._kept()):
            if not is_whole(place):
                damaged.append(place)
                logging.warning("checkpoint %s is damaged; trying the one before", place)
                continue
            try:
                saved = self._orbax.read(place, state)
            except Exception as error:  # whole, but of another program
                raise DamagedRunError(f"{self._failure(place)} ({_line(error)})") from None
            for other in damaged:
                self._drop(other)
            return int(place.name), *saved
        if damaged:
            raise DamagedRunError(self._failure(damaged[0]))
        return None

    def save(
        self, epoch: int, state: Callable[[], Any], history: list[dict[str, np.ndarray]], last: bool
    ) -> None:
        """Save, unless the last checkpoint is recent and this is not the last.

        Raises:
            OSError: if it cannot be written; the checkpoints before stay.
        """
        if not last and time.monotonic() - self._saved < self._save_seconds:
            return
        columns = {name: np.stack([row[name] for row in history]) for name in history[0]}
        fresh = self._epochs / f".{epoch}"
        try:
            with _uninterrupted():
                self._orbax.write(fresh, state(), columns)
                digest = _digest(fresh).encode()
                write_atomically(fresh / DIGEST, lambda file: file.write(digest))
                fresh.rename(self._epochs / str(epoch))
        except Exception as error:
            self._clear(f".{epoch}*")
            raise _as_os_error(error, self._folder) from None
        for old in self._kept()[:-KEPT]:
            self._drop(old)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Let other processes train here."""
        self._orbax.close()
        self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kept(self) -> list[Path]:
        """Return the checkpoints, the latest last."""
        named = (path for path in self._epochs.iterdir() if path.name.isdigit())
        return sorted(named, key=lambda path: int(path.name))

    def _drop(self, place: Path) -> None:
        """Delete a checkpoint; killed meanwhile, nothing half-deleted bears its name."""
        gone = place.with_name(f".{place.name}.gone")
        place.rename(gone)
        shutil.rmtree(gone)

    def _clear(self, pattern: str) -> None:
        """Delete what a failed write left; Orbax's other threads may still be writing it."""
        for _ in range(20):
            for left in self._epochs.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)
            time.sleep(0.05)
            if not any(self._epochs.glob(pattern)):
                return

    def _failure(self, place: Path) -> str:
        return f"checkpoint {place} cannot be read; delete {self._folder} to begin again"


class _Orbax:
    """Orbax for the checkpoints of this process alone, its chatter kept back."""

    def __init__(self) -> None:
        import orbax.checkpoint as ocp  # here, since it takes a second

        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=str(own)
        )
        options = ocp.CompositeOptions(multiprocessing_options=alone)
        self._args = ocp.args
        self._checkpointer = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(composite_options=options),
            multiprocessing_options=alone,
        )

    def write(self, place: Path, state: Any, history: dict[str, np.ndarray]) -> None:
        content = self._args.Composite(
            state=self._args.StandardSave(state), history=self._args.StandardSave(history)
        )
        with _quiet():
            self._checkpointer.save(place, args=content)

    def read(self, place: Path, state: Any) -> tuple[Any, list[dict[str, np.ndarray]]]:
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
        wanted = self._args.Composite(
            state=self._args.StandardRestore(like), history=self._args.StandardRestore()
        )
        with _quiet():
            saved = self._checkpointer.restore(place, args=wanted)
        columns = {name: np.asarray(column) for name, column in saved["history"].items()}
        names = ["step", *sorted(columns.keys() - {"step"})]  # in the order of a whole run
        rows = [{n: columns[n][i] for n in names} for i in range(len(columns["step"]))]
        return jax.tree.map(np.asarray, saved["state"]), rows

    def close(self) -> None:
        self._checkpointer.close()


def _keep_settings(folder: Path, text: bytes) -> None:
    """Record the settings, JSON, or stop if the folder's are others."""
    record, settings = folder / "settings.json", json.loads(text)
    if record.exists():
        try:
            known = PRECISION | dict(json.loads(record.read_bytes()))
        except (ValueError, TypeError, RecursionError):  # no JSON, or no object
            raise DamagedRunError(
                f"{record} cannot be read; delete {folder} to begin again"
            ) from None
        names = dict.fromkeys([*settings, *known])  # in order: what others follow from comes first
        differing = [name for name in names if known.get(name) != settings.get(name)]
        pairs = {name: (_short(known.get(name)), _short(settings.get(name))) for name in differing}
        if pairs:  # axes of a grid hold a value per lane: another seed makes all of them longer
            name = min(pairs, key=lambda name: pairs[name][0] == pairs[name][1])
            raise OtherRunError(name, *pairs[name], folder)
    elif any(path.name.isdigit() for path in (folder / "epochs").iterdir()):
        raise DamagedRunError(f"{record} is missing; delete {folder} to begin again")
    else:
        write_atomically(record, lambda file: file.write(text))


def _short(value: Any) -> str:
    """Show a setting; of an axis of lanes each value once."""
    if isinstance(value, list) and value and all(isinstance(x, float) for x in value):
        return ",".join(f"{x:g}" for x in dict.fromkeys(value))
    return str(value)


def _digest(folder: Path) -> str:
    """Digest the names and contents of all files below a folder but the digest's own."""
    whole = hashlib.sha256()
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(names - {DIGEST}):
        content = (folder / name).read_bytes()
        whole.update(f"{name}\n{len(content)}\n".encode() + content)
    return whole.hexdigest()


def is_whole(place: Path) -> bool:
    """Tell whether a checkpoint is as it was written."""
    try:
        return (place / DIGEST).read_bytes() == _digest(place).encode()
    except (FileNotFoundError, NotADirectoryError):
        return False


def _as_os_error(error: Exception, folder: Path) -> Exception:
    """Make an OSError that names the folder of what Orbax and TensorStore raise for one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return OSError(cause.errno, os.strerror(cause.errno), str(folder))
        if found := re.search(r"os_error_code='(\d+)'", str(cause)):
            code = int(found[1])
            return OSError(code, os.strerror(code), str(folder))
        cause = cause.__cause__ or cause.__context__
    return error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold an interrupt back while a checkpoint is written: Orbax may lose it, or hang."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *at: held.append(at))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        before(*held[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Orbax's threads say back: what matters is raised."""
    loggers = [logging.get_absl_logger(), python_logging.getLogger("asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook

    def ignore(late: Any) -> None:  # of threads that outlive the event loop of a failed call
        if "Event loop is closed" not in str(late.exc_value):
            hook(late)

    for logger in loggers:
        logger.setLevel(python_logging.CRITICAL + 1)
    sys.unraisablehook = ignore
    try:
        yield
        sys.unraisablehook = hook  # after a failure it stays: those threads are still there
    except Exception:
        time.sleep(0.2)
        raise
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
