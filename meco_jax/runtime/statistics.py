"""Confidence intervals of means, of independent numbers and of correlated ones."""

from __future__ import annotations

import math

import numpy as np

STUDENT_T = (np.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # 97.5 %, n - 1 = 1..9
BATCHES = 5  # of a series: few and long, so that neighbours are nearly independent
LEAST_EFFECTIVE = 50.0  # independent numbers that a series must be worth to know its correlation


def student_t(number: int) -> float:
    """Return the 97.5 % quantile of Student's t for the mean of ``number`` values."""
    if number <= len(STUDENT_T):
        return STUDENT_T[number - 1]
    z, inverse = 1.96, 1 / (number - 1)
    return z + (z**3 + z) / 4 * inverse + (5 * z**5 + 16 * z**3 + 3 * z) / 96 * inverse**2


def half_width(values: np.ndarray) -> float:
    """Return the half width of the 95 % interval of a mean of independent values ``[N]``.

    Student's t; infinite for a single value, which says nothing of how values differ.
    """
    number = len(values)
    if number < 2:
        return math.inf
    return float(student_t(number) * np.std(values, ddof=1) / number**0.5)


def series_half_width(series: np.ndarray) -> float:
    """Return the half width of the 95 % interval of the mean of a correlated series ``[N]``.

    By the means of ``BATCHES`` batches (Schmeiser, Operations Research 30, 1982). A series that
    is short beside its correlation shows too little of it, and any estimate is too small: then
    the half width is infinite. Short is what is worth fewer than ``LEAST_EFFECTIVE`` independent
    values (Sokal, Monte Carlo Methods in Statistical Mechanics, 1997, section 3).
    """
    if effective_number(series) < LEAST_EFFECTIVE:
        return math.inf
    length = len(series) // BATCHES
    return half_width(series[-BATCHES * length :].reshape(BATCHES, length).mean(axis=1))


def effective_number(series: np.ndarray) -> float:
    """Estimate how many independent values have a mean as certain as that of a series ``[N]``.

    N / (1 + 2 sum rho_n), where rho_n is the correlation over n values, summed as far as
    rho_2m + rho_2m+1 is positive, and without a rise: the initial monotone sequence of Geyer,
    Statistical Science 7, 1992. At most N.
    """
    number = len(series)
    centred = np.asarray(series, np.float64) - np.mean(series)
    spectrum = np.abs(np.fft.rfft(centred, 2 * number)) ** 2
    covariance = np.fft.irfft(spectrum, 2 * number)[:number]
    if number < 2 or not covariance[0] > 0:
        return float(number)
    pairs = covariance[: number - number % 2].reshape(-1, 2).sum(axis=1)
    positive = np.minimum.accumulate(pairs) > 0  # up to the first that is not
    total = 2 * np.sum(np.minimum.accumulate(pairs)[positive]) - covariance[0]
    return float(number * min(covariance[0] / max(total, covariance[0]), 1.0))
