"""Keeps one worker process alive: starts it, watches it, replaces it when it dies or hangs. Lives on the event loop."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from engine.backends import Backend
from engine.booked import Booked
from engine.bundle import Bundle
from engine.client import WorkerFailed, WorkerState, WorkerStats
from engine.messages import Done, FromWorker, LoadFailed, Loading, Ready, ToWorker, WorkerSpec, pack, read
from engine.options import PoolOptions
from engine.request import Job
from engine.shared import Layout, Shared
from engine.warmup import picture_seconds

log = logging.getLogger(__name__)

SILENT_BEATS = 2.5  # periods without a sign of life after which a worker counts as dead
SLOW_FACTOR = 20.0  # a call that takes so many times longer than predicted hangs
ATTEMPTS = 3  # deaths while loading before the first success, after which nobody waits any longer
LONGEST_DELAY = 30.0  # seconds between restarts
STOP_SECONDS = 5.0  # for a worker to leave by itself when its socket closes


class Owner(Protocol):
    """Whom a supervisor tells what happens; every method runs on the event loop."""

    def on_ready(self, worker: "Supervisor") -> None:
        """It takes requests now."""
        ...

    def on_message(self, worker: "Supervisor", message: FromWorker) -> None:
        """It has news of a request."""
        ...

    def on_death(self, worker: "Supervisor", suspects: Sequence[int]) -> None:
        """All its requests are lost; it was working on those in the slots `suspects`. `free` is empty."""
        ...

    def on_failure(self, worker: "Supervisor", error: Exception) -> None:
        """It never became ready, and will not be tried again."""
        ...


@dataclass(eq=False)
class _Life:
    """One process, from start to death."""

    process: subprocess.Popen[bytes]
    shared: Shared
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    began: float
    killed: str = ""  # why, if we did it


class Supervisor:
    """One worker and its successors.

    `free` are the slots of its shared memory that no request uses; the owner takes and returns them. `ready` is what
    the present process said when it was warm, and `booked` what the owner learnt from its refusals.
    """

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        backend: Callable[[], Backend],
        options: PoolOptions,
        owner: Owner,
        progress: Callable[[str], None],
    ) -> None:
        self.name = name
        self.state: WorkerState = "starting"
        self.ready: Ready | None = None
        self.free: list[int] = []
        self.booked = Booked()
        self.restarts = 0
        self._options = options
        self._owner = owner
        self._progress = progress
        # As many slots again as requests, for those that were cancelled and have not left yet.
        self._layout = Layout.of(bundle.manifest, 2 * options.capacity)
        self._spec = WorkerSpec(
            name,
            bundle,
            backend,
            self._layout,
            options.heartbeat,
            options.prompt_cache_bytes,
            options.warmup,
            options.logging,
        )
        self._life: _Life | None = None
        self._closing = asyncio.Event()
        self._was_warm = False
        self._useful = False  # the present process finished a picture
        # What former processes counted.
        self._prompts = [0, 0]
        self._batch_sizes: Counter[int] = Counter()

    @property
    def shared(self) -> Shared:
        """The present process's memory."""
        assert self._life is not None
        return self._life.shared

    @property
    def pid(self) -> int | None:
        """The present process."""
        return None if self._life is None else self._life.process.pid

    @property
    def silent(self) -> bool:
        """Whether a beat is overdue, so that others should be preferred."""
        return self._life is not None and self._life.shared.board.silence > 1.5 * self._options.heartbeat

    @property
    def prompts(self) -> tuple[int, int]:
        """Hits and misses of the prompt cache, of all processes so far."""
        board = None if self._life is None else self._life.shared.board
        hits, misses = (board.prompt_hits, board.prompt_misses) if board else (0, 0)
        return self._prompts[0] + hits, self._prompts[1] + misses

    @property
    def batch_sizes(self) -> Counter[int]:
        """Denoiser calls by number of samples, of all processes so far."""
        return self._batch_sizes + Counter({} if self._life is None else self._life.shared.board.batch_sizes)

    @property
    def stats(self) -> WorkerStats:
        """See `engine.client.WorkerStats`."""
        life = self._life
        running = life.shared.board.running if life and self.state == "warm" else 0
        memory = _resident(life.process.pid) if life else 0
        precision = self.ready.precision if self.ready else ""
        return WorkerStats(self.name, self.state, self.restarts, running, memory, precision)

    def expected_seconds(self, job: Job) -> float:
        """What a job would take alone, as the present process measured it when it got ready."""
        assert self.ready is not None
        return picture_seconds(self.ready.costs, job)

    def send(self, message: ToWorker) -> None:
        """Pass a message on; never blocks. To a worker that is dying, it is lost."""
        if self._life is not None and not self._life.writer.is_closing():
            self._life.writer.write(pack(message))

    async def run(self) -> None:
        """Keep a worker alive until `close`, or until it turns out that it cannot be."""
        deaths = 0  # in a row, without one picture between them
        while not self._closing.is_set():
            self._useful = False
            failure = None
            try:
                failure = await self._live()
            except OSError as error:  # no process, descriptor or memory to be had just now
                log.error("%s cannot be started: %s", self.name, error)
            except Exception:  # whatever it is, a worker that nobody supervises would be worse
                log.exception("%s could not be supervised", self.name)
            if self._closing.is_set():
                break
            deaths = 1 if self._useful else deaths + 1
            if not self._was_warm and deaths >= ATTEMPTS:
                failure = failure or WorkerFailed(f"{self.name} died {deaths} times while loading")
            if failure is not None and not self._was_warm:
                self.state = "stopped"
                self._owner.on_failure(self, failure)
                return
            self.state = "restarting"
            self.restarts += 1
            # Once may be an accident, and is repaired at once.
            delay = min(LONGEST_DELAY, 0.5 * 2 ** (deaths - 2)) if deaths > 1 else 0.0
            log.warning("%s is started again in %.1f s", self.name, delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay)
        self.state = "stopped"

    def close(self) -> None:
        """Let the process leave after its present call, or kill it if that takes long. `run` returns then."""
        self._closing.set()
        life = self._life
        if life is None:
            return
        if self.state != "warm":
            self._kill(life, "it is not needed any more")
            return
        with suppress(OSError):
            if not life.writer.is_closing():
                life.writer.write_eof()
        asyncio.get_running_loop().call_later(STOP_SECONDS, self._kill, life, "it did not leave")

    async def _live(self) -> Exception | None:
        """One process from start to death. Returns why no process will ever get ready, if that is so."""
        life = await self._start()
        self._life = life
        watch = asyncio.create_task(self._watch(life))
        failure = None
        try:
            if self._closing.is_set():
                life.process.kill()
            while (message := await self._receive(life)) is not None:
                if isinstance(message, Loading):
                    self._say(message.line)
                elif isinstance(message, LoadFailed):
                    failure = message.error
                elif isinstance(message, Ready):
                    self._warm(message)
                else:
                    self._useful |= isinstance(message, Done)
                    self._owner.on_message(self, message)
        finally:
            watch.cancel()
            life.process.kill()
            await self._bury(life)
        return failure

    async def _receive(self, life: _Life) -> FromWorker | None:
        """The next message; None when the process is gone."""
        try:
            message: FromWorker = await read(life.reader)
        except (EOFError, ConnectionError):
            return None
        return message

    def _say(self, line: str) -> None:
        try:
            self._progress(f"{self.name}: {line}")
        except Exception as error:  # the terminal may be gone, which is no reason to stop
            log.warning("progress cannot be shown: %r", error)

    async def _start(self) -> _Life:
        ours, theirs = socket.socketpair()
        shared = Shared(self._layout)
        ends = (theirs.fileno(), shared.descriptor)
        try:
            # The process must be started from a thread that lives as long as the server does: this one. The worker
            # asks the kernel for its own death when the thread that started it ends.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.worker", *map(str, ends), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=ends,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                process_group=0,
            )
        finally:
            theirs.close()
            shared.close_descriptor()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        writer.write(pack(self._spec))
        return _Life(process, shared, reader, writer, time.monotonic())

    def _warm(self, ready: Ready) -> None:
        self.ready = ready
        self.free = list(range(self._layout.slots))
        self._was_warm = True
        self.state = "warm"
        self._owner.on_ready(self)

    async def _watch(self, life: _Life) -> None:
        """Kill the process when it stops beating or does not get on."""
        options, board = self._options, life.shared.board
        tick = options.heartbeat / 2.0
        while True:
            await asyncio.sleep(tick)
            if self.state != "warm":
                if time.monotonic() - life.began > options.load:
                    self._kill(life, f"it did not load within {options.load:g} s")
                continue
            spent, predicted = board.overdue
            if board.silence > SILENT_BEATS * options.heartbeat:
                self._kill(life, f"no sign of life for {board.silence:.1f} s")
            elif spent > max(options.hang, SLOW_FACTOR * predicted):
                self._kill(life, f"a call has taken {spent:.1f} s instead of {predicted:.3f} s")

    def _kill(self, life: _Life, why: str) -> None:
        if life.process.returncode is None and not life.killed:
            life.killed = why
            life.process.kill()

    async def _bury(self, life: _Life) -> None:
        """Wait for the process's end, keep its counters, and tell the owner."""
        if self.state == "warm":
            self.state = "restarting"
        self.free = []
        life.writer.close()
        try:
            code = await asyncio.to_thread(life.process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
            log.error("%s (process %d) cannot be killed", self.name, life.process.pid)
        if not self._closing.is_set():
            log.error("%s is gone: %s", self.name, life.killed or f"exit status {code}")
        board = life.shared.board
        self._prompts[0] += board.prompt_hits
        self._prompts[1] += board.prompt_misses
        self._batch_sizes.update(board.batch_sizes)
        suspects = board.suspects
        self._life = None
        self.booked.clear()
        self._owner.on_death(self, suspects)


def _resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
