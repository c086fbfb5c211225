"""A mean with the interval that holds the true one in 95 % of such experiments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, bootstrap

from gasim_ray.errors import UserError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    #: The sample's mean.
    mean: float
    #: Lower end.
    low: float
    #: Upper end.
    high: float


def mean_interval(values: npt.NDArray[np.float64]) -> Interval:
    """Mean of (N,) values with the percentile bootstrap's interval.

    It does not take returns for normally distributed, and stays within their range where they have a ceiling.
    Raises UserError if there are fewer than two.
    """
    if len(values) < 2:
        raise UserError(f"episodes: {len(values)} is too few for an interval; give 2 or more")
    result = bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, method="percentile", batch=1000, rng=np.random.default_rng(0)
    ).confidence_interval
    mean = float(np.mean(values))
    # Where all values are alike, rounding alone can put the mean outside.
    return Interval(mean, min(mean, float(result.low)), max(mean, float(result.high)))


def proportion_interval(successes: int, trials: int) -> Interval:
    """Fraction of successes with Wilson's interval."""
    ends = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / trials, float(ends.low), float(ends.high))
