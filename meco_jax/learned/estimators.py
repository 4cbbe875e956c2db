"""Gradient estimators: losses whose gradients stand in for that of a binary decision's energy.

The energy of a decision is that of its best powers and times, so that the binary layer is
all that is learned. An estimator is one function of one channel,
``(scores, case, key, progress) -> loss``:

    scores: of the devices, ``[K]`` [-]; the network sends those above 0.
    case: the channel, padding among its devices, see ``meco_jax.learned.case``.
    key: PRNG key, consumed.
    progress: part of the training that is done, from 0 to 1, ``[]`` [-].
    loss: ``[]`` [-]; only its gradient in the scores counts, 0 where a device is not free.

``GRADIENTS`` names those of the package; each says under "Source" where it is from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import jax
import jax.numpy as jnp

from meco_jax.exact import sets
from meco_jax.exact.enumeration import optimal
from meco_jax.exact.schemes import fitting
from meco_jax.learned.case import Case, energy, exact_energy
from meco_jax.learned.policy import flips, price_certainty
from meco_jax.paper.network import binarize
from meco_jax.runtime.checks import refuse

LIMIT = 1.0  # largest gradient of a device's decision, over the bound [-]
REGRET = 0.03  # that makes a set e times less worth learning, over the bound [-]
TRIED = 6  # devices that are flipped to find the best set around a decision
COLDEST = 0.1  # temperature of the Gumbel sigmoid at the end; 1 at the start [-]


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
    rows = _around(best_count(scores, case) > 0, case)
    return -jax.nn.logsumexp(_likely(rows, scores, case) - _regret(rows, case))


def _second_look(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """Self-improvement, with the next n devices flipped in the best of the 2^n sets.

    Source: after Pirnay and Grimm 2024, arXiv:2407.17206, who search anew from the best.
    """
    rows = _around(best_count(scores, case) > 0, case)
    rows = _around(rows[jnp.argmin(_regret(rows, case))], case, first=TRIED)
    return -jax.nn.logsumexp(_likely(rows, scores, case) - _regret(rows, case))


def _listwise(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """Cross entropy between the softmax of -regret over the 2^n sets and the network's own.

    Source: Cao, Qin, Liu, Tsai and Li 2007, doi:10.1145/1273496.1273513, of sets.
    """
    rows = _around(best_count(scores, case) > 0, case)
    return -jax.nn.softmax(-_regret(rows, case)) @ jax.nn.log_softmax(_likely(rows, scores, case))


def _pairs(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """Prefer the best of the 2^n sets to each other one, the more the dearer that is.

    Source: after Liao, Chen, Wang, Zhang and Wang 2025, arXiv:2503.07580 (BOPO).
    """
    rows = _around(best_count(scores, case) > 0, case)
    likely, regret = _likely(rows, scores, case), _regret(rows, case)
    ahead = likely[jnp.argmin(regret)] - likely
    weight = jnp.minimum(regret, 1.0)
    return -jnp.sum(weight * jax.nn.log_sigmoid(ahead)) / jnp.maximum(jnp.sum(weight), 1.0)


def _optimum(scores: jax.Array, case: Case, key: jax.Array, progress: jax.Array) -> jax.Array:
    """Cross entropy to the certified optimum, which is solved for in every step.

    Source: as Yang, Cao, Bassey, Li, Kroecker and Qian 2020, arXiv:2006.16104, learn it.
    """
    best = optimal(case.system, case.h).offload > 0.5
    return -_likely(best[None], scores, case)[0]


def _around(base: jax.Array, case: Case, first: int = 0) -> jax.Array:
    """Flip every subset of n = ``TRIED`` devices, the least certain from rank ``first`` on."""
    certainty = jnp.where(case.free, price_certainty(case.features), jnp.inf)
    rows = flips(base, certainty, TRIED, first)
    return jnp.where(case.free[None], rows, base[None])


def _regret(rows: jax.Array, case: Case) -> jax.Array:
    """What sets ``[M, K]`` cost more than their best, over ``REGRET``, at most 50: ``[M]``."""
    energies = jax.vmap(energy, (0, None))(rows.astype(case.base_dual.dtype), case)
    return jax.lax.stop_gradient(jnp.minimum((energies - jnp.min(energies)) / REGRET, 50.0))


def _likely(rows: jax.Array, scores: jax.Array, case: Case) -> jax.Array:
    """Logarithms of the probabilities that the network gives to sets ``[M, K]``: ``[M]``."""
    odds = jnp.where(rows, scores[None], -scores[None])
    return jnp.sum(jnp.where(case.free[None], jax.nn.log_sigmoid(odds), 0.0), axis=1)


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
    "second_look": _second_look,
    "listwise": _listwise,
    "pairs": _pairs,
    "optimum": _optimum,
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
