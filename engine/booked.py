"""What a worker has just refused, so that the server need not ask it about every request of the same kind."""

from collections.abc import Hashable

from engine.request import Job

LONGEST = 1.0  # seconds for which one refusal stands for others
KINDS = 64  # that are remembered; clients may name any timeouts


class Booked:
    """Until when a worker's time is spoken for, by kind of request.

    A request that is refused with the deadline D, late by L, would have been ready at D + L: work that is due earlier
    fills the time until then. One of the same kind that comes later, with a deadline before D + L, finds the same work
    in its way, because time passes no faster than work gets done. So it is refused without being asked for, and that
    is just what the first one's Retry-After says. It holds as long as no request leaves the worker undone, and for
    `LONGEST`, so that a prediction that was wrong does not last.
    """

    def __init__(self) -> None:
        self._until: dict[Hashable, float] = {}

    def note(self, job: Job, submitted: float, late: float) -> None:
        """A request like `job` would have missed its deadline by `late` seconds."""
        if job.timeout is None:
            return
        until = submitted + job.timeout + min(late, LONGEST)
        kind = _kind(job)
        self._until.pop(kind, None)  # so that it becomes the newest
        self._until[kind] = until
        if len(self._until) > KINDS:
            del self._until[next(iter(self._until))]

    def clear(self) -> None:
        """Something left the worker undone."""
        self._until.clear()

    def lateness(self, job: Job, submitted: float) -> float:
        """By how many seconds a request would miss its deadline; 0 if the worker has to be asked."""
        if job.timeout is None:
            return 0.0
        return max(self._until.get(_kind(job), 0.0) - (submitted + job.timeout), 0.0)


def _kind(job: Job) -> Hashable:
    """Equal for jobs that take equally long, but for their prompts' encoding, and may wait equally long."""
    control = job.control_kind if job.control is not None else None
    return (job.size, control, job.steps, job.min_steps, job.previews, job.timeout)
