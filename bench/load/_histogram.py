"""Log-bucket histograms: bounded relative error, and a merge that is exact.

Bucket `i` holds the values in (g^(i-1), g^i] with g = (1+a)/(1-a); each is reported as 2·g^i/(g+1), which is off by at
most `a` (Masson, Rim, Lee: DDSketch, VLDB 2019, lemma 2). Counts are integers and the sum is kept in whole
nanoseconds, so that merging in any order gives the same bytes as one pass over all values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

ACCURACY = 0.005
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = math.log(_GAMMA)
_FORM = "log-v1"
# Below a nanosecond there is nothing to tell apart: such values count as zero.
_SMALLEST = 1e-9


class Histogram:
    """Durations in seconds. Quantiles are within `ACCURACY` (0.5 %) of the value of that rank."""

    __slots__ = ("buckets", "count", "maximum_ns", "minimum_ns", "sum_ns", "zeros")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.zeros = 0
        self.count = 0
        self.sum_ns = 0
        self.minimum_ns: int | None = None
        self.maximum_ns: int | None = None

    @classmethod
    def of(cls, values: Iterable[float] | NDArray[Any], zeros: int = 0) -> Histogram:
        """A histogram of these values, and of so many zeros besides."""
        histogram = cls()
        histogram.add(values, zeros)
        return histogram

    def add(self, values: Iterable[float] | NDArray[Any], zeros: int = 0) -> None:
        """Count these values, and so many zeros besides. Raises ValueError on a negative or non-finite one."""
        array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
        if array.size and not (np.isfinite(array).all() and float(array.min()) >= 0):
            raise ValueError("a histogram of durations takes finite values of at least 0")
        if zeros:
            self.zeros += zeros
            self.count += zeros
            self._bounds(0, 0)
        if not array.size:
            return
        whole = np.rint(array * 1e9).astype(np.int64)
        self.count += int(array.size)
        self.sum_ns += int(whole.sum())
        self._bounds(int(whole.min()), int(whole.max()))
        positive = array[array >= _SMALLEST]
        self.zeros += int(array.size - positive.size)
        if positive.size:
            index = np.ceil(np.log(positive) / _LOG_GAMMA).astype(np.int64)
            for bucket, count in zip(*np.unique(index, return_counts=True), strict=True):
                self.buckets[int(bucket)] = self.buckets.get(int(bucket), 0) + int(count)

    def merge(self, other: Histogram) -> None:
        """Count everything that `other` counted. Exact, in any order."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.zeros += other.zeros
        self.count += other.count
        self.sum_ns += other.sum_ns
        if other.minimum_ns is not None and other.maximum_ns is not None:
            self._bounds(other.minimum_ns, other.maximum_ns)

    @property
    def mean(self) -> float:
        """In seconds, exact to a nanosecond; nan when empty."""
        return self.sum_ns / self.count / 1e9 if self.count else math.nan

    def quantile(self, share: float) -> float:
        """The value of rank ceil(share × count), in seconds; nan when empty."""
        if not self.count or self.minimum_ns is None or self.maximum_ns is None:
            return math.nan
        rank = max(1, math.ceil(share * self.count - 1e-9))
        if rank <= self.zeros:
            return 0.0
        if rank >= self.count:
            return self.maximum_ns / 1e9
        seen = self.zeros
        value = 0.0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                value = 2 * _GAMMA**bucket / (_GAMMA + 1)
                break
        return min(max(value, self.minimum_ns / 1e9), self.maximum_ns / 1e9)

    def rows(self) -> list[tuple[float, float, int]]:
        """The filled buckets as (above, up to, count), in seconds and rising; zeros as (0, 0, count)."""
        zeros = [(0.0, 0.0, self.zeros)] if self.zeros else []
        return zeros + [(_GAMMA ** (i - 1), _GAMMA**i, self.buckets[i]) for i in sorted(self.buckets)]

    def to_dict(self) -> dict[str, Any]:
        """The form of `Run.histograms`: JSON-ready, the same bytes for the same content."""
        return {
            "form": _FORM,
            "accuracy": ACCURACY,
            "count": self.count,
            "zeros": self.zeros,
            "sum_ns": self.sum_ns,
            "min_ns": self.minimum_ns,
            "max_ns": self.maximum_ns,
            "buckets": {str(bucket): self.buckets[bucket] for bucket in sorted(self.buckets)},
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Histogram:
        """The inverse of `to_dict`. Raises ValueError when the form is another one or the counts do not add up."""
        if given.get("form") != _FORM or given.get("accuracy") != ACCURACY:
            raise ValueError(f"not a {_FORM} histogram of accuracy {ACCURACY}")
        histogram = cls()
        histogram.buckets = {int(bucket): int(count) for bucket, count in given["buckets"].items()}
        histogram.zeros, histogram.count = int(given["zeros"]), int(given["count"])
        histogram.sum_ns = int(given["sum_ns"])
        histogram.minimum_ns, histogram.maximum_ns = given["min_ns"], given["max_ns"]
        if histogram.zeros + sum(histogram.buckets.values()) != histogram.count:
            raise ValueError("the counts of the buckets do not add up to the count of the histogram")
        return histogram

    def _bounds(self, low: int, high: int) -> None:
        self.minimum_ns = low if self.minimum_ns is None else min(self.minimum_ns, low)
        self.maximum_ns = high if self.maximum_ns is None else max(self.maximum_ns, high)
