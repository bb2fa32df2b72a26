"""A client that costs little itself, and the servers that it asks, each in a process of its own."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

ROUTE = "/v1/images/generations"
START_SECONDS = 300.0  # before a server that is not ready counts as broken

Address = tuple[str, int]


@dataclass(frozen=True)
class Answer:
    """One request: its status, the seconds until its answer was there, a refusal's Retry-After, and the body."""

    status: int
    seconds: float
    retry_after: int | None
    body: bytes = b""


class Client:
    """As many kept connections to one server as are needed at once. httpx would cost a millisecond for each request."""

    def __init__(self, address: Address, accept: str = "application/json") -> None:
        self._address = address
        self._head = (
            f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Type: application/json\r\n"
        )
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def ask(self, body: bytes) -> Answer:
        """Send one JSON body and wait for the whole answer."""
        start = time.perf_counter()
        while True:
            reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(*self._address)
            try:
                writer.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                break
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()  # the server closed it while it was idle
        length = re.search(r"content-length: (\d+)", head)
        answer = await reader.readexactly(int(length[1]) if length else 0)
        seconds = time.perf_counter() - start
        if "connection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        after = re.search(r"retry-after: (\d+)", head)
        return Answer(int(head.split(" ", 2)[1]), seconds, int(after[1]) if after else None, answer)

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()


@dataclass(frozen=True)
class Server:
    """A server that is ready, and its processes, which form a group."""

    address: Address
    group: int

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for once; before and after it is stopped, for some servers spin while they have nothing to do."""
        os.killpg(self.group, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.group, signal.SIGSTOP)


@contextmanager
def pixart(options: Sequence[str]) -> Iterator[Server]:
    """This server, ready, with these options of `pixart serve`."""
    program = str(Path(sys.executable).with_name("pixart"))
    with _process([program, "serve", "--port", "0", "--log-level", "warning", *options], 60.0) as process:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "ready: http" in line), "")
        if not line:
            raise SystemExit("the server did not start")
        host, _, port = line.rpartition("//")[2].strip().rpartition(":")
        yield Server((host, int(port)), process.pid)


@contextmanager
def other(module: str, options: Sequence[str]) -> Iterator[Server]:
    """A server that is `python -m module --port N …`, once its `/health` says that it is well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address: Address = free.getsockname()
    with _process([sys.executable, "-m", module, "--port", str(address[1]), *options], 0.0) as process:
        end = time.monotonic() + START_SECONDS
        while not _healthy(address):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{module} did not start: {process.communicate()[1]}")
            time.sleep(0.2)
        yield Server(address, process.pid)


def _healthy(address: Address) -> bool:
    with closing(HTTPConnection(*address, timeout=5.0)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False


@contextmanager
def _process(command: Sequence[str], patience: float) -> Iterator[subprocess.Popen[str]]:
    """It leads a group of its own, all of which ends with the block, by force after `patience` seconds."""
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdout=nothing, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired, ValueError):
                process.communicate(timeout=patience)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
