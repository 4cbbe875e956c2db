"""What is installed is pinned, and what is read cannot run code."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "experiments" / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = "test", "bench"
SOURCES = sorted([*ROOT.glob("meco_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")])
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}


def pins():
    """All versions that the lock pins, by name; one may differ by Python or platform."""
    found = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def test_the_lock_pins_every_dependency_above_its_floor():
    pinned = pins()
    extras = (PROJECT["optional-dependencies"][name] for name in EXTRAS)
    for text in {*PROJECT["dependencies"], *(text for extra in extras for text in extra)}:
        wanted = Requirement(text)
        versions = pinned[canonicalize_name(wanted.name)]
        assert all(version in wanted.specifier for version in versions), (text, versions)


def test_the_lock_has_a_hash_for_all_and_names_no_host():
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)
    assert len(entries) - 1 == sum(map(len, pins().values())) > 50
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries[1:])
    lines = [line for line in LOCK.splitlines() if not line.lstrip().startswith("#")]
    assert all(re.match(r"[\w.-]+==|    --hash=sha256:", line) for line in lines)
    assert "://" not in LOCK
    assert "--index" not in LOCK
    for extra in EXTRAS:
        assert f"--extra {extra}" in entries[0]  # the command that makes it


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_file_that_is_read_can_run_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [alias.name for alias in getattr(node, "names", []) if type(node) is ast.Import]
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        assert not {module.split(".")[0] for module in modules} & UNSAFE
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
            assert any(
                word.arg == "allow_pickle" and ast.unparse(word.value) == "False"
                for word in node.keywords
            )
