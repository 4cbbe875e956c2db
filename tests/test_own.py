"""What users bring to the experiments: schemes, physics, devices, ranges."""

import csv
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from cases import TINY, inside, one_line, run
from support import common, list_flags, trainings

from meco_jax import make_grid, table1
from meco_jax.paper import sweep
from meco_jax.runtime.checkpoints import OtherRunError

SCHEMES = '''
import meco_jax


def good_channels(system, h):
    """Ask all to send whose channel is better than its mean."""
    return meco_jax.mcos(h, system) if LATER_SIZES else meco_jax.pcos(h, system)


def pair(system, h):
    return h, h


def wrong(system, h):
    if h[0] > 0:
        return meco_jax.mcos(h, system)


LATER_SIZES, bcos = True, good_channels
'''


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(SCHEMES)
    return tmp_path / "mine.py"


def test_a_run_goes_on_with_as_many_processes(tmp_path, capsys):
    """Two processes' checkpoints are not what one looks for: it must not silently begin anew."""
    for had, now in ((2, 1), (1, 2), (2, 3)):
        folder = tmp_path / f"{had}{now}"
        name = f"process_0_of_{had}" if had > 1 else "step_20"
        (folder / "checkpoints" / "bcos" / name).mkdir(parents=True)
        place = trainings.checkpoint_folder(folder, "bcos", 0, had)
        assert place == folder / "checkpoints" / "bcos" / (name if had > 1 else "")
        with pytest.raises(SystemExit):
            trainings.checkpoint_folder(folder, "bcos", 0, now)
        assert f"--num_processes must be {had} to go on" in capsys.readouterr().err


def read(folder):
    with open(folder / "results.csv") as file:
        return list(csv.DictReader(file))


def test_a_scheme_of_ones_own_is_compared_and_drawn(finished, mine, tmp_path):
    """A run that is finished takes it without training; then its rows are not lost."""
    folder = tmp_path / "out"
    shutil.copytree(finished[0], folder)
    command = *TINY, f"--output_dir={folder}"
    result = run(*command, "--scheme=mine:good_channels", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "good_channels" in result.stdout
    rows = read(folder)
    own = [row for row in rows if row["scheme"] == "good_channels"]
    assert [row for row in rows if row not in own] == read(finished[0])
    mcos = [row for row in rows if row["scheme"] == "mcos"]
    assert len(own) == len(mcos) == 4
    energy, same = ([float(row["cost_mean_j"]) for row in rows] for rows in (own, mcos))
    np.testing.assert_allclose(energy, same, rtol=1e-5)
    assert json.loads((folder / "run.json").read_text())["flags"]["scheme"] == [
        "mine:good_channels"
    ]
    drawn = (folder / "figure4.png").read_bytes()
    assert drawn != (finished[0] / "figure4.png").read_bytes()
    (folder / "figure4.png").unlink()
    assert inside(f"--output_dir={folder}", "--plot_only").returncode == 0
    assert (folder / "figure4.png").read_bytes() == drawn
    kept = {path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}
    one_line(inside(*command), "--scheme must name good_channels too, whose rows ")
    scheme = f"--scheme={mine}:good_channels"
    for flag, message in (
        ("--bandwidth=2e7", "--bandwidth must be None to go on with the run in"),
        (f"--system={devices(tmp_path)}", "--system must be None to go on with the run in"),
    ):
        one_line(inside(*command, scheme, flag), message, "take another --output_dir")
    assert kept == {path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("mine.py", "--scheme must be module:function; got mine.py"),
        (":f", "--scheme must be module:function; got :f"),
        ("nowhere.py:f", "--scheme=nowhere.py:f: FileNotFoundError: "),
        ("nowhere:f", "--scheme=nowhere:f: ModuleNotFoundError: No module named 'nowhere'"),
        ("mine.py:none", "mine.py must have a function none; got none"),
        ("mine.py:LATER_SIZES", "mine.py must have a function LATER_SIZES; got True"),
        ("mine.py:bcos", "--scheme=mine.py:bcos must have another name than mcos, "),
        ("mine.py:pair", "method must be a function that returns a meco_jax.Solution; got ("),
        ("mine.py:wrong", ("TracerBoolConversionError: ", "(mine.py, line 15)")),
        ("broken.py:f", "ZeroDivisionError: division by zero (broken.py, line 2)"),
    ],
    ids=lambda text: text if isinstance(text, str) else None,
)
def test_schemes_that_cannot_be_run_are_one_line(scheme, message, mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    result = inside(*TINY, f"--output_dir={tmp_path / 'out'}", f"--scheme={scheme}")
    one_line(result, *([message] if isinstance(message, str) else message))
    assert not (tmp_path / "out").exists()


def devices(folder, **fields):
    """A file of four devices of one's own."""
    own = {"task_bits": [1e6, 2e6, 3e6, 4e6], "cycles_per_bit": np.full(4, 300.0),
           "cpu_hz": np.full(4, 1e9), "bandwidth": 5e6} | fields  # fmt: skip
    np.savez(folder / "own.npz", **{name: x for name, x in own.items() if x is not None})
    return folder / "own.npz"


@pytest.mark.parametrize("script", ["sweep_k", "sweep_t", "delay_cdf", "plane", "constraints"])
def test_physics_reach_every_sweep(script, mine, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(trainings, "train_and_evaluate", lambda *at: asked.append(at) or sys.exit())
    flags = (*TINY[1:], f"--output_dir={tmp_path / 'out'}", f"--system={devices(tmp_path)}",
             "--num_devices=3", "--noise_power=2e-9", "--log_base=10", "--weight=2",
             f"--scheme={mine}:good_channels", f"--scheme={mine}:FEW2")  # fmt: skip
    (mine).write_text(SCHEMES + "\nFEW2 = good_channels\n")
    result = inside(*flags, script=script)
    assert not result.returncode, result.stderr
    ((lanes, _, _, schemes),) = asked
    assert list(schemes) == ["good_channels", "FEW2"]
    systems, number = lanes.systems, len(lanes.points)
    np.testing.assert_array_equal(systems.task_bits, np.tile([1e6, 2e6, 3e6], (number, 1)))
    for name, value in (("bandwidth", 5e6), ("noise_power", 2e-9), ("log_base", 10), ("weight", 2)):
        np.testing.assert_array_equal(getattr(systems, name), np.float32(value))
    assert all(point["log_base"] == 10 and "bandwidth" not in point for point in lanes.points)


def test_files_that_hold_no_devices_are_one_line(tmp_path):
    command = *TINY, f"--output_dir={tmp_path / 'out'}"
    path = tmp_path / "own.npz"
    for fields, message in (
        ({"cpu_hz": None}, f"--system={path} must hold cpu_hz; got task_bits"),
        ({"slot": 1.0}, "alone; got slot; the slot is a flag of its own"),
        ({"speed": 1.0}, "alone; got speed"),
        ({"active": [True, True, False, True]}, "must hold devices that are all active"),
        ({"task_bits": -1e6 * np.ones(4)}, f"--system={path}: system.task_bits must be finite"),
        ({"cpu_hz": np.ones(3)}, "system.cpu_hz must be one number or have one entry for each of"),
        ({"weight": np.ones((2, 4))}, "system must have no batch axes; got weight of shape (2, 4)"),
        ({"cpu_hz": np.array([None])}, f"--system={path} cannot be read: "),
    ):
        one_line(inside(*command, f"--system={devices(tmp_path, **fields)}"), message)
    devices(tmp_path)
    message = "--num_devices must be at most 4, as system has; got 5"
    one_line(inside(*command, f"--system={path}", "--num_devices=2,5"), message)
    for content, message in ((b"", "cannot be read: "), (b"task_bits,1", "cannot be read: ")):
        path.write_bytes(content)
        one_line(inside(*command, f"--system={path}"), f"--system={path} {message}")
    path.unlink()
    message = f"--system={path} cannot be read: No such file or directory"
    one_line(inside(*command, f"--system={path}"), message)
    for flag, message in (
        ("--bandwidth=0", "--bandwidth must be finite and above 0; got 0"),
        ("--log_base=1", "--log_base must be finite and above 1; got 1"),
        ("--weight=nan", "--weight must be finite; got nan"),
    ):
        one_line(inside(*command, flag), message)
    assert not (tmp_path / "out").exists()


def test_a_grid_of_ones_own_devices(tmp_path):
    own = table1(3, seed=5).replace(weight=2.0, bandwidth=5e6, slot=0.7)
    grid = make_grid({"num_devices": [3, 2], "seed": [0, 1], "bandwidth": [1e6]}, own)
    np.testing.assert_array_equal(grid.systems.task_bits[0], own.task_bits)
    np.testing.assert_array_equal(grid.systems.task_bits[1], own.task_bits)  # of another seed
    np.testing.assert_array_equal(grid.systems.task_bits[2], [*own.task_bits[:2], 0])
    np.testing.assert_array_equal(grid.systems.weight[2], [2, 2, 0])
    np.testing.assert_array_equal(grid.systems.slot, np.float32(0.7))
    np.testing.assert_array_equal(grid.systems.bandwidth, 1e6)
    shape = lambda lanes: jax.tree.map(np.shape, lanes.systems)  # noqa: E731
    assert shape(grid) == shape(make_grid({"num_devices": [3, 2], "seed": [0, 1]}))
    settings = [
        sweep._describe(make_grid({"num_devices": [2]}, system), trainings.TrainConfig())
        for system in (None, own, own.replace(weight=1.0), table1(2, seed=5).replace(weight=1.0))
    ]
    assert "system" not in settings[0]
    assert len({one.get("system") for one in settings}) == 4
    assert sweep._describe(grid.part([0]), trainings.TrainConfig())["system"]
    for system, message in (
        (table1(2), "num_devices must be at most 2, as system has; got 14"),
        (table1(14).replace(slot=np.ones(2)), r"system must have no batch axes; got slot of"),
        (table1(14).replace(active=np.arange(14) > 0), "system must be without padding; got"),
    ):
        with pytest.raises(ValueError, match=message):
            make_grid({"seed": [0]}, system)
    assert common.as_flags(OtherRunError("system", "None", "one", tmp_path)).startswith("system")


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("4:20:2", "4 6 8 10 12 14 16 18 20"),
        ("4:7", "4 5 6 7"),
        ("4:9:2", "4 6 8"),
        ("5:5", "5"),
        ("0.3:0.6:0.1", "0.3 0.4 0.5 0.6"),
        ("e", "e"),
        ("8", "8"),
        *((text, text) for text in ("8:4", "4:8:0", "4:8:-1", "4:8:2:1", "4:", ":", "a:b", "nan:4",
                                    "0:1e9", "4:inf", "4:8:inf", "")),
    ],
)  # fmt: skip
def test_ranges_of_list_flags(text, members):
    assert list_flags._range(text) == members.split(" ")


def test_ranges_mix_with_numbers(tmp_path):
    flags = *TINY, f"--output_dir={tmp_path / 'out'}", "--require_platform=tpu"
    for good in ("2,4:8:2", "1:3"):
        one_line(inside(*flags, f"--num_devices={good}"), "--require_platform=tpu, but")
    for bad in ("2,1:3", "8:4", "0:4", "4.5:6"):
        message = f"--num_devices must be different integers of at least 1; got {bad}"
        one_line(inside(*flags, f"--num_devices={bad}"), message)
