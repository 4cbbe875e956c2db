"""What ``explain`` says of channels by hand, that it agrees with ``solve``, and slips of unit."""

import jax
import numpy as np
import pytest
from mixtures import mixtures

import meco_jax
from meco_jax import System, benchmarks, explain, from_dbm, sample_channels, table1
from meco_jax.exact.shares import fits
from meco_jax.exact.uplink import make_uplink
from meco_jax.system import check_system, forced

# K = 2 by hand. SNR: p h^2 / N0 = 0.1 * 1e-6 / 1e-9 = 100 = 20 dB, and 0.1 * 9e-8 / 1e-9 = 9.
# Local times 1e6 * 500 / 1e9 = 0.5 s and 2e6 * 500 / 1e9 = 1 s, T = 0.8 s: the second must offload.
# Its rate is 1e6 log2(1 + 9) = 3.3219 Mbit/s, so that 2e6 bit take 0.60206 s: 0.75257 of the slot.
PAIR = System(
    task_bits=[1e6, 2e6], cycles_per_bit=500, cpu_hz=1e9, slot=0.8,
    bandwidth=1e6, noise_power=1e-9, max_power=0.1,
)  # fmt: skip
H = np.array([1e-3, 3e-4])


def test_a_channel_by_hand(capsys):
    found = explain(H, PAIR)
    np.testing.assert_allclose(found.snr_db, [20, 10 * np.log10(9)], rtol=1e-6)
    np.testing.assert_allclose(found.local_ratio, [0.625, 1.25], rtol=1e-6)
    np.testing.assert_array_equal(found.forced, [False, True])
    np.testing.assert_allclose(found.slot_share[1], 2e6 / (1e6 * np.log2(10)) / 0.8, rtol=1e-6)
    np.testing.assert_allclose(found.slot_need, found.slot_share[1])
    assert found.feasible
    assert (found.constraint, found.slips, found.index, found.edge_need) == ("", (), (), None)
    said = capsys.readouterr().out
    assert said == f"{found}\n"
    assert said.splitlines()[0] == (
        "feasible: 1 of 2 devices must offload, as their local time is above T = 0.8 s (C2)"
    )
    assert said.splitlines()[1] == "they take 75.26 % of the slot at least (C1)"
    assert said.splitlines()[3].split() == ["0", "20.0", "0.625", "-", "18.77", "%"]
    assert said.splitlines()[4].split() == ["1", "9.5", "1.25", "yes", "75.26", "%"]
    assert len(repr(found).splitlines()) < 7


@pytest.mark.parametrize(
    ("changes", "gains", "constraint", "line"),
    [
        ({"slot": 0.55}, H, "C1", "they take 109.5 % of the slot at least (C1), and would fit "),
        ({"fixed_time": 0.3}, H, "C1", "they take 112.8 % of the slot"),  # (0.60206 + 0.3) / 0.8
        ({"edge_cycles": 8e8}, H, "C6", "they take 125 % of the edge's cycles (C6)"),  # 1e9 / 8e8
        ({"edge_cycles": 8e8, "slot": 0.55}, H, "C1 and C6", "they take 125 % of the edge"),
        ({}, [1e-3, 0.0], "C1", "no time is enough for device 1 at full power (C3)"),
        ({"cpu_hz": [0.0, 0.0]}, H, "", "no CPU"),
        ({"access": "fdma"}, H, "", "of the band"),
    ],
)  # fmt: skip
def test_what_makes_a_channel_infeasible(changes, gains, constraint, line, capsys):
    found = explain(gains, PAIR.replace(**changes))
    assert found.constraint == constraint
    assert found.feasible == (constraint == "")
    assert line in capsys.readouterr().out
    assert found.text.startswith(f"INFEASIBLE by {constraint}:" if constraint else "feasible: ")


def test_a_batch_is_summed_up(capsys):
    h = np.stack([H, H * [1, 0.5], H, H * [1, 0.1]]).reshape(2, 2, 2)
    found = explain(h, PAIR)
    np.testing.assert_array_equal(found.feasible, [[True, False], [True, False]])
    assert found.snr_db.shape == (2, 2, 2)
    assert found.index == (0, 1)
    text = "2 of 4 channels are infeasible: 2 by C1\nchannel 0, 1\nINFEASIBLE by C1: 1 of 2 devices"
    assert text in capsys.readouterr().out
    assert explain(h, PAIR, index=2).index == explain(h, PAIR, index=(1, 0)).index == (1, 0)
    swept = explain(H, PAIR.replace(slot=[0.5, 0.8, 2.0]))
    np.testing.assert_array_equal(swept.forced.sum(-1), [1, 1, 0])
    padded = explain(np.ones(100) * 1e-3, meco_jax.pad_devices(table1(90), 100))
    assert len(str(padded).splitlines()) == 24
    assert "70 more, which need less" in str(padded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((H, PAIR, 1), "index must be an integer from 0 to 0"),
        ((np.stack([H] * 3), PAIR, 3), "index must be an integer from 0 to 2; got 3"),
        ((np.stack([H] * 3), PAIR, (0, 1)), r"index must be of 1 axes, like the batch \(3,\)"),
        ((np.zeros((0, 2)), PAIR), "h and system must be of one channel at least"),
        ((PAIR, H), "system must be a meco_jax.System"),
        ((-H, PAIR), "h must be finite and at least 0; got -0.001"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        explain(*arguments)


def test_under_jit_it_says_so():
    with pytest.raises(ValueError, match=r"explain must be called outside jax.jit"):
        jax.jit(lambda h: explain(h, PAIR).snr_db)(H)


def test_nothing_is_compiled(caplog):
    with jax.log_compiles():
        explain(np.stack([H] * 5), PAIR.replace(access="fdma", edge_cycles=1e9, delay_weight=0.1))
    assert not caplog.records


def test_it_agrees_with_known_optima(known):
    systems, h, data = known
    found = explain(h, systems)
    np.testing.assert_array_equal(found.feasible, np.isfinite(data["energy"]))
    assert not found.feasible.all()


def test_it_agrees_with_solve():
    """The same devices must offload, and the same channels are feasible, with all fields."""
    systems, h = mixtures(0, 200, 6, "fdma")

    @jax.jit
    @jax.vmap
    def expected(system, h):
        must = forced(system)
        return must, fits(make_uplink(system, h, whole=True), must)

    found = explain(h, systems)
    must, feasible = expected(check_system(systems), h)
    np.testing.assert_array_equal(found.forced, must)
    np.testing.assert_array_equal(found.feasible, feasible)
    assert 0.2 < found.feasible.mean() < 0.9
    assert found.slips == ()


def test_plain_systems_have_no_slips():
    for name in benchmarks.names():
        family = benchmarks.load(name)
        if family.problem == "p1":
            assert explain(family.h, family.system).slips == (), name
            for i in range(0, len(family.h), 20):
                one = jax.tree.map(lambda x, i=i: x[i], family.system)
                assert explain(family.h[i], one).slips == (), (name, i)


CELL = table1(8).replace(noise_power=from_dbm(-95))
FADED = np.asarray(sample_channels(0, table1(8), 100))  # of mean power 1e-6
FAR = FADED * 10 ** (-45 / 20)  # path gains of -105 dB, as of a cell


@pytest.mark.parametrize(
    ("h", "system", "slips"),
    [
        (FADED, table1(8).replace(task_bits=np.linspace(100, 300, 8)), {"task_bits"}),  # KB
        (FADED, table1(8).replace(cpu_hz=np.linspace(1, 2, 8)), {"cpu_hz"}),  # GHz
        (FADED, table1(8).replace(cpu_hz=np.linspace(1e3, 2e3, 8)), {"cpu_hz"}),  # MHz
        (FADED, table1(8).replace(cycles_per_bit=np.full(8, 4e8)), {"cycles_per_bit"}),
        (FADED, table1(8).replace(slot=500.0), {"slot"}),  # ms
        (FADED, table1(8).replace(bandwidth=10.0), {"bandwidth"}),  # MHz
        (FADED, table1(8).replace(max_power=23.0), {"max_power"}),  # dBm
        (FADED, table1(8).replace(max_power=200.0), {"max_power"}),  # mW
        (FADED, table1(8).replace(chip=0.1), {"chip"}),  # W/GHz^3
        (FADED, table1(8).replace(fixed_time=2.0), {"fixed_time"}),  # ms
        (FADED, table1(8).replace(edge_cycles=10.0), {"edge_cycles"}),  # GHz
        (FAR, CELL.replace(noise_power=from_dbm(-174 + 9)), {"noise_power", "h"}),  # W/Hz
        (FAR**2, CELL, {"h"}),  # power gains
        (FAR[0] ** 2, CELL, {"h"}),
        (FADED**2, table1(8), {"h", "noise_power"}),  # in Table 1 it might be either
        (FAR, table1(8), {"h", "noise_power"}),  # Table 1's noise beside a cell
        (-20 * np.log10(FAR), CELL, {"h"}),  # a path loss in dB
        (FADED * 1e3, CELL, {"h"}),  # fading of mean 1 without the path
        (FAR, CELL, set()),
    ],
)
def test_slips_of_unit_are_found(h, system, slips, capsys):
    found = explain(h, system)
    assert {slip.name for slip in found.slips} == slips
    assert capsys.readouterr().out.count("\nlook at ") == len(found.slips)
