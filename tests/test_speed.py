"""Operations per channel, as XLA counts them: a guard of the speed that no load can disturb."""

from functools import partial

import jax
import pytest

from meco_jax import pad_devices, sample_channels, solver, table1
from meco_jax.exact import enumeration
from meco_jax.runtime.policies import pretrained
from meco_jax.system import check_system

CHANNELS = 64
# Transcendental functions and all floating-point operations per channel, of 20 devices padded
# to 24, a loop's body counted once; and sorts, which take longest of what is left. A twentieth
# more is let pass, since versions of JAX differ.
MOST = {
    "optimal": (2400, 210_000, 0),
    "policy": (2150, 345_000, 0),
    "pcos": (580, 61_000, 0),
    "mcos": (580, 61_000, 0),
}


@pytest.mark.parametrize("method", MOST)
def test_operations_per_channel(method):
    system = check_system(pad_devices(table1(20), 24))
    h = sample_channels(1, system, CHANNELS)
    one = {
        "optimal": partial(enumeration.optimal, stage=enumeration.STAGES[0]),
        "policy": pretrained().decide,
    }.get(method) or solver.METHODS[method]
    compiled = jax.jit(jax.vmap(one, (None, 0))).lower(system, h).compile()
    counts = compiled.cost_analysis()
    transcendentals, operations, sorts = MOST[method]
    assert counts["transcendentals"] / CHANNELS <= 1.05 * transcendentals
    assert counts["flops"] / CHANNELS <= 1.05 * operations
    assert compiled.as_text().count(" sort(") <= sorts
