"""Wireless powered offloading: the weighted sum rate of all devices, maximised with proofs.

``solve(gain)`` decides who sends and who computes, how long all harvest and how long each sends.
Gains are power gains, the squares of the amplitude gains that ``meco_jax.solve`` takes.
See ``meco_jax.wpmec.system`` for the symbols and THEORY.md, section 11, for the mathematics.
"""

from meco_jax.wpmec.solver import allocate, solve
from meco_jax.wpmec.system import WPMEC, Solution, reference, sample_channels

__all__ = ["WPMEC", "Solution", "allocate", "reference", "sample_channels", "solve"]
