"""The simulation itself: arrivals, devices that run one call at a time, and what became of every request."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Protocol

from engine.costs import CostModel
from engine.ticket import Finished, Refused, Ticket, Work


class Policy(Protocol):
    """What decides for one device: `engine.scheduler.Scheduler`, or a baseline. See there for the methods."""

    def admit(self, ticket: Ticket, now: float) -> None: ...

    def predicted_completion(self, ticket: Ticket, now: float) -> float: ...

    def next(self, now: float) -> Work | None: ...

    def finish(self, work: Work, seconds: float | None, now: float) -> tuple[Finished, ...]: ...

    def drop_hopeless(self, now: float) -> tuple[str, ...]: ...

    def wake(self, now: float) -> float:
        """When `next` may have an answer though nothing happened meanwhile; inf: never."""
        ...


@dataclass(frozen=True)
class Answer:
    """What became of a request: when its picture was ready (inf: it was refused or dropped), after how many steps."""

    ticket: Ticket
    ready: float = inf
    steps: int = 0

    @property
    def latency(self) -> float:
        """Seconds from its arrival."""
        return self.ready - self.ticket.arrived

    @property
    def in_time(self) -> bool:
        """Whether there is a picture, and not after the deadline."""
        return self.ready < inf and (self.ticket.deadline is None or self.ready <= self.ticket.deadline)


@dataclass(eq=False)
class _Device:
    policy: Policy
    busy: bool = False
    alarm: float = inf


def simulate(
    policies: Sequence[Policy], tickets: Sequence[Ticket], costs: CostModel, jitter: float = 0.05, seed: int = 0
) -> list[Answer]:
    """Run requests, sorted by arrival, on one device for each policy; answers are in the same order.

    A call takes what `costs` says, times a log-normal factor of the relative deviation `jitter`, which the policies do
    not know beforehand. A request goes to the device that predicts to finish it first; if that refuses, it is refused.
    """
    generator = random.Random(seed)
    devices = [_Device(policy) for policy in policies]
    answers = {ticket.id: Answer(ticket) for ticket in tickets}
    order = count()
    events: list[tuple[float, int, _Device, Work | None, float]] = []  # without work: an alarm

    def start(device: _Device, now: float) -> None:
        if device.busy:
            return
        device.policy.drop_hopeless(now)
        work = device.policy.next(now)
        if work is not None:
            device.busy = True
            seconds = costs.seconds(work.stage, work.shape, len(work.ids)) * generator.lognormvariate(0.0, jitter)
            heappush(events, (now + seconds, next(order), device, work, seconds))
        elif (alarm := device.policy.wake(now)) < inf and alarm != device.alarm:
            device.alarm = alarm
            heappush(events, (alarm, next(order), device, None, 0.0))

    def arrive(ticket: Ticket) -> None:
        now = ticket.arrived
        device = devices[0]
        if len(devices) > 1:
            device = min(devices, key=lambda one: one.policy.predicted_completion(ticket, now))
        try:
            device.policy.admit(ticket, now)
        except Refused:
            return
        start(device, now)

    def happen() -> None:
        now, _, device, work, seconds = heappop(events)
        if work is not None:
            device.busy = False
            for finished in device.policy.finish(work, seconds, now):
                for id in finished.audience:
                    answers[id] = Answer(answers[id].ticket, now, finished.steps)
        start(device, now)

    for ticket in tickets:
        while events and events[0][0] <= ticket.arrived:
            happen()
        arrive(ticket)
    while events:
        happen()
    return [answers[ticket.id] for ticket in tickets]
