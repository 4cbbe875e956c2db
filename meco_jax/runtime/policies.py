"""Trained policies as files: arrays by name and JSON, without pickles."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import zipfile
from collections.abc import Collection
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from meco_jax import system as sy
from meco_jax.learned.policy import DeviceNetwork, GeneralPolicy, init_params
from meco_jax.paper.network import Network, Policy, init_variables
from meco_jax.runtime.atomic import write_atomically
from meco_jax.runtime.checks import refuse, require
from meco_jax.runtime.settings import moves_data
from meco_jax.scenarios import table1

FORMAT, GENERAL_FORMAT = "meco_jax policy 1", "meco_jax general policy 1"
PRETRAINED = "pretrained.npz"
MOST_BYTES, MOST_SETTINGS = 2**30, 2**20  # that a file may unpack to, all of it and its settings
CHOICES = {
    "role": ("student", "teacher"),
    "scaling": ("log", "raw"),
    "share_resources": (False, True),
}


@moves_data
def save_policy(
    path: str | os.PathLike[str], policy: Policy | GeneralPolicy, origin: str = ""
) -> None:
    """Save one policy: arrays by name, and JSON for what fixes shapes.

    Args:
        path: the file, written atomically.
        policy: trained for one system, which is saved with it, or for any.
        origin: how it was made, for readers of the file.

    Raises:
        ValueError: if ``policy`` is something else.
    """
    if not isinstance(policy, (Policy, GeneralPolicy)):
        raise refuse("policy", "from meco_jax.train or train_policy", policy)
    arrays: dict[str, Any] = {name: np.asarray(x) for name, x in _leaves(policy).items()}
    buffer = io.BytesIO()
    text = json.dumps({**_settings(policy), "origin": origin}, allow_nan=False)
    np.savez_compressed(buffer, **arrays, settings=np.asarray(text))
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


@moves_data
def load_policy(path: str | os.PathLike[str]) -> Policy | GeneralPolicy:
    """Load a policy, and run no code of the file.

    Every array's name, shape, type and checksum is checked, all values are finite, a system is
    in its range. What the file unpacks to is known before anything is unpacked. Its arrays are
    float32 or float64, all the same, and become what JAX runs in. A field of ``System`` that the
    file, of an older version, does not have takes its default.

    Raises:
        ValueError: if the file is no policy, is damaged, or holds a value out of its range.
        OSError: if there is no file, or it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(min(os.fstat(file.fileno()).st_size, MOST_BYTES) + 1)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = _members(archive)
            if "settings" not in members:
                raise ValueError("it holds no settings")
            if members["settings"].file_size > MOST_SETTINGS:
                raise ValueError(f"its settings take more than {MOST_SETTINGS} bytes")
            settings = json.loads(str(_read(archive, members.pop("settings"))))
            found = {name: _header(archive, member)[:2] for name, member in members.items()}
            wanted = _wanted(settings, found)
            kind = _precision(found)
            expected = {
                name: (leaf.shape, kind if jnp.issubdtype(leaf.dtype, np.floating) else leaf.dtype)
                for name, leaf in _leaves(wanted).items()
            }
            older = _filled(wanted, found.keys())
            for name in sorted((expected.keys() - older.keys()) | found.keys()):
                if expected.get(name) != found.get(name):
                    raise _MismatchError(
                        f"path must hold {name} as {expected.get(name)}; "
                        f"got {found.get(name)} in {path}"
                    )
            arrays = {name: _read(archive, member) for name, member in members.items()}
        return _fill(wanted, arrays | older)
    except _MismatchError:
        raise
    except Exception as error:  # zipfile, NumPy and JSON have many for damaged bytes
        text = str(error) or type(error).__name__
        raise ValueError(
            f"path must be a policy saved by save_policy; got {path}: {text}"
        ) from None


class _MismatchError(ValueError):
    """An array is missing, unknown, or of another shape or type."""


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Name the arrays of an archive that unpacks to a bounded number of bytes."""
    infos = archive.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(members) < len(infos):
        raise ValueError("it names an array twice")
    if sum(info.file_size for info in infos) > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES} bytes")
    return members


def _header(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"], int]:
    """Read shape, type and order of an array, and how many bytes come before it."""
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{member.filename} is no array of version 1.0")
        shape, in_columns, kind = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if kind.hasobject:
        raise ValueError(f"{member.filename} must hold no objects")
    if start + math.prod(shape) * kind.itemsize != member.file_size:
        raise ValueError(f"{member.filename} must be as long as its array")
    return shape, kind, "F" if in_columns else "C", start


def _precision(found: dict[str, Any]) -> np.dtype:
    """Tell the type of a file's floating-point arrays by its first one; float32 without any."""
    for name in sorted(found):
        if (kind := found[name][1]) in (np.float32, np.float64):
            return np.dtype(kind)
    return np.dtype(np.float32)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an array, as many bytes as the archive says; at the last the checksum is checked.

    Floating-point numbers are taken to the precision that JAX runs in.
    """
    shape, kind, order, start = _header(archive, member)
    with archive.open(member) as file:
        content = file.read(member.file_size)
        if len(content) < member.file_size:
            raise ValueError(f"{member.filename} is cut off")
    array = np.frombuffer(content, kind, offset=start).reshape(shape, order=order).copy()
    if np.issubdtype(kind, np.floating):
        with np.errstate(over="ignore"):  # found below
            array = array.astype(jnp.result_type(float))
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{member.filename} must hold finite {array.dtype} numbers")
    return array


def _filled(wanted: Policy | GeneralPolicy, found: Collection[str]) -> dict[str, np.ndarray]:
    """Make the fields of a system that a file lacks and that have defaults, by path."""
    if isinstance(wanted, GeneralPolicy):
        return {}
    leaves = _leaves(wanted)
    return {
        path: np.full(leaves[path].shape, field.default, leaves[path].dtype)
        for field in fields(sy.System)
        if field.default is not MISSING
        if (path := f"system/{field.name}") in leaves and path not in found
    }


def _fill(wanted: Policy | GeneralPolicy, arrays: dict[str, np.ndarray]) -> Policy | GeneralPolicy:
    """Put arrays into the policy that they were checked against."""
    tree = unflatten_dict({tuple(name.split("/")): leaf for name, leaf in arrays.items()})
    if isinstance(wanted, GeneralPolicy):
        return wanted.replace(**tree)
    system = sy.check_system(sy.System(**tree["system"], access=wanted.system.access))
    return wanted.replace(variables=tree["variables"], system=system)


@moves_data
def pretrained() -> GeneralPolicy:
    """Return the general policy that is shipped with the package, which ``solve`` uses."""
    return shipped(jnp.result_type(float))


@functools.cache
def shipped(precision: np.dtype) -> GeneralPolicy:
    """Keep the shipped policy in the ``precision`` that JAX runs in."""
    del precision
    with jax.ensure_compile_time_eval():  # weights that stay, also where a program is recorded
        policy = load_policy(Path(__file__).parents[1] / PRETRAINED)
        return jax.device_put(cast(GeneralPolicy, policy))


def _settings(policy: Policy | GeneralPolicy) -> dict[str, Any]:
    """Name what fixes the shapes of a policy."""
    if isinstance(policy, GeneralPolicy):
        network = policy.network
        own = {name: getattr(network, name) for name in ("width", "rounds", "trust")}
        return {"format": GENERAL_FORMAT, **own}
    return {
        "format": FORMAT,
        "hidden": list(policy.network.hidden),
        "share_resources": policy.network.share_resources,
        "role": policy.role,
        "scaling": policy.scaling,
        "access": policy.system.access,
    }


def _wanted(settings: dict[str, Any], found: dict[str, Any]) -> Policy | GeneralPolicy:
    """Describe the policy of these settings, with shapes in the place of arrays.

    Args:
        settings: of the file.
        found: shapes and types by name; a network has at least an array a layer.
    """
    key = jax.eval_shape(jax.random.key, 0)  # a value would compile the initialisation
    if settings["format"] == GENERAL_FORMAT:
        width, rounds = _integer(settings, "width"), _integer(settings, "rounds", len(found))
        trust = float(settings["trust"])
        require("trust", trust, 0.0, included=True)
        general = DeviceNetwork(width, rounds, trust)
        return GeneralPolicy(jax.eval_shape(partial(init_params, general), key), general)
    if settings["format"] != FORMAT:
        raise ValueError(f"its format is {settings['format']!r}, not {FORMAT!r}")
    hidden = tuple(_integer({"hidden": width}, "hidden") for width in settings["hidden"])
    if len(hidden) > len(found):
        raise ValueError(f"hidden must be at most {len(found)} widths; got {len(hidden)}")
    for name, known in CHOICES.items():
        if settings[name] not in known:
            raise ValueError(f"{name} must be one of {known}; got {settings[name]!r}")
    network = Network(hidden, bool(settings["share_resources"]))
    num_devices, access = found["system/task_bits"][0][0], settings.get("access", "tdma")
    if access not in sy.ACCESS:
        raise ValueError(f"access must be one of {sy.ACCESS}; got {access!r}")
    initialise = partial(init_variables, network, num_devices=num_devices)
    variables = jax.eval_shape(initialise, key)
    system = jax.eval_shape(lambda: sy.check_system(table1(num_devices)))
    shapes = {name: found.get(f"system/{name}", (None,))[0]  # what it has besides, or per device
              for name in (*sy.FLEXIBLE, *sy.ADDED_RANGES)}  # fmt: skip
    own = {name: jax.ShapeDtypeStruct(shape, system.slot.dtype)
           for name, shape in shapes.items() if shape in ((), (num_devices,))}  # fmt: skip
    system = system.replace(**own, access=access)
    return Policy(variables, system, network, settings["role"], settings["scaling"])


def _integer(settings: dict[str, Any], name: str, most: float = math.inf) -> int:
    value = settings[name]
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} must be an integer from 1 to {most}; got {value!r}")
    return value


def _leaves(policy: Policy | GeneralPolicy) -> dict[str, jax.Array]:
    """Name every array of a policy by its path."""
    if isinstance(policy, GeneralPolicy):
        tree = {"params": policy.params}
    else:
        system = sy.leaves(policy.system)
        tree = {"variables": policy.variables, "system": system}
    return dict(flatten_dict(tree, sep="/"))
