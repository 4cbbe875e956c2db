import ast
from pathlib import Path

import meco_jax

PACKAGE = Path(meco_jax.__file__).parent
# fmt: off
ORDER = (
    "files", "settings", "checks", "twofold", "derivatives", "units", "describe", "system",
    "arguments", "allocation", "schemes", "optimal", "network", "policy", "checkpoint", "store",
    "gradients", "training", "policy_training", "sweep", "solver", "warmup", "evaluation",
    "figures",
)
# fmt: on


def imported(module):
    """Modules of the package that a module imports."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "meco_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("meco_jax."):
            found.add(node.module.split(".")[1])
    return found


def test_imports_go_one_way():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, "__init__"}
    for place, module in enumerate(ORDER):
        assert imported(module) <= set(ORDER[:place]), module


def test_public_names():
    assert list(meco_jax.__all__) == sorted(meco_jax.__all__)
    assert not set(meco_jax.__all__) & set(ORDER)  # or `import meco_jax.solver` would break
    assert all(getattr(meco_jax, name).__doc__ for name in meco_jax.__all__)


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").exists()


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
