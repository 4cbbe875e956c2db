"""Gradient estimators: losses whose gradients stand in for that of a binary decision's energy.

The energy of a decision is that of its best powers and times, so that the binary layer is
all that is learned. A ``Case`` has one channel's prices, energies in units of the Lagrangian
bound: at a grid of prices the energy of any set is the largest of its dual values,
THEORY.md, section 5. An estimator is one function of one channel,
``(scores, case, key, progress) -> loss``:

    scores: of the devices, ``[K]`` [-]; the network sends those above 0.
    case: the channel, padding among its devices.
    key: PRNG key, consumed.
    progress: part of the training that is done, from 0 to 1, ``[]`` [-].
    loss: ``[]`` [-]; only its gradient in the scores counts, 0 where a device is not free.

``GRADIENTS`` names those of the package; each says under "Source" where it is from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meco_jax.exact import sets
from meco_jax.exact.allocation import prepare
from meco_jax.exact.duals import price_grid
from meco_jax.exact.schemes import fitting
from meco_jax.learned.policy import COMPARING, device_features, flips, price_certainty
from meco_jax.paper.network import binarize
from meco_jax.runtime.checks import refuse
from meco_jax.runtime.describe import short_repr
from meco_jax.system import System

OVERFLOW = 100.0  # energy of a set that takes twice what there is, over the bound [-]
LIMIT = 1.0  # largest gradient of a device's decision, over the bound [-]
REGRET = 0.03  # that makes a set e times less worth learning, over the bound [-]
TRIED = 6  # devices that are flipped to find the best set around a decision
COLDEST = 0.1  # temperature of the Gumbel sigmoid at the end; 1 at the start [-]


@short_repr
class Case(NamedTuple):
    """One channel to learn from, ``[K]`` devices and ``[J]`` prices."""

    features: jax.Array  # [K, F] see ``policy.device_features``
    usable: jax.Array  # [K] bool
    forced: jax.Array  # [K] bool: C2, and can send
    base: jax.Array  # [K] bool: a good set, from which duals are counted
    base_dual: jax.Array  # [J] its dual value, over the bound [-]
    flip_cost: jax.Array  # [K, J] what flipping a device adds at a price, over the bound [-]
    least: jax.Array  # [K, 1] (t_min + d) / T, or [K, 2] with B C / F, C6 [-]
    counts: jax.Array  # [] bool: feasible, and sending pays for some device

    @property
    def free(self) -> jax.Array:
        """Devices that may send or stay: ``[K]`` bool."""
        return self.usable & ~self.forced


def make_case(system: System, h: jax.Array) -> Case:
    """Price one channel ``h: [K]``."""
    uplink, forced, relaxed = prepare(system, h)
    grid = price_grid(uplink, relaxed.sends, relaxed.log_mu, *COMPARING)
    counts = jnp.isfinite(relaxed.bound) & (relaxed.bound > 0) & jnp.any(relaxed.offload > 0)
    bound = jnp.where(counts, relaxed.bound, 1.0)
    least = uplink.min_time if uplink.fixed_time is None else uplink.min_time + uplink.fixed_time
    taken = [jnp.where(uplink.usable, least / uplink.slot, 0.0)]
    if uplink.edge_share is not None:
        taken.append(uplink.edge_share)
    return Case(
        features=device_features(uplink, forced, relaxed),
        usable=uplink.usable,
        forced=forced & uplink.usable,
        base=grid.base,
        base_dual=grid.base_dual / bound,
        flip_cost=grid.flip_cost / bound,
        least=jnp.stack(taken, axis=-1),
        counts=counts,
    )


def flipped(offload: jax.Array, case: Case) -> jax.Array:
    """By how much parts ``[K]`` differ from the base set: ``[K]`` [-]."""
    return jnp.where(case.base, 1 - offload, offload)


def energy(offload: jax.Array, case: Case) -> jax.Array:
    """Energy of parts ``[K]`` with their best powers and times, over the bound: ``[]`` [-].

    Its gradient is that of the relaxation, minus the savings at the price of the slot.
    """
    dual = case.base_dual + flipped(offload, case) @ case.flip_cost
    return jnp.max(dual) + _overflow(offload @ case.least)


def _overflow(used: jax.Array) -> jax.Array:
    """Price what is used beyond the slot and the edge's cycles, ``[..., 1 or 2]``: ``[...]``."""
    return OVERFLOW * jnp.sum(jnp.maximum(used - 1, 0.0), axis=-1)


def differences(offload: jax.Array, case: Case) -> jax.Array:
    """Energy with a_k = 1 less energy with a_k = 0, all others as they are: ``[K]`` [-].

    Args:
        offload: a decision ``[K]``, 0 or 1.
        case: the channel.
    """
    dual, used = case.base_dual + flipped(offload, case) @ case.flip_cost, offload @ case.least

    def with_all_at(value: float) -> jax.Array:  # each in turn
        change = value - offload
        duals = dual[None] + jnp.where(case.base, -change, change)[:, None] * case.flip_cost
        return jnp.max(duals, axis=1) + _overflow(used[None] + change[:, None] * case.least)

    return with_all_at(1.0) - with_all_at(0.0)


@jax.custom_vjp
def exact_energy(offload: jax.Array, case: Case) -> jax.Array:
    """Energy of a decision ``[K]``; its gradient is the exact discrete one, ``differences``."""
    return energy(offload, case)


def _exact_forward(offload: jax.Array, case: Case) -> tuple[jax.Array, tuple[jax.Array, Case]]:
    return energy(offload, case), (offload, case)


def _exact_backward(saved: tuple[jax.Array, Case], cotangent: jax.Array) -> tuple[jax.Array, None]:
    return cotangent * differences(*saved), None


exact_energy.defvjp(_exact_forward, _exact_backward)


@jax.custom_vjp
def commit(scores: jax.Array, decision: jax.Array) -> jax.Array:
    """Take a decision ``[K]`` as the network's own.

    Backward the slope of a device is the probability that the network gives to the side that
    the gradient speaks against: a device that is wrong and sure of it still learns. Together
    with ``exact_energy`` this is the cross entropy to the better side, weighted by its regret.
    """
    del scores
    return decision


def _commit_forward(scores: jax.Array, decision: jax.Array) -> tuple[jax.Array, jax.Array]:
    return decision, scores


def _commit_backward(scores: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    slope = jax.nn.sigmoid(jnp.sign(cotangent) * scores)
    return cotangent * slope, jnp.zeros_like(cotangent)


commit.defvjp(_commit_forward, _commit_backward)


@jax.custom_vjp
def limit(offload: jax.Array) -> jax.Array:
    """Pass decisions on, and bound the gradient of each by ``LIMIT``."""
    return offload


limit.defvjp(
    lambda offload: (offload, None), lambda _, cotangent: (jnp.clip(cotangent, -LIMIT, LIMIT),)
)


def threshold(scores: jax.Array, case: Case) -> jax.Array:
    """Send the forced devices and those that score above 0: ``[K]``, 0 or 1."""
    return jnp.where(case.forced | case.free & (scores > 0), 1.0, 0.0)


def best_count(scores: jax.Array, case: Case) -> jax.Array:
    """Send the forced devices and the best number of others in the order of their scores.

    With C6 whoever no longer fits is passed over, as in ``schemes.prefixes_of``.
    """
    ranks, free = sets.rank(-jnp.where(case.free, scores, -jnp.inf)), case.free
    if case.least.shape[1] > 1:
        free = fitting(case.least[:, 1], ranks, free, case.forced)
    prefixes = sets.Prefixes(ranks, free, case.forced).listed().rows.astype(scores.dtype)
    return prefixes[jnp.argmin(jax.vmap(energy, (0, None))(prefixes, case))]


def _parts(ratio: jax.Array, case: Case) -> jax.Array:
    """Relax the decision: forced devices send all, free ones a part ``[K]``."""
    return limit(jnp.where(case.free, ratio, case.forced.astype(ratio.dtype)))


def _sign(
    scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array, *, slope: float = 0.0
) -> jax.Array:
    """The binary layer (15), by default with its true slope, 0.

    Source: the paper, (15).
    """
    required = case.forced.astype(scores.dtype)
    ratio = jax.nn.sigmoid(scores)
    return energy(_parts(binarize(ratio, required, slope * (1 - required)), case), case)


def _relaxed(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """The teacher alone: its ratios are rounded.

    Source: the paper, (23).
    """
    return energy(_parts(jax.nn.sigmoid(scores), case), case)


def _teacher(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """The teacher's loss, and the student's with slope 1 - m^+.

    Source: the paper, Algorithm 1.
    """
    return _relaxed(scores, case, key, progress) + _sign(scores, case, key, progress, slope=1.0)


def _straight_through(
    scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array, *, clip: float = jnp.inf
) -> jax.Array:
    """Slope 1 from the decision to the score, within ``clip`` of 0.

    Source: Bengio, Leonard and Courville 2013, arXiv:1308.3432; with a clip Hubara,
    Courbariaux, Soudry, El-Yaniv and Bengio 2016, arXiv:1602.02830.
    """
    passed = jnp.clip(scores, -clip, clip)
    hard = (scores > 0).astype(scores.dtype)
    return energy(_parts(passed + jax.lax.stop_gradient(hard - passed), case), case)


def _bernoulli(key: jax.Array, chance: jax.Array) -> jax.Array:
    """Draw 1 with a chance ``[K]``, else 0, by float32 numbers in every precision."""
    uniform = jax.random.uniform(key, chance.shape, jnp.float32)
    return (uniform < chance.astype(jnp.float32)).astype(chance.dtype)


def _gumbel(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """The Gumbel sigmoid, ever colder.

    Source: Maddison, Mnih and Teh 2017, arXiv:1611.00712; Jang, Gu and Poole 2017,
    arXiv:1611.01144.
    """
    noise = jax.random.logistic(key, scores.shape, jnp.float32).astype(scores.dtype)
    return energy(_parts(jax.nn.sigmoid((scores + noise) / COLDEST**progress), case), case)


def _reinforce(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """The score function, its baseline the decision without noise.

    Source: Williams 1992, doi:10.1007/BF00992696; the baseline Rennie, Marcheret, Mroueh,
    Ross and Goel 2017, arXiv:1612.00563.
    """
    drawn = _bernoulli(key, jax.nn.sigmoid(scores))
    decision = jnp.where(case.free, drawn, case.forced.astype(scores.dtype))
    gain = energy(decision, case) - energy(threshold(scores, case), case)
    gain = jax.lax.stop_gradient(jnp.clip(gain, -LIMIT, LIMIT))
    log_odds = jnp.where(drawn > 0, scores, -scores)
    return gain * jnp.sum(jnp.where(case.free, jax.nn.log_sigmoid(log_odds), 0.0))


def _sampled(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """The exact differences at a random decision: unbiased for the mean energy of such.

    Source: Titsias and Lazaro-Gredilla 2015, arXiv:1503.01494.
    """
    ratio = jax.nn.sigmoid(scores)
    drawn = _bernoulli(key, ratio)
    decision = ratio + jax.lax.stop_gradient(drawn - ratio)
    return exact_energy(_parts(decision, case), case)


def _exact(
    scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array,
    *, decide: Callable[[jax.Array, Case], jax.Array],
) -> jax.Array:  # fmt: skip
    """The exact differences at a decision of the network, see ``commit``.

    Source: own.
    """
    decision = jax.lax.stop_gradient(decide(scores, case))
    return exact_energy(_parts(commit(scores, decision), case), case)


def _best_flips(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """Self-improvement: make the best of the 2^n sets around the best prefix likely.

    A set that costs ``REGRET`` more than the best counts a factor e less.

    Source: own.
    """
    likely, regret = _around(best_count(scores, case) > 0, scores, case)
    return -jax.nn.logsumexp(likely - regret)


def _around(base: jax.Array, scores: jax.Array, case: Case) -> tuple[jax.Array, jax.Array]:
    """How likely the network makes the 2^n sets around ``base``, and what they cost more.

    Returns:
        Logarithms of the probabilities, and regrets over ``REGRET``, at most 50, ``[2^n]``.
    """
    certainty = jnp.where(case.free, price_certainty(case.features), jnp.inf)
    sets = jnp.where(case.free[None], flips(base, certainty, TRIED), base[None])
    energies = jax.vmap(energy, (0, None))(sets.astype(scores.dtype), case)
    regret = jax.lax.stop_gradient(energies - jnp.min(energies))
    odds = jnp.where(sets, scores[None], -scores[None])
    likely = jnp.sum(jnp.where(case.free[None], jax.nn.log_sigmoid(odds), 0.0), axis=1)
    return likely, jnp.minimum(regret / REGRET, 50.0)


def _listwise(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """Cross entropy between the softmax of -regret over the 2^n sets and the network's own.

    Source: Cao, Qin, Liu, Tsai and Li 2007, doi:10.1145/1273496.1273513, of sets.
    """
    likely, regret = _around(best_count(scores, case) > 0, scores, case)
    return -jax.nn.softmax(-regret) @ jax.nn.log_softmax(likely)


Estimator = Callable[[jax.Array, Case, jax.Array, jax.Array], jax.Array]  # as described on top
GRADIENTS: dict[str, Estimator] = {
    "sign": _sign,
    "teacher": _teacher,
    "straight_through": _straight_through,
    "clipped": partial(_straight_through, clip=1.0),
    "gumbel": _gumbel,
    "reinforce": _reinforce,
    "relaxed": _relaxed,
    "sampled": _sampled,
    "exact": partial(_exact, decide=threshold),
    "exact_best": partial(_exact, decide=best_count),
    "best_flips": _best_flips,
    "listwise": _listwise,
}


def find_estimator(gradient: str | Estimator) -> Estimator:
    """Return an estimator: that of a name of ``GRADIENTS``, or a function as it is.

    Raises:
        ValueError: if it is neither, or a function that cannot be hashed.
    """
    if isinstance(gradient, str) and gradient in GRADIENTS:
        return GRADIENTS[gradient]
    if not callable(gradient) or not isinstance(gradient, Hashable):
        known = ", ".join(sorted(GRADIENTS))
        rule = f"one of {known}, or a hashable function (scores, case, key, progress) -> loss"
        raise refuse("config.gradient", rule, gradient)
    return gradient


def estimator_name(gradient: str | Estimator) -> str:
    """Name an estimator for the record of a run: of a function its module and name.

    Raises:
        ValueError: if a function has no name that tells it from others.
    """
    if isinstance(gradient, str):
        return gradient
    name = getattr(gradient, "__qualname__", "")
    if not name or name.endswith("<lambda>"):
        rule = "a name, or a function with one, to be kept in a folder"
        raise refuse("config.gradient", rule, gradient)
    return f"{gradient.__module__}.{name}"
