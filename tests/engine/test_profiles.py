"""Which shapes are compiled for."""

from pathlib import Path

import pytest

from engine.bundle import Bundle
from engine.manifest import Images, Manifest, Size
from engine.profiles import ProfileError, make_profiles

DEMO = Path("models/zoo/emoji")


def manifest(*sizes: tuple[int, int]) -> Manifest:
    allowed = tuple(Size(width=width, height=height) for width, height in sizes)
    return Bundle.load(DEMO).manifest.model_copy(update={"images": Images(default=allowed[0], allowed=allowed)})


MIXED = manifest((512, 512), (1024, 1024), (768, 1344), (1344, 768), (448, 320))


def test_a_side_takes_all_sizes_of_about_its_area() -> None:
    (profile,) = make_profiles(MIXED, ["1024"], 4)
    assert profile.ranges["H"] == (96, 128, 168) and profile.ranges["W"] == (96, 128, 168)
    assert profile.ranges["B"] == (1, 1, 4)
    for place in range(3):
        tokens, height, width = (profile.ranges[symbol][place] for symbol in "NHW")
        assert tokens == height * width // 4, "a compiler that tries the shapes finds no contradiction"


def test_a_size_is_that_size_alone_and_tensors_take_their_shapes_from_it() -> None:
    first, second = make_profiles(MIXED, ["448x320", "512"])
    assert first.ranges["H"] == (40, 40, 40) and first.ranges["W"] == (56, 56, 56)
    assert second.ranges["H"] == (64, 64, 64)
    image = MIXED.modules["vae_decoder"].outputs[0]
    assert first.shapes(image) == ((1, 320, 448, 3), (1, 320, 448, 3), (8, 320, 448, 3))
    assert set(first.restricted(MIXED.modules["text_encoder"].inputs)) == {"B", "L"}


def test_without_a_wish_sizes_fall_into_classes() -> None:
    profiles = make_profiles(MIXED)
    assert [profile.name for profile in profiles] == ["512x512", "1024x1024", "448x320"]
    assert profiles[1].ranges["W"] == (96, 128, 168)


@pytest.mark.parametrize(
    ("wanted", "max_batch", "problem"),
    [
        (["768"], None, "profile 768 contains none of the bundle's sizes: 512x512, 1024x1024"),
        (["640x640"], None, "profile 640x640 contains none"),
        (["big"], None, "'big' is neither a side such as 512 nor a size such as 640x384"),
        (["-512"], None, "neither"),
        ([], 0, "max batch 0 is not within the bundle's 1 to 8"),
        ([], 9, "max batch 9 is not within"),
    ],
)
def test_what_cannot_be_had_is_refused(wanted: list[str], max_batch: int | None, problem: str) -> None:
    with pytest.raises(ProfileError, match=problem):
        make_profiles(MIXED, wanted, max_batch)
