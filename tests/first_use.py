"""Calls the library in a fresh process and saves the answers: run by test_first_use.py.

``python first_use.py OUTPUT SETUP CASE...`` with a name of ``SETUPS`` and names of ``CASES``.
"""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import meco_jax as mj
from meco_jax import benchmarks
from meco_jax.learned import training as policy_training
from meco_jax.learned.policy import DeviceNetwork
from meco_jax.paper import sweep
from meco_jax.runtime import settings
from meco_jax.simulation import (
    Scenario,
    backoff,
    calibrate,
    reset,
    robust,
    simulate,
    solve_cells,
    step,
    summarise,
)

METHODS = ("mcos", "mcos_partial", "pcos", "optimal", "bcos")
TINY = mj.TrainConfig(num_channels=24, batch_size=12, epochs=2, chunk_epochs=1, hidden=(4,))
GENERAL = mj.PolicyConfig(
    batches=((4, 4),), network=DeviceNetwork(4, 1), steps_per_epoch=2, epochs=2
)


def instance(number=4):
    """Feasible channels of one system, in NumPy: some devices must send, some had better not."""
    rng = np.random.default_rng(0)
    system = mj.System(
        task_bits=np.float32([9e5, 2e6, 1.2e6, 2.3e6]),
        cycles_per_bit=np.float32([210, 390, 300, 250]),
        cpu_hz=np.float32([1.9e9, 1.1e9, 1.3e9, 1.7e9]),
        weight=np.float32([1, 1, 0.5, 2]),
        active=np.ones(4, bool),
    )
    return np.sqrt(1e-6 * rng.uniform(0.1, 2, (number, 4))).astype(np.float32), system


# Where gains and system lie: NumPy as most callers have it, or as SETUPS say.
place = {"gains": lambda h: h, "system": lambda system: system}


def energy(h, system, method):
    return jnp.sum(mj.solve(h, system, method=method).energy)


def answers(method):
    """The answer, and its gradient for the gains and the slot."""
    h, system = instance()
    h, system = place["gains"](h), place["system"](system)
    slope = lambda slot: energy(h, system.replace(slot=slot), method)  # noqa: E731
    with jax.transfer_guard("allow"):  # jax.grad itself moves numbers
        by_h = jax.grad(energy)(jnp.asarray(h), system, method)
        by_slot = jax.grad(slope)(0.5)
    return {"solution": mj.solve(h, system, method=method), "h": by_h, "slot": by_slot}


def one_channel():
    """One channel alone takes another way through the library."""
    h, system = instance()
    return {m: mj.solve(place["gains"](h[0]), place["system"](system), method=m) for m in METHODS}


def training(scheme):
    h, system = instance()
    config = TINY.replace(scheme=scheme)
    policy, history = mj.train(place["system"](system), key=0, config=config)
    h = place["gains"](h)
    return {"history": history, "raw": policy(h).energy, "solution": mj.solve(h, policy=policy)}


def general_training():
    h, system = instance()
    policy, history = mj.train_policy(0, GENERAL)
    solution = mj.solve(place["gains"](h), system, policy=policy)
    return {"loss": history["loss"], "solution": solution}


def traced_training():
    """Trace the general training alone, since it compiles slowly: its types must agree."""
    config = policy_training.check_policy_config(GENERAL)
    run = jax.eval_shape(lambda: policy_training.start_policy(settings.as_key("seed", 0), config))
    after, _ = jax.eval_shape(lambda run: policy_training.advance_policy(run, 0, config), run)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), run) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )
    return {}


def grid():
    lanes = mj.make_grid({"num_devices": [2, 3], "seed": [4], "multiplier": [3.0]})
    policies, history = {}, {}
    for scheme in ("bcos", "pcos"):
        policies[scheme], history[scheme] = mj.train_grid(lanes, TINY.replace(scheme=scheme))
    outcomes = mj.evaluate_grid(policies, lanes, 8)
    energies = {name: outcome.energy for name, outcome in outcomes.items()}
    return {"systems": lanes.systems, "history": history, "energies": energies}


def draws():
    """What depends on seeds and keys alone, and does so under vmap, and for every kind of key."""
    system = mj.table1(3, seed=5)
    lanes = mj.make_grid({"num_devices": [3], "seed": [5, 6]})
    gains = mj.sample_channels(7, system, 6)
    with jax.transfer_guard("allow"):  # jax.random.key moves the seed
        check_draws(system, lanes, gains)
    return {
        "systems": lanes.systems,
        "gains": gains,
        "wild": mj.sample_systems(3, 20, 5),
        "negative": mj.table1(2, seed=-1),
        "lane": mj.sample_channels(sweep.lane_key(9, "test"), system, 4),
        "combined": mj.sample_channels(8, system, 4, antennas=3, rice_factor=[0.0, 1.0, 9.0]),
        "path gain": mj.path_gain(mj.drop_devices(9, 5, 250.0, inner=35.0)),
        "scaled": mj.scale_frequency(system),
    }


def one_slot():
    """A slot of the simulator spends what ``solve`` says, to the rounding of two programs."""
    state, seen = reset(0, Scenario(instance()[1], csi="estimated", rice=1.0))
    decision = mj.solve(seen.h, seen.system, method="mcos")
    _, after, outcome = step(1, state, decision)
    weighted = outcome.energy * seen.system.weight
    np.testing.assert_allclose(weighted, decision.energy_per_device, rtol=1e-6)
    return {"now": seen.h, "next": after.h, "energy": outcome.energy, "delay": outcome.delay}


def slots():
    """Slots of a cell where much happens, without a margin and with one."""
    cell = Scenario(
        place["system"](instance()[1]), doppler=2.0, rice=0.5, speed=3.0, shadowing_db=4.0,
        rate=0.9, size_spread=0.3, deadline=2.0, battery=1.0, csi_error=0.3,
        fading="gauss_markov", mobility="waypoint", csi="estimated", csi_delay=1,
        arrivals="poisson", queue_size=3, after_miss="retry", fallback="local",
    )  # fmt: skip
    schemes = {"backoff": backoff("mcos", 3.0), "robust": robust("mcos", 0.1)}
    outcomes = {name: simulate(cell, scheme, 0, 6)[1] for name, scheme in schemes.items()}
    return {"outcomes": outcomes, "summary": summarise(outcomes["robust"], 0.5).energy}


def margins():
    """A margin outside the simulator, also where nothing fits, and one calibrated."""
    h, system = instance()
    with jax.transfer_guard("allow"):
        plan = robust("mcos", np.float32(0.1), error=jnp.float32(0.2))
    found = [mj.solve(h[0], s, method=plan) for s in (system, system.replace(slot=1e-4))]
    cell = Scenario(system.replace(cpu_hz=1e8, bandwidth=1e8), csi="estimated", csi_error=0.2)
    return {"plans": found, "price": calibrate(robust("mcos", 0.05), cell, 0, 8).price}


def several():
    """Cells on one band."""
    h, system = instance(4)
    cross = np.full((4, 4, 4), 3e-4, np.float32)
    found = solve_cells(place["gains"](h), place["system"](system), cross, "mcos")
    return {"solution": found.solution, "noise": found.noise_power}


def score():
    found = benchmarks.score("mcos", "p1-k10-v1", repeats=1)
    return {"gap": found.gap_mean, "infeasible": found.infeasible}


def environment():
    """An episode of two cells: what is seen, earned and said."""
    from meco_jax.simulation.environment import make_vec

    cells = make_vec(Scenario(place["system"](instance()[1])), num_envs=2, num_slots=1)
    begun, _ = cells.reset(seed=0)
    played, again = (cells.step(np.ones((2, 4)))[:2] for _ in range(2))
    return {"begun": begun, "played": played, "again": again}


def check_draws(system, lanes, gains):
    """The same bits for every kind of key; to rounding where the program is another."""
    np.testing.assert_allclose(lanes.systems.task_bits[0], system.task_bits, rtol=1e-6)
    keys = [jax.random.key(7, impl=impl) for impl in ("threefry2x32", "rbg", "unsafe_rbg")]
    for key in (*keys, jax.random.PRNGKey(7), jax.random.key(7), np.int64(7)):
        np.testing.assert_array_equal(mj.sample_channels(key, system, 6), gains)
        np.testing.assert_array_equal(mj.drop_devices(key, 4, 9.0), mj.drop_devices(7, 4, 9.0))
    for key in keys:
        own = [jax.random.fold_in(key, n) for n in range(2)]
        together = jax.vmap(lambda key: mj.sample_channels(key, system, 6))(jnp.stack(own))
        for alone, mine in zip(own, together):
            drawn = mj.sample_channels(alone, mj.table1(2), 6)
            np.testing.assert_allclose(drawn, mine[:, :2], rtol=1e-6)


def calls():
    """Calls whose arguments are constants wherever they stand."""
    h, system = instance()
    return {
        "bcos": mj.solve(h[0], system, effort=0),
        "mcos": mj.mcos(np.pad(h, ((0, 0), (0, 2))), mj.pad_devices(system, 6)).energy,
        "gains": mj.sample_channels(7, mj.table1(3), 2),
        "lanes": mj.make_grid({"num_devices": [2, 3], "slot": [0.3]}).systems.task_bits,
    }


def scanned(function):
    _, found = jax.lax.scan(lambda carry, _: (carry, function()), 0, None, length=1)
    return jax.tree.map(lambda x: x[0], found)


def without_jit(function):
    with jax.disable_jit():
        return function()


CONTEXTS = {
    "nothing": lambda function: function(),
    "jit": lambda function: jax.jit(function)(),
    "scan": scanned,
    "cond": lambda function: jax.jit(lambda yes: jax.lax.cond(yes, function, function))(True),
    "remat": lambda function: jax.checkpoint(function)(),
    "vmap": lambda function: jax.vmap(lambda _: function(), out_axes=None)(jnp.zeros(2)),
    "grad": lambda function: jax.grad(lambda x: (x, function()), has_aux=True)(1.0)[1],
    "disabled jit": without_jit,
}


def first_in(context):
    """Call the library for the first time in a context, then outside, and save its weights."""
    inside = CONTEXTS[context](calls)
    h, system = instance()
    weights = jax.tree.map(np.asarray, mj.pretrained().params)
    return {"inside": inside, "after": mj.solve(h[0], system, effort=0), "weights": weights}


CASES = {
    **{f"first in {name}": lambda name=name: first_in(name) for name in CONTEXTS},
    **{method: lambda method=method: answers(method) for method in METHODS},
    "one channel": one_channel,
    "bcos training": lambda: training("bcos"),
    "pcos training": lambda: training("pcos"),
    "general training": general_training,
    "traced training": traced_training,
    "grid": grid,
    "draws": draws,
    "one slot": one_slot,
    "slots": slots,
    "margins": margins,
    "several": several,
    "score": score,
    "environment": environment,
}


def on_second_device():
    """Put gains and system on a device that is not the first, committed."""
    place["gains"] = place["system"] = lambda tree: jax.device_put(tree, jax.devices()[1])


def spread(number, *axes):
    """Spread the gains over some of the devices, by channels or by mobile devices."""
    mesh = Mesh(np.array(jax.devices()[:number]), ("part",))
    sharding = lambda h: NamedSharding(mesh, PartitionSpec(*axes[-h.ndim :]))  # noqa: E731
    place["gains"] = lambda h: jax.device_put(h, sharding(h))


def ambient_mesh():
    """A mesh for the whole process, as programs that shard by hand set it up."""
    jax.set_mesh(jax.make_mesh((jax.device_count(),), ("part",)))


SETUPS = {
    "plain": lambda: None,
    "second device": on_second_device,
    "default device": lambda: jax.config.update("jax_default_device", jax.devices()[1]),
    "2 of 4": lambda: spread(2, "part", None),
    "4 of 4": lambda: spread(4, "part", None),
    "over K": lambda: spread(4, None, "part"),
    "ambient mesh": ambient_mesh,
}


def main(output, setup, *names):
    warnings.simplefilter("error")
    SETUPS[setup]()
    found = {}
    for name in names:
        leaves, _ = jax.tree_util.tree_flatten_with_path(CASES[name]())
        for path, leaf in leaves:
            found[name + jax.tree_util.keystr(path)] = jax.device_get(leaf)
        print(name, flush=True)
    np.savez(output, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
