"""What an answer to wireless powered offloading is really worth: from its modes and times.

All is computed again in float64 on the host. What the answer says of itself does not count.
"""

from __future__ import annotations

import numpy as np

from meco_jax.judge import ROUNDING, Verdict, all_finite
from meco_jax.wpmec import search
from meco_jax.wpmec.system import PER_DEVICE, WPMEC, Solution


def judge(gain: np.ndarray, system: WPMEC, answer: Solution) -> Verdict:
    """Judge answers: sum L_k a^(1/3) + sum w_k eps tau_k ln(1 + rho_k a / tau_k), a + sum tau <= 1.

    Args:
        gain: power gains ``[N, K]`` [-].
        system: the physics, fields ``[N, K]`` and ``[N]``.
        answer: ``offload``, ``harvest`` and ``time`` count.

    Returns:
        The rates, and whether the times are there.
    """
    columns = {
        n: x if n in PER_DEVICE else np.asarray(x)[..., None] for n, x in vars(system).items()
    }
    devices = search.host_devices(WPMEC(**columns), gain)
    sends, time = (np.asarray(x, np.float64) for x in (answer.offload, answer.time))
    harvest = np.asarray(answer.harvest, np.float64)[:, None]
    with np.errstate(all="ignore"):  # an answer may hold anything
        numbers = all_finite(sends.T, time.T, harvest.T)
        whole = np.all(((sends == 0) | (sends == 1)) & (time >= 0), axis=1) & (harvest[:, 0] >= 0)
        in_time = harvest[:, 0] + time.sum(axis=1) <= 1 + ROUNDING
        used = np.where((sends == 1) & (time > 0), time, 1.0)
        earned = devices.speed * used * np.log1p(devices.gain * harvest / used)
        sent = np.where((sends == 1) & (time > 0) & devices.usable, earned, 0.0)
        local = np.where(sends == 1, 0.0, devices.local * np.cbrt(harvest))
        return Verdict(np.sum(sent + local, axis=1), numbers & whole & in_time)
