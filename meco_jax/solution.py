"""The answer that every method gives."""

from __future__ import annotations

import jax
import numpy as np
from flax import struct

from meco_jax.runtime.describe import short_repr


@short_repr
class Solution(struct.PyTreeNode):
    """Hold an answer for channels ``[..., K]``; see ``meco_jax.solve``."""

    offload: jax.Array  # [..., K] a: 0 or 1, in partial schemes the part of the task sent [-]
    power: jax.Array  # [..., K] p [W]
    time: jax.Array  # [..., K] t [s]
    energy: jax.Array  # [...] realised weighted energy, infinite where infeasible [J]
    lower_bound: jax.Array  # [...] nothing feasible costs less; infinite where nothing is [J]
    feasible: jax.Array  # [...] bool: C1-C6 hold
    # [..., K] what each device adds to ``energy``: 0 for padding, infinite for all that have a
    # task where the energy is; ``solve`` fills it in for schemes that leave it out [J]
    energy_per_device: jax.Array = None  # type: ignore[assignment]
    # [...] what delays add to the objective, sum gamma delay, None without ``delay_weight`` [J]
    delay_cost: jax.Array | None = None

    @property
    def cost(self) -> jax.Array:
        """The objective, ``[...]``: the energy and weighted delays; what is bounded [J]."""
        return self.energy if self.delay_cost is None else self.energy + self.delay_cost

    def as_dict(self) -> dict[str, np.ndarray]:
        """Return plain NumPy arrays by field name, for ``np.savez`` or ``scipy.io.savemat``."""
        return {name: np.asarray(leaf) for name, leaf in vars(self).items() if leaf is not None}
