"""Stage costs of a bundle on this machine."""

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.pipeline import Pipeline, Sample
from engine.request import GenerateRequest, validate
from engine.sources import BATCHES
from engine.ticket import Shape, Stage

Key = tuple[Stage, Shape, int]

SIZES = (1, 2, 3, 4, 5, 6, 7, 8)


def costs(folder: Path, rounds: int = 20, threads: int = 0) -> dict[Key, float]:
    """Seconds by stage, shape class (side in pixels, controlled) and batch size, on OpenVINO.

    Every round times each call once, in an order that is shuffled anew; the least counts, because what else the
    machine does can only add. With one thread, processor time is taken, which excludes waiting for the processor;
    `threads` 0 means all cores. Pictures of the bundle's default size only.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    bundle = Bundle.load(folder)
    pipeline = Pipeline(bundle, create("openvino", BackendOptions(precision="auto", threads=threads)), BATCHES)
    calls = _calls(pipeline)
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    order = list(calls)
    for index in range(1 + rounds):
        random.shuffle(order)
        for key in order:
            start = clock()
            calls[key]()
            if index:  # the first round warms up
                seconds[key].append(clock() - start)
    return {key: min(seconds[key]) for key in calls}


def _calls(pipeline: Pipeline) -> dict[Key, Callable[[], object]]:
    manifest = pipeline.manifest
    side = manifest.images.default.width
    edges = np.zeros((manifest.images.default.height, side, 3), dtype=np.uint8)
    prompt = "a red apple on a blue background"
    calls: dict[Key, Callable[[], object]] = {("text", None, 1): partial(pipeline.encode_text, prompt)}
    for controlled in (False, True) if manifest.controllable else (False,):
        request = GenerateRequest(prompt, steps=manifest.steps.max, control=edges if controlled else None)
        job = validate(request, manifest)
        control = pipeline.encode_control(job)
        text = pipeline.encode_text(prompt)
        if controlled:
            calls["control", (side, True), 1] = partial(pipeline.encode_control, job)
        for batch in (size for size in SIZES if size <= pipeline.max_batch):
            samples = [pipeline.start(job, text, control) for _ in range(batch)]
            calls["denoise", (side, controlled), batch] = partial(_step, pipeline, samples)
            calls["decode", (side, controlled), batch] = partial(pipeline.decode, samples)
    return calls


def _step(pipeline: Pipeline, samples: list[Sample]) -> None:
    """One step; samples that are finished begin anew."""
    for sample in samples:
        sample.step %= len(sample.schedule)
    pipeline.denoise(samples)
