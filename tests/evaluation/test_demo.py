"""The measures, given samplers whose answers are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data import emoji
from training.data.colors import BACKGROUNDS
from training.data.emoji import EmojiSet
from training.evaluation import demo, report
from training.evaluation.draws import Draws
from training.evaluation.features import area_mean
from training.evaluation.grid import write_grid
from training.evaluation.sampler import Pictures, sample

GROUPS = ("animals", "food")
CONFIG = demo.EvaluationConfig(
    subjects=40, backgrounds=30, controls=12, sketches=12, frechet=40, references=80, frechet_steps=(1, 4), batch=7
)


@pytest.fixture
def draws(data: EmojiSet) -> Draws:
    return Draws(data, GROUPS, seed=3)


class Perfect:
    """Draws the true picture of its caption, whatever else it is told; counts what it was asked for."""

    def __init__(self, draws: Draws) -> None:
        pairs = [(i, color) for i in range(len(draws.data.subjects)) for color in BACKGROUNDS]
        self.pictures = dict(zip(draws.captions(pairs), draws.pictures(pairs), strict=True))
        self.calls: list[tuple[int, int, bool]] = []

    def __call__(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        control: Pictures | None = None,
        strength: float = 1.0,
    ) -> Pictures:
        self.calls.append((len(captions), steps, control is not None))
        return np.stack([self.pictures[caption] for caption in captions])


class Elsewhere(Perfect):
    """Draws some other subject, and another colour; with control, the right picture."""

    def __call__(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        control: Pictures | None = None,
        strength: float = 1.0,
    ) -> Pictures:
        pictures = super().__call__(captions, seeds, steps)
        if control is not None and strength == 1.0:
            return pictures
        return 255 - np.rot90(pictures, axes=(1, 2))


class Blurred(Perfect):
    """Draws the true picture, coarser the fewer steps it gets."""

    def __call__(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        control: Pictures | None = None,
        strength: float = 1.0,
    ) -> Pictures:
        pictures = super().__call__(captions, seeds, steps)
        side = {1: 8, 4: 32, 25: 64}[steps]
        coarse = area_mean(pictures.astype(float), side).round().astype(np.uint8)
        return coarse.repeat(64 // side, axis=1).repeat(64 // side, axis=2)


def colors(pictures: Pictures) -> NDArray[np.floating]:
    """Colours of a 4×4 grid."""
    return area_mean(pictures.astype(float) / 255, 4).reshape(len(pictures), -1)


def texture(pictures: Pictures) -> NDArray[np.floating]:
    """Some single pixels, which blur changes."""
    return pictures[:, 20:44:3, 30, 0] / 255


def test_draws_are_a_function_of_the_seed(data: EmojiSet) -> None:
    first, again, other = (Draws(data, GROUPS, seed) for seed in (0, 0, 1))
    assert first.subjects_on_white(50) == again.subjects_on_white(50)
    assert first.subjects_on_white(50) != other.subjects_on_white(50)
    assert first.pairs(first.seen, 20, salt=4) != first.pairs(first.seen, 20, salt=5)
    assert not {*first.seeds(1, 300)} & {*first.seeds(2, 300)}


def test_every_subject_comes_before_one_comes_twice(draws: Draws) -> None:
    count = len(draws.seen)
    drawn = [i for i, color in draws.subjects_on_white(count + 5) if color == "white"]
    assert sorted(drawn[:count]) == draws.seen
    assert len(drawn) == count + 5


def test_held_out_subjects_and_pairs_stay_apart(data: EmojiSet, draws: Draws) -> None:
    assert draws.held_out, "the drawn set needs held-out subjects to test anything"
    assert all(data.subjects[i].group in GROUPS for i in draws.seen + draws.held_out)
    assert not any(emoji.is_held_out_picture(data.subjects[i]) for i in draws.seen)
    pairs, held = draws.background_pairs(31)
    assert held.sum() == 15
    for (i, color), out in zip(pairs, held, strict=True):
        assert i in draws.seen
        assert emoji.is_held_out_pair(data.subjects[i], color) == out


def test_true_pictures_have_their_background(draws: Draws) -> None:
    pairs, _ = draws.background_pairs(12)
    for picture, (_, color) in zip(draws.pictures(pairs), pairs, strict=True):
        np.testing.assert_array_equal(picture[0, 0], BACKGROUNDS[color])


def test_a_perfect_model_has_full_marks(draws: Draws) -> None:
    model = Perfect(draws)
    subject = demo.subject(model, draws, CONFIG)
    assert (subject["top1"], subject["top5"], subject["missed"]) == (1.0, 1.0, {})
    assert subject["captions"] == 40
    background = demo.background(model, draws, CONFIG)
    assert (background["rate"], background["rate_held_out"], background["rate_seen"]) == (1.0, 1.0, 1.0)
    control = demo.control(model, draws, CONFIG)
    assert control["with_control"]["f_score"] == 1.0
    assert control["ratio"] == 1.0
    sketch = demo.sketch(model, draws, CONFIG)
    # Pictures drawn by heart do not follow sketches of bent ones.
    assert sketch["with_control"] == sketch["without_control"]
    assert sketch["with_control"]["recall"] < 0.7
    assert sketch["with_control"]["top1"] == 1.0
    # A sketch's lines are not quite in place, so not all lie within two pixels of the picture's edges.
    assert sketch["bent_pictures"]["recall"] > 0.85
    assert max(count for count, _, _ in model.calls) == CONFIG.batch
    assert {steps for _, steps, _ in model.calls} == {4}


def test_a_model_that_ignores_its_caption_has_poor_ones(draws: Draws) -> None:
    model = Elsewhere(draws)
    subject = demo.subject(model, draws, CONFIG)
    assert subject["top5"] < 0.5
    assert len(subject["missed"]) > 10
    assert demo.background(model, draws, CONFIG)["rate"] < 0.2
    control = demo.control(model, draws, CONFIG)
    assert control["with_control"]["f_score"] == 1.0
    assert control["ratio"] > 1.3
    assert demo.sketch(model, draws, CONFIG)["without_control"]["top5"] < 0.5


def test_frechet_figures_fall_with_steps_and_compare_with_the_teacher(draws: Draws) -> None:
    model = Blurred(draws)
    result = demo.frechet(model, model, draws, CONFIG, {"colors": colors, "texture": texture})
    figures = result["extractors"]["texture"]
    distance = figures["distance"]
    assert distance["teacher_25"] == pytest.approx(distance["real"])
    assert distance["student_1"] > distance["teacher_25"]
    assert figures["ratio_to_teacher"]["student_1"] == pytest.approx(distance["student_1"] / distance["teacher_25"])
    assert set(result["extractors"]["colors"]["distance"]) == {"real", "student_1", "student_4", "teacher_25"}


def test_without_a_teacher_there_are_no_ratios(draws: Draws) -> None:
    result = demo.frechet(Blurred(draws), None, draws, CONFIG, {"colors": colors})
    assert result["extractors"]["colors"]["ratio_to_teacher"] == {}


def test_table_tells_hits_from_misses(draws: Draws) -> None:
    good, bad = Perfect(draws), Elsewhere(draws)
    for model, word in ((good, "met"), (bad, "MISSED")):
        measures = {
            "subject": demo.subject(model, draws, CONFIG),
            "background": demo.background(model, draws, CONFIG),
        }
        text = report.as_text({"measures": measures, "config": {"steps": 4}})
        lines = text.splitlines()
        assert len({len(line) for line in lines}) == 1
        assert sum(word in line for line in lines) == 2
    measures = {
        "control": demo.control(good, draws, CONFIG),
        "sketch": demo.sketch(good, draws, CONFIG),
        "frechet": demo.frechet(Blurred(draws), Blurred(draws), draws, CONFIG, {"colors": colors}),
        "clip": {"mean": 31.25, "pictures": 40},
    }
    text = report.as_text({"measures": measures, "config": {"steps": 4}})
    assert "Fréchet, colors: student_4" in text
    assert "≤ 1.25" in text
    assert "12 sketches of seen subjects" in text
    assert "31.25" in text


def test_sampling_in_batches_keeps_order_and_control(draws: Draws) -> None:
    def echo(
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        control: Pictures | None = None,
        strength: float = 1.0,
    ) -> Pictures:
        assert control is not None
        return control + np.array(seeds, np.uint8)[:, None, None, None]

    control = np.zeros((10, 2, 2, 3), np.uint8)
    pictures = sample(echo, list("abcdefghij"), range(10), 4, batch=4, control=control)
    np.testing.assert_array_equal(pictures[:, 0, 0, 0], range(10))


def test_grid_of_samples(draws: Draws, tmp_path: Path) -> None:
    from PIL import Image

    captions = write_grid(Perfect(draws), draws, tmp_path / "page" / "grid.png", steps=4, batch=7, side=3)
    assert len(set(captions)) == 9
    with Image.open(tmp_path / "page" / "grid.png") as page:
        assert page.width == 3 * 64
        pixels = np.asarray(page)
    first = draws.pictures(draws.pairs(draws.seen, 9, salt=6)[:1])[0]
    np.testing.assert_array_equal(pixels[:64, :64], first)
