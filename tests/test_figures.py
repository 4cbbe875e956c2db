import matplotlib
import numpy as np

from meco_jax import figures


def energies(seeds):
    rng = np.random.default_rng(0)
    names = ("lower_bound", "optimal", "pcos", "pcos_learned", "bcos", "bcos_raw", "mcos",
             "mcos_partial")  # fmt: skip
    return {name: (1 + i / 10) * (1 + 0.1 * rng.random((seeds, 3))) for i, name in enumerate(names)}


def test_energy_figure_shows_every_scheme():
    energy = energies(3)
    figure = figures.energy_figure([4, 8, 12], energy, "devices [-]", "T")
    left, right = figure.axes
    lines = {line.get_label(): line for line in left.lines}
    for scheme, (label, style) in figures.SCHEMES.items():
        np.testing.assert_array_equal(lines[label].get_xdata(), [4, 8, 12])
        np.testing.assert_allclose(lines[label].get_ydata(), energy[scheme].mean(axis=0))
        assert lines[label].get_color() == style["color"]
    assert "[J]" in left.get_ylabel()
    assert "[-]" in left.get_xlabel()
    assert len(left.collections) == 2  # confidence bands of MCOS and the optimum
    assert len(right.collections) == len(figures.SCHEMES) - 3
    fixed = next(line for line in right.lines if line.get_label() == "BCOS, made feasible")
    expected = 100 * np.mean(energy["bcos"] / energy["optimal"] - 1, axis=0)
    np.testing.assert_allclose(fixed.get_ydata(), expected)


def test_one_seed_has_no_band():
    assert not figures.energy_figure([4, 8, 12], energies(1), "K", "T").axes[0].collections


def test_styles_differ_in_grey_print():
    styles = [(s["marker"], s["linestyle"]) for _, s in figures.SCHEMES.values()]
    assert len(set(styles)) == len(styles)


def test_training_figure(key):
    steps = np.array([10, 20, 30])
    metrics = ("energy", "violation", "multiplier")
    history = {"step": steps} | {f"teacher_{m}": np.ones((3, 2)) for m in metrics}
    student = history | {f"student_{m}": np.full((3, 2), 2.0) for m in metrics}
    figure = figures.training_figure({"BCOS": student, "PCOS": history}, ["K = 4", "K = 8"])
    assert len(figure.axes) == 6
    assert all(len(axes.lines) == 2 for axes in figure.axes)
    assert figure.axes[0].lines[0].get_ydata()[0] == 2.0
    assert figure.axes[3].lines[0].get_ydata()[0] == 1.0


def test_files_are_deterministic(tmp_path):
    before = dict(matplotlib.rcParams)
    for name in ("a", "b"):
        figures.save_figure(
            figures.energy_figure([4, 8, 12], energies(2), "K", "T"), tmp_path / name
        )
    for ending in ("png", "pdf"):
        first = (tmp_path / f"a.{ending}").read_bytes()
        assert first == (tmp_path / f"b.{ending}").read_bytes()
        assert len(first) > 5000
    assert dict(matplotlib.rcParams) == before


def test_delay_figure_names_the_late_share():
    times = {name: np.sort(v.ravel())[None] for name, v in energies(3).items()}
    late = dict.fromkeys(times, 0.125)
    axes = figures.delay_figure(times, np.linspace(0, 1, 9), late, 1.2, "title").axes[0]
    assert any(line.get_label() == "MCOS: 12.5 % late" for line in axes.lines)
    assert any(np.all(np.asarray(line.get_xdata()) == 1.2) for line in axes.lines)


def test_plane_figure_leaves_gaps_white():
    values = np.array([[1.0, np.nan], [3.0, 4.0], [5.0, 6.0]])
    axes = figures.plane_figure([4, 8], [0.3, 0.5, 1.0], {"gap [%]": values, "b": values}).axes
    assert [t.get_text() for t in axes[0].texts] == ["1.0", "3.0", "4.0", "5.0", "6.0"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["0.3", "0.5", "1"]


def test_frontier_and_scale_figures():
    rows = [
        {"num_devices": k, "method": name, "family": family, "gap_mean": gap, "gap_worst": gap,
         "channels_per_second": 10.0, "us_per_channel": 5.0 * k, "bytes_per_channel": 10.0}
        for k in (4, 8) for name, family, gap in (("a", "greedy", 1e-2), ("b", "public", 0.0))
    ]  # fmt: skip
    figure = figures.frontier_figure(rows)
    assert len(figure.axes) == 4
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["1  a", "2  b"]
    assert "slope 1.00" in figures.scale_figure(rows, 1.0).axes[0].get_title()
