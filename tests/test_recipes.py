"""The guide's recipes with libraries that the tests do without: fenced as py, each on its own."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest

import meco_jax
from meco_jax import solve, table1

GUIDE = Path(meco_jax.__file__).parent / "GUIDE.md"
RECIPES = {
    library: block
    for block in re.findall(r"```py\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for library in re.findall(r"import (h5py|torch)\n", block)
}


class Tensor:
    """What the recipe uses of PyTorch's tensors, where that is not installed."""

    __module__ = "torch"

    def __init__(self, values, requires_grad=False, pull=None):
        self.values, self.requires_grad, self.pull = np.asarray(values), requires_grad, pull
        self.shape = self.values.shape

    def detach(self):
        return Tensor(self.values)

    def cpu(self):
        return self

    def to(self, other):
        return Tensor(self.values.astype(other.values.dtype))

    def numpy(self, force=False):
        return self.values

    def __array__(self, dtype=None, copy=None):
        return self.values.astype(dtype)

    def sum(self):
        return SimpleNamespace(backward=lambda: self.pull(Tensor(np.ones_like(self.values))))


class Function:
    """As ``torch.autograd.Function``: its gradient goes to the one argument."""

    @classmethod
    def apply(cls, h):
        ctx = SimpleNamespace()
        value = cls.forward(ctx, h)

        def pull(cotangent):
            h.grad = cls.backward(ctx, cotangent).values

        return Tensor(value.values, pull=pull)


@pytest.fixture
def pytorch(monkeypatch):
    """PyTorch, or the stand-in."""
    try:
        import torch
    except ImportError:
        torch = ModuleType("torch")
        torch.autograd, torch.tensor = SimpleNamespace(Function=Function), Tensor
        torch.full = lambda shape, value, requires_grad: Tensor(
            np.full(shape, value, np.float32), requires_grad
        )
        monkeypatch.setitem(sys.modules, "torch", torch)
    return torch


def test_gradients_for_pytorch(pytorch):
    space = {}
    exec(compile(RECIPES["torch"], GUIDE.name, "exec"), space)
    h = np.full((2, 3), 1e-3, np.float32)
    expected = jax.grad(lambda h: solve(h, table1(3), method="mcos").cost.sum())(h)
    assert np.all(np.isfinite(expected))
    assert np.any(expected != 0)
    np.testing.assert_array_equal(np.asarray(space["h"].grad), expected)
    np.testing.assert_array_equal(
        np.asarray(space["decision"]), solve(h, table1(3), method="mcos").offload
    )


def test_files_of_matlab_7_3(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(compile(RECIPES["h5py"], GUIDE.name, "exec"), space)
    assert space["gain_db"].shape == (4, 3)
    assert space["local"].feasible.all()
