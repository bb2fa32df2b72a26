"""A request in, images out. A plain loop: everything that is asked for at once advances together."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from engine.backends.base import Backend
from engine.bundle import Bundle
from engine.pipeline import Images, Pipeline, Sample
from engine.request import GenerateRequest, InvalidRequest, Job, validate


@dataclass(frozen=True, eq=False)
class GenerateResult:
    """Images uint8 [n, height, width, 3]; seconds by stage; whether the prompt had more tokens than the model reads."""

    images: Images
    timings: dict[str, float]
    truncated: bool


class Generator:
    """Makes pictures with a bundle on a backend, compiled at the start; fast for `batches` at once. Not thread-safe.

    Raises:
        BundleError, CompileError: the bundle cannot be used.
    """

    def __init__(self, bundle: Bundle, backend: Backend, batches: Sequence[int] = (1,)) -> None:
        self.manifest = bundle.manifest
        self._pipeline = Pipeline(bundle, backend, batches)

    def generate(self, request: GenerateRequest, n: int = 1) -> GenerateResult:
        """Make `n` pictures with the seeds `seed`, `seed + 1`, …

        Raises:
            InvalidRequest: a field is outside its limits.
        """
        most = self._pipeline.max_batch
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= most:
            raise InvalidRequest("n", f"an integer from 1 to {most}", f"is {n!r}")
        first = validate(request, self.manifest)
        jobs = [validate(replace(request, seed=first.seed + i), self.manifest) for i in range(n)]
        images, timings, truncated = self._run(jobs)
        return GenerateResult(np.stack(images), timings, truncated[0])

    def generate_batch(self, requests: Sequence[GenerateRequest]) -> list[Images]:
        """Make a picture uint8 [height, width, 3] for each request, those of one shape class in shared calls.

        Raises:
            InvalidRequest: a field of a request is outside its limits.
        """
        return self._run([validate(request, self.manifest) for request in requests])[0]

    def _run(self, jobs: Sequence[Job]) -> tuple[list[Images], dict[str, float], list[bool]]:
        """Images, seconds by stage, and the truncation flags, in the jobs' order."""
        pipeline = self._pipeline
        timings: dict[str, float] = defaultdict(float)
        with _stage(timings, "text"):
            texts = {prompt: pipeline.encode_text(prompt) for prompt in dict.fromkeys(job.prompt for job in jobs)}
        with _stage(timings, "control"):
            # Pictures of one request share the array itself, so identity is enough to encode it once.
            distinct = {(id(job.control), job.control_kind): job for job in jobs}
            controls = {key: pipeline.encode_control(job) for key, job in distinct.items()}
        samples = [pipeline.start(job, texts[job.prompt], controls[id(job.control), job.control_kind]) for job in jobs]
        with _stage(timings, "denoise"):
            while unfinished := [sample for sample in samples if not sample.finished]:
                for batch in _batches(unfinished, pipeline.max_batch):
                    pipeline.denoise(batch)
        images: dict[int, Images] = {}
        with _stage(timings, "decode"):
            for batch in _batches(samples, pipeline.max_batch):
                images |= {id(sample): image for sample, image in zip(batch, pipeline.decode(batch), strict=True)}
        truncated = [texts[job.prompt].truncated for job in jobs]
        return [images[id(sample)] for sample in samples], dict(timings), truncated


def _batches(samples: Sequence[Sample], most: int) -> Iterator[list[Sample]]:
    """Group samples by shape class, in groups of at most `most`."""
    classes: dict[object, list[Sample]] = defaultdict(list)
    for sample in samples:
        classes[sample.shape_class].append(sample)
    for group in classes.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


@contextmanager
def _stage(timings: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] += time.perf_counter() - start
