"""Binary computation offloading for mobile edge computing: learned, exact, fast.

``solve(h)`` decides who offloads, at what powers and in which slot times; ``train`` learns
the paper's policy. Units are SI; see ``meco_jax.system`` for the symbols.
"""

from meco_jax import benchmarks as benchmarks
from meco_jax import wpmec as wpmec
from meco_jax.batching import map_channels
from meco_jax.evaluation import evaluate_grid
from meco_jax.explanation import explain
from meco_jax.learned.policy import GeneralPolicy
from meco_jax.learned.training import PolicyConfig, train_policy
from meco_jax.paper.network import Policy
from meco_jax.paper.sweep import make_grid, train_grid
from meco_jax.paper.training import TrainConfig, train
from meco_jax.propagation import path_gain
from meco_jax.runtime.policies import load_policy, pretrained, save_policy
from meco_jax.scenarios import (
    drop_devices,
    sample_channels,
    sample_mixtures,
    sample_systems,
    scale_frequency,
    table1,
)
from meco_jax.solution import Solution
from meco_jax.solver import allocate, improve, mcos, mcos_partial, pcos, repair, solve
from meco_jax.system import System, pad_devices
from meco_jax.units import from_db, from_dbm
from meco_jax.warmup import warm_up

__all__ = [
    "GeneralPolicy",
    "Policy",
    "PolicyConfig",
    "Solution",
    "System",
    "TrainConfig",
    "allocate",
    "drop_devices",
    "evaluate_grid",
    "explain",
    "from_db",
    "from_dbm",
    "improve",
    "load_policy",
    "make_grid",
    "map_channels",
    "mcos",
    "mcos_partial",
    "pad_devices",
    "path_gain",
    "pcos",
    "pretrained",
    "repair",
    "sample_channels",
    "sample_mixtures",
    "sample_systems",
    "save_policy",
    "scale_frequency",
    "solve",
    "table1",
    "train",
    "train_grid",
    "train_policy",
    "warm_up",
]

__version__ = "0.1.0"
