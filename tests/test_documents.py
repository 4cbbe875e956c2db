"""What the documents say of themselves: links, commands, examples, sizes."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README, GUIDE = ROOT / "README.md", ROOT / "meco_jax" / "GUIDE.md"
THEORY = ROOT / "meco_jax" / "THEORY.md"
DOCUMENTS = (
    README, GUIDE, THEORY, ROOT / ".github" / "CONTRIBUTING.md",
    ROOT / "tests" / "data" / "README.md", ROOT / "experiments" / "README.md",
    ROOT / "experiments" / "RESULTS.md",
)  # fmt: skip


def test_guide_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in GUIDE.read_text().split("```python")[1:]:
        exec(compile(block.split("```")[0], GUIDE.name, "exec"), space)
    said = capsys.readouterr().out
    assert said.count(" mJ") == 3
    assert said.count(r"\\") == 4  # rows of the LaTeX table
    energy, bound, feasible = np.loadtxt("solution.csv", delimiter=",", skiprows=1).T
    np.testing.assert_array_equal(feasible, 1)
    assert np.all(bound <= energy)
    assert {path.name for path in tmp_path.iterdir()} > {"solution.mat", "solution.npz"}
    assert space["made"].feasible.all()
    assert space["raw"].power.shape == space["h"].shape
    assert len(space["seconds"]) == 1


def test_readme_is_short_and_starts_with_the_quick_command():
    text = README.read_text()
    assert len(text.encode()) <= 9000
    first = text.split("```bash\n")[1].splitlines()[0]
    quick = "python experiments/sweep_k.py --flagfile=experiments/flags/quick.flags"
    assert first == f"pip install . && {quick}"


def anchors(path):
    """The anchors of a document's titles, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)]+)\)", path.read_text())
    assert links or path.parent.name == "data"
    for link in links:
        file, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_no_document_is_left_out():
    found = {path for path in ROOT.rglob("*.md") if not any(
        (part.startswith(".") and part != ".github") or part in ("templates", "runs", "build")
        for part in path.relative_to(ROOT).parts)}  # fmt: skip
    assert found == set(DOCUMENTS)


def test_readme_and_guide_promise_the_same():
    """What is stable is said in the same words, and is all that a package exports."""
    names = "`meco_jax`, `meco_jax.benchmarks`, `meco_jax.simulation` and `meco_jax.wpmec`"
    for path in (README, GUIDE):
        assert names in " ".join(path.read_text().split()), path
    for name in re.findall(r"`([\w.]+)`", names):
        module = importlib.import_module(name)
        assert all(hasattr(module, each) for each in module.__all__)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_those_of_scripts(path):
    """Scripts and presets exist, and a script's own flags are defined where it finds its flags."""
    text = path.read_text()
    folders = ROOT, ROOT / "experiments", ROOT / "meco_jax", ROOT / "tests"
    for name in set(re.findall(r"[\w/]+\.py\b", text)) - {"mine.py"}:  # the reader's own
        assert any((folder / name).exists() for folder in folders), name
    for name in re.findall(r"\w+\.flags", text):
        assert (ROOT / "experiments" / "flags" / name).exists(), name
    sources = "".join(file.read_text() for file in ROOT.glob("experiments/**/*.py"))
    known = {"flagfile", "help", "require-hashes", "no-deps"}
    known |= set(re.findall(r'"(\w+)"', sources))
    flags = re.findall(r"[ `]--(?:pcos_)?([a-z][\w-]+)", text)  # learned PCOS has some of its own
    assert set(flags) <= known
