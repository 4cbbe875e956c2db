"""Files, written whole or not at all: trained policies without pickles, runs to resume."""

from __future__ import annotations

import functools
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from meco_jax import system as sy
from meco_jax.files import write_atomically
from meco_jax.network import Network, Policy, init_variables
from meco_jax.policy import DeviceNetwork, GeneralPolicy, init_params

FORMAT, GENERAL_FORMAT = "meco_jax policy 1", "meco_jax general policy 1"
PRETRAINED = "pretrained.npz"


def save_policy(
    path: str | os.PathLike[str], policy: Policy | GeneralPolicy, origin: str = ""
) -> None:
    """Save one policy: arrays by name, and JSON for what fixes shapes.

    Args:
        path: the file, written atomically.
        policy: trained for one system, which is saved with it, or for any.
        origin: how it was made, for readers of the file.
    """
    arrays: dict[str, Any] = {name: np.asarray(x) for name, x in _leaves(policy).items()}
    buffer = io.BytesIO()
    text = json.dumps({**_settings(policy), "origin": origin})
    np.savez_compressed(buffer, **arrays, settings=np.asarray(text))
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def load_policy(path: str | os.PathLike[str]) -> Policy | GeneralPolicy:
    """Load a policy; every array's name, shape and type is checked, and no code is run.

    Raises:
        ValueError: if the file is no policy, or an array is missing, unknown or misshapen.
    """
    try:
        content = io.BytesIO(Path(path).read_bytes())
        with np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        wanted = _wanted(json.loads(str(arrays.pop("settings"))), arrays)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"path must be a policy saved by save_policy; got {path}: {error}"
        ) from None
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in _leaves(wanted).items()}
    found = {name: (leaf.shape, leaf.dtype) for name, leaf in arrays.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"path must hold {name} as {expected.get(name)}; got {found.get(name)} in {path}"
            )
    tree = unflatten_dict({tuple(name.split("/")): leaf for name, leaf in arrays.items()})
    if isinstance(wanted, GeneralPolicy):
        return wanted.replace(**tree)
    return wanted.replace(variables=tree["variables"], system=sy.System(**tree["system"]))


@functools.cache
def pretrained() -> GeneralPolicy:
    """Return the general policy that is shipped with the package, which ``solve`` uses."""
    policy = load_policy(Path(__file__).parent / PRETRAINED)
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
    }


def _wanted(settings: dict[str, Any], arrays: dict[str, Any]) -> Policy | GeneralPolicy:
    """Describe the policy of these settings, with shapes in the place of arrays."""
    key = jax.random.key(0)
    if settings["format"] == GENERAL_FORMAT:
        general = DeviceNetwork(settings["width"], settings["rounds"], settings["trust"])
        return GeneralPolicy(jax.eval_shape(lambda: init_params(general, key)), general)
    if settings["format"] != FORMAT:
        raise ValueError(f"its format is {settings['format']!r}, not {FORMAT!r}")
    network = Network(tuple(settings["hidden"]), settings["share_resources"])
    num_devices = arrays["system/task_bits"].shape[0]
    variables = jax.eval_shape(lambda: init_variables(network, key, num_devices))
    system = jax.eval_shape(lambda: sy.check_system(sy.table1(num_devices)))
    return Policy(variables, system, network, settings["role"], settings["scaling"])


class OtherRunError(ValueError):
    """The folder holds a training with other settings."""


class RunStore:
    """Keep the latest checkpoints of one training in a folder, by Orbax."""

    def __init__(self, folder: Path, settings: dict[str, Any], save_seconds: float) -> None:
        """Open or make the folder.

        Args:
            folder: of this training alone.
            settings: all that the training depends on, JSON values by name.
            save_seconds: least time between two checkpoints [s].

        Raises:
            OtherRunError: if the folder holds a training with other settings.
        """
        import orbax.checkpoint as ocp  # here, since it takes a second

        self._args = ocp.args
        folder = folder.absolute()
        (folder / "epochs").mkdir(parents=True, exist_ok=True)
        record = folder / "settings.json"
        settings = json.loads(json.dumps(settings))
        if record.exists():
            known = json.loads(record.read_text())
            for name in sorted(known.keys() | settings.keys()):
                if known.get(name) != settings.get(name):
                    raise OtherRunError(
                        f"{name} must be {known.get(name)} to go on with the run in {folder}; "
                        f"got {settings.get(name)}"
                    )
        text = json.dumps(settings, indent=2).encode()
        write_atomically(record, lambda file: file.write(text))
        own = jax.process_index()
        self._manager = ocp.CheckpointManager(
            folder / "epochs",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                create=False,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=own, active_processes={own}, barrier_sync_key_prefix=str(own)
                ),
            ),
        )
        self._save_seconds, self._saved = save_seconds, time.monotonic()

    def load(self, state: Any) -> tuple[int, Any, list[dict[str, np.ndarray]]] | None:
        """Return the epochs done, a state like ``state`` and the history, if there are any."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
        wanted = self._args.Composite(
            state=self._args.StandardRestore(like), history=self._args.StandardRestore()
        )
        saved = self._manager.restore(epoch, args=wanted)
        columns = {name: np.asarray(column) for name, column in saved["history"].items()}
        rows = [{n: c[i] for n, c in columns.items()} for i in range(len(columns["step"]))]
        return epoch, jax.tree.map(np.asarray, saved["state"]), rows

    def save(
        self, epoch: int, state: Callable[[], Any], history: list[dict[str, np.ndarray]], last: bool
    ) -> None:
        """Save, unless the last checkpoint is recent and this is not the last."""
        if not last and time.monotonic() - self._saved < self._save_seconds:
            return
        columns = {name: np.stack([row[name] for row in history]) for name in history[0]}
        content = self._args.Composite(
            state=self._args.StandardSave(state()), history=self._args.StandardSave(columns)
        )
        self._manager.save(epoch, args=content)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.close()


def _leaves(policy: Policy | GeneralPolicy) -> dict[str, jax.Array]:
    """Name every array of a policy by its path."""
    if isinstance(policy, GeneralPolicy):
        tree = {"params": policy.params}
    else:
        system = {name: getattr(policy.system, name) for name in (*sy.SYSTEM_RANGES, "active")}
        tree = {"variables": policy.variables, "system": system}
    return dict(flatten_dict(tree, sep="/"))
