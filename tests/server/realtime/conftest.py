"""Servers for real-time tests: the shared process, one with tight limits, and one in this loop with a valve."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn

from engine.bundle import Bundle
from engine.client import Event, Overloaded
from engine.local import LocalClient
from engine.request import GenerateRequest
from server.app import create_app
from server.metrics import Metrics
from server.realtime.transport import WebSocketProtocol
from server.settings import Settings


class Valve(LocalClient):
    """The engine, which begins no request until it is let. What was begun and what was given up is written down."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings.create_backend)
        self.reset()

    def reset(self) -> None:
        self.open = asyncio.Semaphore(0)
        self.begun: asyncio.Queue[GenerateRequest] = asyncio.Queue()
        self.given_up: asyncio.Queue[GenerateRequest] = asyncio.Queue()
        self.full = False
        self.refused = asyncio.Event()

    async def submit(self, request: GenerateRequest, request_id: str) -> AsyncGenerator[Event, None]:
        if self.full:
            self.refused.set()
            raise Overloaded("queue_full", 0.01)
        self.begun.put_nowait(request)
        try:
            await self.open.acquire()
        except (asyncio.CancelledError, GeneratorExit):
            self.given_up.put_nowait(request)
            raise
        async for event in super().submit(request, request_id):
            yield event


@dataclass
class Local:
    """A server in this loop."""

    url: str
    engine: Valve


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local_server(tiny_bundle: Path) -> AsyncIterator[Local]:
    settings = Settings(bundle=tiny_bundle, cache=None)
    engine = Valve(Bundle.load(tiny_bundle), settings)
    ready = asyncio.Event()
    app = create_app(settings, engine, Metrics(), lambda failure: ready.set())
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws=WebSocketProtocol, timeout_graceful_shutdown=5))
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]  # pytest keeps its own
    serving = asyncio.create_task(server.serve([listener]))
    await ready.wait()
    yield Local(f"http://127.0.0.1:{listener.getsockname()[1]}", engine)
    server.should_exit = True
    await serving


@pytest.fixture
def local(local_server: Local) -> Local:
    local_server.engine.reset()
    return local_server


@pytest.fixture(scope="session")
def tight_process(run_server: Callable[..., Any]) -> Any:
    return run_server(PIXART_REALTIME_SESSIONS="2", PIXART_REALTIME_STALL_SECONDS="1")


@pytest.fixture
def tight_server(tight_process: Any) -> Any:
    """A server whose limits tests can reach, when the sessions of the test before have ended."""
    while "pixart_realtime_sessions 0.0" not in httpx.get(f"{tight_process.url}/metrics", timeout=60).text:
        pass
    return tight_process
