"""README's figures against the committed tables, and how fresh runs are compared with them."""

import csv
import json

import pytest
import quoted
import reproduce
from test_experiments import ROOT, run

README, FIGURES = ROOT / "README.md", ROOT / "experiments" / "figures"


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def quote(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    flags = (f"--output_dir={tmp_path}", f"--readme={tmp_path / 'README.md'}",
             f"--tables={FIGURES}", "--only=tables", "--only=prose")  # fmt: skip
    return run(*flags, script="reproduce"), read(tmp_path / "reproduce.csv")


def test_readme_quotes_the_committed_tables(tmp_path):
    result, rows = quote(tmp_path, README.read_text())
    bad = [row for row in rows if row["holds"] != "True"]
    assert not bad
    assert result.returncode == 0, result.stderr
    assert len(rows) >= len(quoted.TABLES) + len(quoted.PROSE)
    assert json.loads((tmp_path / "run.json").read_text())["failed"] == 0


def test_wrong_quotes_are_named(tmp_path):
    text = README.read_text()
    wrong = text.replace("| +7.1 | +8.3 |", "| +7.1 | +8.4 |")
    wrong = wrong.replace("time rises as K", "time grows as K")
    result, rows = quote(tmp_path, wrong)
    assert result.returncode == 1
    bad = [(row["what"], row["readme"], row["fresh"]) for row in rows if row["holds"] != "True"]
    assert ("figure4: row 'raw BCOS, all answers: mean gap [%]', column '6'", "+8.4", "+8.3") in bad
    assert any(readme == "not found" and "time rises" in what for what, readme, _ in bad)
    assert "NO |" in result.stdout
    shorter = "\n".join(line for line in text.splitlines() if not line.startswith("| MCOS |"))
    found = [what for what, *_, holds in quoted.check("tables", shorter, FIGURES) if not holds]
    assert found == ["frontier: size of the table"]


@pytest.mark.parametrize("name", reproduce.RUNS)
def test_checks_hold_on_the_tables_themselves(name):
    rows = reproduce.common.read_csv(FIGURES / f"{name}.csv")
    findings = reproduce.compare(name, FIGURES, rows)
    assert len(findings) == len(reproduce.CHECKS[name])
    assert all(finding.holds for finding in findings), findings


@pytest.mark.parametrize(
    ("name", "column", "value", "what"),
    [
        ("figure4", "energy_mean_j", 1.0, "mean energy of optimal [J]"),
        ("figure5", "infeasible_fraction", 0.9, "infeasible channels"),
        ("certify", "certified", 0.999, "certified by solve"),
        ("certify", "false_bounds", 1.0, "false_bounds by solve"),
        ("policy", "effort_6_gap_mean", 0.01, "mean gap at effort_6"),
        ("frontier", "gap_worst", 0.001, "worst gap of solve, certified"),
        ("scale", "bytes_per_channel", 1.0, "memory a channel [byte]"),
    ],
)
def test_a_drift_is_found(name, column, value, what):
    rows = reproduce.common.read_csv(FIGURES / f"{name}.csv")
    drifted = [row | {column: value} for row in rows]
    found = [f.what for f in reproduce.compare(name, FIGURES, drifted) if not f.holds]
    assert any(text.startswith(what) for text in found), found


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    """With a script that copies the committed table and counts how often it ran."""
    (tmp_path / "scale.py").write_text(f"""
import pathlib, shutil, sys
folder = pathlib.Path(sys.argv[-1].removeprefix("--output_dir="))
folder.mkdir(exist_ok=True)
with open({str(tmp_path / "count")!r}, "a") as file:
    file.write("x")
if "--fail" in sys.argv:
    sys.exit("it failed")
shutil.copy({str(FIGURES / "scale.csv")!r}, folder / "results.csv")
""")
    monkeypatch.setattr(reproduce, "FOLDER", tmp_path)
    for _ in range(2):
        rows = reproduce.fresh("scale", tmp_path)
        assert all(f.holds for f in reproduce.compare("scale", FIGURES, rows))
    assert (tmp_path / "count").read_text() == "x"
    wrong = reproduce.RUNS["scale"]._replace(flags=("--fail",))  # another command: run again
    monkeypatch.setitem(reproduce.RUNS, "scale", wrong)
    with pytest.raises(SystemExit):
        reproduce.fresh("scale", tmp_path)
    assert "it failed" in (tmp_path / "scale.log").read_text()


def test_flags_of_the_fresh_runs_are_known():
    """A flag that is renamed would only be missed in a long run."""
    for name, one in reproduce.RUNS.items():
        text = (ROOT / "experiments" / f"{one.script}.py").read_text()
        text += (ROOT / "experiments" / "trainings.py").read_text()
        for flag in one.flags:
            key = flag.removeprefix("--").split("=")[0]
            assert key == "flagfile" or f'"{key}"' in text, (name, flag)
