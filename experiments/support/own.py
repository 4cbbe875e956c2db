"""What users bring to the sweeps: physics, devices and schemes of their own.

    python experiments/sweep_k.py --scheme=mine.py:greedy --bandwidth=2e7 --num_devices=4:8:2

draws ``greedy(system, h) -> meco_jax.Solution`` of mine.py beside the others in Figure 4.
"""

from __future__ import annotations

import csv
import importlib
import importlib.machinery
import os
import sys
import traceback
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import jax
import numpy as np
from absl import flags

from meco_jax import System, solve
from meco_jax.evaluation import NAMES
from meco_jax.paper.sweep import Lanes
from meco_jax.solver import Scheme
from meco_jax.system import SYSTEM_RANGES, check_system
from support import common

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # what is defined here is the calling script's
PHYSICS = {  # fields of ``System`` that are one number for all devices: meaning
    "bandwidth": "W [Hz]",
    "noise_power": "N0 [W]",
    "max_power": "p_max [W]",
    "mean_gain": "mean power gain E[h^2] [-]",
    "chip": "effective switched capacitance eps [J s^2]",
    "log_base": "base of the logarithm in (3): 2 counts bits [-]",
    "weight": "beta of every device [-]",
}
TASKS = "task_bits", "cycles_per_bit", "cpu_hz"  # what a system has no defaults of


def define_flags() -> None:
    """Define the flags of all that is read here."""
    table1 = System(1.0, 1.0, 1.0)
    for name, meaning in PHYSICS.items():
        flags.DEFINE_float(name, None, f"{meaning}; by default {getattr(table1, name):.4g}")
    flags.DEFINE_string(
        "system", None, "npz file of your own devices, instead of Table 1's: arrays [K] by name, "
        "task_bits, cycles_per_bit, cpu_hz and any other field of meco_jax.System but slot; a run "
        "with fewer devices takes the first ones, and seeds are of channels and trainings alone",
    )  # fmt: skip
    flags.DEFINE_multi_string(
        "scheme", [], "module:function of your own scheme, repeatable: function(system, h) of one "
        "channel returns a meco_jax.Solution; the module may be a path to a .py file. It goes into "
        "results.csv and Figures 4 to 6 by the function's name. Trainings that are there go on as "
        "they are, and all schemes are evaluated anew: a finished run takes another one within "
        "a minute, but none whose rows it has may be left out",
    )  # fmt: skip


def axes() -> dict[str, Sequence[float]]:
    """Return the physics that the flags give as axes of a grid."""
    given: dict[str, Any] = {name: FLAGS[name].value for name in PHYSICS}
    return {name: [value] for name, value in given.items() if value is not None}


def system() -> System | None:
    """Read the devices of --system, or stop with a line."""
    path = FLAGS.system
    if path is None:
        return None
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is no npz file")
        with file:
            fields: dict[str, Any] = {name: file[name] for name in file.files}
    except OSError as error:
        common.stop(f"--system={path} cannot be read: {error.strerror or error}")
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        common.stop(f"--system={path} cannot be read: {_first_line(error)}")
    if not np.all(fields.pop("active", True)):
        common.stop(f"--system={path} must hold devices that are all active")
    known = [name for name in SYSTEM_RANGES if name != "slot"]
    for name in fields:
        if name not in known:
            hint = "; the slot is a flag of its own" if name == "slot" else ""
            common.stop(f"--system={path} must hold {', '.join(known)} alone; got {name}{hint}")
    for name in TASKS:
        if name not in fields:
            common.stop(f"--system={path} must hold {name}; got {', '.join(fields) or 'nothing'}")
    try:
        return check_system(System(**fields))
    except ValueError as error:
        common.stop(f"--system={path}: {error}")


def schemes(lanes: Lanes) -> dict[str, Scheme]:
    """Load the functions of --scheme, and try each on shapes, before hours of training.

    Args:
        lanes: whose channels they will be given.
    """
    found: dict[str, Scheme] = {}
    one = jax.tree.map(lambda leaf: leaf[0], lanes.systems)
    for text in FLAGS.scheme:
        name, function, module = load_scheme(text)
        if name in (*NAMES, *found):
            taken = ", ".join((*NAMES, *found))
            common.stop(f"--scheme={text} must have another name than {taken}")
        h = np.zeros(one.num_devices)
        try:
            jax.eval_shape(lambda h, f=function: solve(h, one, method=f), h)
        except Exception as error:
            refuse_scheme(text, error, module)
        found[name] = function
    return found


def keep_rows(path: Path, schemes: dict[str, Scheme]) -> None:
    """Stop if a results.csv that is there has rows of a scheme that would be lost."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):  # none, or nothing that could be kept
        return
    held = dict.fromkeys(row.get("scheme") for row in csv.DictReader(lines))
    lost = [name for name in held if name and name not in (*NAMES, *schemes)]
    if lost:
        common.stop(
            f"--scheme must name {', '.join(lost)} too, whose rows {path} holds; or take another "
            f"--output_dir, or delete that file"
        )


def load_scheme(text: str) -> tuple[str, Scheme, ModuleType]:
    """Import ``module:function``, or stop with a line."""
    place, _, name = text.rpartition(":")
    if not place or not name.isidentifier():
        common.stop(f"--scheme must be module:function; got {text}")
    try:
        module = _module(place)
    except Exception as error:
        refuse_scheme(text, error)
    function = getattr(module, name, None)
    if not callable(function):
        got = "none" if function is None else repr(function)
        common.stop(f"--scheme={text}: {module.__file__} must have a function {name}; got {got}")
    return name, function, module


def _module(place: str) -> ModuleType:
    """Import a module by its name, from the current folder too, or by the path of its file."""
    folder = os.path.dirname(os.path.abspath(place)) if place.endswith(".py") else os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # last: what it imports beside it shadows nothing
    if not place.endswith(".py"):
        return importlib.import_module(place)
    name = f"scheme of {os.path.abspath(place)}"
    if name not in sys.modules:
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = place
        try:
            importlib.machinery.SourceFileLoader(name, place).exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def refuse_scheme(text: str, error: Exception, module: ModuleType | None = None) -> NoReturn:
    """Stop with what an error says, and where in the user's file it was raised."""
    file = getattr(module, "__file__", None) or text.rpartition(":")[0]
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(file).name]
    place = f" ({file}, line {lines[-1]})" if lines else ""
    common.stop(f"--scheme={text}: {type(error).__name__}: {_first_line(error)}{place}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
