"""`pixart serve`: from a bundle folder to a listening server, and back down in good order."""

import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from engine.bundle import Bundle
from engine.options import PoolOptions
from engine.pool import Pool
from server import logs
from server.app import create_app
from server.connections import ConnectionLimits, guarded
from server.metrics import Metrics
from server.realtime.transport import WebSocketProtocol
from server.settings import Settings

UNSENT_BYTES = 128 * 1024


def serve(settings: Settings, progress: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, which let running requests finish and then exit with status 0.

    Raises:
        BundleError, CompileError, SettingsError, WorkerFailed: the bundle cannot be served.
        OSError: the address cannot be listened on.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    progress(f"checking the bundle {settings.bundle}")
    bundle = Bundle.load(settings.bundle)
    files = bundle.manifest.files
    megabytes = sum(file.bytes for file in files.values()) / 1e6
    progress(f"{bundle.manifest.name}: {len(files)} files of {megabytes:.1f} MB are as they were exported")
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    progress(f"listening at {address}; loading the model")
    failures: list[BaseException] = []

    def loaded(failure: BaseException | None) -> None:
        if failure is None:
            progress(f"ready: {address}")
        else:
            failures.append(failure)
            server.should_exit = True

    metrics = Metrics()
    options = PoolOptions(
        capacity=settings.queue, logging=partial(logs.configure, settings.log_format, settings.log_level)
    )
    client = Pool(bundle, settings.backends(), options, progress)
    server = uvicorn.Server(configure(create_app(settings, client, metrics, loaded), settings, metrics))
    server.run(sockets=[listener])
    if failures:
        raise failures[0]


def configure(app: FastAPI, settings: Settings, metrics: Metrics) -> uvicorn.Config:
    """How uvicorn runs the application."""
    limits = ConnectionLimits(settings.max_connections, settings.head_seconds, settings.stall_seconds, metrics.refused)
    return uvicorn.Config(
        app,
        http=guarded(limits),
        timeout_keep_alive=settings.keep_alive_seconds,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws=WebSocketProtocol,
        ws_max_size=settings.realtime_message_bytes,
        ws_per_message_deflate=False,  # pictures are compressed already
        timeout_graceful_shutdown=settings.drain_seconds,
    )


def _leave(number: int, frame: FrameType | None) -> None:
    """While the server runs, uvicorn handles signals; it raises them again when everything is finished."""
    sys.exit(0)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    # Connections inherit it. Held back, small answers would wait for the client's delayed acknowledgements.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Connections inherit it: the kernel takes no more than this ahead of what it sends, or else a slow reader would be
    # shown pictures that had waited for seconds in megabytes of buffer.
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return listener
