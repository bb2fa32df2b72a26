"""What the server and a worker tell each other: small dataclasses, pickled, each behind its length.

Pictures do not travel here but through `engine.shared`. `number` is the pool's own name for a request; `request_id`,
the caller's, is there for the logs. Times are `time.monotonic()`, which all processes of one machine share.

Unpickling is safe because only the server and the processes that it started hold the two ends of the socket.
"""

import asyncio
import pickle
import select
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.backends import Backend, Precision
from engine.bundle import Bundle
from engine.client import RefusalReason
from engine.costs import CostModel
from engine.request import Job
from engine.shared import Layout

_LENGTH = struct.Struct(">I")

Ending = Literal["cancelled", "deadline", "failed"]


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs to know; the first message to it. `backend` must be picklable, so no closure."""

    name: str
    bundle: Bundle
    backend: Callable[[], Backend]
    layout: Layout
    heartbeat: float  # seconds between beats
    prompt_cache_bytes: int
    warmup_seconds: float
    logging: Callable[[], None]  # called first, to set up the worker's logs


@dataclass(frozen=True, eq=False)
class Submit:
    """Make this picture. The job comes without its control image, which lies in the slot if `controlled`."""

    number: int
    request_id: str
    job: Job
    controlled: bool
    slot: int
    submitted: float


@dataclass(frozen=True)
class Cancel:
    """Stop at the next step boundary. It is answered by Ended, or by Done if it came too late."""

    number: int


@dataclass(frozen=True)
class Loading:
    """A line about the worker's progress."""

    line: str


@dataclass(frozen=True, eq=False)
class Ready:
    """The worker is warm. `costs` is what was measured, `precision` what its backend computes in."""

    costs: CostModel
    precision: Precision


@dataclass(frozen=True)
class LoadFailed:
    """The model cannot be loaded, and trying again would not help."""

    error: Exception


@dataclass(frozen=True)
class Unfinished:
    """The picture after `step` lies in the request's slot."""

    number: int
    step: int


@dataclass(frozen=True, eq=False)
class Done:
    """The finished picture lies in the request's slot. See `engine.client.Picture` for the fields."""

    number: int
    steps: int
    timings: Mapping[str, float]
    truncated: bool
    cached: bool


@dataclass(frozen=True)
class Refused:
    """The worker's scheduler did not admit the request; nothing was done.

    `late`: by how many seconds it would have missed its deadline, even with a known prompt, if that was the reason.
    """

    number: int
    reason: RefusalReason
    retry_after: float
    late: float


@dataclass(frozen=True)
class Ended:
    """There will be no picture; `message` says why, if it failed."""

    number: int
    ending: Ending
    message: str = ""


ToWorker = Submit | Cancel
FromWorker = Loading | Ready | LoadFailed | Unfinished | Done | Refused | Ended


def pack(message: Any) -> bytes:
    """One message as bytes."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> Any:
    """Wait for the next message.

    Raises:
        IncompleteReadError (an EOFError), ConnectionError: the other side is gone.
    """
    return pickle.loads(await reader.readexactly(_LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0]))


class Channel:
    """The worker's end of the socket. It blocks; one thread uses it."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        # Unlike `select`, this knows descriptors above 1023, which a worker inherits from a server of many connections.
        self._arrivals = select.poll()
        self._arrivals.register(end, select.POLLIN)

    def poll(self) -> bool:
        """Whether a message, or the end of all, has arrived."""
        return bool(self._arrivals.poll(0))

    def receive(self) -> Any:
        """Wait for the next message.

        Raises:
            EOFError: the server is gone, or wants the worker to stop.
        """
        return pickle.loads(self._exactly(_LENGTH.unpack(self._exactly(_LENGTH.size))[0]))

    def send(self, message: FromWorker) -> None:
        """Write a message.

        Raises:
            OSError: the server is gone.
        """
        self._socket.sendall(pack(message))

    def _exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return data
