"""Random instances shared by the tests, as a float32 System and as the float64 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import reference

from meco_jax import System

BASES = (2.0, np.e, 10.0)


def random_case(rng, num_devices, **fixed):
    """Draw (System, h, reference instance); both see the same float32 numbers."""
    k = num_devices
    draw = {
        "task_bits": rng.uniform(8e5, 2.4e6, k),
        "cycles_per_bit": rng.uniform(200, 400, k),
        "cpu_hz": rng.uniform(1e9, 2e9, k),
        "weight": rng.uniform(0.5, 2, k),
        "h": np.sqrt(1e-6 * rng.exponential(size=k)),
        "slot": rng.uniform(0.2, 2),
        "log_base": rng.choice(BASES),
    } | fixed
    draw = {name: np.float32(value) for name, value in draw.items()}
    h = draw.pop("h")
    return System(**draw), jnp.asarray(h), reference.instance(h=h, **draw)


def stack(systems):
    """Stack systems of one K on a leading axis."""
    systems = [s.replace(active=np.broadcast_to(s.active, np.shape(s.task_bits))) for s in systems]
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *systems)


def pad_to(system, h, num_devices):
    """Pad a case with idle devices that hold awkward data."""
    missing = num_devices - h.shape[0]
    full = {name: np.broadcast_to(getattr(system, name), h.shape) for name in
            ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "active")}  # fmt: skip
    padding = {"task_bits": 5e6, "cycles_per_bit": 0, "cpu_hz": 0, "weight": 0, "active": False}
    padded = {
        n: np.concatenate([v, np.full(missing, padding[n], v.dtype)]) for n, v in full.items()
    }
    return system.replace(**padded), jnp.concatenate([h, jnp.zeros(missing)])


def check_solution(system, h, solution, whole=True):
    """Assert C1-C5 in float64 on the returned numbers, and that the energy is what it costs."""
    a, p, t = (np.asarray(x, np.float64) for x in (solution.offload, solution.power, solution.time))
    k = a.shape[-1]
    bits, cycles, hz, beta, active = (
        np.broadcast_to(np.asarray(getattr(system, name), np.float64), k)
        for name in ("task_bits", "cycles_per_bit", "cpu_hz", "weight", "active")
    )
    names = ("slot", "bandwidth", "noise_power", "max_power", "chip", "log_base")
    physics = {name: float(getattr(system, name)) for name in names}
    real, tight = active > 0, 1 + 1e-6
    gain = np.asarray(h, np.float64) ** 2 / physics["noise_power"]
    rate = physics["bandwidth"] * np.log1p(p * gain) / np.log(physics["log_base"])
    sends = real & (a * bits > 0)
    used = np.where(sends, a * bits / np.where(sends, rate, 1), 0)
    assert np.all(a[~real] == 0)
    assert np.sum(t) <= physics["slot"] * tight  # C1
    left = np.where(real, (1 - a) * cycles * bits, 0)
    assert np.all(left <= hz * physics["slot"] * tight)  # C2
    assert np.all((p >= 0) & (p <= physics["max_power"] * tight))  # C3
    assert np.all(np.isin(a, (0, 1)) if whole else (a >= 0) & (a <= 1))  # C4
    assert np.all(used <= t * tight)  # C5
    energy = np.sum(np.where(sends, beta * p * used, 0) + beta * physics["chip"] * left * hz**2)
    np.testing.assert_allclose(solution.energy, energy, rtol=3e-6)
    assert solution.lower_bound <= solution.energy * (1 + 2e-6)
