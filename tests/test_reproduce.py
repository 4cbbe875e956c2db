"""The documents against the committed csv, and how fresh runs are compared with these."""

import csv
import json
import re
import shutil

import pytest
import render_results
import reproduce
from cases import ROOT, run
from report import result_tables, result_values

FIGURES = ROOT / "experiments" / "figures"
TEMPLATES = ROOT / "experiments" / "templates"


@pytest.mark.parametrize("name", render_results.DOCUMENTS)
def test_documents_are_those_that_the_csv_render(name):
    text = (ROOT / name).read_text()
    rendered = render_results.render(text, FIGURES)
    assert rendered == text, "run python experiments/render_results.py"
    assert len(render_results.PART.findall(text)) == 1


def test_the_results_hold_no_number_of_their_own():
    """What is measured stands in the csv: percents and units come from placeholders alone."""
    measured = re.compile(r"\d (%|(ms|us|MB|kB|J|times)\b)")
    for path in TEMPLATES.glob("*.md"):
        for line in path.read_text().splitlines():
            text = render_results.PLACE.sub(" _", line)
            assert not measured.search(text.replace("95 %", "")), line


def test_all_that_can_be_rendered_is():
    templates = "".join(path.read_text() for path in TEMPLATES.glob("*.md"))
    used = {place[1:3] for place in render_results.PLACE.findall(templates)}
    tables = {name for kind, name in used if kind == "table"}
    assert tables == set(result_tables.TABLES)
    values = {name for kind, name in used if kind in ("value", "claim")}
    read = {
        f"{name}.{key}"
        for name, function in result_values.VALUES.items()
        for key in function(render_results.read(FIGURES / f"{name}.csv"))
    }
    assert values == read


def drift(folder, name, old, new):
    """Copy the csv with one of them changed."""
    shutil.copytree(FIGURES, folder, ignore=shutil.ignore_patterns("*.p*"))
    text = (folder / f"{name}.csv").read_text()
    assert old in text
    (folder / f"{name}.csv").write_text(text.replace(old, new))


def test_csv_that_drifted_are_found_line_by_line(tmp_path):
    lines = (FIGURES / "figure4.csv").read_text().splitlines()
    row = next(line for line in lines if line.startswith("4,0.5,0,bcos_raw,"))
    wrong = row.split(",")
    wrong[lines[0].split(",").index("feasible_fraction")] = "0.5"
    drift(tmp_path / "csv", "figure4", row, ",".join(wrong))
    flags = f"--output_dir={tmp_path}", f"--tables={tmp_path / 'csv'}", "--only=documents"
    result = run(*flags, script="reproduce")
    assert result.returncode == 1, result.stderr
    with open(tmp_path / "reproduce.csv") as file:
        bad = [row for row in csv.DictReader(file) if row["holds"] != "True"]
    old, new = next(
        (r["committed"], r["fresh"]) for r in bad if "raw BCOS: all of C1" in r["fresh"]
    )
    assert old.split("|")[3:] == new.split("|")[3:]
    assert float(new.split("|")[2]) < float(old.split("|")[2]) - 10
    assert "NO |" in result.stdout
    assert json.loads((tmp_path / "run.json").read_text())["failed"] == len(bad)


def test_placeholders_that_cannot_be_filled_are_named():
    template = "a {{ value:certify.channels }} {{ claim:crash_recovery.nothing_differs }}\n"
    template += "{{ table:none }}\n{{ value:crash_recovery.none }}\n{{ claim:certify.channels }}\n"
    template += "{{ mean:figure4.feasible_fraction scheme=none }} {{ mean:figure4.none }}\n{{ x }}"
    text, problems = render_results.fill(template, FIGURES)
    assert text.splitlines()[0] == "a 72000"
    assert [line for line, _ in problems] == [2, 3, 4, 5, 5, 0]


def test_extremes_are_those_of_means_over_seeds():
    """Seeds 1 and 3 at T = 1, seeds 4 and NaN at T = 2: the means are 2 and 4."""
    values = ((1, 0, 1.0), (1, 1, 3.0), (2, 0, 4.0), (2, 1, float("nan")))
    rows = [dict(zip(("slot", "seed", "gap"), row)) | {"scheme": "a b"} for row in values]
    found = {kind: render_results.reduce(rows, kind, "gap", "scheme=a b", "slot<=2")
             for kind in render_results.REDUCE}  # fmt: skip
    assert found == {"mean": 3.0, "least": 2.0, "most": 4.0}
    assert render_results.reduce(rows, "most", "gap", "slot>=2", "seed=0") == 4.0
    single = [{"gap": value} for *_, value in values[:2]]
    assert render_results.reduce(single, "most", "gap") == 3.0


def test_a_claim_that_fails_stops_the_rendering(tmp_path, capsys):
    lines = (FIGURES / "certify.csv").read_text().splitlines()
    row = next(line for line in lines if line.startswith("14,2,0.5,")).split(",")
    wrong = [*row]
    wrong[lines[0].split(",").index("optimal_fraction")] = "0.9"
    drift(tmp_path / "csv", "certify", ",".join(row), ",".join(wrong))
    document = (ROOT / "experiments" / "RESULTS.md").read_text()
    with pytest.raises(SystemExit):
        render_results.render(document, tmp_path / "csv")
    assert "certify.all_are_optimal }}: AssertionError does not hold" in capsys.readouterr().err


@pytest.mark.parametrize("name", reproduce.RUNS)
def test_checks_hold_on_the_tables_themselves(name):
    rows = reproduce.csv_tables.read_csv(FIGURES / f"{name}.csv")
    findings = reproduce.compare(name, FIGURES, rows)
    assert len(findings) == len(reproduce.CHECKS[name])
    assert all(finding.holds for finding in findings), findings


@pytest.mark.parametrize(
    ("name", "column", "value", "what"),
    [
        ("figure4", "cost_mean_j", 1.0, "mean energy of optimal [J]"),
        ("figure5", "infeasible_fraction", 0.9, "infeasible channels"),
        ("certify", "certified", 0.999, "certified by solve"),
        ("certify", "false_bounds", 1.0, "false_bounds by solve"),
        ("policy", "effort_6_gap_mean", 0.01, "mean gap at effort_6"),
        ("frontier", "gap_worst", 0.001, "worst gap of solve, certified"),
        ("scale", "bytes_per_channel", 1.0, "memory per channel [byte]"),
    ],
)
def test_a_drift_is_found(name, column, value, what):
    rows = reproduce.csv_tables.read_csv(FIGURES / f"{name}.csv")
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
        text += (ROOT / "experiments" / "support" / "trainings.py").read_text()
        for flag in one.flags:
            key = flag.removeprefix("--").split("=")[0]
            assert key == "flagfile" or f'"{key}"' in text, (name, flag)
