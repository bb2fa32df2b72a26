"""A worker process: one pipeline, one engine loop, one socket to the server.

The server starts it as `python -m engine.worker SOCKET MEMORY PARENT` (two inherited descriptors and its own process
id) and sends a `WorkerSpec` first.
"""

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time

from engine.backends import CompileError
from engine.bundle import BundleError
from engine.loop import DeviceLost, Loop
from engine.manifest import ModuleName
from engine.messages import Channel, LoadFailed, Loading, Ready, WorkerSpec
from engine.pipeline import Pipeline
from engine.request import GenerateRequest, validate
from engine.scheduler import Scheduler
from engine.shared import Shared
from engine.sources import BATCHES
from engine.warmup import picture_seconds, warm_up

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


def main(end: int, memory: int, parent: int) -> None:
    """Serve until the server closes the socket. Exit status 1: the model cannot be loaded, or works no more."""
    _die_with(parent)
    # A terminal's Ctrl-C is for the server, which lets requests finish and then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=end))
    try:
        spec: WorkerSpec = channel.receive()
        spec.logging()
        shared = Shared(spec.layout, memory)
        shared.close_descriptor()
        _load(spec, shared, channel).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except DeviceLost as error:
        log.error("%s: %r", error, error.__cause__)
        sys.exit(1)


def _load(spec: WorkerSpec, shared: Shared, channel: Channel) -> Loop:
    manifest = spec.bundle.manifest

    def loading(name: ModuleName) -> None:
        channel.send(Loading(f"loading {name}"))

    try:
        start = time.monotonic()
        backend = spec.backend()
        pipeline = Pipeline(spec.bundle, backend, BATCHES, loading)
        seconds = time.monotonic() - start
        what = f"{len(manifest.modules)} modules for {backend.name} {backend.precision}"
        channel.send(Loading(f"compiled {what} in {seconds:.1f} s"))
        costs, max_batch = warm_up(pipeline, spec.warmup_seconds)
        seconds = picture_seconds(costs, validate(GenerateRequest("a picture"), manifest))
        channel.send(Loading(f"warmed up; a picture takes {1000 * seconds:.0f} ms"))
    except (BundleError, CompileError, ImportError, ValueError) as error:
        # These would come again at every try; everything else is a traceback in the log, and a restart.
        channel.send(LoadFailed(error))
        sys.exit(1)
    shared.board.beat()
    threading.Thread(target=_beat, args=(shared, spec.heartbeat / 2), name="heartbeat", daemon=True).start()
    # What is here now stays; collections need not look at it again.
    gc.collect()
    gc.freeze()
    channel.send(Ready(costs, backend.precision))
    return Loop(pipeline, Scheduler(costs, max_batch, spec.layout.slots), shared, channel, spec.prompt_cache_bytes)


def _beat(shared: Shared, period: float) -> None:
    while True:
        shared.board.beat()
        time.sleep(period)


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when the server's is gone, even if it is in the middle of a call."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before that
        sys.exit(1)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
