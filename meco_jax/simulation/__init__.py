"""Slot after slot: channels that move, tasks that arrive, CSI that is old, batteries."""

from meco_jax.simulation.calibrate import calibrate
from meco_jax.simulation.channels import doppler_frequency
from meco_jax.simulation.interference import Cells, solve_cells
from meco_jax.simulation.margins import backoff, robust
from meco_jax.simulation.metrics import jain_index, summarise
from meco_jax.simulation.scenario import Scenario
from meco_jax.simulation.simulate import Observation, Outcome, State, reset, simulate, step

__all__ = [
    "Cells",
    "Observation",
    "Outcome",
    "Scenario",
    "State",
    "backoff",
    "calibrate",
    "doppler_frequency",
    "jain_index",
    "reset",
    "robust",
    "simulate",
    "solve_cells",
    "step",
    "summarise",
]
