import jax
import numpy as np
import pytest
from cases import untrained_policy

from meco_jax import load_policy, sample_channels, save_policy, table1
from meco_jax.runtime.atomic import write_atomically


@pytest.fixture(scope="module")
def policy():
    return untrained_policy(3)


def rewrite(source, target, **changes):
    """Copy an npz with arrays replaced, or left out where None."""
    with np.load(source) as file:
        arrays = dict(file) | changes
    np.savez(target, **{name: leaf for name, leaf in arrays.items() if leaf is not None})


def test_policy_survives_a_file(policy, tmp_path, key):
    save_policy(tmp_path / "p.npz", policy)
    loaded = load_policy(tmp_path / "p.npz")
    h = sample_channels(key, table1(3), 20)
    jax.tree.map(np.testing.assert_array_equal, policy(h), loaded(h))
    assert (loaded.network, loaded.role, loaded.scaling) == (
        policy.network,
        policy.role,
        policy.scaling,
    )
    assert [file.name for file in tmp_path.iterdir()] == ["p.npz"]


def test_wrong_files_are_refused(policy, tmp_path):
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    save_policy(good, policy)
    name = "variables/params/decision/Dense_0/kernel"
    kernel = np.load(good)[name]
    for changes, message in (
        ({name: kernel[:, :4]}, rf"{name} as \(\(3, 8\).*; got \(\(3, 4\)"),
        ({name: kernel.astype(np.float64)}, f"{name} as .*float32.*; got .*float64"),
        ({name: None}, f"{name} as .*; got None"),
        ({"extra": kernel}, "extra as None; got"),
        ({"settings": np.asarray('{"format": "other"}')}, "its format is 'other'"),
        ({"system/task_bits": np.array([object()])}, "path must be a policy"),
    ):
        rewrite(good, bad, **changes)
        with pytest.raises(ValueError, match=message):
            load_policy(bad)
    for content in (b"", b"not an archive", good.read_bytes()[:500]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="path must be a policy"):
            load_policy(bad)
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "missing.npz")


def test_files_of_a_smaller_system_load(policy, tmp_path, key):
    """As of a version before a field came: its default; a field without one is asked for."""
    save_policy(tmp_path / "new.npz", policy)
    h = sample_channels(key, table1(3), 20)
    for name in ("chip", "weight"):
        rewrite(tmp_path / "new.npz", tmp_path / "old.npz", **{f"system/{name}": None})
        loaded = load_policy(tmp_path / "old.npz")
        jax.tree.map(np.testing.assert_array_equal, policy(h), loaded(h))
        assert getattr(loaded.system, name).shape == getattr(policy.system, name).shape
    for name in ("task_bits", "cpu_hz"):
        rewrite(tmp_path / "new.npz", tmp_path / "old.npz", **{f"system/{name}": None})
        with pytest.raises(ValueError, match=f"path must .*system/{name}"):
            load_policy(tmp_path / "old.npz")


def test_policies_load_in_the_precision_that_runs(policy, tmp_path, key):
    """A file of a float64 process, here; what float32 cannot hold is refused."""
    save_policy(tmp_path / "p.npz", policy)
    with np.load(tmp_path / "p.npz") as file:
        wide = {name: x.astype(np.float64) for name, x in file.items() if x.dtype == np.float32}
    rewrite(tmp_path / "p.npz", tmp_path / "wide.npz", **wide)
    loaded = load_policy(tmp_path / "wide.npz")
    h = sample_channels(key, table1(3), 20)
    jax.tree.map(np.testing.assert_array_equal, policy(h), loaded(h))
    name = "variables/params/decision/Dense_0/kernel"
    rewrite(tmp_path / "wide.npz", tmp_path / "far.npz", **{name: 1e300 * wide[name]})
    with pytest.raises(ValueError, match=f"{name}.npy must hold finite float32 numbers"):
        load_policy(tmp_path / "far.npz")
    mixed = {name: wide[name].astype(np.float32)}
    rewrite(tmp_path / "wide.npz", tmp_path / "mixed.npz", **mixed)
    with pytest.raises(ValueError, match=f"{name} as .*float64.*; got .*float32"):
        load_policy(tmp_path / "mixed.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
