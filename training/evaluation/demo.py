"""The demo model's own measures: subject, background, control, sketch, and the student beside its teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.colors import BACKGROUNDS
from training.data.lines import edge_lines
from training.evaluation.background import corner_difference
from training.evaluation.control import control_score, match_edges, soft_edges
from training.evaluation.draws import Draws, Pair
from training.evaluation.features import FeatureExtractor, PictureFeatures, extract
from training.evaluation.frechet import Moments, between
from training.evaluation.retrieval import ranks
from training.evaluation.sampler import Pictures, Sampler, sample


@dataclass(frozen=True)
class EvaluationConfig:
    """How many pictures each measure looks at, in how many steps, and from which seed all draws start."""

    subjects: int = 300
    backgrounds: int = 300
    controls: int = 100
    sketches: int = 100
    frechet: int = 300
    references: int = 1000
    steps: int = 4
    frechet_steps: tuple[int, ...] = (1, 2, 4, 8)
    teacher_steps: int = 25
    control_strength: float = 1.0
    background_limit: float = 15.0
    edge_threshold: float = 64.0
    edge_tolerance: float = 2.0
    batch: int = 25
    seed: int = 0


Result = dict[str, Any]
"""Figures of one measure, as JSON carries them."""


def subject(student: Sampler, draws: Draws, config: EvaluationConfig) -> Result:
    """Do a picture's nearest training pictures hold its caption's label? Captions of seen subjects on white."""
    pairs = draws.subjects_on_white(config.subjects)
    pictures = sample(student, draws.captions(pairs), draws.seeds(1, len(pairs)), config.steps, batch=config.batch)
    rank = _ranks(pictures, pairs, draws)
    groups: dict[str, list[bool]] = {}
    for (i, _), r in zip(pairs, rank, strict=True):
        groups.setdefault(draws.data.subjects[i].group, []).append(bool(r < 5))
    return {
        "captions": len(pairs),
        "subjects": len(set(pairs)),
        "gallery": len(draws.seen),
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()),
        "top5_chance": 5 / len(draws.seen),
        "top5_by_group": {name: float(np.mean(hits)) for name, hits in groups.items()},
        "missed": {draws.data.subjects[i].label: int(r) for (i, _), r in zip(pairs, rank, strict=True) if r >= 5},
    }


def _ranks(pictures: Pictures, pairs: Sequence[Pair], draws: Draws) -> NDArray[np.int_]:
    """How many other seen subjects on white look more like each picture than its own does."""
    features = PictureFeatures()
    gallery = extract(features, draws.pictures([(i, "white") for i in draws.seen]))
    place = {i: k for k, i in enumerate(draws.seen)}
    return ranks(extract(features, pictures), gallery, np.array([place[i] for i, _ in pairs]))


def background(student: Sampler, draws: Draws, config: EvaluationConfig) -> Result:
    """Do all four corners have the asked colour? Half the pairs were held out of training."""
    pairs, held = draws.background_pairs(config.backgrounds)
    pictures = sample(student, draws.captions(pairs), draws.seeds(2, len(pairs)), config.steps, batch=config.batch)
    asked = np.array([BACKGROUNDS[color] for _, color in pairs]) / 255
    difference = corner_difference(pictures, asked)
    right = difference <= config.background_limit
    colors = np.array([color for _, color in pairs])
    return {
        "pairs": len(pairs),
        "pairs_held_out": int(held.sum()),
        "limit_delta_e": config.background_limit,
        "rate": float(right.mean()),
        "rate_held_out": float(right[held].mean()),
        "rate_seen": float(right[~held].mean()),
        "rate_by_color": {str(name): float(right[colors == name].mean()) for name in np.unique(colors)},
        "median_delta_e": float(np.median(difference)),
    }


def _with_and_without(
    student: Sampler, captions: Sequence[str], seeds: Sequence[int], asked: Pictures, config: EvaluationConfig
) -> dict[str, Pictures]:
    """The same captions and seeds under the control pictures `asked`, and without."""
    options: dict[str, Any] = {"batch": config.batch, "strength": config.control_strength}
    return {
        name: sample(student, captions, seeds, config.steps, control=given, **options)
        for name, given in (("with_control", asked), ("without_control", None))
    }


def control(student: Sampler, draws: Draws, config: EvaluationConfig) -> Result:
    """Do edges follow the control's? Edges and labels of held-out pictures, once with and once without control."""
    pairs = draws.pairs(draws.held_out, config.controls, salt=3)
    asked = soft_edges(draws.pictures(pairs))
    captions, seeds = draws.captions(pairs), draws.seeds(3, len(pairs))
    limits = {"threshold": config.edge_threshold, "tolerance": config.edge_tolerance}
    drawn = _with_and_without(student, captions, seeds, asked, config)
    scores = {name: asdict(control_score(soft_edges(each), asked, **limits)) for name, each in drawn.items()}
    with_control, without = scores["with_control"]["f_score"], scores["without_control"]["f_score"]
    return {
        "pictures": len(pairs),
        "held_out_subjects": len({i for i, _ in pairs}),
        "strength": config.control_strength,
        **limits,
        **scores,
        "ratio": with_control / without if without else None,
    }


def sketch(student: Sampler, draws: Draws, config: EvaluationConfig) -> Result:
    """Does a picture follow a sketch, and still show its subject? Sketches of seen subjects on white, bent.

    Recall: the share of the sketch's lines that are edges of the picture. What else the picture has is its own affair.
    The bent pictures that were sketched are judged too: no better can be done.
    """
    pairs = draws.subjects_on_white(config.sketches)
    bent, asked = draws.sketches(pairs)
    lines = [edge_lines(one[..., 0], 128) for one in asked]
    captions, seeds = draws.captions(pairs), draws.seeds(6, len(pairs))
    result: Result = {"pictures": len(pairs), "strength": config.control_strength, "tolerance": config.edge_tolerance}
    drawn = _with_and_without(student, captions, seeds, asked, config)
    for name, pictures in {**drawn, "bent_pictures": bent}.items():
        found = [edge_lines(one[..., 0], config.edge_threshold) for one in soft_edges(pictures)]
        matches = [match_edges(*both, config.edge_tolerance) for both in zip(found, lines, strict=True)]
        rank = _ranks(pictures, pairs, draws)
        result[name] = {
            "recall": float(np.mean([match.recall for match in matches])),
            "top1": float((rank < 1).mean()),
            "top5": float((rank < 5).mean()),
        }
    return result


def frechet(
    student: Sampler,
    teacher: Sampler | None,
    draws: Draws,
    config: EvaluationConfig,
    extractors: Mapping[str, FeatureExtractor],
) -> Result:
    """Fréchet distances to training pictures: the student at each number of steps and the guided teacher.

    All samplers get the same captions and seeds. "real" is the distance of the captions' own true
    pictures, the least that so few pictures can reach.
    """
    reference = draws.pictures(draws.pairs(draws.seen, config.references, salt=4))
    pairs = draws.pairs(draws.seen, config.frechet, salt=5)
    captions, seeds = draws.captions(pairs), draws.seeds(5, len(pairs))
    sets: dict[str, Pictures] = {"real": draws.pictures(pairs)}
    for steps in config.frechet_steps:
        sets[f"student_{steps}"] = sample(student, captions, seeds, steps, batch=config.batch)
    teacher_name = f"teacher_{config.teacher_steps}"
    if teacher is not None:
        sets[teacher_name] = sample(teacher, captions, seeds, config.teacher_steps, batch=config.batch)
    figures: dict[str, Any] = {}
    for name, extractor in extractors.items():
        goal = Moments.of(extract(extractor, reference))
        row = {kind: between(Moments.of(extract(extractor, pictures)), goal) for kind, pictures in sets.items()}
        ratios = {
            kind: distance / row[teacher_name]
            for kind, distance in row.items()
            if teacher is not None and kind.startswith("student")
        }
        figures[name] = {"features": len(goal.mean), "distance": row, "ratio_to_teacher": ratios}
    return {"pictures": len(pairs), "references": len(reference), "extractors": figures}
