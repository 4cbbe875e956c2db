import ast
import re
from pathlib import Path

import conftest
import pytest

import meco_jax

PACKAGE = Path(meco_jax.__file__).parent
# fmt: off
ORDER = (
    "runtime.atomic", "runtime.settings", "runtime.checks", "runtime.statistics", "exact.twofold",
    "exact.derivatives", "units", "runtime.describe", "runtime.memory", "engine",
    "system", "propagation", "scenarios", "solution", "runtime.arguments",
    "exact.equations", "exact.residuals", "exact.uplink", "exact.shares", "exact.duals",
    "exact.sets", "exact.pricing", "exact.breakpoints", "exact.edge", "exact.relaxation",
    "exact.allocation", "exact.projection", "exact.schemes", "exact.enumeration", "exact.search",
    "paper.network", "learned.policy", "runtime.policies", "runtime.checkpoints", "runtime.loop",
    "learned.case", "learned.estimators", "paper.training", "learned.training", "paper.sweep",
    "batching", "judge",
    "wpmec.system", "wpmec.devices", "wpmec.bounds", "wpmec.enumeration", "wpmec.search",
    "wpmec.judge", "wpmec.schemes", "wpmec.solver", "solver", "benchmarks", "warmup", "evaluation",
    "figures", "slips", "explanation",
    "simulation.scenario", "simulation.draws", "simulation.channels", "simulation.tasks",
    "simulation.transmission", "simulation.margins", "simulation.simulate",
    "simulation.calibrate", "simulation.metrics", "simulation.interference",
    "simulation.wishes",
    "simulation.environment",
)
# fmt: on


def imported(module):
    """Modules of the package that a module imports."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("meco_jax"):
            whole = node.module.removeprefix("meco_jax").removeprefix(".")
            names = {f"{whole}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= {whole} if whole in ORDER else names
    return found


def test_imports_go_one_way():
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    modules = {".".join(path.parts) for path in paths if path.name != "__init__"}
    assert modules == set(ORDER)
    for place, module in enumerate(ORDER):
        assert imported(module) <= set(ORDER[:place]), module


def test_tests_import_no_tests():
    for path in Path(__file__).parent.glob("*.py"):
        assert not re.search(r"^(from|import) test_", path.read_text(), re.MULTILINE), path


def test_public_names():
    assert list(meco_jax.__all__) == sorted(meco_jax.__all__)
    modules = {module.split(".")[0] for module in ORDER}
    assert not set(meco_jax.__all__) & modules  # or `import meco_jax.solver` would break
    assert all(getattr(meco_jax, name).__doc__ for name in meco_jax.__all__)


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").exists()


def texts():
    """Python and Markdown of the checkout and of the installed package, line breaks undone."""
    checkout = Path(__file__).resolve().parents[1]
    folders = {PACKAGE.resolve()} | {checkout / n for n in ("meco_jax", "experiments", "tests")}
    files = {*checkout.glob("*.md"), *(path for folder in folders for path in folder.rglob("*"))}
    for path in sorted(path for path in files if path.suffix in (".py", ".md")):
        yield path, re.sub(r"\s+(# )?", " ", path.read_text(encoding="utf-8"))


def cited(before, text):
    """Numbers in "section 4", "sections 4 and 5", "sections 4, 5 and 7" that stand behind a word.

    0 where no number follows.
    """
    lists = re.findall(before + r"sections?\b(?: (\d+(?:(?:, | and | to |-)\d+)*))?", text)
    return [int(number) for found in lists for number in re.findall(r"\d+", found or "0")]


def test_references_to_the_theory():
    theory = (PACKAGE / "THEORY.md").read_text(encoding="utf-8")  # ships beside the code
    sections = [int(number) for number in re.findall(r"^## (\d+)\. \w", theory, re.MULTILINE)]
    assert sections == list(range(1, len(sections) + 1))
    assert set(cited("", " ".join(theory.split()))) <= {0, *sections}
    code = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert set(re.findall(r"`(\w+)`", theory)) <= set(re.findall(r"\w+", code))
    root = Path(__file__).parent.parent
    recipes = (root / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in root.glob("*/*.py"))
    named = re.findall(r"`(\w+)`", recipes.partition("## Style")[0])
    assert set(named) <= {*re.findall(r"\w+", code + tests), "mypy"}
    assert set(cited("", " ".join(recipes.split()))) <= {0, *sections}
    everywhere = []
    for path, text in texts():
        assert "math" + " note" not in text.lower(), path  # what the theory was called before
        found = cited(r"THEORY\.md,? ", text)
        assert set(found) <= set(sections), path
        everywhere += found
    assert len(everywhere) >= 10


def test_readme_examples_run(capsys):
    """The promise to newcomers: the policy is near the optimum, and the bound is below."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    space = {}
    for block in readme.split("```python")[1:]:
        exec(compile(block.split("```")[0], "README.md", "exec"), space)
    usual, best = (map(float, line.split()) for line in capsys.readouterr().out.splitlines())
    (usual, bound), (best, proof) = usual, best
    assert bound < proof <= best <= usual < 1.01 * best


def test_ci_runs_the_test_command_of_readme():
    root = Path(__file__).parent.parent
    _, _, text = (root / "README.md").read_text().partition("<!-- test command -->\n```bash\n")
    command = text.splitlines()[0]
    install, tests = command.split(" && ")
    lines = [line.strip() for line in (root / ".ci" / "run").read_text().splitlines()]
    assert lines.count(install.replace("install", "install --quiet")) == 1
    assert lines.count(tests) == 1
    assert f"{command}\n" in (root / ".github" / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize(
    ("known", "given", "expected"),
    [
        (conftest.QUICK, "", conftest.QUICK),
        (conftest.QUICK[:1], "", conftest.QUICK[:1]),
        ((), "--xla_cpu_max_isa=AVX2", ("--xla_cpu_max_isa=AVX2",)),
        (conftest.QUICK, "--xla_a=1", ("--xla_a=1", *conftest.QUICK)),
        (conftest.QUICK[:1], conftest.QUICK[1], (conftest.QUICK[1], conftest.QUICK[0])),
    ],
)
def test_each_flag_of_xla_is_set_where_it_is_known(known, given, expected, monkeypatch):
    monkeypatch.setattr(conftest, "is_known", lambda flags: {*flags.split()} <= {*known})
    assert conftest.quick_flags(given) == " ".join(expected)


def test_unknown_flags_are_found_out():
    assert not conftest.is_known("--xla_no_such_flag=1")
