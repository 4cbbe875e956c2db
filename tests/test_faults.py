"""What goes wrong on real machines: each either works or is one line that says what to do.

``MECO_FAULTS=2000`` tries as many damaged files instead of a few.
"""

import errno
import io
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import TINY, flip, inside, one_line, run, untrained_policy

import meco_jax
from meco_jax import load_policy, save_policy
from meco_jax.runtime.atomic import FolderLock, InUseError
from meco_jax.runtime.checkpoints import DamagedRunError, OtherRunError, RunStore

TRIES = int(os.environ.get("MECO_FAULTS", "60"))
SHIPPED = Path(meco_jax.__file__).parent / "pretrained.npz"
KERNEL = "variables/params/decision/Dense_0/kernel"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "raw.npz"
    save_policy(path, untrained_policy(3))
    return path


def content(policy):
    """All that a policy holds, as bytes."""
    fixed = [getattr(policy, name, None) for name in ("network", "role", "scaling")]
    return repr(fixed), [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(policy)]


def rewrite(source, target, settings=None, **changes):
    """Copy a weight file with arrays and settings changed."""
    with np.load(source) as file:
        arrays = dict(file) | changes
    text = json.dumps(json.loads(str(arrays["settings"])) | (settings or {}))
    np.savez_compressed(target, **arrays | {"settings": np.asarray(text)})
    return target


def outcome(path):
    """What a weight file holds, or the refusal."""
    try:
        return content(load_policy(path))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", ["shipped", "saved"])
def test_damaged_weights_are_refused(name, saved, tmp_path):
    """Cut off anywhere, or with any bit flipped: the same weights, or a ValueError of a line."""
    whole = SHIPPED if name == "shipped" else saved
    data, bad, rng = whole.read_bytes(), tmp_path / "bad.npz", random.Random(0)
    flipped = [flip(data, rng) for _ in range(TRIES)]
    cut = [data[: rng.randrange(len(data))] for _ in range(TRIES // 4)]
    refused = 0
    for damaged in flipped + cut:
        bad.write_bytes(damaged)
        found = outcome(bad)
        if isinstance(found, str):
            assert str(bad) in found
            assert "\n" not in found
            refused += 1
        else:
            assert damaged in flipped  # of what is no content: a date, say
            assert found == outcome(whole)
    assert refused > TRIES / 2


def test_wrong_weights_are_named(saved, tmp_path):
    kernel, bits = (np.load(saved)[name] for name in (KERNEL, "system/task_bits"))
    nan, bad = np.where(kernel > 0, kernel, np.nan), tmp_path / "bad.npz"
    for settings, changes, message in (
        ({}, {KERNEL: nan}, f"{KERNEL}.npy must hold finite float32 numbers"),
        ({}, {"system/task_bits": -bits}, "system.task_bits must be finite and at least 0; got -"),
        ({}, {"system/slot": np.float32(0)}, "system.slot must be finite and above 0; got 0"),
        ({}, {KERNEL: kernel.astype(">f4")}, f"{KERNEL} as .*; got"),
        ({"role": "judge"}, {}, "role must be one of .*; got 'judge'"),
        ({"scaling": 3}, {}, "scaling must be one of .*; got 3"),
        ({"hidden": [8, True]}, {}, "hidden must be an integer from 1 to inf; got True"),
        ({"hidden": [1] * 1000}, {}, "hidden must be at most .* widths; got 1000"),
        ({"hidden": [8, 10**9]}, {}, r"path must hold .*1000000000.*; got"),
        ({"hidden": [8, 10**30]}, {}, r"path must hold .*1000000000.*; got"),
        ({"hidden": 8}, {}, "path must be a policy"),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            load_policy(rewrite(saved, bad, settings, **changes))
        assert str(bad) in str(refusal.value)
    for settings, message in (
        ({"width": 10**9}, "path must hold .*1000000000"),
        ({"rounds": 10**9}, "rounds must be an integer from 1 to 12"),
        ({"trust": float("nan")}, "trust must be finite and at least 0; got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            load_policy(rewrite(SHIPPED, bad, settings))


def test_policies_saved_again_by_other_programs(saved, tmp_path):
    """The same arrays in another order or packing are the same policy; others are one line."""
    with np.load(saved) as file:
        arrays = dict(file)
    again, kernel = tmp_path / "again.npz", arrays[KERNEL]
    same = arrays | {KERNEL: np.asfortranarray(kernel)}
    np.savez(again, **dict(reversed(same.items())))
    assert content(load_policy(again)) == content(load_policy(saved))
    for changes, message in (
        ({KERNEL: kernel.astype(float)}, f"path must hold {KERNEL} as .*float32.*; got .*float64"),
        (
            {"settings": None},
            "path must be a policy saved by save_policy; got .*: it holds no sett",
        ),
        ({"settings": np.asarray(b"{}")}, "path must be a policy saved by save_policy; got "),
        ({"settings": np.asarray("[" * 10**5)}, "path must be a policy saved by save_policy; got "),
        ({"remark": np.zeros(1)}, "path must hold remark as None; got "),
    ):
        several = {name: x for name, x in (arrays | changes).items() if x is not None}
        np.savez(again, **several)
        with pytest.raises(ValueError, match=message) as refusal:
            load_policy(again)
        assert "\n" not in str(refusal.value)
        assert str(again) in str(refusal.value)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(again, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        new.writestr("__MACOSX/._settings", b"remark")
    with pytest.raises(ValueError, match="path must be a policy"):
        load_policy(again)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_pickles_are_not_run(saved, tmp_path):
    marker, bad = tmp_path / "marker", tmp_path / "bad.npz"
    trap = np.array([Trap(marker)], dtype=object)
    pickle.loads(pickle.dumps(trap))  # it works
    marker.rmdir()
    for name in (KERNEL, "settings", "extra"):
        with np.load(saved) as file:
            np.savez(bad, **dict(file) | {name: trap})
        with pytest.raises(ValueError, match="path must be a policy"):
            load_policy(bad)
    bad.write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match="path must be a policy"):
        load_policy(bad)
    assert not marker.exists()


def test_zip_bombs_are_not_unpacked(saved, tmp_path):
    """An array too many, one that is too long, and one that unpacks to more than it says."""
    bad, huge, parts = tmp_path / "bad.npz", 2**27, [io.BytesIO(), io.BytesIO()]
    np.save(parts[0], np.zeros(huge // 4, np.float32))
    np.save(parts[1], np.load(saved)[KERNEL])
    zeros, kernel = (part.getvalue() for part in parts)
    for name, data, claim in (
        ("extra.npy", zeros, None),
        (f"{KERNEL}.npy", zeros, None),
        (f"{KERNEL}.npy", kernel + zeros, len(kernel)),
        ("settings.npy", zeros, None),
    ):
        with zipfile.ZipFile(saved) as old, zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as new:
            for info in old.infolist():
                if info.filename != name:
                    new.writestr(info.filename, old.read(info))
            new.writestr(name, data)
            if claim:
                new.getinfo(name).file_size = claim  # for the directory, written at the end
        assert bad.stat().st_size < 10**6
        tracemalloc.start()
        with pytest.raises(ValueError, match="path must"):
            load_policy(bad)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < huge / 8


STATE = {
    "a": np.random.default_rng(0).normal(size=(4, 16, 8)).astype(np.float32),
    "b": (np.array([3, 4], np.int32),),
}


def save_some(folder, epochs=(1, 2, 3)):
    """Save the state times the epoch at each."""
    with RunStore(folder, {"x": 1}, 0.0) as store:
        for epoch in epochs:
            rows = [{"step": np.asarray(i), "loss": np.float32(i)} for i in range(epoch)]
            store.save(epoch, lambda e=epoch: jax.tree.map(lambda x: x * e, STATE), rows, False)


def load_some(folder):
    """Load and check; the epoch."""
    with RunStore(folder, {"x": 1}, 0.0) as store:
        found = store.load(STATE)
    epoch, state, rows = found
    jax.tree.map(np.testing.assert_array_equal, state, jax.tree.map(lambda x: x * epoch, STATE))
    assert [list(row) for row in rows] == [["step", "loss"]] * epoch
    return epoch


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    good, bad, rng = tmp_path / "good", tmp_path / "bad", random.Random(0)
    save_some(good)
    assert sorted(path.name for path in (good / "epochs").iterdir()) == ["2", "3"]
    assert load_some(good) == 3
    files = [path.relative_to(good) for path in (good / "epochs/3").rglob("*") if path.is_file()]
    damage = [lambda path: path.write_bytes(flip(path.read_bytes(), rng))] * 4
    damage += [lambda path: os.truncate(path, path.stat().st_size // 2), Path.unlink]
    for number in range(max(len(files), TRIES // 2)):
        shutil.copytree(good, bad)
        file = bad / files[number % len(files)]
        spoil = rng.choice(damage) if file.stat().st_size else Path.unlink
        spoil(file)
        caplog.clear()
        assert load_some(bad) == 2
        assert f"checkpoint {bad / 'epochs/3'} is damaged" in caplog.text
        assert "Traceback" not in caplog.text
        assert [path.name for path in (bad / "epochs").iterdir()] == ["2"]
        shutil.rmtree(bad)


def test_a_run_that_cannot_be_read_says_what_to_delete(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    save_some(folder)
    (folder / "epochs/.4").mkdir()  # killed while it was written
    (folder / ".settings.json.x.part").write_bytes(b"{")
    monkeypatch.setattr(pickle, "loads", pytest.fail)  # Orbax reads no pickles
    monkeypatch.setattr(pickle, "load", pytest.fail)
    monkeypatch.setattr(pickle, "Unpickler", pytest.fail)
    assert load_some(folder) == 3
    assert [path.name for path in folder.rglob(".*")] == [".lock"]
    remedy = f"delete {folder} to begin again"
    record = folder / "settings.json"
    for text in (b"{", b"[1]", b"3", b"\xff", b""):
        record.write_bytes(text)
        with pytest.raises(DamagedRunError, match=f"settings.json cannot be read; {remedy}"):
            load_some(folder)
    record.write_text("[" * 10**6)
    with pytest.raises(DamagedRunError, match=f"settings.json cannot be read; {remedy}"):
        load_some(folder)
    # Another program saved the same.
    record.write_bytes(b'\xef\xbb\xbf{\r\n"x":1.0,"precision":"float32"}\r\n')
    assert load_some(folder) == 3
    record.write_text('{"x": 1}')  # an older version, which ran in float32 alone
    assert load_some(folder) == 3
    record.unlink()
    with pytest.raises(DamagedRunError, match=f"settings.json is missing; {remedy}"):
        load_some(folder)
    record.write_text('{"x": 2}')
    with pytest.raises(OtherRunError, match="x must be 2 to go on"):
        load_some(folder)
    record.write_text('{"x": 1, "precision": "float32"}')
    for epoch in "23":
        (folder / "epochs" / epoch / "sha256").write_bytes(b"0")
    with pytest.raises(DamagedRunError, match=f"epochs/3 cannot be read; {remedy}"):
        load_some(folder)
    assert len(list((folder / "epochs").iterdir())) == 2  # nothing is deleted on its own


def test_one_process_trains_in_a_folder(tmp_path):
    with RunStore(tmp_path, {"x": 1}, 0.0), pytest.raises(InUseError, match="is in use by another"):
        save_some(tmp_path)
    save_some(tmp_path)
    code = f"""
import time, pathlib
from meco_jax.runtime.atomic import FolderLock
FolderLock(pathlib.Path({str(tmp_path)!r}))
print("held", flush=True)
time.sleep(600)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(InUseError, match=rf"in use by another run \(process {other.pid}\); wait"):
        load_some(tmp_path)
    other.kill()
    other.communicate()
    assert load_some(tmp_path) == 3
    FolderLock(tmp_path).release()


def test_a_full_disk_keeps_the_checkpoints_before(tmp_path):
    """Without a small disk: a limit on the size of files, which needs no rights."""
    save_some(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as failure:
            save_some(tmp_path, [4])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failure.value.errno == errno.EFBIG
    assert sorted(path.name for path in (tmp_path / "epochs").iterdir()) == ["2", "3"]
    assert load_some(tmp_path) == 3


@pytest.fixture
def small_disk(tmp_path):
    """Mount a folder with little room; yields it and what changes the mount's options."""

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(tmp_path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small disk needs the rights of root")

    mount("size=600k")
    yield tmp_path, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_is_one_line_and_costs_nothing(small_disk, finished):
    disk, change = small_disk
    command = (*TINY, "--save_seconds=0", f"--output_dir={disk / 'out'}")
    one_line(run(*command), "No space left on device; free some and run the same command again")
    left = [path.name for path in disk.rglob("*")]
    assert not [name for name in left if name.startswith(".") and name != ".lock"], left
    change("ro,size=64m")
    one_line(run(*command), "Read-only file system; make it writable and run the same command")
    change("rw")
    result = run(*command)
    assert result.returncode == 0, result.stderr
    assert (disk / "out/results.csv").read_bytes() == (finished[0] / "results.csv").read_bytes()


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for name, why in (("file/out", "Not a directory"), ("file", "File exists")):
        result = inside(*TINY, f"--output_dir={tmp_path / name}")
        one_line(result, f"/{name} cannot be written: {why}; take another folder")


@pytest.mark.slow
def test_train_policy_is_killed_and_ends_with_the_same_files(tmp_path):
    flags = ("--scripts=train_policy", "--runs=1", "--kills=1", "--epochs=3", "--save_seconds=0")
    result = run(*flags, f"--output_dir={tmp_path}", script="crash_recovery")
    assert result.returncode == 0, result.stdout + result.stderr
