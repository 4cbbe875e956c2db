"""Files that are written whole or not at all, and folders that one process holds."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl as _fcntl
except ImportError:  # no POSIX: folders are not locked
    _fcntl = None  # type: ignore[assignment]

PART, LOCK = ".part", ".lock"


class InUseError(ValueError):
    """Another process writes into the folder."""


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name and rename it: readers see the old or the new one.

    Args:
        path: the file.
        write: called with the open binary file.

    Raises:
        OSError: if it cannot be written; names ``path``, and nothing is left behind.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error says more
                os.unlink(temporary)
            raise
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def json_text(value: Any) -> bytes:
    """Write JSON that any program reads: NaN as null, what is infinite as "inf" or "-inf"."""
    return (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


class FolderLock:
    """Hold a folder against other processes; kill -9 lets go of it too."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, and clear what a killed process left half-written.

        Raises:
            InUseError: if another process holds it.
            OSError: if the folder cannot be written.
        """
        path = folder / LOCK
        self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(self._handle):
                holder = os.read(self._handle, 20).decode().strip() or "unknown"
                raise InUseError(
                    f"{folder} is in use by another run (process {holder}); "
                    f"wait for it or take another folder"
                )
            os.ftruncate(self._handle, 0)
            _write(self._handle, f"{os.getpid()}\n".encode(), path)
            for part in folder.glob(f".*{PART}"):
                part.unlink(missing_ok=True)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go of the folder."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _lock(handle: int) -> bool:
    """Take an advisory lock on an open file; tell whether nobody else has it."""
    if _fcntl is None:
        return True
    try:
        _fcntl.flock(handle, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that knows no locks
        return True
    return True


def _write(handle: int, content: bytes, path: Path) -> None:
    try:
        os.write(handle, content)
    except OSError as error:
        error.filename = str(path)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
