import numpy as np
import pytest
import torch

from training.data import emoji
from training.data.emoji import EmojiSet
from training.evaluation.ceiling import measure, on_white, to_uint8
from training.evaluation.distortions import FORGIVABLE, UNFORGIVABLE, blur, move
from training.evaluation.features import PictureFeatures, area_mean, extract
from training.evaluation.retrieval import near_pairs, ranks, squared_distances


def test_ranks_equal_brute_force() -> None:
    rng = np.random.default_rng()
    queries, gallery = rng.standard_normal((20, 5)), rng.standard_normal((30, 5))
    own = rng.integers(30, size=20)
    expected = []
    for query, mine in zip(queries, own, strict=True):
        distances = [np.linalg.norm(query - other) for other in gallery]
        expected.append(sorted(distances).index(distances[mine]))
    np.testing.assert_array_equal(ranks(queries, gallery, own), expected)


def test_an_exact_copy_ranks_first_even_beside_its_twin() -> None:
    gallery = np.array([[0.0, 1.0], [0.0, 1.0], [5.0, 5.0]])
    np.testing.assert_array_equal(ranks(gallery, gallery, np.arange(3)), 0)


def test_near_pairs_come_nearest_first() -> None:
    gallery = np.array([[0.0], [1.0], [10.0], [10.5], [30.0]])
    pairs = near_pairs(gallery, below=2.0)
    assert [(p.first, p.second, p.distance) for p in pairs] == [(2, 3, 0.5), (0, 1, 1.0)]


def test_area_mean_equals_a_loop_and_refuses_a_remainder() -> None:
    values = np.random.default_rng().random((2, 6, 9, 3))
    expected = [
        [[values[b, 2 * y : 2 * y + 2, 3 * x : 3 * x + 3].mean((0, 1)) for x in range(3)] for y in range(3)]
        for b in range(2)
    ]
    np.testing.assert_allclose(area_mean(values, 3), expected)
    with pytest.raises(ValueError, match="6×9"):
        area_mean(values, 4)


def test_features_do_not_depend_on_the_batch_or_the_resolution(data: EmojiSet) -> None:
    pictures = to_uint8(on_white(data, range(10)))
    features = PictureFeatures()
    whole = features(pictures)
    np.testing.assert_array_equal(extract(features, pictures, batch=3), whole)
    larger = features(pictures.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(larger, whole, atol=1e-5)


def test_edge_half_tells_directions_apart_but_not_their_sign() -> None:
    rows, columns = np.mgrid[:64, :64]
    stripes = [np.where(axis // 8 % 2, 255, 0) for axis in (rows, columns, rows + 8)]
    pictures = np.repeat(np.stack(stripes)[..., None], 3, axis=-1).astype(np.uint8)
    edges = PictureFeatures()(pictures)[:, 16 * 16 * 3 :]
    across = np.linalg.norm(edges[0] - edges[1])
    swapped = np.linalg.norm(edges[0] - edges[2])
    assert across > 5 * swapped


def test_mild_changes_are_forgiven_and_other_pictures_are_not(data: EmojiSet) -> None:
    result = measure(data, ("animals", "food", "objects"), count=40, seed=0)
    changes = result["changes"]
    for name in ("blur, σ 2 px", "noise, σ 0.05", "warp 3 px", "tint ≤ 25 %"):
        assert changes[name]["top5"] >= 0.9, name
    assert changes["none"]["top1"] == 1.0
    assert changes["none"]["edges"] == 1.0
    assert changes["another subject's picture"]["top5"] < 0.5
    assert set(changes) == {*FORGIVABLE, *UNFORGIVABLE}
    seen = [s for s in data.subjects if not emoji.is_held_out_picture(s)]
    assert result["subjects"] == len(seen)


def test_typical_distance_is_what_the_scales_are_made_for(data: EmojiSet) -> None:
    features = extract(PictureFeatures(), to_uint8(on_white(data, range(48))))
    halves = [features[:, :768], features[:, 768:]]
    for half in halves:
        root = np.sqrt(squared_distances(half, half).sum() / (48 * 47))
        assert 0.3 < root < 3


def test_blur_keeps_the_mean_and_equals_scipy() -> None:
    from scipy import ndimage

    pictures = torch.rand(2, 3, 40, 40)
    expected = ndimage.gaussian_filter(pictures.numpy(), (0, 0, 2.5, 2.5), mode="nearest", radius=(0, 0, 8, 8))
    np.testing.assert_allclose(blur(pictures, 2.5).numpy(), expected, atol=1e-5)


def test_a_motionless_move_changes_nothing() -> None:
    pictures = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(move(pictures, torch.Generator()), pictures)
