"""Wireless powered offloading: the weighted sum rate of all devices, maximised with proofs.

``solve(h)`` decides who sends and who computes, how long all harvest and how long each sends.
See ``meco_jax.wpmec.system`` for the symbols and THEORY.md, section 11, for the mathematics.
"""

from meco_jax.wpmec.solver import allocate, solve
from meco_jax.wpmec.system import WPMEC, Solution, reference, sample_channels

__all__ = ["WPMEC", "Solution", "allocate", "reference", "sample_channels", "solve"]
