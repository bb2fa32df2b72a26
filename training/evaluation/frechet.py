"""Fréchet distance between Gaussian fits of two sets of features (Heusel et al., 2017: "FID")."""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class Moments:
    """Mean and covariance of features that arrive in batches.

    Batches are merged by Chan, Golub and LeVeque's pairwise update (1983), so a large mean beside a
    small spread costs no digits, and the pictures' features need not be kept.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean: Matrix = np.zeros(width)
        self._scatter: Matrix = np.zeros((width, width))

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "Moments":
        """The moments of one batch, [B, D]."""
        moments = cls(features.shape[1])
        moments.update(features)
        return moments

    def update(self, features: NDArray[np.floating]) -> None:
        """Take in a batch of features [B, D].

        Raises:
            ValueError: the batch has another width, or holds a value that is not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features are {list(features.shape)}, expected [B, {len(self.mean)}]")
        if not np.isfinite(features).all():
            raise ValueError("features hold a value that is not finite")
        count = len(features)
        if count == 0:
            return
        mean = features.mean(axis=0)
        centred = features - mean
        delta = mean - self.mean
        total = self.count + count
        self._scatter += centred.T @ centred + np.outer(delta, delta) * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def covariance(self) -> Matrix:
        """The unbiased sample covariance [D, D].

        Raises:
            ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two samples or more, there are {self.count}")
        return self._scatter / (self.count - 1)


def _factor(covariance: Matrix) -> Matrix:
    """L [D, r] with L·Lᵀ = covariance; directions without variance, up to rounding, are left out."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    floor = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    kept = values > floor
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(mean_a: Matrix, covariance_a: Matrix, mean_b: Matrix, covariance_b: Matrix) -> float:
    """‖μa - μb‖² + tr(Σa + Σb - 2·(Σa·Σb)^½) between two Gaussians (Dowson and Landau, 1982).

    The trace of the square root is the sum of the singular values of LaᵀLb, where Σ = L·Lᵀ comes
    from a symmetric eigendecomposition. Unlike a Schur square root of Σa·Σb this never turns complex
    and needs no jitter on the diagonal when there are fewer samples than features, and unlike
    eigenvalues of the product it does not take square roots of rounding errors.
    """
    difference = mean_a - mean_b
    cross = np.linalg.svd(_factor(covariance_a).T @ _factor(covariance_b), compute_uv=False).sum()
    distance = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return max(float(distance), 0.0)


def between(first: Moments, second: Moments) -> float:
    """The Fréchet distance between two sets of features."""
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
