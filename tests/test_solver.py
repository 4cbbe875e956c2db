import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import check_solution, random_case, stack, untrained_policy

import meco_jax
from meco_jax import pad_devices, sample_channels, solve, table1

METHODS = ("mcos", "mcos_partial", "pcos", "optimal", "bcos")


@pytest.fixture(scope="module")
def policy():
    return untrained_policy(5)


def arguments(method, policy):
    return {"method": method, "policy": policy if method == "bcos" else None}


@pytest.mark.parametrize("method", METHODS)
def test_every_feasible_solution_is_checked(method, policy, key):
    """Also where slots are short and the load high, so that some channels are infeasible."""
    seen = set()
    for slot, base in ((0.5, 2.0), (0.3, 10.0), (1.0, 2.0)):
        system = table1(5, slot=slot, seed=1).replace(log_base=base)
        h = sample_channels(jax.random.key(3), system, 60)
        solution = solve(h, system, **arguments(method, policy))
        for i in range(60):
            one = jax.tree.map(lambda x, i=i: np.asarray(x[i]), solution)
            seen.add(bool(one.feasible))
            if one.feasible:
                check_solution(system, h[i], one, whole=method in ("mcos", "optimal", "bcos"))
            else:
                assert np.isinf(one.energy)
                assert np.isinf(one.lower_bound) or method == "mcos"
                assert np.all(one.power == 0)
                assert np.all(one.time == 0)
    assert True in seen


@pytest.mark.parametrize("method", ["mcos", "optimal", "bcos"])
def test_jit_vmap_and_batches_agree(method, policy, key):
    system = table1(5)
    h = sample_channels(key, system, 6)
    keywords = arguments(method, policy)
    eager = solve(h, system, **keywords)
    for other in (
        jax.jit(lambda h: solve(h, system, **keywords))(h),
        jax.vmap(lambda h: solve(h, system, **keywords))(h),
        jax.tree.map(
            lambda x: x.reshape(6, *x.shape[2:]), solve(h.reshape(2, 3, 5), system, **keywords)
        ),
        jax.tree.map(lambda *x: jnp.stack(x), *[solve(row, system, **keywords) for row in h]),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), other, eager
        )


def test_systems_broadcast_against_channels():
    rng = np.random.default_rng(1)
    cases = [random_case(rng, 4) for _ in range(3)]
    systems, h = stack([c[0] for c in cases]), jnp.stack([c[1] for c in cases])
    together = solve(h, systems, method="pcos")
    for i, (system, gains, _) in enumerate(cases):
        np.testing.assert_allclose(
            together.energy[i], solve(gains, system, method="pcos").energy, rtol=1e-6
        )
    swept = solve(h[0], cases[0][0].replace(slot=jnp.array([0.3, 0.6, 0.9])), method="pcos")
    assert swept.time.shape == (3, 4)
    for i, slot in enumerate((0.3, 0.6, 0.9)):
        alone = solve(h[0], cases[0][0].replace(slot=slot), method="pcos")
        np.testing.assert_allclose(swept.energy[i], alone.energy, rtol=1e-6)


@pytest.mark.parametrize("method", ["mcos", "pcos"])
def test_padded_equals_unpadded(method, key):
    system = table1(4)
    h = sample_channels(key, system, 10)
    padded = solve(jnp.pad(h, ((0, 0), (0, 3))), pad_devices(system, 7), method=method)
    plain = solve(h, system, method=method)
    np.testing.assert_allclose(padded.energy, plain.energy, rtol=1e-6)
    np.testing.assert_allclose(padded.power[:, :4], plain.power, rtol=1e-4, atol=1e-8)


def test_default_system_is_table1(key):
    h = sample_channels(key, table1(3), 4)
    np.testing.assert_array_equal(
        solve(h, method="mcos").energy, solve(h, table1(3), method="mcos").energy
    )


def test_policy_is_never_worse_than_local(policy, key):
    system = table1(5)
    h = sample_channels(key, system, 200)
    learned, local = solve(h, policy=policy), solve(h, system, method="mcos")
    assert np.all(learned.energy <= local.energy * (1 + 2e-6))
    assert np.all(learned.feasible == local.feasible)


def test_gradient_of_the_energy(policy, key):
    h = sample_channels(key, table1(5), 3)
    for method in ("pcos", "bcos"):
        keywords = arguments(method, policy)
        energy = lambda h, k=keywords: jnp.sum(solve(h, table1(5), **k).energy)  # noqa: E731
        gradient = jax.jit(jax.grad(energy))(h)
        assert np.isfinite(gradient).all()
        assert np.all(gradient <= 1e-6)  # a better channel never costs energy
        assert np.any(gradient < 0)


@pytest.mark.parametrize("method", ["pcos", "optimal"])
def test_chunks_change_nothing(method, policy, key, monkeypatch):
    system = table1(5).replace(slot=jnp.linspace(0.3, 0.6, 11))
    h = sample_channels(key, table1(5), 11)
    keywords = arguments(method, policy)
    whole = solve(h, system, **keywords)
    monkeypatch.setattr(meco_jax.engine, "CHUNK_BYTES", 300_000)  # four channels at once
    meco_jax.solver._solve.clear_cache()
    chunked = solve(h, system, **keywords)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), chunked, whole
    )
    meco_jax.solver._solve.clear_cache()


def test_sizes_share_programs(key):
    """Batches in blocks of a few sizes, and K up to a multiple of eight, compile once."""
    programs = meco_jax.solver._solve._cache_size
    solve(sample_channels(key, table1(8), 16), table1(8), method="pcos")
    before = programs()
    for number, devices in ((9, 6), (12, 8), (16, 1), (2, 3)):
        system = table1(devices, slot=0.7, seed=number)
        slots = np.linspace(0.3, 0.6, number)  # a field of each channel's own
        h = sample_channels(key, system, number)
        solve(h, system, method="pcos")
        found = solve(h, system.replace(slot=slots), method="pcos")
        assert found.power.shape == (number, devices)
    assert programs() == before
    for devices in (3, 7):  # one channel alone
        solve(np.ones(devices), table1(devices), method="pcos")
    assert programs() <= before + 1


def test_programs_are_bounded(monkeypatch):
    """A process that sees ever new sizes would run out of memory mappings, and crash."""
    monkeypatch.setattr(meco_jax.engine, "MOST_PROGRAMS", 2)
    before = meco_jax.solver._solve._cache_size()
    for number in (1, 8, 64):
        solve(np.full((number, 3), 1e-3), table1(3), method="mcos")
    assert meco_jax.solver._solve._cache_size() <= max(2, before)


def test_blocks_change_nothing(key, monkeypatch):
    system = table1(5)
    h = sample_channels(key, system, 7)
    whole = solve(h, system, method="optimal")
    monkeypatch.setattr(meco_jax.engine, "BATCH_SIZES", (2,))
    blocks = solve(h, system, method="optimal")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), blocks, whole)


@pytest.mark.parametrize("method", ["optimal", "bcos"])
def test_no_channel_is_no_answer(method):
    solution = solve(np.ones((2, 0, 3)), table1(3), method=method)
    assert solution.power.shape == (2, 0, 3)
    assert solution.feasible.shape == (2, 0)


def test_a_policy_may_be_traced(policy, key):
    h = sample_channels(key, table1(5), 4)
    energy = jax.jit(lambda policy: solve(h, policy=policy).energy)(policy)
    np.testing.assert_allclose(energy, solve(h, policy=policy).energy, rtol=1e-5)


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (np.full(4, 1e-3), r"h must have one gain for each of 3 devices; got shape \(4,\)"),
        (1e-3, r"h must have one gain for each of 3 devices; got shape \(\)"),
        (np.array([1e-3, -1e-3, 1e-3]), "h must be finite and at least 0; got -0.001"),
        (np.array([1e-3, np.nan, 1e-3]), "h must be finite and at least 0; got nan"),
        (np.array([1e-3, np.inf, 1e-3]), "h must be finite and at least 0; got inf"),
    ],
)
def test_bad_channels_are_named(h, message):
    with pytest.raises(ValueError, match=message):
        solve(h, table1(3), method="mcos")


def test_bad_methods_and_policies_are_named(policy):
    h = np.full(3, 1e-3)
    with pytest.raises(ValueError, match=r"method must be one of bcos, .*; got 'magic'"):
        solve(h, table1(3), method="magic")
    with pytest.raises(
        ValueError, match=r"policy must be trained for 3 devices.*; got one trained for 5"
    ):
        solve(h, table1(3), policy=policy)
    with pytest.raises(ValueError, match="h must have one gain for each of 5 devices"):
        solve(h, policy=policy)
    with pytest.raises(ValueError, match="h must have one gain for each of 5 devices"):
        policy(h)
    with pytest.raises(ValueError, match="h must be finite and at least 0; got -1"):
        policy(np.full(5, -1.0))


def test_bad_values_under_jit_give_nan(policy):
    solve_jit = jax.jit(lambda h, slot: solve(h, table1(5).replace(slot=slot), policy=policy))
    h = jnp.full((3, 5), 1e-3).at[1, 2].set(jnp.nan).at[2, 0].set(-1e-3)
    solution = solve_jit(h, 0.5)
    np.testing.assert_array_equal(solution.feasible, [True, False, False])
    np.testing.assert_array_equal(np.isnan(solution.energy), [False, True, True])
    assert not np.isnan(solution.power).any()
    assert np.isnan(solve_jit(h, -0.5).energy).all()
    with pytest.raises(ValueError, match="h must have one gain"):
        jax.jit(lambda h: solve(h, table1(4), method="mcos"))(h)


def equal_times(system, h):
    """A scheme of one's own, by hand: all with a good channel send, each as long."""
    sends = system.active & (h > 5e-4)
    time = jnp.where(sends, system.slot / jnp.maximum(jnp.sum(sends), 1), 0.0)
    rate = jnp.where(sends, system.task_bits, 0.0) / jnp.where(sends, time, 1.0)
    nats = rate * jnp.log(system.log_base) / system.bandwidth
    power = jnp.expm1(nats) * system.noise_power / jnp.where(sends, h, 1.0) ** 2
    cycles = jnp.where(system.active & ~sends, system.cycles_per_bit * system.task_bits, 0.0)
    each = system.weight * (power * time + system.chip * cycles * system.cpu_hz**2)
    late = cycles > system.cpu_hz * system.slot
    feasible = jnp.all((power <= system.max_power) & ~late)
    return meco_jax.Solution(
        offload=sends,  # booleans do
        power=jnp.where(feasible, power, 0.0),
        time=jnp.where(feasible, time, 0.0),
        energy=jnp.where(feasible, jnp.sum(each), jnp.inf),
        lower_bound=0.0,  # nothing is known
        feasible=feasible,
    )


def test_a_function_is_a_method_like_the_named_ones(rng):
    """Blocks, padding, systems of each channel's own, jit, vmap, grad; one program per size."""
    slots = rng.uniform(0.1, 1.0, 9).astype(np.float32)
    system = table1(3, seed=2)
    h = rng.rayleigh(1e-3, (9, 3)).astype(np.float32)
    warm = meco_jax.warm_up([3], [9], equal_times)
    assert list(warm) == ["equal_times, 3 devices, 8 channels"]
    programs = meco_jax.solver._solve._cache_size()
    found = solve(h, system.replace(slot=slots), method=equal_times)
    assert 0 < np.sum(found.feasible) < 9
    check_solution(system.replace(slot=slots), h, found)  # energies per device are filled in
    again = solve(h[:9:2], system.replace(slot=slots[:9:2]), method=equal_times)
    np.testing.assert_allclose(again.energy, found.energy[:9:2], rtol=1e-6)  # in other places
    assert meco_jax.solver._solve._cache_size() == programs
    by = lambda h, slot: solve(h, system.replace(slot=slot), method=equal_times)  # noqa: E731
    for other in (jax.jit(by)(h, slots), jax.vmap(by)(h, slots)):
        np.testing.assert_allclose(other.energy, found.energy, rtol=1e-6)
        assert other.power.shape == (9, 3)
    one = int(np.argmax(found.feasible))
    slope = jax.grad(lambda h: by(h, slots[one]).energy)(jnp.asarray(h[one]))
    assert np.all(slope[found.offload[one] > 0] < 0)
    assert np.isnan(jax.jit(by)(-h, slots).energy).all()


def test_functions_inside_a_program_may_close_over_what_it_computes():
    """Nothing that is being recorded outlives its program."""
    h, system = jnp.full((2, 3), 1e-3), table1(3, slot=2.0)

    def energies(least, h):
        def above(system, h):
            return equal_times(system, jnp.where(h > least, h, 0.0))

        return solve(h, system, method=above).energy

    programs = meco_jax.solver._solve._cache_size()
    found = jax.jit(energies)(0.0, h)
    assert meco_jax.solver._solve._cache_size() == programs
    np.testing.assert_allclose(found, solve(h, system, method=equal_times).energy, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"power": jnp.ones(2)},
            r"method must return power of shape \[K\], here \(3,\), for one channel; .*\(2,\)",
        ),
        (
            {"energy": jnp.ones(3)},
            r"method must return energy of shape \[\], here \(\), for one channel; .*\(3,\)",
        ),
        ({"feasible": 1.0}, "method must be a function that returns feasible as a boolean"),
        ({"energy": None}, "energy, which method returns, must be real numbers; got None"),
        ({"time": 1j * jnp.ones(3)}, "time, which method returns, must be real numbers; got"),
    ],
)
def test_functions_that_return_no_answer_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        solve(np.full(3, 1e-3), table1(3), method=lambda s, h: equal_times(s, h).replace(**fields))


class Unhashable(list):
    def __call__(self, system, h):
        return equal_times(system, h)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda s, h: h, "method must be a function that returns a meco_jax.Solution; got"),
        (Unhashable(), r"method must be hashable: it is compiled once; got \[\]"),
        (["mcos"], r"method must be one of bcos, .*, or a function .*; got \['mcos'\]"),
    ],
)
def test_what_is_no_method_is_named(method, message):
    with pytest.raises(ValueError, match=message):
        solve(np.full(3, 1e-3), table1(3), method=method)


def test_a_policy_that_is_not_used_is_refused():
    policy = meco_jax.pretrained()
    for method, name in (("mcos", "mcos"), (equal_times, "equal_times")):
        message = f"policy must be None for method '{name}', which uses none; got GeneralPolicy"
        with pytest.raises(ValueError, match=message):
            solve(np.full(3, 1e-3), table1(3), method=method, policy=policy)


def test_ones_own_functions_see_their_own_devices():
    """Medians, ranks and the number of devices mean what they say: nothing is padded."""
    system, h = table1(3, slot=2.0), np.array([[1e-3, 2e-3, 3e-3], [3e-3, 1e-3, 2e-3]])

    def upper_half(system, h):
        assert h.shape == system.task_bits.shape == (3,)
        return meco_jax.allocate(h, system, (h >= jnp.median(h)).astype(h.dtype))

    calls = (
        lambda h: solve(h, system, method=upper_half),
        lambda h: meco_jax.map_channels(upper_half, h, system),
        jax.jit(lambda h: solve(h, system, method=upper_half)),
    )
    for call in calls:
        np.testing.assert_array_equal(call(h).offload, h > 1.5e-3)


def test_the_order_of_older_versions_still_works():
    system, h = table1(3, slot=2.0), np.full(3, 1e-3)
    with pytest.warns(DeprecationWarning, match=r"allocate takes gains before the system, allo"):
        old = meco_jax.allocate(system, h, np.ones(3))
    np.testing.assert_array_equal(old.power, meco_jax.allocate(h, system, np.ones(3)).power)
    with pytest.warns(DeprecationWarning, match=r"map_channels\(function, h, system, ...\)"):
        meco_jax.map_channels(equal_times, system, h)
    with pytest.warns(DeprecationWarning, match=r"mcos takes gains before the system"):
        meco_jax.mcos(system, h=h)
    with pytest.raises(
        ValueError, match=r"h must be gains \[..., K\], and the system comes second"
    ):
        solve(system, h)
    for policy, message in (
        ("policy.npz", r"read first, as by meco_jax.load_policy\('policy.npz'\)"),
        (equal_times, "a function goes through method="),
    ):
        with pytest.raises(ValueError, match=message):
            solve(h, system, policy=policy)
    with pytest.raises(ValueError, match=r"policy must be from meco_jax\.train or train_policy"):
        meco_jax.save_policy("unused.npz", equal_times)


def test_map_channels_takes_more_than_gains(rng):
    system, h = table1(3, slot=2.0), rng.rayleigh(1e-3, (4, 3))

    def above(system, h, least):
        return equal_times(system, jnp.where(h > least, h, 0.0))

    found = jax.jit(lambda x: meco_jax.map_channels(above, h, system, x))(h[:, :1] + 0 * h)
    np.testing.assert_array_equal(found.offload, (h > h[:, :1]) & (h > 5e-4))
    assert found.energy_per_device.shape == (4, 3)
    for arguments, message in (
        ((None, h, system), "function must be a function of a system and of arrays"),
        ((above, h, system, 1.0), r"arrays\[0\] must have one entry for each of 3 devices"),
        ((above, -h, system), "h must be finite and at least 0"),
        ((above, h, system, h, h[:2]), r"arrays\[1\] must have batch axes that broadcast"),
        ((lambda s, h: h, h, system), "function must be a function that returns a meco_jax"),
    ):
        with pytest.raises(ValueError, match=message):
            meco_jax.map_channels(*arguments)
