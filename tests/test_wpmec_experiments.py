"""The comparison on wireless powered frames: the learned baseline, the script, its own data."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
from cases import inside
from scipy.io import savemat
from support import droo

from meco_jax import wpmec


def test_quantisation_keeps_the_order():
    relaxed = jnp.array([0.9, 0.4, 0.7, 0.1])
    # By hand: nearest to 1/2 are 0.4 and 0.7. Threshold 0.4: itself sends too. 0.7: it does not.
    expected = [[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    np.testing.assert_array_equal(droo.quantise(relaxed, 3), expected)


def test_online_learning_plays_modes_below_the_optimum():
    system = wpmec.reference(3)
    h = np.asarray(wpmec.sample_channels(0, 3, 600), np.float64)
    run = droo.online(h, system, 4, seed=0)
    ratio = run.rate / np.asarray(wpmec.solve(h, system).rate)
    assert ratio.max() < 1 + 1e-6
    assert max(0.9, ratio[:200].mean()) < ratio[-200:].mean()


def test_script_on_drawn_frames(tmp_path):
    flags = "--family=all", "--num_devices=3", "--frames=50", "--single_calls=1", "--repeats=1"
    result = inside(*flags, f"--output_dir={tmp_path}", script="droo")
    assert not result.returncode, result.stderr
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert rows[0]["method"] == "optimal"
    assert float(rows[0]["proven_1e6"]) == 1
    assert float(rows[0]["loss_worst"]) == 0
    assert (tmp_path / "droo.png").stat().st_size > 5000
    again = inside("--plot_only", f"--output_dir={tmp_path}", script="droo")
    assert not again.returncode, again.stderr


def test_script_on_own_data(tmp_path):
    h = np.asarray(wpmec.sample_channels(0, 3, 50), np.float64)
    found = wpmec.solve(h)
    mode = np.array(found.offload)
    mode[7] = 1 - mode[7]
    data = {"input_h": h, "output_mode": mode, "output_obj": np.asarray(found.rate)[:, None]}
    savemat(tmp_path / "data.mat", data)
    flags = f"--data={tmp_path / 'data.mat'}", "--single_calls=1", "--repeats=1"
    result = inside(*flags, f"--output_dir={tmp_path / 'out'}", script="droo")
    assert not result.returncode, result.stderr
    assert "1 not optimal; frame 7 by" in result.stdout
    assert "0 above the bound" in result.stdout


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"h": np.ones((50, 3))}, "must have input_h, output_obj, output_mode; got h"),
        (
            {
                "input_h": np.ones((60, 3)),
                "output_mode": np.ones((60, 2)),
                "output_obj": np.ones(60),
            },
            "got shapes (60, 3), (60, 2)",
        ),
        (None, "must be a .mat file up to version 7.2"),
    ],
)
def test_bad_data_is_one_line(data, message, tmp_path):
    path = tmp_path / "data.mat"
    if data:
        savemat(path, data)
    else:
        path.write_text("h")
    result = inside(f"--data={path}", f"--output_dir={tmp_path / 'out'}", script="droo")
    assert result.returncode
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
