import ast
from pathlib import Path

import meco_jax

PACKAGE = Path(meco_jax.__file__).parent
# fmt: off
ORDER = (
    "files", "system", "allocation", "schemes", "optimal", "network", "policy", "checkpoint",
    "gradients", "training", "policy_training", "sweep", "solver", "evaluation", "figures",
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


def test_readme_example_runs(capsys):
    """The example is the promise to newcomers: all but 1 % feasible, within 10 % of the bound."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    code = readme.split("```python")[1].split("```")[0]
    exec(compile(code, "README.md", "exec"), {})
    feasible, energy, bound = map(float, capsys.readouterr().out.split())
    assert feasible > 0.99
    assert bound <= energy < 1.1 * bound
