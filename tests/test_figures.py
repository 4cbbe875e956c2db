import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import result_figures
from matplotlib import colors, image
from support import gap_plots, plots

from meco_jax import figures

FIGURES = Path(__file__).parent.parent / "experiments" / "figures"
NAMES = (*figures.SCHEMES, "droo")


def summary(seeds, points=(4, 8, 12)):
    rng = np.random.default_rng(0)
    return [
        {"num_devices": k, "slot": 0.5, "seed": seed, "scheme": name,
         "cost_mean_j": (1 + i / 10) * (1 + 0.1 * rng.random()),
         "gap_to_optimum_mean": (i - 1) / 10 + 0.01 * rng.random(),
         "feasible_fraction": 0.7 if name in figures.RAW else 1.0,
         "deadline_met_fraction": 0.9 if name in figures.RAW else 1.0,
         "infeasible_fraction": 0.1}
        for i, name in enumerate(NAMES) for seed in range(seeds) for k in points
    ]  # fmt: skip


def test_energy_figure_shows_every_scheme():
    rows = summary(3)
    figure = figures.energy_figure(rows, "num_devices")
    left, middle, right = figure.axes
    energy = figures.by_scheme(rows, "num_devices", "cost_mean_j")
    lines = {line.get_label(): line for line in left.lines}
    for scheme, (label, style) in figures.scheme_styles(NAMES).items():
        np.testing.assert_array_equal(lines[label].get_xdata(), [4, 8, 12])
        np.testing.assert_allclose(lines[label].get_ydata(), energy[scheme].mean(axis=0))
        assert lines[label].get_color() == style["color"]
    assert "[J]" in left.get_ylabel()
    assert "[-]" in left.get_xlabel()
    assert len(left.collections) == 2  # confidence bands of MCOS and the optimum
    assert len(middle.collections) == len(NAMES) - 3  # MCOS and the optimum are not there
    gap = figures.by_scheme(rows, "num_devices", "gap_to_optimum_mean")["bcos"]
    fixed = next(line for line in middle.lines if line.get_label() == "BCOS, projected")
    np.testing.assert_allclose(fixed.get_ydata(), 100 * gap.mean(axis=0))
    shares = {round(float(line.get_ydata()[0])) for line in right.lines if len(line.get_ydata())}
    assert shares == {70, 90}  # all of C1-C5, and the sum of times alone


def test_energy_figure_marks_what_breaks_constraints_of_ones_own_too():
    rows = [row | {"feasible_fraction": 0.75} if row["scheme"] == "droo" else row
            for row in summary(1)]  # fmt: skip
    labels = [text.get_text() for text in
              figures.energy_figure(rows, "num_devices").legends[0].get_texts()]  # fmt: skip
    assert "droo, 25.0 % break C1-C5" in labels
    for row in (rows := summary(3)):
        if row["scheme"] == "droo" and row["num_devices"] == 8:  # it has no answer to a channel
            row |= dict.fromkeys(("cost_mean_j", "gap_to_optimum_mean"), np.inf)
            row["feasible_fraction"] = 0.25
    figure = figures.energy_figure(rows, "num_devices")
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "droo")
    np.testing.assert_array_equal(np.isfinite(line.get_ydata()), [True, False, True])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "droo, 0.0-75.0 % break C1-C5" in labels
    assert "BCOS, projected" in labels


def test_energy_figure_marks_what_breaks_constraints():
    figure = figures.energy_figure(summary(1), "num_devices")
    legend = figure.legends[0]
    labels = [text.get_text() for text in legend.get_texts()]
    assert "BCOS, raw network, 30.0 % break C1-C5" in labels
    assert "PCOS, optimal" in labels
    assert "open markers" in legend.get_title().get_text()
    faces = {line.get_label(): line.get_markerfacecolor() for line in figure.axes[0].lines}
    assert faces["BCOS, raw network"] == faces["PCOS, learned"] == "white"
    assert faces["BCOS, projected"] != "white"


@pytest.mark.parametrize(
    ("seeds", "text"),
    [(1, ""), (2, "the 2 task seeds"), (3, "95 % confidence, 3 task seeds"), (12, "12 task seeds")],
)
def test_bands_are_explained_and_leave_the_axes_alone(seeds, text):
    rows = summary(seeds)
    for row in rows:  # seeds far apart
        row["gap_to_optimum_mean"] += 5 * row["seed"] - 2.5 * (seeds - 1)
    figure = figures.energy_figure(rows, "num_devices")
    title = figure.legends[0].get_title().get_text()
    assert text in title
    assert ("band" in title) == (seeds > 1)
    middle = figure.axes[1]
    assert bool(middle.collections) == (seeds > 1)
    low, high = middle.get_ylim()
    drawn = np.concatenate([line.get_ydata() for line in middle.lines])
    assert low > drawn.min() - 0.1 * np.ptp(drawn)
    assert high < drawn.max() + 0.1 * np.ptp(drawn)


def test_bands_are_those_of_student():
    """Three values 1, 2, 3: mean 2, deviation 1, t = 4.30; of two seeds the range."""
    values = np.array([[1.0], [2.0], [3.0]])
    half = 4.30 / 3**0.5
    np.testing.assert_allclose(figures.seed_band(values, False), [[2 - half], [2 + half]])
    np.testing.assert_allclose(figures.seed_band(values[::2], False), [[1.0], [3.0]])
    relative = figures.seed_band(np.exp(values), True)
    mean = np.mean(np.exp(values))
    np.testing.assert_allclose(relative[:, 0], [mean * np.exp(-half), mean * np.exp(half)])


def grey(color):
    """Brightness in print."""
    return float(np.dot(colors.to_rgb(color), (0.299, 0.587, 0.114)))


def differ(one, other):
    """Whether two lines can be told apart in grey: by line, marker, or brightness."""
    keys = ("marker", "linestyle", "markerfacecolor")
    return any(one.get(k) != other.get(k) for k in keys) or (
        abs(grey(one["color"]) - grey(other["color"])) > 0.15
    )


def test_styles_differ_in_grey_print():
    schemes = [style for _, style in figures.SCHEMES.values()]
    many = [plots.line_style(n, 20) for n in range(20)]
    for styles in (schemes, plots.LINES, many, list(plots.FAMILIES.values())):
        assert all(differ(*pair) for pair in itertools.combinations(styles, 2))
    for one, other in itertools.combinations(map(colors.to_rgb, plots.COLORS), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 0.2  # no two blues alike


@pytest.mark.parametrize("points", [1, 2, 30])
def test_training_figure(points):
    steps = 10 * np.arange(1, points + 1)
    metrics = ("energy", "violation", "multiplier")
    history = {"step": steps} | {f"teacher_{m}": np.ones((points, 2)) for m in metrics}
    student = history | {f"student_{m}": np.full((points, 2), 2.0) for m in metrics}
    student["student_violation"] = np.zeros((points, 2))
    figure = plots.training_figure({"BCOS": student, "PCOS": history}, ["K = 4", "K = 8"])
    assert len(figure.axes) == 6
    assert all(len(axes.lines) == 2 for axes in figure.axes)
    assert figure.axes[0].lines[0].get_ydata()[0] == 2.0
    assert figure.axes[3].lines[0].get_ydata()[0] == 1.0
    for axes in figure.axes:  # one point is a mark, and no violation is a value
        for line in axes.lines:
            first, every = line.get_markevery()
            assert line.get_marker() not in ("", "None")
            assert first < points
            assert every <= points
        low, high = axes.get_ylim()
        assert low < axes.lines[0].get_ydata()[0] < high


def test_files_are_deterministic(tmp_path):
    before = dict(matplotlib.rcParams)
    for name in ("a", "b"):
        figures.save_figure(figures.energy_figure(summary(2), "num_devices"), tmp_path / name)
    for ending in ("png", "pdf"):
        first = (tmp_path / f"a.{ending}").read_bytes()
        assert first == (tmp_path / f"b.{ending}").read_bytes()
        assert len(first) > 5000
    assert dict(matplotlib.rcParams) == before


def test_delay_figure_names_the_late_share_and_what_breaks():
    rows = summary(2, points=(14,))
    quantiles = [{"scheme": name, "probability": p, "sending_time_s": 0.5 * p}
                 for name in NAMES for p in np.linspace(0, 1, 9)]  # fmt: skip
    axes = figures.delay_figure(quantiles, rows).axes[0]
    labels = [line.get_label() for line in axes.lines]
    assert "BCOS, raw network: 10.0 % late, 30.0 % break C1-C5" in labels
    assert "MCOS: 0.0 % late, 0.0 % break C1-C5" in labels
    assert any(np.all(np.asarray(line.get_xdata()) == 0.5) for line in axes.lines)


def test_plane_figure_leaves_cells_without_answers_white():
    rows = [
        {"num_devices": k, "slot": t, "seed": 0, "scheme": scheme, "cost_mean_j": energy,
         "gap_to_optimum_mean": np.nan if (k, t) == (8, 0.3) else t / 10,
         "infeasible_fraction": k / 100}
        for k in (4, 8) for t in (0.3, 0.5, 1.0) for scheme, energy in (("bcos", 1), ("mcos", 4))
    ]  # fmt: skip
    saved, gap, infeasible = plots.plane_figure(rows).axes[:3]
    assert [t.get_text() for t in gap.texts] == ["3.0", "5.0", "5.0", "10", "10"]
    assert [t.get_text() for t in saved.get_yticklabels()] == ["0.3", "0.5", "1"]
    assert {t.get_text() for t in saved.texts} == {"75"}
    assert {t.get_text() for t in infeasible.texts} == {"4.0", "8.0"}


def test_gaps_below_the_axis_are_drawn_where_they_are():
    gaps = {"a": [0.02, 0.0, 3e-8], "b": [0.02, 0.0, 0.0]}
    figure = gap_plots.gap_figure([gap_plots.GapPanel("K", [2, 4, 8], gaps, inside=(3, 5))])
    (axes,) = figure.axes
    for line, values in zip(axes.lines, gaps.values()):
        np.testing.assert_allclose(line.get_ydata(), 100 * np.asarray(values))
    assert axes.get_yscale() == "symlog"
    assert axes.get_ylim()[0] < 0
    assert "linear below 0.0001" in axes.get_ylabel()
    assert axes.lines[0].get_markersize() > axes.lines[1].get_markersize()  # equal points are seen
    assert figure.legends[0].get_texts()[-1].get_text() == "the training's range"
    (shade,) = axes.patches
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (3, 5)  # the training's side
    plain = gap_plots.gap_figure([gap_plots.GapPanel("K", [2, 4, 8], {"a": [0.02, 0.1, 0.2]})])
    assert plain.axes[0].get_yscale() == "log"
    steps = np.arange(80, 4801, 80)
    long = gap_plots.gap_figure([gap_plots.GapPanel("step [-]", steps, {"a": 1 / steps})])
    assert len(long.axes[0].get_xticks()) < 10


def test_frontier_and_scale_figures():
    rows = [
        {"num_devices": k, "method": name, "family": family, "gap_mean": gap, "gap_worst": 2 * gap,
         "feasible_fraction": kept, "channels_per_second": 10.0, "us_per_channel": 5.0 * k,
         "bytes_per_channel": 10.0}
        for k in (4, 8)
        for name, family, gap, kept in (("a", "greedy", 1e-2, 0.5), ("b", "public", 0.0, 1.0))
    ]  # fmt: skip
    figure = plots.frontier_figure(rows)
    assert len(figure.axes) == 4
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["a (50, 50 % keep C1-C5)", "b"]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].lines
             if len(line.get_xdata()) == 1]  # fmt: skip
    assert sorted(marks) == [(0.0, 1), (0.0, 1), (1.0, 0), (2.0, 0)]  # [%], none lifted
    time, _, gap = plots.scale_figure(rows, 1.0).axes
    assert "K^1.00" in time.get_title()
    np.testing.assert_allclose(gap.lines[0].get_ydata(), [1.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize("name", result_figures.FIGURES)
def test_result_figures_are_those_of_the_committed_tables(name, tmp_path):
    """Pixel by pixel, by the matplotlib that drew them; another's text differs a little."""
    with matplotlib.rc_context(figures.STYLE):
        result_figures.draw(name, FIGURES).savefig(tmp_path / "mine.png")
    files = tmp_path / "mine.png", FIGURES / f"{name}.png"
    mine, committed = (image.imread(file) for file in files)
    if f"version{matplotlib.__version__}," in files[1].read_bytes()[:400].decode("latin-1"):
        np.testing.assert_array_equal(mine, committed)
    else:
        assert np.all(np.abs(np.subtract(mine.shape, committed.shape)) < 30)
