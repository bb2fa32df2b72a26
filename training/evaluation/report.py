"""The evaluation as a table for people."""

from collections.abc import Iterator
from typing import Any

TARGETS = {
    "subject top-5": 0.80,
    "background": 0.95,
    "control F-score": 0.70,
    "control with ÷ without": 2.0,
    "Fréchet student ÷ teacher": 1.25,
}

Row = tuple[str, str, str, str]
"""Measure, figure, what it has to reach with the verdict, and how it was counted."""


def _verdict(value: float | None, target: float, *, at_most: bool = False, percent: bool = False) -> str:
    if value is None:
        return ""
    met = value <= target if at_most else value >= target
    bound = f"{target:.0%}" if percent else f"{target:g}"
    return f"{'≤' if at_most else '≥'} {bound} {'met' if met else 'MISSED'}"


def _subject(figures: dict[str, Any]) -> Iterator[Row]:
    counted = f"{figures['captions']} captions, {figures['gallery']} training pictures"
    target = _verdict(figures["top5"], TARGETS["subject top-5"], percent=True)
    yield "subject top-5", f"{figures['top5']:.1%}", target, counted
    yield "subject top-1", f"{figures['top1']:.1%}", "", counted


def _background(figures: dict[str, Any]) -> Iterator[Row]:
    target = _verdict(figures["rate"], TARGETS["background"], percent=True)
    yield f"background ΔE ≤ {figures['limit_delta_e']:g}", f"{figures['rate']:.1%}", target, f"{figures['pairs']} pairs"
    yield "  pairs held out", f"{figures['rate_held_out']:.1%}", "", f"{figures['pairs_held_out']} pairs"


def _control(figures: dict[str, Any]) -> Iterator[Row]:
    counted = f"{figures['pictures']} pictures of {figures['held_out_subjects']} held-out subjects"
    score = figures["with_control"]["f_score"]
    yield "control F-score", f"{score:.3f}", _verdict(score, TARGETS["control F-score"]), counted
    yield "  without control", f"{figures['without_control']['f_score']:.3f}", "", counted
    ratio = figures["ratio"]
    shown = "∞" if ratio is None else f"{ratio:.2f}"
    yield "  with ÷ without", shown, _verdict(ratio, TARGETS["control with ÷ without"]), ""


def _sketch(figures: dict[str, Any]) -> Iterator[Row]:
    with_control, without, best = (figures[name] for name in ("with_control", "without_control", "bent_pictures"))
    yield "sketch recall", f"{with_control['recall']:.1%}", "", f"{figures['pictures']} sketches of seen subjects"
    yield "  without control", f"{without['recall']:.1%}", "", ""
    yield "  the sketched pictures", f"{best['recall']:.1%}", "", ""
    yield "  subject top-5", f"{with_control['top5']:.1%}", "", ""
    yield "  the sketched pictures", f"{best['top5']:.1%}", "", ""


def _frechet(figures: dict[str, Any], steps: int) -> Iterator[Row]:
    counted = f"{figures['pictures']} pictures, {figures['references']} references"
    for name, row in figures["extractors"].items():
        for kind, distance in row["distance"].items():
            ratio = row["ratio_to_teacher"].get(kind)
            target = ""
            if kind == f"student_{steps}":
                target = _verdict(ratio, TARGETS["Fréchet student ÷ teacher"], at_most=True)
            beside = "" if ratio is None else f"  (÷ teacher {ratio:.2f})"
            yield f"Fréchet, {name}: {kind}", f"{distance:.4g}{beside}", target, counted


def rows(result: dict[str, Any]) -> list[Row]:
    """Every figure of an evaluation's JSON that has a place in the table."""
    measures = result["measures"]
    table: list[Row] = []
    if "subject" in measures:
        table += _subject(measures["subject"])
    if "background" in measures:
        table += _background(measures["background"])
    if "control" in measures:
        table += _control(measures["control"])
    if "sketch" in measures:
        table += _sketch(measures["sketch"])
    if "frechet" in measures:
        table += _frechet(measures["frechet"], result["config"]["steps"])
    if "clip" in measures:
        table.append(("CLIP score", f"{measures['clip']['mean']:.2f}", "", f"{measures['clip']['pictures']} pictures"))
    return table


def as_text(result: dict[str, Any]) -> str:
    """The table, columns aligned; it is valid Markdown too."""
    lines = [("measure", "figure", "to reach", "counted over"), *rows(result)]
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)
