"""What a run leaves: its record, tables that other programs touched, and JSON that all can read."""

import csv
import io
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import ROOT, TINY, fresh_flags, inside, one_line
from support import common, csv_tables, gap_plots, plots, records, trainings

from meco_jax import TrainConfig, figures, make_grid
from meco_jax.learned.training import PolicyConfig, check_policy_config
from meco_jax.paper.training import check_config
from meco_jax.runtime.atomic import json_text
from meco_jax.runtime.checkpoints import OtherRunError
from meco_jax.runtime.loop import whole_chunk

FIGURES = ROOT / "experiments" / "figures"


def strict(path):
    """Read JSON as programs do that know no NaN and Infinity."""
    return json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Begins a session of a script in a folder: its start, and whether it resumes."""

    def begin(start, resumes=True, script="sweep_k.py"):
        monkeypatch.setattr(sys, "argv", [script])
        monkeypatch.setattr(records, "STARTED", records.datetime.fromisoformat(start))
        monkeypatch.setattr(records, "_noted", -np.inf)
        monkeypatch.setattr(records, "seconds", lambda: float(start[:4]))
        records.open_run(tmp_path / "run.json", resumes)
        return tmp_path / "run.json"

    yield begin
    records._before.clear()


def test_a_record_survives_what_comes_after(session):
    """Killed, finished, repeated and killed, repeated: every session's time, and their sum."""
    path = session("1000-01-01")
    assert not path.exists()  # there is nothing to say yet
    records.keep_time(path)
    assert strict(path)["wall_seconds"] == 1000
    session("2000-01-01")
    records.write_run(path, bad=float("inf"), empty=[float("nan"), -float("inf")])
    whole = strict(path)
    assert whole["finished"]
    assert whole["wall_seconds"] == 3000
    assert [s["wall_seconds"] for s in whole["sessions"]] == [1000, 2000]
    assert (whole["bad"], whole["empty"]) == ("inf", [None, "-inf"])
    session("3000-01-01")
    records.keep_time(path)  # it stops before it writes a table
    after = strict(path)
    assert [s["wall_seconds"] for s in after.pop("sessions")] == [1000, 2000, 3000]
    assert after == {name: x for name, x in whole.items() if name != "sessions"}
    session("4000-01-01")
    records.write_run(path)
    assert strict(path)["wall_seconds"] == 10_000
    assert [s["finished"] for s in strict(path)["sessions"]] == [False, True, False, True]


def test_a_folder_that_holds_another_run_is_refused(session, monkeypatch):
    path = session("1000-01-01")
    records.write_run(path)
    kept = path.read_bytes()
    for resumes, script, message in (
        (True, "sweep_t.py", "holds a run of sweep_k.py; take another folder"),
        (False, "sweep_k.py", "holds a finished run; take another folder, or delete it to begin"),
    ):
        with pytest.raises(records.RefusedError, match=message):
            session("2000-01-01", resumes, script)
    assert path.read_bytes() == kept
    old = {"command": "sweep_k.py", "wall_seconds": 7.0}  # as it was written before
    path.write_text(json.dumps(old))
    session("2000-01-01")
    records.write_run(path)
    assert strict(path)["wall_seconds"] == 2007
    for text in ("", "{", "[1]", "[" * 10**6, '{"sessions": [1]}', '{"sessions": [{}]}'):
        path.write_text(text)
        with pytest.raises(records.RefusedError, match=r"run.json cannot be read; mend it"):
            session("3000-01-01")
        assert path.read_text() == text
    path.write_text("{}")
    session("3000-01-01", resumes=False)
    monkeypatch.setattr(records, "_flags", lambda: {"channels": 5, "output_dir": "a"})
    records.write_run(path, finished=False)
    monkeypatch.setattr(records, "_flags", lambda: {"channels": 5, "output_dir": "b"})
    session("4000-01-01", resumes=False)
    records.write_run(path, finished=False)
    assert strict(path)["wall_seconds"] == 4000  # made anew
    monkeypatch.setattr(records, "_flags", lambda: {"channels": 6, "output_dir": "b"})
    with pytest.raises(records.RefusedError, match="holds a run with --channels=5; take another"):
        session("5000-01-01", resumes=False)


def test_code_is_known_by_its_own_repository_alone(tmp_path, monkeypatch):
    def git(folder, *words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(folder), *who, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def make(folder, name, **files):
        for file, text in ({"pyproject.toml": f'[project]\nname = "{name}"\n'} | files).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-qm", "first")
        return git(folder, "rev-parse", "HEAD")

    monkeypatch.delenv("GIT_DIR", raising=False)
    package = {"meco_jax/__init__.py": ""}
    own, other = tmp_path / "own", tmp_path / "other"
    commit = make(own, "meco_jax", **package)
    make(other, "another", **package)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook
    module = own / "meco_jax/__init__.py"
    assert records.checkout(module) == {"commit": commit, "changed": False}
    module.write_text("x = 1\n")
    assert records.checkout(module) == {"commit": commit, "changed": True}
    assert records.checkout(other / "meco_jax/__init__.py") is None
    for site in (own / ".venv/site-packages", other / "site-packages", tmp_path / "site-packages"):
        installed = site / "meco_jax/__init__.py"
        installed.parent.mkdir(parents=True)
        installed.write_text("")
        assert records.checkout(installed) is None
        nothing = {"version": records.meco_jax.__version__, "commit": None, "url": None}
        assert records.installed(installed) == nothing
        info = site / "meco_jax-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: meco_jax\nVersion: 0.1.0\n")
        pep610 = {"url": "https://x/y", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
        (info / "direct_url.json").write_text(json.dumps(pep610))
        assert records.installed(installed) == nothing | {"commit": "abc", "url": "https://x/y"}


def test_json_is_read_by_all():
    text = json_text({"a": float("inf"), "b": (1.5, float("nan")), "c": {"d": -float("inf")}})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": "inf", "b": [1.5, None], "c": {"d": "-inf"},
    }  # fmt: skip


def test_infinite_energies_go_through_a_table(tmp_path):
    rows = [{"scheme": "bcos", "cost_mean_j": x} for x in (np.inf, -np.inf, np.nan, 0.1)]
    csv_tables.write_csv(tmp_path / "a.csv", rows)
    read = [row["cost_mean_j"] for row in csv_tables.read_csv(tmp_path / "a.csv")]
    np.testing.assert_array_equal(read, [row["cost_mean_j"] for row in rows])


def test_refusals_name_the_flags(monkeypatch):
    """Those of a scheme that has its own, too, and no word of a folder's name."""
    known = dict.fromkeys(("learning_rate", "pcos_learning_rate", "epochs", "seeds", "batch_size"))
    monkeypatch.setattr(common, "FLAGS", known)
    folder = Path("/a/batch_size/epochs")
    for name, prefix, flag in (
        ("learning_rate", "", "--learning_rate"),
        ("learning_rate", "pcos_", "--pcos_learning_rate"),
        ("epochs", "pcos_", "--epochs"),
        ("seed", "", "--seeds"),
        ("scheme", "", "scheme"),
    ):
        text = common.as_flags(OtherRunError(name, "1", "2", folder), prefix)
        assert text == f"{flag} must be 1 to go on with the run in {folder}; got 2"
    error = ValueError("config.epochs must be at most batch_size, 3; got epochs")
    assert common.as_flags(error) == "--epochs must be at most --batch_size, 3; got epochs"


def test_a_refused_training_of_pcos_names_its_flag(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "out")
    kept = (tmp_path / "out/run.json").read_bytes()

    def other(lanes, config, folder, **_):
        if config.scheme == "pcos":
            raise OtherRunError("learning_rate", "0.01", "0.5", folder)
        return None, {}

    monkeypatch.setattr(trainings, "train_grid", other)
    result = inside(*TINY, "--pcos_learning_rate=0.5", f"--output_dir={tmp_path / 'out'}")
    one_line(result, "--pcos_learning_rate must be 0.01 to go on with the run in", "; got 0.5")
    assert (tmp_path / "out/run.json").read_bytes() == kept


def test_chunks_fit_any_number_of_epochs():
    assert [whole_chunk(epochs, 5) for epochs in (1, 3, 4, 6, 7, 10, 250)] == [1, 3, 4, 3, 1, 5, 5]
    assert check_config(TrainConfig(epochs=3)).chunk_epochs == 3
    assert check_policy_config(PolicyConfig(epochs=4, chunk_epochs=3)).chunk_epochs == 2
    assert check_config(TrainConfig()) == check_config(check_config(TrainConfig()))


def test_lanes_sweep_fields_of_devices_too():
    grid = make_grid({"num_devices": [2, 3], "weight": [0.5, 2.0], "task_bits": [1e6]})
    np.testing.assert_array_equal(
        grid.systems.weight, [[0.5, 0.5, 0], [2, 2, 0], [0.5] * 3, [2] * 3]
    )
    np.testing.assert_array_equal(grid.systems.task_bits[0], [1e6, 1e6, 0])
    for axes, message in (
        ({"weight": [1.0, 0.0]}, "system.weight must be finite and above 0; got 0"),
        ({"num_devices": [2.5]}, r"num_devices must be integers below 2\^31; got 2.5"),
        ({"seed": [0, 2**32]}, r"seed must be integers below 2\^31; got 4294967296"),
        ({"task_seed": [np.nan]}, "task_seed must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            make_grid(axes)


def learning(name):
    """A gradient estimator with two trainings: runs.csv or history.csv."""
    place = "num_devices" if name == "runs" else "step"
    one = {"method": "sign", "learning_rate": 0.1, "log_base": 2, "gap": 1.0, "gap_mean": 1.0,
           "gap_worst": 2.0, "within_deadline": 0.5}  # fmt: skip
    return [one | {"seed": seed, place: value} for seed in (0, 1) for value in (100, 200)]


def write(rows):
    """Rows as csv text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def committed(name):
    return lambda: (FIGURES / f"{name}.csv").read_text()


TABLES = {  # by script: what it reads, the last one damaged, and a column that it needs
    "sweep_k": ({"results": committed("figure4")}, "cost_mean_j"),
    "sweep_t": ({"results": committed("figure5")}, "cost_mean_j"),
    "plane": ({"results": lambda: committed("plane")().replace("bcos_improved", "bcos")},
              "gap_to_optimum_mean"),
    "delay_cdf": ({"results": committed("figure6"),
                   "cdf": committed("figure6_cdf")}, "sending_time_s"),
    "constraints": ({"constraints": committed("constraints")}, "kept_realised"),
    "frontier": ({"results": committed("frontier")}, "gap_mean"),
    "evaluate_policy": ({"gaps": committed("policy"), "beyond": committed("beyond"),
                         "csi": committed("csi")}, "late_fraction"),
    "gradients": ({"runs": lambda: write(learning("runs")),
                   "history": lambda: write(learning("history"))}, "gap"),
    "lanes": ({"results": committed("lanes")}, "peak_mb"),
    "soak": ({"memory": committed("soak_memory"), "latency": committed("soak")}, "p99_us"),
    "paper_claims": ({"figure5": committed("figure5"), "figure6": committed("figure6"),
                "figure4": committed("figure4")}, "cost_mean_j"),
}  # fmt: skip


def cell(text, column, line, value):
    """Put a value into a csv text."""
    rows = list(csv.DictReader(io.StringIO(text)))
    rows[line - 2][column] = value
    return write(rows)


@pytest.mark.parametrize("script", TABLES)
def test_tables_that_other_programs_touched_are_one_line(script, tmp_path):
    tables, column = TABLES[script]
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text())
    path, good = tmp_path / f"{name}.csv", text()
    header, first, *rest = good.splitlines(keepends=True)
    half, twice = first.rpartition(",")[0] + "\n", header + first + first + "".join(rest)
    flag = "--tables" if script == "paper_claims" else "--output_dir"
    command = f"{flag}={tmp_path}", *(() if script == "paper_claims" else ("--plot_only",))
    number = f", line 3: {column} must be a number or empty; got 'many'"
    for bad, message in (
        ("", " must end with a line break; it is empty"),
        (good[:-2], " must end with a line break; it is cut off"),
        ("\n", " must have one column "),
        (header, " must have rows; got the header alone"),
        (good.replace(",", ";"), " must have commas between its columns; got semicolons"),
        (good.encode("utf-16"), " must be UTF-8 text"),
        (header.replace(column, "x") + first, f" must have one column {column};"),
        (cell(good, column, 3, "many"), number),
        (cell(good, header.split(",")[0], 3, ""), ", line 3"),  # where the row stands
        (twice, ", line 3 must differ from line 2; got"),
        (header + half, ", line 2"),
    ):
        path.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
        one_line(inside(*command, script=script), f"{path}{message}")
    path.unlink()
    one_line(inside(*command, script=script), f"{path} cannot be read: No such file or directory")
    path.mkdir()
    one_line(inside(*command, script=script), f"{path} cannot be read: Is a directory")
    assert not list(tmp_path.glob("*.p*"))  # nothing is drawn


@pytest.mark.parametrize("script", ["sweep_k", "sweep_t", "plane", "delay_cdf", "paper_claims"])
def test_a_sweep_that_is_not_whole_is_one_line(script, tmp_path):
    tables, _ = TABLES[script]
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text())
    path = tmp_path / (f"{name}.csv" if script == "paper_claims" else "results.csv")
    header, *rows = path.read_text().splitlines(keepends=True)
    flag = "--tables" if script == "paper_claims" else "--output_dir"
    command = f"{flag}={tmp_path}", *(() if script == "paper_claims" else ("--plot_only",))
    scheme = header.split(",").index("scheme")
    cut = [row for row in rows if row.split(",")[scheme] != "mcos"]
    for lines, message in (
        (rows[1:], "must have a row for "),
        (rows[:-1], "must have a row for "),
        (cut, "must have rows for scheme = " if script in ("plane", "paper_claims") else None),
    ):
        if message:
            path.write_text(header + "".join(lines))
            one_line(inside(*command, script=script), f"{path} {message}")
    if script == "sweep_k":
        other = tmp_path / "results.csv"
        other.write_text(committed("plane")())
        one_line(inside(*command), f"{path} must have one slot; got 0.3, 0.4, ")


def test_other_programs_may_add_what_changes_nothing(tmp_path):
    """A byte order mark, CRLF, a column of remarks, empty lines: the same rows."""
    good = committed("figure4")()
    lines = good.splitlines()
    text = "\r\n".join([f"{lines[0]},remark", *(f"{line},good" for line in lines[1:]), ",,", ""])
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "b.csv").write_text(good)
    columns = "num_devices", "scheme", "cost_mean_j"
    first, second = (csv_tables.read_csv(tmp_path / f"{name}.csv", columns) for name in "ab")
    assert first == second
    assert list(first[0]) == list(columns)


def test_nothing_is_left_out_of_a_figure():
    """What a user adds has a style of its own; more lines than styles are drawn, too."""
    names = "optimal", "mcos", "droo", "mcos_partial"
    rows = [
        {"num_devices": k, "slot": 1.0, "seed": seed, "scheme": name, "cost_mean_j": 1.0 + i,
         "gap_to_optimum_mean": i, "feasible_fraction": 1.0, "deadline_met_fraction": 1.0}
        for i, name in enumerate(names) for seed in range(12) for k in (4, 8)
    ]  # fmt: skip
    left, middle, _ = figures.energy_figure(rows, "num_devices").axes
    assert {line.get_label() for line in left.lines} == {
        "droo", "MCOS, parts", "MCOS", "optimum of P1, certified",
    }  # fmt: skip
    assert len(left.collections) == 2  # bands of twelve seeds
    assert len(middle.collections) == 1
    few = figures.energy_figure([row for row in rows if row["scheme"] == "droo"], "num_devices")
    assert [line.get_label() for line in few.axes[0].lines] == ["droo"]
    shown = [(line.get_color(), line.get_linestyle()) for line in left.lines]
    assert len(set(shown)) == len(names)
    quantiles = [{"scheme": name, "probability": p, "sending_time_s": p}
                 for name in names for p in (0.5, 1.0, 0.0)]  # fmt: skip
    delay = figures.delay_figure(quantiles, [row for row in rows if row["num_devices"] == 4])
    lines = {line.get_label(): line.get_ydata() for line in delay.axes[0].lines}
    np.testing.assert_array_equal(lines["droo: 0.0 % late, 0.0 % break C1-C5"], [0, 0.5, 1])
    assert len(lines) == len(names) + 1  # the deadline
    gaps = {f"effort {n}": [0.1, 0.2] for n in range(9)}
    empty = gap_plots.GapPanel("nothing feasible", [], {"effort 0": []})
    beyond = gap_plots.gap_figure([gap_plots.GapPanel("K", [1, 2], gaps), empty])
    assert [len(axes.lines) for axes in beyond.axes if axes.get_visible()] == [9, 1]
    lanes = [{"method": f"{n}", "lanes": 1, "channels": 1, "lane_steps_per_s": 1.0, "peak_mb": 1.0,
              "p50_us": 1.0, "p99_us": 2.0} for n in range(9)]  # fmt: skip
    memory = [{"seconds": 1.0, "memory_mb": 1.0, "programs": 1}]
    for figure in (plots.lanes_figure(lanes), plots.soak_figure(memory, lanes)):
        assert [len(axes.lines) for axes in figure.axes[-2:]] == [9, 9]
    place = {"num_devices": 4, "channels_per_second": 1.0, "feasible_fraction": 1.0}
    frontier = plots.frontier_figure([
        place | {"method": family, "family": family, "gap_mean": 0.1, "gap_worst": 0.2}
        for family in ("greedy", "mine", "yours")
    ])  # fmt: skip
    styles = {(line.get_color(), line.get_marker()) for line in frontier.axes[1].lines}
    assert len(styles) == 3
    exact = {3: 4.303, 10: 2.262, 11: 2.228, 31: 2.042}  # tables of Student's t
    for number, value in exact.items():
        assert figures.student_t(number) == pytest.approx(value, abs=5e-3)


def test_flags_of_the_killed_runs_are_known():
    """A flag that is renamed would only be missed in a long run."""
    with fresh_flags():
        scripts = runpy.run_path(str(ROOT / "experiments" / "crash_recovery.py"))["SCRIPTS"]
    for name, one in scripts.items():
        text = (ROOT / "experiments" / f"{name}.py").read_text()
        text += (ROOT / "experiments" / "support" / "trainings.py").read_text()
        for flag in one.flags:
            assert f'"{flag.removeprefix("--").split("=")[0]}"' in text, (name, flag)


def test_flagfiles_of_other_programs(tmp_path):
    flags = tmp_path / "tiny.flags"
    command = f"--flagfile={flags}", f"--output_dir={tmp_path / 'out'}"
    for start in ("\ufeff", "\ufeff# a remark\r\n", "\ufeff\r\n"):
        flags.write_bytes(f"{start}--hidden=8,x\r\n".encode())
        one_line(inside(*command), "--hidden must be integers of at least 1; got 8,x")
    flags.write_bytes("--hidden=8".encode("utf-16"))
    one_line(inside(*command), "--flagfile cannot be read: 'utf-8' codec")
    one_line(inside(f"--flagfile={tmp_path}"), "--flagfile cannot be read: ")
