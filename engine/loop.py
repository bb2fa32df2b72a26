"""The engine loop of one worker: take requests, do what the scheduler says, call by call, and report.

Between two calls of the model it reads what the server sent, so newcomers join at the next step and cancelled requests
leave at it. It runs in one thread; see docs/architecture.md for a walk through it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from engine.messages import Cancel, Channel, Done, Ended, Ending, Refused, Submit, Unfinished
from engine.pipeline import Floats, Pipeline, Sample, Text
from engine.prompt_cache import PromptCache
from engine.request import Job, fingerprint, shape_class
from engine.scheduler import Scheduler
from engine.shared import Shared
from engine.ticket import Finished, Preparation, Ticket, Work
from engine.ticket import Refused as NotAdmitted
from engine.warmup import check

log = logging.getLogger(__name__)


class DeviceLost(Exception):
    """No call works any more, whoever it is for; another process may have better luck."""


@dataclass(eq=False)
class _Computation:
    """A picture on its way. `reached` holds when each stage was left, in order."""

    job: Job
    text: Text | None
    cached: bool
    control: Floats | None = None
    sample: Sample | None = None
    reached: dict[str, float] = field(default_factory=dict)


class Loop:
    """Serves one channel until the server closes it."""

    def __init__(
        self, pipeline: Pipeline, scheduler: Scheduler, shared: Shared, channel: Channel, prompt_cache_bytes: int
    ) -> None:
        self._pipeline = pipeline
        self._scheduler = scheduler
        self._shared = shared
        self._channel = channel
        self._prompts = PromptCache(prompt_cache_bytes)
        self._since = 0.0  # when the last call ended, or the wait for work
        self._submits: dict[str, Submit] = {}  # by ticket
        self._computations: dict[str, _Computation] = {}  # by the ticket that began it
        self._run: dict[str, Callable[[Sequence[str]], None]] = {
            "text": self._encode_text,
            "control": self._encode_control,
            "denoise": self._denoise,
            "preview": self._preview,
            "decode": self._decode,
        }

    def run(self) -> None:
        """Work until the channel ends.

        Raises:
            DeviceLost: the process should be replaced. The board names those it worked for.
        """
        try:
            while True:
                # With nothing to do, wait for a message; else only take what has come.
                while not self._submits or self._channel.poll():
                    self._take(self._channel.receive())
                for id in self._scheduler.drop_hopeless(time.monotonic()):
                    self._end(id, "deadline")
                self._step()
        except EOFError:
            return

    def _take(self, message: Submit | Cancel) -> None:
        if not self._submits:
            self._since = time.monotonic()
        if isinstance(message, Submit):
            # Admission is work, too: whatever kills a worker while it reads a request is that request's doing.
            self._shared.board.begin([message.slot], 0.0)
            self._admit(message)
            self._shared.board.end()
        elif self._scheduler.cancel(str(message.number), time.monotonic()):
            self._end(str(message.number), "cancelled")
        self._count()

    def _admit(self, submit: Submit) -> None:
        job, id = submit.job, str(submit.number)
        if submit.controlled:
            job = replace(job, control=self._shared.control(submit.slot, job.size))
        text = self._prompts.get(job.prompt)
        shape = shape_class(job.size, submit.controlled)
        ticket = Ticket(
            id=id,
            shape=shape,
            steps=job.steps,
            min_steps=job.min_steps,
            arrived=submit.submitted,
            key=fingerprint(job),
            previews=job.preview_steps,
            deadline=None if job.timeout is None else submit.submitted + job.timeout,
            priority=job.priority,
            encode=Preparation(text is None, submit.controlled),
        )
        try:
            self._scheduler.admit(ticket, time.monotonic())
        except NotAdmitted as refusal:
            saved = self._scheduler.costs.seconds("text", shape) if ticket.encode.text else 0.0
            late = max(refusal.retry_after - saved, 0.0)
            self._channel.send(Refused(submit.number, refusal.reason, refusal.retry_after, late))
            return
        self._submits[id] = submit
        if self._scheduler.wanted(id):
            self._computations[id] = _Computation(job, text, text is not None)

    def _step(self) -> None:
        """One call of the model."""
        work = self._scheduler.next(time.monotonic())
        if work is None:
            return
        start = time.monotonic()
        for id in work.ids:
            self._computations[id].reached.setdefault("queue", start)
        self._count()
        predicted = self._scheduler.costs.seconds(work.stage, work.shape, len(work.ids))
        slots = [self._submits[ticket].slot for id in work.ids for ticket in self._scheduler.audience(id)]
        self._shared.board.begin(slots, predicted)
        typical = self._attempt(work, work.ids)
        if work.stage == "text" and typical:
            typical = not self._computations[work.ids[0]].cached
        self._shared.board.end()
        now = time.monotonic()
        for id in work.ids:
            if id in self._computations:
                self._computations[id].reached[work.stage] = now
        # Predictions are of a busy device, and what the loop does between two calls keeps it just as busy.
        pictures = self._scheduler.finish(work, now - self._since if typical else None, now)
        self._since = now
        self._count()
        for finished in pictures:
            self._report(finished)

    def _attempt(self, work: Work, ids: Sequence[str]) -> bool:
        """Run the call for `ids`. If it fails, halve it: a smaller batch may fit into memory, and whatever fails all
        alone has only itself to blame. Nothing that other members have got so far is changed by a call that fails.

        Returns whether it went through for all; if in pieces, the time of all of them is what such a batch costs.
        """
        try:
            self._run[work.stage](ids)
        except Exception as error:
            if len(ids) > 1:
                log.warning("%s of %d requests failed (%r); trying halves", work.stage, len(ids), error)
                middle = len(ids) // 2
                halves = [self._attempt(work, ids[:middle]), self._attempt(work, ids[middle:])]
                return all(halves)
            self._fail(ids[0], work, error)
            return False
        return True

    def _fail(self, id: str, work: Work, error: Exception) -> None:
        audience = self._scheduler.audience(id)
        names = ", ".join(self._submits[ticket].request_id for ticket in audience)
        log.error("%s failed", work.stage, exc_info=error, extra={"request_id": names})
        try:
            check(self._pipeline)
        except Exception as broken:
            raise DeviceLost("even a plain picture fails") from broken
        for ticket in audience:
            self._scheduler.cancel(ticket, time.monotonic())
            self._end(ticket, "failed", f"{work.stage} failed: {error!r}")

    def _encode_text(self, ids: Sequence[str]) -> None:
        for computation in self._of(ids):
            prompt = computation.job.prompt
            computation.text = self._prompts.get(prompt)
            computation.cached = computation.text is not None
            if computation.text is None:
                computation.text = self._pipeline.encode_text(prompt)
                self._prompts.put(prompt, computation.text)

    def _encode_control(self, ids: Sequence[str]) -> None:
        for computation in self._of(ids):
            computation.control = self._pipeline.encode_control(computation.job)

    def _denoise(self, ids: Sequence[str]) -> None:
        computations = self._of(ids)
        for computation in computations:
            if computation.sample is None:
                assert computation.text is not None
                computation.sample = self._pipeline.start(computation.job, computation.text, computation.control)
        self._pipeline.denoise(_samples(computations))
        self._shared.board.count_batch(len(ids))

    def _preview(self, ids: Sequence[str]) -> None:
        samples = _samples(self._of(ids))
        for id, sample, image in zip(ids, samples, self._pipeline.preview(samples), strict=True):
            for ticket in self._scheduler.audience(id):
                submit = self._submits[ticket]
                self._shared.picture(submit.slot, sample.job.size, sample.step)[:] = image
                self._channel.send(Unfinished(submit.number, sample.step))

    def _decode(self, ids: Sequence[str]) -> None:
        samples = _samples(self._of(ids))
        places = [
            [
                self._shared.picture(self._submits[ticket].slot, sample.job.size)
                for ticket in self._scheduler.audience(id)
            ]
            for id, sample in zip(ids, samples, strict=True)
        ]
        if len(samples) == 1:
            # The decoder writes to where the server reads.
            images = self._pipeline.decode(samples, into=places[0][0][None])
        else:
            images = self._pipeline.decode(samples)
            for image, copies in zip(images, places, strict=True):
                copies[0][:] = image
        for copies in places:
            for copy in copies[1:]:
                copy[:] = copies[0]

    def _report(self, finished: Finished) -> None:
        computation = self._computations.pop(finished.id)
        for ticket in finished.audience:
            submit = self._submits.pop(ticket)
            timings = _timings(computation.reached, submit.submitted)
            assert computation.text is not None
            truncated = computation.text.truncated
            self._channel.send(Done(submit.number, finished.steps, timings, truncated, computation.cached))
            log.debug("picture made in %d steps", finished.steps, extra={"request_id": submit.request_id})

    def _end(self, id: str, ending: Ending, message: str = "") -> None:
        """Answer a ticket that the scheduler has forgotten, and let go of what nobody waits for any more."""
        submit = self._submits.pop(id)
        computation = self._computations.get(id)
        if computation is not None and computation.job.control is not None and self._scheduler.wanted(id):
            # Others wait for the same picture, and the slot with its control image will soon be another request's.
            computation.job = replace(computation.job, control=computation.job.control.copy())
        for other in [other for other in self._computations if not self._scheduler.wanted(other)]:
            del self._computations[other]
        self._channel.send(Ended(submit.number, ending, message))
        log.debug("request ended: %s", ending, extra={"request_id": submit.request_id})

    def _of(self, ids: Sequence[str]) -> list[_Computation]:
        return [self._computations[id] for id in ids]

    def _count(self) -> None:
        self._shared.board.count(self._scheduler.running, self._prompts.hits, self._prompts.misses)


def _samples(computations: Sequence[_Computation]) -> list[Sample]:
    return [computation.sample for computation in computations if computation.sample is not None]


def _timings(reached: dict[str, float], submitted: float) -> dict[str, float]:
    """Seconds spent in each stage since the request came, which may be later than its computation began."""
    timings = {}
    last = submitted
    for stage in ("queue", "text", "control", "denoise", "decode"):
        left = max(last, reached.get(stage, last))
        timings[stage] = left - last
        last = left
    return timings
