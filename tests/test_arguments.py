"""Input whose meaning would be lost is refused, by name, before any compute; or understood."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import meco_jax
from meco_jax import System, pad_devices, sample_channels, solve, table1, wpmec
from meco_jax.runtime.checks import flags, per_device
from meco_jax.system import check_channels, check_system

K = 3
H = np.array([1e-3, 5e-4, 2e-3])


def system(**fields):
    usual = {"task_bits": np.full(K, 1e6), "cycles_per_bit": np.full(K, 300.0),
             "cpu_hz": np.full(K, 1.5e9)}  # fmt: skip
    return System(**usual | fields)


class Quantity(np.ndarray):
    unit = "km"


COMPLEX = "real numbers: pass abs\\(h\\); got 'complex"
MASKED = np.ma.masked_array(H, [False, True, False])


@pytest.mark.parametrize(
    ("h", "rule"),
    [
        (H + 1e-4j, COMPLEX),
        (jnp.asarray(H + 0j), COMPLEX),
        (list(H + 1j), COMPLEX),
        (MASKED, "numbers without a mask"),
        (H.view(Quantity), "plain numbers in SI units; got 'numbers in km'"),
        (H.astype(object), "real numbers; got 'object values'"),
        (["a", "b", "c"], "real numbers; got '<U1 values'"),
        ("abc", "real numbers; got 'abc'"),
        (None, "real numbers; got None"),
        ({"h": H}, "real numbers; got {"),
        ([[1e-3], [1e-3, 2e-3]], "real numbers; got "),
        (H > 0, "real numbers; got 'bool values'"),
        (jax.random.key(0), "real numbers; got 'key<fry> values'"),
        (
            -93.0 * np.ones(K),
            r"finite and at least 0; got -93.0; gains in dB become amplitudes by sqrt",
        ),
        (np.full(K, 1e39), r"finite and at least 0; got 1e\+39, inf in float32"),
    ],
)
def test_gains_that_mean_something_else_are_refused(h, rule):
    for call in (solve, meco_jax.pcos, meco_jax.repair):
        with pytest.raises(ValueError, match=f"h must be {rule}"):
            call(h, system(), **({"offload": np.ones(K)} if call is meco_jax.repair else {}))


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (1e-3, "h must have one gain per device"),
        (np.zeros(0), "h must have one gain per device"),
        (np.ones((2, 0)), "h must have one gain per device"),
        (H[:, None], "h must have its devices on the last axis; got a column"),
    ],
)
def test_shapes_without_a_system(h, message):
    with pytest.raises(ValueError, match=message):
        solve(h)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task_bits": 1e6}, "system.task_bits must have one entry per device"),
        ({"task_bits": np.zeros(0)}, "system.task_bits must have one entry per device"),
        ({"task_bits": np.full((K, 1), 1e6)}, "system.task_bits must have its devices on the last"),
        ({"cpu_hz": np.full(2, 1e9)}, "system.cpu_hz must be one number or have one entry for"),
        ({"cpu_hz": np.full((1, 1), 1e9)}, "system.cpu_hz must be one number or have one entry"),
        ({"cycles_per_bit": np.full((K, 1), 3e2)}, "system.cycles_per_bit must be one number or"),
        ({"active": [1, 0, 2]}, "system.active must be True or False; got array"),
        ({"active": "yes"}, "system.active must be real numbers; got 'yes'"),
        ({"slot": None}, "system.slot must be real numbers; got None"),
        ({"slot": [0.5, 0.6]}, r"system.slot must have batch axes that broadcast against \(4,\)"),
        ({"slot": 0.5 + 0j}, "system.slot must be real numbers; got"),
        ({"noise_power": -90.0}, "above 0; got -90.0; powers in dBm become W by meco_jax.from_dbm"),
        ({"noise_power": 1e-50}, "system.noise_power must be finite and above 0; got 1e-50, 0.0"),
        ({"log_base": 1 + 1e-9}, "system.log_base must be finite and above 1; got 1.000000001"),
        ({"task_bits": np.full(K, 1e39)}, "system.task_bits must be finite and at least 0; got 1e"),
        ({"access": "cdma"}, "system.access must be one of tdma, fdma; got 'cdma'"),
        ({"access": None}, "system.access must be one of tdma, fdma; got None"),
        ({"edge_cycles": 0.0}, "system.edge_cycles must be finite and above 0; got 0.0"),
        ({"edge_cycles": np.full(K, 1e9)}, "system.edge_cycles must "),
        ({"circuit_power": -0.1}, "system.circuit_power must be finite and at least 0; got -0.1"),
        ({"fixed_time": [0.1, -1, 0]}, "system.fixed_time must be finite and at least 0; got -1"),
        ({"fixed_energy": np.ones(2)}, "system.fixed_energy must be one number or have one entry"),
        ({"delay_weight": np.nan}, "system.delay_weight must be finite and at least 0; got nan"),
        ({"max_power": np.ones(2)}, "system.max_power must be one number or have one entry for"),
        ({"max_power": [0.1, -0.1, 0.1]}, "system.max_power must be finite and at least 0; got -0"),
    ],
)  # fmt: skip
def test_fields_that_mean_something_else_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        solve(np.stack([H] * 4), system(**fields), "mcos")


SCALARS = ("bandwidth", "slot", "log_base")


@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_per_device_is_refused(name):
    """Read as K systems, it would look like an answer per device."""
    value = np.full(K, float(getattr(System(1, 1, 1), name)))
    rule = f"system.{name} must be one value for all devices of a system; got shape \\(3,\\)"
    for h in (H, np.stack([H] * 2)[:, None]):
        with pytest.raises(ValueError, match=rule):
            solve(h, system(**{name: value}), "mcos")
    square = np.stack([H] * K)  # the channels bring the axis along
    if name in ("slot", "log_base"):
        assert solve(square, system(**{name: value}), "mcos").energy.shape == (K,)
    else:
        with pytest.raises(ValueError, match=rule):
            solve(square, system(**{name: value}), "mcos")
    many = {
        n: np.stack([getattr(system(), n)] * K) for n in ("task_bits", "cycles_per_bit", "cpu_hz")
    }
    assert solve(H, System(**many, **{name: value}), "mcos").energy.shape == (K,)


FLEXIBLE = ("noise_power", "max_power", "mean_gain", "chip")


@pytest.mark.parametrize("name", FLEXIBLE)
def test_what_may_differ_between_devices(name):
    """[K] is per device, [N, 1] a number for N systems, and [N] beside tasks [N, K] too."""
    usual = float(getattr(System(1, 1, 1), name))
    plain = solve(np.stack([H] * 2), system(), "mcos")
    for value in (np.full(K, usual), np.full((2, 1), usual), np.full((2, K), usual), usual):
        found = solve(np.stack([H] * 2), system(**{name: value}), "mcos")
        assert found.power.shape == (2, K)
        np.testing.assert_allclose(found.energy, plain.energy, rtol=1e-6)
    rule = f"system.{name} must be one number or have one entry for each of 3 devices on its last"
    with pytest.raises(ValueError, match=rule + r".* has shape \[N, 1\]"):
        solve(np.stack([H] * 2), system(**{name: np.full(2, usual)}), "mcos")
    tasks = ("task_bits", "cycles_per_bit", "cpu_hz")
    many = {n: np.stack([getattr(system(), n)] * 2) for n in tasks}
    each = System(**many, **{name: np.array([usual, usual * 2])})
    assert solve(H, each, "mcos").energy.shape == (2,)
    square = {n: np.stack([getattr(system(), n)] * K) for n in tasks}  # [K] of K systems
    found = solve(H, System(**square, **{name: usual * np.array([1, 1, 2])}), "mcos")
    np.testing.assert_allclose(found.energy[0], found.energy[1], rtol=1e-6)


def test_rows_and_numbers_of_matlab_are_understood():
    """[1, K] and [1, 1], as .mat files give them; columns stay refused."""
    rows = {n: getattr(system(), n)[None] for n in ("task_bits", "cycles_per_bit", "cpu_hz")}
    found = solve(H[None], System(**rows, slot=np.array([[0.4]])), "pcos")
    plain = solve(H, system(slot=0.4), "pcos")
    assert found.power.shape == (1, 1, K)
    np.testing.assert_allclose(found.energy[0, 0], plain.energy, rtol=1e-6)
    columns = {name: row.T for name, row in rows.items()}
    with pytest.raises(ValueError, match="task_bits must have its devices on the last"):
        solve(H[:, None], System(**columns), "pcos")
    each = solve(H[:, None], System(**columns, active=np.ones((K, 1), bool)), "pcos")
    assert each.energy.shape == (K,)  # so many systems of one device, and said so


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"system": "optimal"}, "system must be a meco_jax.System; got 'optimal'"),
        ({"policy": "file.npz"}, "policy must be read first, as by .*load_policy.*'file.npz'"),
        ({"method": None}, "method must be one of .*; got None"),
        ({"method": ["bcos"]}, "method must be one of .*; got"),
        ({"effort": True}, "effort must be an integer from 0 to 12; got True"),
        ({"effort": 4.0}, "effort must be an integer from 0 to 12; got 4.0"),
        ({"tolerance": None}, "tolerance must be real numbers; got None"),
        ({"tolerance": [1e-3, 1e-4]}, "tolerance must be one number; got"),
        ({"tolerance": 0.0}, "tolerance must be finite and above 0; got 0.0"),
    ],
)  # fmt: skip
def test_other_arguments_of_solve_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        solve(H, **{"system": system()} | arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: table1(3.0), "num_devices must be an integer of at least 1; got 3.0"),
        (lambda: table1(True), "num_devices must be an integer of at least 1; got True"),
        (lambda: table1(3, slot="long"), "slot must be real numbers; got 'long'"),
        (lambda: sample_channels(jax.random.key(0), system(), -3), "num must be at least 0"),
        (lambda: sample_channels(jax.random.key(0), "table1", 3), "system must be a .*System"),
        (
            lambda: sample_channels(jax.random.key(0), system(mean_gain=np.full((2, K), 1e-6)), 3),
            r"system.mean_gain must be one number or 3, one per device; .* got shape \(2, 3\)",
        ),
        (lambda: pad_devices(system(), 2), "num_devices must be at least 3; got 2"),
        (lambda: pad_devices(system(), 4.5), "num_devices must be an integer of at least 3"),
        (lambda: meco_jax.allocate(H, system(), np.full(K, 2)), "offload must be from 0 to 1; got"),
        (lambda: meco_jax.allocate(H, system(), np.full(K, 0.5)), "offload must be 0 or 1; got"),
        (lambda: meco_jax.allocate(H, system(), [1, 0]), "offload must have one decision for each"),
        (lambda: meco_jax.repair(H, system(), np.full(K, -1)), "offload must be from 0 to 1; got"),
        (lambda: meco_jax.repair(H, system(), np.full(K, np.nan)), "offload must be from 0 to 1"),
        (
            lambda: meco_jax.repair(np.stack([H] * 2), system(), np.ones((3, K))),
            "offload must have batch axes that broadcast",
        ),
        (lambda: meco_jax.pretrained().decide(system(), np.stack([H])), "h must be one channel"),
        (lambda: meco_jax.pretrained().scores(system(), np.stack([H])), "h must be one channel"),
        (lambda: meco_jax.pretrained().export("p.bin", 2.5), "num_devices must be an integer of"),
    ],
)  # fmt: skip
def test_arguments_of_the_other_functions_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_a_number_is_taken():
    """NumPy's integers, lists, whole numbers, half precision, one number for all devices."""
    plain = solve(H, system(), "mcos")
    half = solve(H.astype(np.float16), system(), "mcos")
    np.testing.assert_allclose(half.energy, plain.energy, rtol=1e-2)
    for h in (list(H), H.astype(np.float32), jnp.asarray(H), np.ma.masked_array(H, False)):
        np.testing.assert_allclose(solve(h, system(), "mcos").energy, plain.energy, rtol=1e-6)
    one = System(task_bits=[10**6] * K, cycles_per_bit=300, cpu_hz=np.float32(1.5e9))
    np.testing.assert_allclose(solve(H, one, "mcos").energy, plain.energy, rtol=1e-6)
    some = system(active=[1, 0, 1])
    assert not solve(H, some, "bcos", effort=np.int64(0)).offload[1]
    assert pad_devices(one, np.int32(5)).num_devices == 5


@pytest.mark.parametrize("name", ["mcos", "allocate", "repair"])
def test_public_schemes_take_batches(name):
    h = np.asarray(sample_channels(jax.random.key(1), table1(K), 4)).reshape(2, 2, K)
    decision = ([True] * K,) if name in ("allocate", "repair") else ()
    call = getattr(meco_jax, name)
    found = call(h, table1(K), *decision)
    assert found.power.shape == (2, 2, K)
    for i in np.ndindex(2, 2):
        one = call(h[i], table1(K), *decision)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), found, one)
    traced = jax.jit(lambda h: call(h, table1(K), *decision))(h.reshape(4, K))
    np.testing.assert_allclose(traced.energy, found.energy.ravel(), rtol=1e-6)


def test_bad_decisions_under_jit_give_nan():
    decide = jax.jit(lambda a: meco_jax.allocate(H, system(), a))
    np.testing.assert_array_equal(
        np.isnan(decide(np.array([[1, 1, 1], [1, 2, 0.0]])).energy), [0, 1]
    )


@pytest.mark.parametrize("method", ["mcos", "mcos_partial", "pcos", "optimal", "bcos"])
def test_an_infeasible_answer_sends_nothing(method):
    """Whoever acts on it without looking at ``feasible`` stays silent."""
    hopeless = system(cpu_hz=np.zeros(K))
    found = solve(np.full((2, K), 1e-9), hopeless, method)
    assert not found.feasible.any()
    for leaf in (found.offload, found.power, found.time):
        assert np.all(leaf == 0)
    assert np.all(np.isinf(found.energy))


class Tensor:
    """What is used of a tensor of PyTorch's, which tests do without."""

    __module__ = "torch"

    def __init__(self, values, requires_grad=False, readable=True):
        self.values, self.requires_grad, self.readable = values, requires_grad, readable
        self.shape = np.shape(values)
        self.ndim = len(self.shape)

    def numpy(self, force):
        if not self.readable:  # as of bfloat16
            raise TypeError("Got unsupported ScalarType BFloat16")
        assert force  # from any device
        return np.asarray(self.values)

    def float(self):
        return Tensor(np.asarray(self.values, np.float32))

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


def tensors(values, kind=None, requires_grad=False):
    """A stand-in, and a real tensor where PyTorch is there."""
    yield Tensor(values, requires_grad, readable=kind != "bfloat16")
    try:
        import torch
    except ImportError:
        return
    yield torch.tensor(values, dtype=kind and getattr(torch, kind), requires_grad=requires_grad)


@pytest.mark.parametrize("kind", [None, "bfloat16"])
def test_tensors_are_taken(kind):
    """Gains, fields, decisions, flags; alone and in a list."""
    for h in tensors(H.tolist(), kind):
        np.testing.assert_allclose(check_channels(h, K), H, rtol=1e-2 if kind else 1e-7)
        np.testing.assert_allclose(check_channels([h, h], K), [H, H], rtol=1e-2 if kind else 1e-7)
        checked = check_system(system(cpu_hz=h, active=next(tensors([True, False, True]))))
        np.testing.assert_allclose(checked.cpu_hz, H, rtol=1e-2 if kind else 1e-7)
        np.testing.assert_array_equal(checked.active, [True, False, True])
    for a in (*tensors([1, 0, 1]), *tensors([True, False, True]), [True, False, True]):
        np.testing.assert_array_equal(per_device("offload", a, K, "decision"), [1, 0, 1])
        np.testing.assert_array_equal(flags("system.active", a), [True, False, True])


def test_a_gradient_is_never_lost_silently():
    for h in tensors(H.tolist(), requires_grad=True):
        for call in (
            lambda h: solve(h, system()),
            lambda h: solve([h, h], system()),
            lambda h: solve(H, system(cpu_hz=h)),
            lambda h: pad_devices(system(cpu_hz=h), 4),
            lambda h: per_device("offload", h, K, "decision"),
        ):
            with pytest.raises(ValueError, match=r"must be a tensor without a gradient, .*detach"):
                call(h)


class Symbolic:
    """As other libraries have it: there are no numbers to read."""

    shape = (K,)

    def __array__(self, dtype=None, copy=None):
        raise NotImplementedError("Cannot convert a symbolic tensor")


def test_arrays_of_other_libraries_are_refused_by_name():
    with pytest.raises(ValueError, match=r"h must be real numbers; got <.*Symbolic"):
        solve(Symbolic(), system())
    with pytest.raises(ValueError, match=r"task_bits must be real numbers; got <.*Symbolic"):
        solve(H, system(task_bits=Symbolic()))


def test_tensors_without_numbers_are_refused_by_name():
    torch = pytest.importorskip("torch")
    for h in (torch.ones(K, device="meta"), torch.eye(K).to_sparse()):
        with pytest.raises(ValueError, match="h must be a dense tensor of real numbers; got"):
            solve(h, system())


def rows(*names, **fields):
    """Fields as .mat files have them, ``[1, K]``."""
    names = ("task_bits", "cycles_per_bit", "cpu_hz", *names)
    return system(**{name: np.asarray(getattr(system(), name))[None] for name in names} | fields)


SIX = np.full(6, 0.1)  # a sweep, against 7 channels
SEVEN = np.tile(H, (7, 1))


@pytest.mark.parametrize(
    ("h", "system", "advice"),
    [
        (SEVEN, system(slot=SIX), "slot[:, None] of shape (6, 1): the answers are then (6, 7)"),
        (SEVEN, system(noise_power=SIX), "pass noise_power[:, None] of shape (6, 1)"),
        (SEVEN, system(noise_power=SIX[:, None]), "pass noise_power[:, None] of shape (6, 1, 1): "),
        (SEVEN, system(slot=SIX[:K]), "pass slot[:, None] of shape (3, 1)"),
        (SEVEN, system(chip=SIX[:K, None]), "pass chip[:, 0] of shape (3,). If 3 systems are "),
        (SEVEN, system(chip=SIX[:K, None]), "meant, pass chip[:, None] of shape (3, 1, 1)"),
        (SEVEN, rows(chip=SIX[:K]), "pass chip[None], or task_bits[0] of shape (3,)"),
        (H, system(cpu_hz=np.full((K, 1), 1e9)), "pass cpu_hz[:, 0] of shape (3,)"),
        (H, system(cpu_hz=np.full((1, 1), 1e9)), "pass cpu_hz.item()"),
        (H, system(cpu_hz=np.full((K, 7), 1e9)), "pass cpu_hz.T of shape (7, 3)"),
        (SEVEN.T, system(), "pass h.T of shape (7, 3)"),
        (H[:, None], system(), "pass h[:, 0] of shape (3,)"),
    ],
)
def test_shapes_are_refused_with_the_shape_to_pass(h, system, advice):
    with pytest.raises(ValueError, match=re.escape(advice)):
        solve(h, system, "mcos")


def view(base):
    return np.broadcast_to(base, base.shape)


def frozen(base):
    """Its own array, which another view may write all the same."""
    base.setflags(write=False)
    return base


def shared(base):
    """JAX's array in the memory of NumPy's, where that is aligned."""
    return jax.device_put(base)


@pytest.mark.parametrize("share", [np.asarray, view, frozen, shared])
def test_what_is_written_after_a_call_counts_in_the_next(share):
    kind = np.float32 if share is shared else np.float64  # of which JAX makes none
    memory = np.zeros(K + 16, kind)
    start = -(memory.ctypes.data // memory.itemsize) % (64 // memory.itemsize)  # aligned
    for field, given, check in (
        ("task_bits", system, check_system),
        ("weight", wpmec.WPMEC, wpmec.system.check_system),
    ):
        base, writer = memory[start : start + K], memory[start : start + K]
        writer[:] = 1e6
        made = given(**{field: share(base)})
        assert check(made) is check(made)  # worked out once
        np.testing.assert_array_equal(getattr(check(made), field), 1e6)
        writer[:] = 2e6
        np.testing.assert_array_equal(getattr(check(made), field), getattr(made, field))


def test_a_view_that_is_written_later_is_solved_anew():
    base = np.full(K, 1e6)
    made = system(task_bits=np.broadcast_to(base, (K,)), cycles_per_bit=300, cpu_hz=1.5e9)
    solve(H, made, "mcos")
    base *= 1.5
    assert solve(H, made, "mcos").energy == solve(H, system(task_bits=base), "mcos").energy


def test_arguments_are_copied():
    """A program may still run when a call has returned and the next slot is written."""
    h, bits = H.astype(np.float32), np.full(K, 1e6, np.float32)
    a, active = np.ones(K, np.float32), np.ones(K, bool)
    checked = check_system(system(task_bits=bits, active=active))
    for given, used in (
        (h, check_channels(h, K)),
        (a, per_device("offload", a, K, "decision")),
        (bits, checked.task_bits),
        (active, checked.active),
    ):
        assert used.dtype == given.dtype
        assert not np.shares_memory(given, used)
