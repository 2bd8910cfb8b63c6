"""Rows as the tests take them: checked, and summed by cluster.

Rows of one cluster (the questions on one document, the turns of one dialogue) are no independent draws. All that a test
needs of them is each cluster's sum and how many rows it has; without clusters each row is its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lamina.errors import DataError

Array = NDArray[np.float64]
Clusters = Sequence[Hashable] | NDArray[Any]


@dataclass(frozen=True)
class Sums:
    """Many data sets of the same rows, summed by cluster.

    Attributes:
        values: (data sets, clusters): the sum of each cluster's values.
        sizes: (clusters,): the rows of each.
    """

    values: Array
    sizes: Array

    @property
    def rows(self) -> int:
        """Rows of a data set."""
        return int(self.sizes.sum())

    @property
    def count(self) -> int:
        """Clusters."""
        return len(self.sizes)

    @property
    def means(self) -> Array:
        """(data sets,): the mean over all rows."""
        return self.values.sum(axis=1) / self.rows

    @property
    def deviations(self) -> Array:
        """(data sets, clusters): what each cluster adds to the error of the mean, times rows."""
        return self.values - self.means[:, None] * self.sizes

    @property
    def errors(self) -> Array:
        """(data sets,): the standard error of the mean, over clusters as independent draws; 0 for one cluster."""
        if self.count < 2:
            return np.zeros(len(self.values))
        squares = (self.deviations**2).sum(axis=1) * self.count / (self.count - 1)
        return np.sqrt(squares) / self.rows


def checked(values: ArrayLike, what: str = "values") -> Array:
    """Values as finite numbers, (rows,).

    Raises:
        DataError: There is none, or one is not a finite number.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found):
        raise DataError(f"{what}: there are no rows to test. Fix: give one number a row, for at least one row.")
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise DataError(f"{what}: row {bad[0] + 1} is {found[bad[0]]}. Fix: give a finite number for every row.")
    return found


def checked_pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """Two columns of values of the same rows.

    Raises:
        DataError: One is empty or not finite, or they have different lengths.
    """
    left, right = checked(a, "a"), checked(b, "b")
    if len(left) != len(right):
        raise DataError(f"a has {len(left)} rows and b {len(right)}. Fix: pair the same rows of both.")
    return left, right


def sums(values: Array, clusters: Clusters | None) -> Sums:
    """Sums values, (rows,) or (data sets, rows), by cluster.

    Raises:
        DataError: There is not one cluster for each row.
    """
    values = np.atleast_2d(values)
    if clusters is None:
        return Sums(values, np.ones(values.shape[1]))
    numbers = cluster_numbers(clusters)
    if len(numbers) != values.shape[1]:
        raise DataError(
            f"there are {values.shape[1]} rows and {len(numbers)} clusters. Fix: name each row's cluster once."
        )
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    return Sums(np.add.reduceat(values[:, order], starts, axis=1), np.bincount(numbers).astype(np.float64))


def cluster_numbers(clusters: Clusters) -> NDArray[np.int64]:
    """(rows,): each row's cluster, numbered by first appearance; any hashable names one."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in clusters], dtype=np.int64)


def are_shares(left: Array, right: Array) -> bool:
    """Whether all values of both are between 0 and 1."""
    return min(left.min(), right.min()) >= 0 and max(left.max(), right.max()) <= 1


def is_yes_no(values: Array) -> bool:
    """Whether all values are 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())
