"""Run every module once before a worker counts as ready, and measure what calls cost."""

import logging
import time
from collections import defaultdict
from statistics import median

import numpy as np

from engine.costs import CostModel
from engine.pipeline import Floats, Pipeline, Text
from engine.request import GenerateRequest, Job, shape_class, validate
from engine.ticket import Shape, Stage

log = logging.getLogger(__name__)

Measured = dict[tuple[Stage, Shape, int], float]

ROUNDS = 5  # at most; in which a median settles
DECODED = 2  # so many pictures at most are decoded in a round: larger batches follow from one and two, and take long
CONTROL_AREA = 1.5  # how much larger a picture with control counts, where only one of the two was measured


def area(shape: Shape) -> float:
    """Pixels of a shape class, weighted; what the cost model compares those by that were not measured."""
    assert isinstance(shape, tuple)
    width, height, controlled = shape
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

    Returns what calls cost, and how many samples one may hold: if a batch does not fit into memory, less than the
    bundle allows. The first call of each size may include preparations of the runtime and does not count. The others
    are made in rounds over all sizes: what matters is how sizes compare, and a machine's speed and its caches change
    from one moment to the next.
    """
    end = time.monotonic() + seconds
    meter = _Meter(pipeline)
    most = meter.prepare(end)
    for _ in range(ROUNDS):
        start = time.monotonic()
        meter.round()
        if 2.0 * time.monotonic() - start > end:  # another would end too late
            break
    return CostModel(meter.medians(), area), most


def check(pipeline: Pipeline) -> None:
    """Make the first step of a plain picture, and decode it; raises what the runtime raises if even that fails."""
    job = validate(GenerateRequest("check", steps=pipeline.manifest.steps.min), pipeline.manifest)
    sample = pipeline.start(job, pipeline.encode_text(job.prompt), None)
    pipeline.denoise([sample])
    pipeline.decode([sample])


class _Meter:
    """Makes calls of some sizes, and notes how long each took."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        manifest = pipeline.manifest
        size = manifest.images.default
        self._plain = validate(GenerateRequest("warm-up"), manifest)
        self._jobs = [self._plain]
        if manifest.controllable:
            blank = np.zeros((size.height, size.width, 3), dtype=np.uint8)
            self._jobs.append(validate(GenerateRequest("warm-up", control=blank, control_kind="picture"), manifest))
        self._encoded: dict[bool, tuple[Text, Floats | None]] = {}  # by whether there is a control image
        self._sizes: list[tuple[Job, int]] = []
        self._seconds: dict[tuple[Stage, Shape, int], list[float]] = defaultdict(list)

    def prepare(self, end: float) -> int:
        """Make one call of each size that should be possible until `end`; returns how many samples one may hold."""
        batch, took = 1, 0.0
        while batch <= self._pipeline.max_batch:
            for job in self._jobs:
                start = time.monotonic()
                # Twice the size costs at most about twice the time, so a batch is begun only if it should fit.
                if batch > 1 and start + 2.0 * took > end:
                    return self._pipeline.max_batch
                try:
                    self._run(job, batch)
                except Exception as error:  # each runtime has its own word for it
                    if batch == 1:
                        raise
                    log.warning("batches of %d do not work (%r); batches stay smaller", batch, error)
                    return batch // 2
                took = time.monotonic() - start
                self._sizes.append((job, batch))
            batch *= 2
        return self._pipeline.max_batch

    def round(self) -> None:
        """Make and note one call of each size."""
        for job, batch in self._sizes:
            for stage, seconds in self._run(job, batch, decode=batch <= DECODED).items():
                shape = None if stage == "text" else _shape(job)
                self._seconds[stage, shape, batch].append(seconds)

    def medians(self) -> Measured:
        """Seconds of each stage, shape class and batch size."""
        measured: Measured = {key: median(seconds) for key, seconds in self._seconds.items()}
        for job, batch in self._sizes:
            # A picture is decoded alike, whatever steered it.
            if batch <= DECODED:
                measured["decode", _shape(job), batch] = measured["decode", _shape(self._plain), batch]
        return measured

    def _run(self, job: Job, batch: int, decode: bool = True) -> dict[Stage, float]:
        """Seconds of the stages of one batch. Prompts and control images never share a call: one of each will do."""
        pipeline = self._pipeline
        marks: dict[Stage, float] = {}
        last = time.perf_counter()

        def mark(stage: Stage) -> None:
            nonlocal last
            now = time.perf_counter()
            marks[stage], last = now - last, now

        controlled = job.control is not None
        if batch == 1:
            text = pipeline.encode_text(job.prompt)
            mark("text")
            control = pipeline.encode_control(job)
            if controlled:
                mark("control")
            self._encoded[controlled] = text, control
        text, control = self._encoded[controlled]
        samples = [pipeline.start(job, text, control) for _ in range(batch)]
        pipeline.denoise(samples)
        mark("denoise")
        if decode and not controlled:
            pipeline.decode(samples)
            mark("decode")
        return marks


def _shape(job: Job) -> Shape:
    return shape_class(job.size, job.control is not None)
