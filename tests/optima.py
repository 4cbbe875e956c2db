"""The instances with known optima, see data/README.md."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from meco_jax import System

PATH = Path(__file__).parent / "data" / "optima.npz"
INDEPENDENT = "independent solver"  # the source of the rows that are not made again
PER_DEVICE = ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "h")
SCALARS = ("slot", "log_base", "bandwidth", "noise_power", "max_power", "chip")


def load():
    """All columns, by name."""
    with np.load(PATH, allow_pickle=False) as file:
        return dict(file)


def systems(data):
    """All instances as float32 systems ``[N, 40]`` and gains."""
    leaves = {name: jnp.asarray(data[name]) for name in (*PER_DEVICE, *SCALARS)}
    h = leaves.pop("h")
    active = np.arange(h.shape[-1]) < data["K"][:, None]
    return System(**leaves, active=active, mean_gain=np.full(len(h), 1e-6, np.float32)), h


def take(data, index):
    """Take one instance out of the columns, without its padding."""
    k = int(data["K"][index])
    return {n: data[n][index, :k] for n in PER_DEVICE} | {n: data[n][index] for n in SCALARS}
