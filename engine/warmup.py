"""Run every module once before a worker counts as ready, and measure what calls cost."""

import logging
import time
from collections.abc import Callable

import numpy as np

from engine.costs import CostModel
from engine.pipeline import Pipeline, Sample
from engine.request import GenerateRequest, Job, shape_class, validate
from engine.ticket import Shape, Stage

log = logging.getLogger(__name__)

Measured = dict[tuple[Stage, Shape, int], float]

CONTROL_AREA = 1.5  # how much larger a picture with control counts, where only one of the two was measured


def area(shape: Shape) -> float:
    """Pixels of a shape class, weighted; what the cost model compares those by that were not measured."""
    assert isinstance(shape, tuple)
    width, height, controlled, *_ = shape
    return float(width * height * (CONTROL_AREA if controlled else 1.0))


def picture_seconds(costs: CostModel, job: Job) -> float:
    """What a job takes alone, with a prompt that is not known."""
    shape = shape_class(job.size, job.control is not None)
    seconds = costs.seconds("text", None) + job.steps * costs.seconds("denoise", shape)
    if job.control is not None:
        seconds += costs.seconds("control", shape)
    return seconds + costs.seconds("decode", shape)


def warm_up(pipeline: Pipeline, seconds: float) -> tuple[CostModel, int]:
    """Run all modules at the default size; then larger batches, until about `seconds` are used up.

    The first call of each shape may include preparations of the runtime, so the faster of two counts. Returns what
    calls cost, and how many samples one may hold: if a batch does not fit into memory, less than the bundle allows.
    """
    manifest = pipeline.manifest
    end = time.monotonic() + seconds
    size = manifest.images.default
    plain = validate(GenerateRequest("warm-up"), manifest)
    jobs = [plain]
    if manifest.controllable:
        blank = np.zeros((size.height, size.width, 3), dtype=np.uint8)
        jobs.append(validate(GenerateRequest("warm-up", control=blank, control_kind="picture"), manifest))
    measured: Measured = {}
    for job in jobs:
        _measure(pipeline, job, 1, measured)
    batch = 2
    # Twice the size costs at most about twice the time, so that a batch is begun only if it should fit.
    while batch <= pipeline.max_batch:
        for job in jobs:
            if time.monotonic() + 4.0 * _call(measured, job, batch // 2) > end:
                return CostModel(measured, area), pipeline.max_batch
            try:
                _measure(pipeline, job, batch, measured)
            except Exception as error:  # each runtime has its own word for it
                log.warning("batches of %d do not work (%r); batches stay smaller", batch, error)
                return CostModel(measured, area), batch // 2
        batch *= 2
    return CostModel(measured, area), pipeline.max_batch


def _call(measured: Measured, job: Job, batch: int) -> float:
    shape = shape_class(job.size, job.control is not None)
    return measured["denoise", shape, batch] + measured["decode", shape, batch]


def _measure(pipeline: Pipeline, job: Job, batch: int, measured: Measured) -> None:
    shape = shape_class(job.size, job.control is not None)
    text = pipeline.encode_text(job.prompt)
    if batch == 1:
        measured["text", None, 1] = _faster(lambda: pipeline.encode_text(job.prompt))
    control = pipeline.encode_control(job)
    if job.control is not None and batch == 1:
        measured["control", shape, 1] = _faster(lambda: pipeline.encode_control(job))
    samples: list[Sample] = []

    def denoise() -> None:
        samples[:] = [pipeline.start(job, text, control) for _ in range(batch)]
        pipeline.denoise(samples)

    measured["denoise", shape, batch] = _faster(denoise)
    measured["decode", shape, batch] = _faster(lambda: pipeline.decode(samples))


def _faster(call: Callable[[], object]) -> float:
    """Seconds of the faster of two calls."""
    spent = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)
