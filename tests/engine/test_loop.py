"""The engine loop by itself, taken step by step: who gets what, and what it still holds afterwards."""

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from engine.bundle import Bundle
from engine.costs import OUTLIER, RATE, CostModel
from engine.generate import Generator
from engine.loop import DeviceLost, Loop
from engine.messages import Cancel, Channel, Done, Ended, FromWorker, Refused, Submit, Unfinished
from engine.pipeline import Pipeline, Sample
from engine.request import GenerateRequest, Job, shape_class, validate
from engine.scheduler import Scheduler
from engine.shared import Layout, Shared
from engine.ticket import Shape, Stage
from engine.warmup import area, warm_up
from server.settings import DEMO_BUNDLE
from tests.engine.simple import SimpleBackend, token

APPLE = GenerateRequest("apple", seed=3)
SLOTS = 8


@dataclass
class Bench:
    """A loop without a thread: messages go straight in, and what it sends is read from the other end."""

    bundle: Bundle
    pipeline: Pipeline
    shared: Shared
    loop: Loop
    end: Channel
    jobs: list[Job] = field(default_factory=list)

    def submit(self, request: GenerateRequest) -> int:
        job = validate(request, self.bundle.manifest)
        number = len(self.jobs)
        self.jobs.append(job)
        self.shared.write_control(number, job)
        self.loop._take(
            Submit(
                number,
                f"request {number}",
                replace(job, control=None),
                job.control is not None,
                number,
                time.monotonic(),
            )
        )
        return number

    def messages(self) -> list[FromWorker]:
        found = []
        while self.end.poll():
            found.append(self.end.receive())
        return found

    def finish(self) -> list[FromWorker]:
        while self.loop._submits:
            self.loop._step()
        return self.messages()

    def picture(self, number: int, step: int = 0) -> np.ndarray:
        return self.shared.picture(number, self.jobs[number].size, step)

    def assert_empty(self) -> None:
        assert not self.loop._submits
        assert not self.loop._computations
        assert self.loop._scheduler.queued == self.loop._scheduler.running == self.shared.board.running == 0
        assert self.shared.board.suspects == ()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(DEMO_BUNDLE)


def costs(seconds: float) -> CostModel:
    """A step takes `seconds`, in a batch of any size; the rest takes next to nothing."""
    measured: dict[tuple[Stage, Shape, int], float] = {("text", None, 1): 1e-6}
    manifest = Bundle.load(DEMO_BUNDLE).manifest
    for controlled in (False, True):
        shape = shape_class(manifest.images.default, controlled)
        measured |= {("decode", shape, 1): 1e-6, ("control", shape, 1): 1e-6}
        measured |= {("denoise", shape, 1): seconds, ("denoise", shape, 8): seconds}
    return CostModel(measured, area)


def make(bundle: Bundle, backend: SimpleBackend, seconds: float = 0.001) -> Iterator[Bench]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pipeline = Pipeline(bundle, backend)
        shared = Shared(Layout.of(bundle.manifest, SLOTS))
        shared.close_descriptor()
        scheduler = Scheduler(costs(seconds), pipeline.max_batch, SLOTS)
        yield Bench(bundle, pipeline, shared, Loop(pipeline, scheduler, shared, Channel(theirs), 2**20), Channel(ours))


@pytest.fixture
def bench(bundle: Bundle) -> Iterator[Bench]:
    yield from make(bundle, SimpleBackend(faults={token("moon"): "raise"}))


@pytest.fixture
def slow_bench(bundle: Bundle) -> Iterator[Bench]:
    """Its steps count as taking 10 s, so that deadlines are tight without anybody waiting."""
    yield from make(bundle, SimpleBackend(), 10.0)


def watch(pipeline: Pipeline) -> list[list[Sample]]:
    """What each denoiser call from now on is about."""
    calls: list[list[Sample]] = []
    run = pipeline.denoise

    def denoise(samples: Sequence[Sample]) -> None:
        calls.append(list(samples))
        run(samples)

    pipeline.denoise = denoise  # type: ignore[method-assign]
    return calls


def expected(bundle: Bundle, request: GenerateRequest) -> np.ndarray:
    return Generator(bundle, SimpleBackend()).generate(request).images[0]


def test_strangers_share_calls_and_change_nothing(bench: Bench, rng: np.random.Generator) -> None:
    control = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    requests = [
        APPLE,
        replace(APPLE, steps=8, previews=3),
        replace(APPLE, prompt="a much longer prompt, whose caption is padded less than the others", steps=1),
        replace(APPLE, control=control, strength=0.5),
        replace(APPLE, control=control, control_kind="picture"),
    ]
    for request in requests:
        bench.submit(request)
    messages = bench.finish()
    done = {message.number: message for message in messages if isinstance(message, Done)}
    for number, request in enumerate(requests):
        np.testing.assert_array_equal(bench.picture(number), expected(bench.bundle, request))
        assert done[number].steps == bench.jobs[number].steps
    assert max(bench.shared.board.batch_sizes) >= 2
    assert [message.step for message in messages if isinstance(message, Unfinished)] == [2, 4, 6]
    # What is shown at the end of a shorter schedule's prefix is the prediction of that step.
    assert len({bench.picture(1, step).tobytes() for step in (2, 4, 6, 0)}) == 4
    bench.assert_empty()


def test_who_fails_in_a_batch_fails_alone(bench: Bench) -> None:
    requests = [replace(APPLE, seed=i, prompt="moon" if i in (2, 5) else "apple") for i in range(6)]
    for request in requests:
        bench.submit(request)
    messages = bench.finish()
    failed = [message for message in messages if isinstance(message, Ended)]
    assert {message.number for message in failed} == {2, 5}
    assert all(message.ending == "failed" and "cannot be drawn" in message.message for message in failed)
    for number in (0, 1, 3, 4):
        np.testing.assert_array_equal(bench.picture(number), expected(bench.bundle, requests[number]))
    bench.assert_empty()


def test_a_cancelled_request_takes_no_further_step(bench: Bench) -> None:
    number = bench.submit(replace(APPLE, steps=8))
    while not bench.shared.board.batch_sizes:
        bench.loop._step()
    bench.loop._take(Cancel(number))
    bench.loop._take(Cancel(number))  # nobody has it any more
    assert bench.messages() == [Ended(number, "cancelled")]
    bench.loop._step()
    assert sum(bench.shared.board.batch_sizes.values()) == 1
    bench.assert_empty()


def test_who_waits_for_the_same_picture_outlives_the_one_who_asked_first(
    bench: Bench, rng: np.random.Generator
) -> None:
    request = replace(APPLE, control=rng.integers(0, 256, (128, 128, 3), dtype=np.uint8))
    first, second = bench.submit(request), bench.submit(request)
    bench.loop._take(Cancel(first))
    # The first one's slot is another request's now.
    bench.shared.control(first, bench.jobs[first].size)[:] = 0
    ended, done = bench.finish()
    assert isinstance(ended, Ended) and isinstance(done, Done)
    assert (ended.number, done.number) == (first, second)
    np.testing.assert_array_equal(bench.picture(second), expected(bench.bundle, request))
    assert sum(bench.shared.board.batch_sizes.values()) == 4
    bench.assert_empty()


def test_a_picture_may_come_with_fewer_steps(slow_bench: Bench) -> None:
    number = slow_bench.submit(replace(APPLE, steps=8, min_steps=2, timeout=45.0))
    (done,) = slow_bench.finish()
    assert isinstance(done, Done)
    assert 2 <= done.steps < 8
    pipeline = slow_bench.pipeline
    job = slow_bench.jobs[number]
    sample = pipeline.start(job, pipeline.encode_text(job.prompt), None)
    for _ in range(done.steps):
        pipeline.denoise([sample])
    np.testing.assert_array_equal(slow_bench.picture(number), pipeline.preview([sample])[0])
    slow_bench.assert_empty()


def test_what_cannot_be_in_time_is_refused(slow_bench: Bench) -> None:
    number = slow_bench.submit(replace(APPLE, steps=8, timeout=45.0))
    (refused,) = slow_bench.messages()
    assert isinstance(refused, Refused)
    assert (refused.number, refused.reason) == (number, "deadline")
    assert refused.retry_after > 0
    slow_bench.assert_empty()


def test_predictions_count_what_lies_between_two_calls_but_not_idleness(bench: Bench) -> None:
    costs, shape = bench.loop._scheduler.costs, shape_class(bench.bundle.manifest.images.default, False)
    bench.submit(APPLE)
    bench.loop._step()  # encodes the prompt
    before = costs.seconds("denoise", shape)
    time.sleep(50 * before)
    bench.loop._step()
    slowed = costs.seconds("denoise", shape)
    assert slowed == pytest.approx(before * (1.0 + RATE * (OUTLIER - 1.0)))
    bench.finish()
    settled = costs.seconds("denoise", shape)
    time.sleep(50 * before)
    bench.submit(replace(APPLE, seed=4))  # its prompt is known
    bench.loop._step()
    assert costs.seconds("denoise", shape) <= settled * 1.1


def test_known_prompts_are_not_encoded_again(bench: Bench) -> None:
    for seed in range(3):
        bench.submit(replace(APPLE, seed=seed))
    first = [message for message in bench.finish() if isinstance(message, Done)]
    assert sorted(message.cached for message in first) == [False, True, True]
    bench.submit(replace(APPLE, seed=4))
    (again,) = bench.finish()
    assert isinstance(again, Done) and again.cached
    assert again.timings["text"] == 0.0
    assert bench.shared.board.prompt_misses == 1
    assert bench.shared.board.prompt_hits == 3


def test_a_prompt_that_became_known_meanwhile_says_nothing_about_encoding(bench: Bench) -> None:
    costs = bench.loop._scheduler.costs
    for seed in range(4):
        bench.submit(replace(APPLE, seed=seed))
    bench.loop._step()
    encoded = costs.seconds("text", None)
    bench.finish()
    assert bench.shared.board.prompt_hits == 3
    assert costs.seconds("text", None) == encoded


def test_batches_that_only_work_in_halves_are_not_tried_for_ever(bench: Bench) -> None:
    tried = []
    denoise = bench.pipeline.denoise

    def too_much(samples: Sequence[Sample]) -> None:
        tried.append(len(samples))
        if len(samples) > 2:
            time.sleep(0.01)
            raise MemoryError
        denoise(samples)

    bench.pipeline.denoise = too_much  # type: ignore[method-assign]
    for _ in range(20):
        first = len(tried)
        for seed in range(SLOTS):
            bench.submit(replace(APPLE, seed=seed))
        assert len([message for message in bench.finish() if isinstance(message, Done)]) == SLOTS
        bench.jobs.clear()
    assert max(tried) == SLOTS
    assert max(tried[first:]) == 2


def test_what_no_call_can_do_any_more_ends_the_loop(bench: Bench) -> None:
    bench.submit(APPLE)
    bench.loop._step()
    bench.pipeline._modules["denoiser"].backend.broken = True  # type: ignore[attr-defined]
    with pytest.raises(DeviceLost):
        bench.loop._step()
    assert bench.shared.board.suspects == (0,)
    assert bench.messages() == []


def test_timings_add_up(bench: Bench) -> None:
    before = time.monotonic()
    bench.submit(replace(APPLE, control=np.zeros((128, 128, 3), np.uint8)))
    (done,) = bench.finish()
    assert isinstance(done, Done)
    assert 0 < sum(done.timings.values()) <= time.monotonic() - before
    assert all(done.timings[stage] > 0 for stage in ("queue", "text", "control", "denoise", "decode"))


def test_warm_up_measures_every_stage(bundle: Bundle) -> None:
    pipeline = Pipeline(bundle, SimpleBackend(0.002))
    calls = watch(pipeline)
    costs, most = warm_up(pipeline, 60.0)
    seen = {(samples[0].shape_class, len(samples)) for samples in calls}
    size = bundle.manifest.images.default
    assert most == pipeline.max_batch
    for controlled in (False, True):
        assert costs.seconds("denoise", shape_class(size, controlled)) >= 0.002
        assert {batch for known, batch in seen if known == (size, controlled)} == {1, 2, 4, 8}
    assert costs.seconds("control", shape_class(size, True)) > 0
