"""Slots over time: the simulator against solve, against formulas, and its own books."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from cases import small

from meco_jax import System, allocate, mcos, pad_devices, sample_channels, solve, table1
from meco_jax.simulation import (
    Scenario,
    backoff,
    calibrate,
    doppler_frequency,
    jain_index,
    reset,
    robust,
    simulate,
    solve_cells,
    step,
    summarise,
)
from meco_jax.simulation.calibrate import PRICES
from meco_jax.simulation.channels import bessel_j0, gains, next_channel, start_channel
from meco_jax.simulation.margins import gain_quantile
from meco_jax.simulation.scenario import check_scenario
from meco_jax.simulation.simulate import Outcome, _step
from meco_jax.simulation.tasks import arrivals, arrive, empty_queue
from meco_jax.simulation.transmission import carry_out, local_costs

K = 5  # other than the sizes of queues and of what is remembered, see ``permuted``
PAPER = Scenario(table1(8, 0.5, 0))
EVENTFUL = Scenario(
    table1(K, seed=2), doppler=2.0, rice=0.5, speed=3.0, shadowing_db=4.0, exponent=2.0,
    rate=0.9, size_spread=0.3, deadline=2.0, battery=np.array([1.0, 0.5, 1e3, np.inf, 2.0]),
    csi_error=0.3, fading="gauss_markov", mobility="waypoint", csi="estimated", csi_delay=1,
    arrivals="poisson", queue_size=3, after_miss="retry", fallback="local",
)  # fmt: skip

start, move, hear = (jax.jit(function) for function in (start_channel, next_channel, gains))
carry = jax.jit(carry_out, static_argnames="fallback")
optimum = jax.jit(partial(solve, method="optimal"))  # of eight devices alone: it compiles slowly
divided = jax.jit(partial(solve, method="pcos"))


def cells(scenario, scheme, num_slots, num_cells):
    """Outcomes of many cells ``[C, N, K]``."""
    run = jax.vmap(lambda seed: simulate(scenario, scheme, seed, num_slots))
    return run(jnp.arange(num_cells))


@pytest.fixture(scope="module")
def eventful():
    """The state and the outcomes of a cell where all that may happen happens."""
    return simulate(EVENTFUL, "pcos", 3, 300)


@pytest.fixture(scope="module")
def paper():
    """The paper's slots: perfect CSI, block fading, a task per slot, due at its end."""
    return simulate(PAPER, "optimal", 0, 1000)[1]


def test_one_slot_spends_what_solve_says(paper):
    """To the rounding of three programs."""
    state, seen = reset(jax.random.fold_in(jax.random.key(0), 0), PAPER)
    decision = optimum(seen.h, seen.system)
    assert bool(decision.feasible)
    assert np.sum(decision.offload) > 0
    _, _, outcome = step(2, state, decision)
    for outcome_of_slot in (outcome, jax.tree.map(lambda leaf: leaf[0], paper)):
        assert np.all(outcome_of_slot.completed)
        np.testing.assert_allclose(outcome_of_slot.energy, decision.energy_per_device, rtol=1e-6)


def test_the_papers_slots_spend_what_solve_says(paper):
    """Figure 4's energies within the confidence interval."""
    ok = np.asarray(paper.feasible)
    simulated = np.sum(np.asarray(paper.energy, np.float64), axis=1)[ok]
    system = check_scenario(PAPER).system
    solved = np.array([float(optimum(h, system).energy) for h in
                       sample_channels(7, PAPER.system, 1000)])  # fmt: skip
    solved = solved[solved < np.inf]
    error = np.sqrt(np.var(simulated) / len(simulated) + np.var(solved) / len(solved))
    assert abs(np.mean(simulated) - np.mean(solved)) < 1.96 * error
    assert np.all(np.asarray(paper.completed)[ok])
    assert np.sum(np.asarray(paper.missed)[ok]) == 0
    assert not np.any(paper.late)


def test_energy_is_conserved(eventful):
    state, outcome = eventful
    spent = np.sum(np.asarray(outcome.energy, np.float64), axis=0)
    drained = np.asarray(state.drained[0], np.float64) + np.asarray(state.drained[1])
    np.testing.assert_allclose(spent, drained, rtol=1e-7)
    alive = np.asarray(outcome.alive)
    assert 0 < np.mean(alive[-1]) < 1  # some batteries are empty
    np.testing.assert_allclose(drained[~alive[-1]], EVENTFUL.battery[~alive[-1]], rtol=1e-6)
    assert np.all(np.diff(alive.astype(int), axis=0) <= 0)
    dead = ~alive[:-1]
    for leaf in (outcome.energy, outcome.arrived, outcome.backlog, outcome.sent):
        assert not np.any(np.asarray(leaf)[1:][dead])
    life = summarise(outcome, 0.5).lifetime
    np.testing.assert_array_equal(np.isinf(life), alive[-1])
    np.testing.assert_array_equal(life[~alive[-1]], 0.5 * (alive.sum(axis=0) + 1)[~alive[-1]])


def test_tasks_are_conserved(eventful):
    """Whatever arrived is through, waits, or is lost; a lost one missed its deadline."""
    state, outcome = eventful
    arrived, done, missed = (
        np.sum(x, axis=0) for x in (outcome.arrived, outcome.completed, outcome.missed)
    )
    waiting = np.asarray(state.queue.length - state.queue.arrived + state.queue.blocked)
    lost = arrived - done - waiting
    assert np.all((lost >= 0) & (lost <= missed))
    assert np.sum(lost) > 0
    assert np.all(np.asarray(outcome.backlog) <= EVENTFUL.queue_size)
    delay, through = np.asarray(outcome.delay), np.asarray(outcome.completed)
    assert np.all(np.isinf(delay) == ~through)
    assert np.max(delay[through]) > 2 * 0.5  # one that was retried
    assert np.any(np.asarray(outcome.late) & through)  # saved by the CPU


def test_the_same_key_is_the_same(eventful):
    _, outcome = eventful
    with jax.default_prng_impl("rbg"):
        _, again = simulate(EVENTFUL, "pcos", 3, 300)
    _, other = simulate(EVENTFUL, "pcos", 4, 300)
    jax.tree.map(np.testing.assert_array_equal, outcome, again)
    assert not np.array_equal(outcome.energy, other.energy)


def test_fewer_slots_are_the_first(eventful):
    _, outcome = eventful
    state, seen = reset(jax.random.fold_in(jax.random.key(3), 0), EVENTFUL)
    for number in range(1, 4):
        decision = divided(seen.h, seen.system)
        key = jax.random.fold_in(jax.random.key(3), number)
        state, seen, now = step(key, state, decision)
        for one, all_ in zip(now, outcome):
            np.testing.assert_allclose(one, all_[number - 1], rtol=2e-5, atol=1e-9)
    more, _ = simulate(state, "pcos", 9, 1)
    by_hand, _, _ = step(
        jax.random.fold_in(jax.random.key(9), 1), state, divided(seen.h, seen.system)
    )
    for one, other in zip(jax.tree.leaves(more), jax.tree.leaves(by_hand)):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-9)


def test_padding_changes_nothing(eventful):
    _, outcome = eventful
    battery = np.append(EVENTFUL.battery, [1.0, 1.0])
    padded = EVENTFUL.replace(system=pad_devices(EVENTFUL.system, K + 2), battery=battery)
    _, more = simulate(padded, "pcos", 3, 300)
    for one, wide in zip(outcome, more):
        wide = np.asarray(wide)
        np.testing.assert_allclose(one, wide[:, :K] if wide.ndim > 1 else wide, rtol=2e-5)
    assert not np.any(np.asarray(more.energy)[:, K:])
    assert not np.any(np.asarray(more.arrived)[:, K:])


def test_permuting_devices_permutes_outcomes():
    order = np.array([3, 0, 4, 1, 2])

    def permuted(leaf):
        axes = [axis for axis, size in enumerate(np.shape(leaf)) if size == K]
        return jnp.take(leaf, order, axis=axes[0]) if axes else leaf

    state, seen = reset(5, EVENTFUL.replace(fallback="none"))  # which depends on the order
    other, other_seen = jax.tree.map(permuted, (state, seen))
    for number in range(4):
        state, seen, outcome = step(number, state, divided(seen.h, seen.system))
        other, other_seen, same = step(number, other, divided(other_seen.h, other_seen.system))
        for name in ("energy", "completed", "late", "missed", "arrived", "backlog", "alive"):
            mine, theirs = (np.asarray(getattr(x, name)) for x in (outcome, same))
            np.testing.assert_allclose(mine[order], theirs, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(seen.h)[order], other_seen.h, rtol=1e-5)


def test_bessel_function():
    x = np.concatenate([np.linspace(0, 30, 3001), [100.0, 754.0]]).astype(np.float32)
    np.testing.assert_allclose(bessel_j0(x), scipy.special.j0(np.float64(x)), atol=6e-7)


def test_autocorrelation_is_bessels():
    """Of u from slot to slot J0(2 pi f_d T), and rho^n after n; both powers stay 1."""
    number = 20_000
    doppler = np.repeat([0.1, 0.5, 2.0], number // 4)  # [Hz]
    scenario = Scenario(table1(1), fading="gauss_markov").replace(
        doppler=doppler, system=many(len(doppler))
    )
    device = jnp.arange(len(doppler))
    scenario = check_scenario(scenario)
    moved = [start(jax.random.key(0), scenario, device)]
    for key in (1, 2):
        moved.append(move(jax.random.key(key), scenario, device, moved[-1]))
    u = np.asarray([channel.scattered for channel in moved], np.float64)
    for place, hertz in enumerate((0.1, 0.5, 2.0)):
        own = u[:, place * number // 4 : (place + 1) * number // 4]
        rho = scipy.special.j0(2 * np.pi * hertz * 0.5)
        limit = 4 / (2 * number / 4) ** 0.5
        for lag in (0, 1, 2):
            seen = np.mean(np.sum(own[lag] * own[0], axis=1))
            assert seen == pytest.approx(rho**lag, abs=limit), (hertz, lag)
            assert np.mean(np.sum(own[lag] ** 2, axis=1)) == pytest.approx(1, abs=limit)


def many(number):
    """A system of devices that have nothing to do."""
    return System(np.ones(number), 0.0, 1e9)


def test_rician_gains_and_path_loss():
    number = 20_000
    system = many(number)
    device = jnp.arange(number)
    scenario = check_scenario(Scenario(system, rice=3.0))
    h = hear(scenario, start(jax.random.key(0), scenario, device))
    kappa, power = 3.0, 1e-6
    law = scipy.stats.rice((2 * kappa) ** 0.5, scale=(power / (2 * (kappa + 1))) ** 0.5)
    assert scipy.stats.kstest(np.asarray(h, np.float64), law.cdf).pvalue > 1e-3
    moving = Scenario(system, mobility="waypoint", speed=20.0, shadowing_db=6.0, radius=50.0)
    moving = check_scenario(moving)
    one = start(jax.random.key(0), moving, device)
    two = move(jax.random.key(1), moving, device, one)
    way = np.linalg.norm(np.asarray(two.position - one.position, np.float64), axis=1)
    begin, distance = (np.linalg.norm(np.asarray(x.position), axis=1) for x in (one, two))
    assert np.mean(begin) == pytest.approx(2 / 3 * 50, rel=0.02)
    assert np.max(way) == pytest.approx(20.0 * 0.5, rel=1e-5)
    assert np.max(distance) <= 50.0 * (1 + 1e-6)
    rho = np.mean(np.asarray(one.shadow, np.float64) * np.asarray(two.shadow))
    assert rho == pytest.approx(np.mean(np.exp(-way / 20.0)), abs=0.05)
    amplitude = np.abs(np.linalg.norm(np.asarray(two.scattered), axis=1))
    loss = (10 / np.maximum(distance, 10)) ** 3 * 10 ** (0.6 * np.asarray(two.shadow))
    np.testing.assert_allclose(hear(moving, two), amplitude * np.sqrt(1e-6 * loss), rtol=1e-4)


def test_arrivals():
    devices = jnp.arange(20_000)
    for kind in ("bernoulli", "poisson"):
        scenario = Scenario(table1(1), rate=0.7, arrivals=kind)
        scenario = scenario.replace(rate=jnp.full(len(devices), 0.7))
        number = np.asarray(arrivals(jax.random.key(0), scenario, devices))
        assert np.mean(number) == pytest.approx(0.7, abs=0.02)
        assert np.var(number) == pytest.approx({"bernoulli": 0.21, "poisson": 0.7}[kind], abs=0.03)


def test_many_tasks_arrive_at_once():
    """Poisson's law up to the highest rate; what finds the queue full is counted, and missed."""
    scenario = Scenario(table1(1), rate=32.0, arrivals="poisson")
    devices = jnp.arange(4000)
    wide = scenario.replace(rate=jnp.full(len(devices), 32.0), system=many(len(devices)))
    queue = arrive(jax.random.key(1), wide, devices, empty_queue(wide), wide.system.active)
    assert np.mean(queue.arrived) == pytest.approx(32, abs=4 * (32 / 4000) ** 0.5)
    assert np.var(queue.arrived) == pytest.approx(32, rel=0.1)
    np.testing.assert_array_equal(queue.arrived - queue.blocked, queue.length)


@pytest.mark.parametrize(("arrivals", "rate", "rule"), [
    ("every", 0.3, "1"), ("bernoulli", [0.5, 1.5, 1.0], "at most 1"), ("poisson", 40, "at most 32"),
])  # fmt: skip
def test_rates_that_cannot_be(arrivals, rate, rule):
    with pytest.raises(ValueError, match=f'rate must be {rule} for arrivals="{arrivals}"; got '):
        reset(0, Scenario(table1(3), arrivals=arrivals, rate=rate))


def test_queues_against_the_formula():
    """Poisson arrivals, one service per slot: mean rate + rate^2 / (2 (1 - rate)) in the system."""
    rate = 0.7
    system = table1(16, slot=1.0).replace(max_power=0.0)  # all is computed, and fits the slot
    scenario = Scenario(system, rate=rate, arrivals="poisson", queue_size=30, deadline=math.inf)
    _, outcome = cells(scenario, "mcos", 600, 4)
    late = np.asarray(outcome.backlog)[:, 100:]
    assert np.mean(late) == pytest.approx(rate + rate**2 / (2 * (1 - rate)), rel=0.05)
    # Little's law: who waits, waits for whole slots.
    found = summarise(jax.tree.map(lambda x: x[:, 100:], outcome), 1.0)
    assert found.missed == 0
    delay, through = (np.asarray(x)[:, 100:] for x in (outcome.delay, outcome.completed))
    slots = np.floor(delay[through] + 1e-6) + 1
    assert np.mean(slots) * rate == pytest.approx(np.mean(late), rel=0.03)


def test_a_slot_by_hand():
    """Rate W log2(1 + p h^2 / N0): with p h^2 / N0 = 1 a bit per Hz, 0.1 s for 1e6 bit."""
    system, decision = small()
    h = jnp.sqrt(jnp.array([1e-9 / 0.1, 1e-6]))
    effort = carry(system, h, decision, "none")
    # Device 1 is through after 0.1 s and stops, 0.1 W; device 2 computes, 4e-29 4e8 4e18 J.
    np.testing.assert_allclose(effort.energy, [0.01, 0.064], rtol=1e-5)
    np.testing.assert_allclose(effort.finish, [0.1, 0.2], rtol=1e-5)
    assert np.all(effort.done)
    assert not np.any(effort.late)
    # A hundredth of the gain: 1e7 log2(1.01) = 143 550 bit/s, 7 s. It sends to its share's end.
    effort = carry(system, h / 10, decision, "none")
    np.testing.assert_allclose(effort.energy, [0.025, 0.064], rtol=1e-5)
    assert list(effort.late) == [True, False]
    assert list(effort.done) == [False, True]
    # Local fallback: 0.25 s + 0.4 s is beyond the slot of 0.5 s; after a share of 0.05 s it fits.
    assert not carry(system, h / 10, decision, "local").done[0]
    system, short = small(time=(0.05, 0.0))
    effort = carry(system, h / 10, short, "local")
    assert bool(effort.done[0])
    assert bool(effort.late[0])
    np.testing.assert_allclose(effort.energy, [0.005 + 0.016, 0.064], rtol=1e-5)
    np.testing.assert_allclose(effort.finish, [0.45, 0.2], rtol=1e-5)
    # Half of the task by each way, at the same time.
    system, parts = small(offload=(0.5, 0.0))
    effort = carry(system, h, parts, "none")
    np.testing.assert_allclose(effort.energy, [0.005 + 0.008, 0.064], rtol=1e-5)
    np.testing.assert_allclose(effort.finish, [0.2, 0.2], rtol=1e-5)
    # Beyond the slot nothing is sent, and no power beyond the limit.
    system, wild = small(offload=(1.0, 1.0), time=(0.45, 0.3), power=(9.0, 0.1))
    effort = carry(system, h / 1e4, wild, "none")
    np.testing.assert_allclose(
        effort.energy, [float(system.max_power) * 0.45, 0.1 * 0.05], rtol=1e-4
    )
    # A task that takes 0.4 s to compute is not begun in a slot of 0.3 s.
    system, stays = small(offload=(0.0, 0.0))
    effort = carry(system.replace(slot=0.3), h, stays, "none")
    np.testing.assert_allclose(effort.energy, [0.0, 0.064], rtol=1e-5)
    assert list(effort.done) == [False, True]


def test_summary_by_hand(paper):
    assert jain_index([1.0, 1.0, 0.0, 0.0]) == pytest.approx(0.5)
    few = jax.tree.map(lambda leaf: np.asarray(leaf)[:4], paper)  # 32 tasks: the last is 97 %
    assert np.all(few.feasible)
    found = summarise(few, 0.5)
    delays = np.sort(few.delay.ravel())
    assert (found.delay_95, found.delay_99) == (delays[-2], delays[-1])
    assert found.delay_mean == pytest.approx(np.mean(delays))
    bits = float(np.sum(PAPER.system.task_bits))
    assert found.throughput == pytest.approx(bits / 0.5, rel=1e-6)
    assert found.slot_energy == pytest.approx(np.sum(found.energy), rel=1e-6)
    assert (found.missed, found.backlog, found.infeasible) == (0, 1, 0)


def test_intervals_of_correlated_slots(paper):
    """Intervals hold the mean of a series with memory; where it is too short, they are infinite."""
    rng = np.random.default_rng(0)

    def series(number, memory, cells=400):
        noise = rng.normal(size=(number, cells))
        state = [rng.normal(size=cells) / (1 - memory**2) ** 0.5]
        for one in noise:
            state.append(memory * state[-1] + one)
        return 50 + np.array(state[1:]).T

    def summary(energy):  # [N] or [C, N]
        energy = energy[..., None]
        fields = {name: np.broadcast_to(np.ravel(leaf)[0], energy.shape)
                  for name, leaf in zip(Outcome._fields, paper)}  # fmt: skip
        fields |= {"energy": energy, "feasible": energy[..., 0] > 0, "risk": energy[..., 0]}
        return summarise(Outcome(**fields), 0.5)

    def share(energies):  # of the intervals that hold 50 J
        found = [summary(energy) for energy in energies]
        return np.mean([abs(one.slot_energy - 50) <= one.slot_energy_ci95 for one in found])

    long = series(2000, 0.9)
    assert 0.92 < share(long) < 0.98
    assert 60 < summary(long).effective_slots < 180  # 2000 * 0.1 / 1.9 = 105
    assert summary(series(2000, 0.0, 1)[0]).effective_slots > 1500
    assert share(long.reshape(50, 8, -1)) > 0.9  # over cells
    assert summary(series(400, 0.998, 1)[0]).slot_energy_ci95 == np.inf
    assert summary(long[:1, :]).slot_energy_ci95 == summary(long[0]).slot_energy_ci95


def test_your_own_scheme():
    def own(system, h):
        return mcos(h, system).replace(energy_per_device=None)

    scenario = Scenario(table1(4), arrivals="bernoulli", rate=0.5)
    _, outcome = simulate(scenario, own, 0, 20)
    ok = np.asarray(outcome.feasible)
    assert np.mean(ok) > 0.8
    assert np.all((np.asarray(outcome.completed) == (np.asarray(outcome.arrived) > 0))[ok])


def test_gain_quantiles_against_scipy():
    a = np.concatenate([[0, 0.01, 0.1], np.linspace(0.3, 8, 12), [30, 1000]]).astype(np.float32)
    for probability in (1e-5, 1e-3, 0.1, 0.6):
        want = scipy.stats.rice.ppf(probability, np.float64(a))
        got = gain_quantile(jnp.asarray(a), jnp.full(len(a), 2**0.5), probability)
        np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_array_equal(gain_quantile(jnp.asarray(a), jnp.zeros(len(a)), 0.1), a)


def slow_cpus(num_devices):
    """Devices that must all send, at full power in MCOS, and fit in nearly any channel."""
    return System(np.full(num_devices, 1e6), 400.0, 1e8, slot=1.0, bandwidth=1e8)


@pytest.mark.parametrize("per", ["slot", "uplink"])
def test_outage_asked_is_met(per):
    """Share of late slots, or uplinks, with old estimates with errors, all by one program."""
    outages = 0.2, 0.05, 0.01
    scenario = Scenario(slow_cpus(4), csi="estimated", csi_error=0.2, rice=1.0, rate=0.8,
                        arrivals="bernoulli", csi_delay=1, fading="gauss_markov",
                        doppler=0.1)  # fmt: skip

    def run(seed, outage):
        return simulate(scenario, robust("mcos", outage, per=per), seed, 1000)[1]

    seeds_and_outages = jax.vmap(jax.vmap(run, (0, None)), (None, 0))
    outcome = seeds_and_outages(jnp.arange(4), jnp.asarray(outages))
    for place, outage in enumerate(outages):
        found = summarise(jax.tree.map(lambda leaf, i=place: leaf[i], outcome), 1.0)
        met = found.late_slots if per == "slot" else found.late
        sent = np.asarray(outcome.sent[place])
        number = np.sum(sent.any(axis=-1) if per == "slot" else sent)
        assert number > 3000
        half = 3 * (outage * (1 - outage) / number) ** 0.5
        assert outage - half < met < outage + half
        if per == "slot":  # what is expected of each slot, on the knowledge of that slot
            risk = np.asarray(outcome.risk[place])[sent.any(axis=-1)]
            np.testing.assert_allclose(risk, outage, rtol=2e-3)


def test_one_price_of_risk():
    """The share of late slots is as asked on other slots than those that the price is of."""
    scenario = Scenario(slow_cpus(4), csi="estimated", csi_error=0.2)
    safe = robust("mcos", 0.05)
    priced = calibrate(safe, scenario, 0, 80)

    def played(seed):  # by the program of calibrate, for as many prices
        prices = jnp.full(PRICES, priced.price)
        play = jax.vmap(lambda price: simulate(scenario, safe.replace(price=price), seed, 80)[1])
        return jax.tree.map(lambda leaf: np.asarray(leaf)[0], play(prices))

    outcome = jax.tree.map(lambda *parts: np.concatenate(parts), *map(played, range(9, 24)))
    risk, sent, late = outcome.risk, outcome.sent, outcome.late
    assert np.all(sent.any(axis=-1))
    assert np.std(risk) > 0.01  # some slots take more
    assert 0.02 < np.mean(risk) < 0.06
    limit = 3 * (0.05 / len(risk)) ** 0.5
    assert np.mean(late.any(axis=-1)) == pytest.approx(np.mean(risk), abs=limit)
    with pytest.raises(ValueError, match="scheme must be from robust"):
        calibrate(robust("mcos", 0.1, error=0.1), scenario, 0)
    with pytest.raises(ValueError, match="calibrate must be called outside"):
        jax.jit(lambda key: calibrate(safe, scenario, key))(jax.random.key(0))


def test_margins_outside_the_simulator():
    system = slow_cpus(3)
    h = sample_channels(0, system, 1)[0]
    plan = jax.jit(lambda scheme, h: scheme(system, h))  # numbers are leaves: few programs
    h_safe = gain_quantile(h, jnp.full(3, 0.2 * 1e-3), 0.1)
    for scheme, planned in (
        (robust("mcos", 0.1, error=0.2, per="uplink"), h_safe),
        (robust("mcos", 0.1, error=0.0), h),
        (backoff("mcos", 3.0), h * 10**-0.15),
    ):
        safe, plain = plan(scheme, h), plan(backoff("mcos", 0.0), planned)
        np.testing.assert_allclose(safe.time, plain.time, rtol=1e-5)
    none = plan(robust("mcos", 0.1, error=0.0), 0 * h)
    assert not bool(none.feasible)
    assert np.all(np.isinf(none.energy_per_device))
    numbers = jnp.float32(0.5), np.array(0.25), np.float32(1.0)
    assert robust("mcos", *numbers) == robust("mcos", 0.5, 0.25, 1.0)
    assert hash(backoff("mcos", jnp.float32(3.0))) == hash(backoff("mcos", 3.0))
    method = backoff("mcos", 3.0)
    same = jax.jit(partial(solve, method=method))(h, system)
    np.testing.assert_allclose(same.time, plan(method, h).time, rtol=1e-6)


def test_cells_hear_each_other():
    """Two cells of one device at full power against the fixed point, by hand in float64.

    With a device that is away, as many devices as cells: no number is taken for the other's.
    """
    system = pad_devices(slow_cpus(1).replace(bandwidth=1e7), 2)
    h, cross = np.array(2 * [[1e-3, 0.0]]), np.full((2, 2, 2), 3e-4)
    found = solve_cells(h, system, cross, method="mcos", tolerance=1e-5)
    power, noise = float(system.max_power), 1e-9
    for _ in range(100):
        time = 1e6 / (1e7 * np.log2(1 + power * 1e-6 / noise))
        noise = 1e-9 + power * time * 9e-8
    assert bool(found.converged)
    np.testing.assert_allclose(found.noise_power, noise, rtol=1e-4)
    np.testing.assert_allclose(found.solution.energy, power * time, rtol=1e-4)
    alone = solve_cells(h, system, 0 * cross, method="mcos", tolerance=1e-5)
    assert int(alone.rounds) == 1
    np.testing.assert_array_equal(alone.noise_power, np.float32(1e-9))
    few = solve_cells(h, system, cross, method="mcos", rounds=2, tolerance=1e-5)
    assert not bool(few.converged)
    assert float(few.change) > 1e-5
    within = jax.jit(lambda *gains: solve_cells(gains[0], system, gains[1], "mcos"))
    for wrong in ((-h, cross), (h * np.nan, cross), (h + np.inf, cross), (h, -cross)):
        found = within(*wrong)
        assert not bool(found.converged)
        assert np.all(np.isnan(found.solution.energy))
    for arguments, message in (
        ((-h, system, cross), "h must be finite and at least 0; got -0.001"),
        ((h * np.nan, system, cross), "h must be finite and at least 0; got nan"),
        ((h, system, cross * np.inf), "cross must be finite and at least 0; got inf"),
        ((h, system.replace(slot=np.ones(3)), cross), "system.slot must have batch axes"),
        ((h[0], system, cross), "h must have gains of cells and devices"),
        ((h, system, cross[0]), "cross must have shape"),
        ((h, system, -cross), "cross must be finite and at least 0"),
        ((h, system, cross, "mcos", 5, 1.0), "damping must be from 0 to below 1; got 1"),
        ((h, system, cross, "mcos", 0), "rounds must be at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            solve_cells(*arguments)


GOOD = Scenario(table1(3))
BAD_FIELDS = [
    ("doppler", -1.0, "finite and at least 0; got -1"),
    ("speed", [1.0, 2.0], "one number or 3, one per device; got shape"),
    ("radius", 0.0, "finite and above 0"),
    ("rate", np.nan, "finite and at least 0; got nan"),
    ("deadline", 0.5, "finite and at least 1"),
    ("deadline", [1.0, 2.0, 1.0], "one number; got shape"),
    ("battery", 0.0, "finite and above 0"),
    ("csi_error", 1.5, "at most 1; got 1.5"),
    ("size_spread", 2, "at most 1; got 2"),
    ("exponent", "three", "real numbers; got 'three'"),
    ("fading", "rayleigh", "one of block, gauss_markov; got 'rayleigh'"),
    ("csi", "old", "one of perfect, estimated; got 'old'"),
    ("csi_delay", 1, 'zero for csi="perfect"; got 1'),
    ("csi_delay", 0.5, "an integer of at least 0; got 0.5"),
    ("queue_size", 0, "at least 1; got 0"),
    ("system.slot", table1(3).replace(slot=np.ones(2)), "of one system; map over scenarios"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_FIELDS)
def test_bad_scenarios(field, value, message):
    with pytest.raises(ValueError, match=rf"scenario\.{field}.* must be {re.escape(message)}"):
        reset(0, GOOD.replace(**{field.split(".")[0]: value}))


def test_a_scenario_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match="fading must be one of block, gauss_markov"):
        Scenario(table1(3), fading="rayleigh")
    with pytest.raises(ValueError, match="queue_size must be at least 1; got 0"):
        GOOD.replace(queue_size=0)
    assert jax.tree.map(lambda leaf: None, GOOD).fading == "block"  # leaves may be anything
    assert "rate=1 tasks/slot" in repr(GOOD)


def test_bad_arguments(paper):
    state, seen = reset(0, GOOD)
    decision = solve(seen.h, seen.system, method="mcos")
    wide = decision.replace(power=np.ones(4))
    bad = decision.replace(time=np.full(3, np.nan, np.float32))
    _, _, outcome = _step(jax.random.key(0), state, bad)  # as under jax.jit
    assert np.all(np.isnan(outcome.energy))
    assert not bool(outcome.feasible)
    played = jax.tree.map(np.asarray, paper)
    for call, message in (
        (lambda: reset(0.5, GOOD), "key must be an integer or one PRNG key"),
        (lambda: reset(0, table1(3)), "scenario must be a meco_jax.simulation.Scenario"),
        (lambda: step(0, GOOD, decision), "state must be from reset or step"),
        (lambda: step(0, state, seen.h), "decision must be a meco_jax.Solution"),
        (lambda: step(0, state, wide), "decision.power must have one entry for each of 3"),
        (lambda: step(0, state, bad), "decision.time must be finite and at least 0; got nan"),
        (lambda: step(0, state, decision.replace(offload=np.full(3, 2.0))), "from 0 to 1; got 2"),
        (lambda: step(0, state, decision.replace(feasible=1.0)), "feasible must be one boolean"),
        (
            lambda: simulate(state._replace(scenario=GOOD.replace(rice=-1.0)), "mcos", 0, 3),
            "scenario.rice must be finite and at least 0; got -1",
        ),
        (lambda: simulate(GOOD, "best", 0, 3), "scheme must be one of bcos, mcos"),
        (lambda: simulate(GOOD, None, 0, 3), "scheme must be one of bcos, mcos"),
        (lambda: simulate(GOOD, "mcos", 0, 0), "num_slots must be at least 1"),
        (lambda: robust("mcos", 0.0), "outage must be from 0 to 1, both excluded; got 0"),
        (lambda: robust("mcos", 0.1, error=2), "error must be from 0 to 1; got 2"),
        (lambda: robust("mcos", 0.1, correlation=-2), "correlation must be from -1 to 1; got -2"),
        (lambda: robust("mcos", 0.1, per="task"), "per must be one of slot, uplink; got 'task'"),
        (lambda: solve(seen.h, GOOD.system, method=robust("mcos", 0.1)), "error must be a number"),
        (lambda: backoff("mcos", -1.0), "db must be finite and at least 0; got -1"),
        (lambda: summarise(seen, 0.5), "outcome must be from meco_jax.simulation.simulate"),
        (lambda: summarise(played, [0.5, 1.0]), "slot must be one number"),
        (lambda: summarise(played, 0.5, [True, False]), "active must be one boolean, or one for"),
        (lambda: summarise(played._replace(energy=-played.energy), 0.5), "outcome.energy must be"),
        (lambda: jain_index([1.0, -1.0]), "shares must be finite and at least 0; got -1"),
        (lambda: doppler_frequency(-1.0, 2e9), "speed must be finite and at least 0; got -1"),
        (lambda: doppler_frequency(1.0, np.nan), "carrier must be finite and at least 0; got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_queues_as_energy():
    """Drift plus penalty is P1 with virtual CPUs (THEORY.md, section 10), against all sets."""
    rng = np.random.default_rng(0)
    system, h = table1(8, slot=0.3, seed=3), np.sqrt(10 ** rng.uniform(-8, -6, 8))
    bits, chip = np.asarray(system.task_bits, np.float64), system.chip
    computing = np.asarray(local_costs(check_scenario(Scenario(system)).system)[1], np.float64)
    can = np.asarray(system.cycles_per_bit) * bits / np.asarray(system.cpu_hz) <= 0.3
    worth = np.append(0.0, 10 ** rng.uniform(-3, -0.5, 7))  # Q B / V [J]
    waits = np.where(can, np.minimum(worth, computing), worth)
    hz = 1.01 * np.maximum((waits / (chip * 0.3)) ** (1 / 3), 1e4)
    virtual = system.replace(cpu_hz=hz, cycles_per_bit=waits / (chip * bits * hz**2))
    found = optimum(jnp.asarray(h, jnp.float32), check_scenario(Scenario(virtual)).system)
    free = system.replace(cpu_hz=np.full(8, 1e13), chip=0.0)  # sending alone costs
    sends = (np.arange(256)[:, None] >> np.arange(8)) % 2
    sent = np.asarray(allocate(h, free, sends.astype(float)).energy, np.float64)
    least = np.min(sent + np.sum(waits * (1 - sends), axis=1))
    assert float(found.energy) == pytest.approx(least, rel=1e-4)
    assert 0 < np.sum(found.offload) < 8
