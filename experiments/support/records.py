"""What run.json tells of a run: flags, versions, device, where the code is from, its sessions.

The record describes the tables in the folder. A run that was cut off and goes on has a session
for each start; ``wall_seconds`` is the sum over them, each up to its end or, where it was
killed, to what it last wrote.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
from absl import flags

import meco_jax
from meco_jax.runtime.atomic import json_text, write_atomically

FLAGS = flags.FLAGS
STARTED, BEGAN = datetime.now(UTC), time.monotonic()  # the second cannot be set back
PLACES = "output_dir", "require_platform", "plot_only"  # flags that change no table
PACKAGES = "jax", "jaxlib", "flax", "optax", "numpy", "matplotlib"
_before: list[dict[str, Any]] = []  # sessions of this run
_noted = -math.inf  # when ``keep_time`` last did [s]


class RefusedError(ValueError):
    """The folder holds a run that this one would spoil."""


def seconds() -> float:
    """Return the time since the script started [s]."""
    return time.monotonic() - BEGAN


def open_run(path: Path, resumes: bool) -> None:
    """Read the run.json that is there, if any, and look where the code is from.

    Args:
        path: the file.
        resumes: a run that is there goes on; otherwise it is made again, unless it is finished.

    Raises:
        RefusedError: if the run is another script's, is finished or has other flags and would be
            made again, or cannot be read.
    """
    source()
    known, what = _read(path), ""
    if known.get("command", _script()) != _script():
        what = f"a run of {known['command']}"
    elif known and not resumes:
        mine, flags_then = json.loads(json_text(_flags())), known.get("flags", {})
        changed = (name for name in mine if flags_then.get(name) != mine[name])
        other = next((name for name in changed if name not in PLACES), None)
        if known.get("finished"):
            what = "a finished run"
        elif other:
            what = f"a run with --{other}={flags_then.get(other)}"
    if what:
        remedy = "take another folder, or delete it to begin anew"
        raise RefusedError(f"{path.parent} holds {what}; {remedy}")
    _before[:] = known["sessions"] if known and resumes else []


def write_run(path: Path, finished: bool = True, **extra: Any) -> None:
    """Write the record of the tables that this session writes.

    Args:
        path: run.json.
        finished: nothing is left to do.
        extra: what else there is to tell.
    """
    mine = _session(finished)
    _write(path, {"command": _script(), **mine, "wall_seconds": _total(mine), **extra}, mine)


def keep_time(path: Path, every: float = 0.0) -> None:
    """Note how long this session has taken; the record of a finished run stays.

    Args:
        path: run.json.
        every: least time between two notes [s].
    """
    global _noted
    if seconds() - _noted < every:
        return
    _noted = seconds()
    mine, known = _session(False), _read(path)
    if not known.get("finished"):
        known = {"command": _script(), **mine, "wall_seconds": _total(mine)}
    _write(path, known, mine)


def _read(path: Path) -> dict[str, Any]:
    try:
        known = dict(json.loads(path.read_bytes()))
        if not _is_record(known):
            raise ValueError
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, RecursionError):  # no JSON, or no object
        raise RefusedError(f"{path} cannot be read; mend it, or take another folder") from None
    if known and "sessions" not in known:  # an older version's, written at the end
        known["finished"] = True
        known["sessions"] = [{"wall_seconds": 0.0} | {n: known[n] for n in known if n != "command"}]
    return known


def _is_record(known: dict[str, Any]) -> bool:
    """Tell whether there is all that goes into the next record."""
    sessions = known.get("sessions", [])
    times = [s.get("wall_seconds") for s in sessions if isinstance(s, dict)]
    whole = isinstance(known.get("flags", {}), dict) and len(times) == len(sessions)
    return whole and all(isinstance(time, int | float) for time in times)


def _write(path: Path, run: dict[str, Any], mine: dict[str, Any]) -> None:
    text = json_text(run | {"sessions": [*_before, mine]})
    write_atomically(path, lambda file: file.write(text))


def _total(mine: dict[str, Any]) -> float:
    return round(sum(session["wall_seconds"] for session in (*_before, mine)), 1)


def _script() -> str:
    return Path(sys.argv[0]).name


def _flags() -> dict[str, Any]:
    return {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(sys.argv[0])}


def _session(finished: bool) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "flags": _flags(),
        "versions": _versions(),
        "device": {"platform": device.platform, "kind": device.device_kind,
                   "count": jax.device_count(), "cpu_cores": os.cpu_count()},
        "source": source(),
        "started": STARTED.isoformat(timespec="seconds"),
        "wall_seconds": round(seconds(), 1),
        "finished": finished,
    }  # fmt: skip


@functools.cache
def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"meco_jax": meco_jax.__version__, **found, "python": sys.version.split()[0]}


@functools.cache
def source() -> dict[str, Any]:
    """Tell where scripts and package are from, as it is when it is first asked."""
    package = Path(meco_jax.__file__)
    return {"scripts": checkout(Path(__file__)), "package": checkout(package) or installed(package)}


def checkout(file: Path) -> dict[str, Any] | None:
    """Return the commit that a file of the project is at, and whether the code has changed since.

    None if the file is in no repository, or in one that does not track it as part of this
    project: site-packages may lie inside any repository, this project's too.
    """
    parents = file.resolve().parents
    project = next((p for p in parents if (p / "pyproject.toml").exists()), parents[0])
    try:
        name = tomllib.loads((project / "pyproject.toml").read_text())["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    commit = _git(project, "rev-parse", "HEAD")
    if name != "meco_jax" or not commit or not _git(project, "ls-files", "--", str(file.resolve())):
        return None
    changes = _git(project, "status", "--porcelain", "--", "meco_jax", "experiments/*.py")
    return {"commit": commit, "changed": bool(changes)}


def installed(package: Path) -> dict[str, Any]:
    """Return the version of an installed package, and what pip noted of its origin (PEP 610)."""
    origin: dict[str, Any] = {}
    for one in importlib.metadata.distributions(name="meco_jax", path=[str(package.parent.parent)]):
        origin = json.loads(one.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    return {"version": meco_jax.__version__, "commit": commit, "url": origin.get("url")}


def _git(folder: Path, *words: str) -> str | None:
    """Ask git about the repository around a folder, whatever repository a hook is run for."""
    environment = {name: x for name, x in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
