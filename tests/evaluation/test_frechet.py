import numpy as np
import pytest
import torch
from scipy import linalg

from training.evaluation.frechet import Matrix, Moments, between, frechet_distance


def by_sqrtm(mean_a: Matrix, covariance_a: Matrix, mean_b: Matrix, covariance_b: Matrix) -> float:
    """The textbook formula with scipy's Schur square root."""
    root = linalg.sqrtm(covariance_a @ covariance_b)
    difference = mean_a - mean_b
    return float(difference @ difference + np.trace(covariance_a + covariance_b - 2 * root.real))


def by_product_eigenvalues(mean_a: Matrix, covariance_a: Matrix, mean_b: Matrix, covariance_b: Matrix) -> float:
    """tr √(AB) as the sum of the square roots of AB's eigenvalues, in PyTorch."""
    product = torch.from_numpy(covariance_a) @ torch.from_numpy(covariance_b)
    values = torch.linalg.eigvals(product).real.clamp(min=0)
    trace = torch.from_numpy(covariance_a).trace() + torch.from_numpy(covariance_b).trace() - 2 * values.sqrt().sum()
    return float((torch.from_numpy(mean_a) - torch.from_numpy(mean_b)).square().sum() + trace)


def features(rng: np.random.Generator, count: int, width: int, rank: int | None = None) -> Matrix:
    mixing = rng.standard_normal((rank or width, width))
    return rng.standard_normal((count, rank or width)) @ mixing + rng.standard_normal(width)


@pytest.mark.parametrize("width", [1, 7, 64])
def test_equals_two_independent_implementations(width: int) -> None:
    rng = np.random.default_rng()
    a, b = (Moments.of(features(rng, 500, width)) for _ in range(2))
    arguments = (a.mean, a.covariance, b.mean, b.covariance)
    distance = frechet_distance(*arguments)
    assert distance == pytest.approx(by_sqrtm(*arguments), rel=1e-8)
    assert distance == pytest.approx(by_product_eigenvalues(*arguments), rel=1e-8)


def test_closed_form_of_diagonal_gaussians() -> None:
    rng = np.random.default_rng()
    mean_a, mean_b = rng.standard_normal((2, 20))
    deviation_a, deviation_b = rng.uniform(0, 3, (2, 20))
    expected = np.square(mean_a - mean_b).sum() + np.square(deviation_a - deviation_b).sum()
    distance = frechet_distance(mean_a, np.diag(deviation_a**2), mean_b, np.diag(deviation_b**2))
    assert distance == pytest.approx(expected, rel=1e-10)


def test_rank_deficient_sets_in_disjoint_directions() -> None:
    """Spreads with nothing in common: the square root vanishes and the distance is the sum of variances."""
    rng = np.random.default_rng()
    basis = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    first = rng.standard_normal((30, 20)) @ basis[:20]
    second = rng.standard_normal((30, 20)) @ basis[20:40]
    a, b = Moments.of(first), Moments.of(second)
    difference = a.mean - b.mean
    expected = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance)
    assert between(a, b) == pytest.approx(expected, rel=1e-9)


def test_fewer_samples_than_features() -> None:
    """The truth in a rank-deficient case comes from the small problem within the spanned subspace."""
    rng = np.random.default_rng()
    small_a, small_b = features(rng, 40, 8), features(rng, 40, 8)
    basis = np.linalg.qr(rng.standard_normal((300, 8)))[0].T
    a, b = Moments.of(small_a), Moments.of(small_b)
    expected = by_sqrtm(a.mean, a.covariance, b.mean, b.covariance)
    assert between(Moments.of(small_a @ basis), Moments.of(small_b @ basis)) == pytest.approx(expected, rel=1e-8)


def test_distance_of_a_set_to_itself_is_zero() -> None:
    wide = Moments.of(features(np.random.default_rng(), 50, 400))
    assert between(wide, wide) < 1e-9 * np.trace(wide.covariance)


def test_batches_add_up_to_the_whole() -> None:
    rng = np.random.default_rng()
    whole = features(rng, 333, 12) + 1e6
    moments = Moments(12)
    for part in np.split(whole, [1, 2, 100, 100, 332]):
        moments.update(part)
    assert moments.count == 333
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(whole.T), rtol=1e-6)


def test_bad_features_are_refused() -> None:
    moments = Moments(3)
    with pytest.raises(ValueError, match=r"\[2, 4\]"):
        moments.update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="not finite"):
        moments.update(np.array([[0.0, np.nan, 1.0]]))
    with pytest.raises(ValueError, match="two samples"):
        _ = moments.covariance
