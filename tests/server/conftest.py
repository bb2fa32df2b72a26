"""A real `pixart serve` process on a free port, and the command line as a person runs it."""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.export import tiny

PIXART = Path(sys.executable).with_name("pixart")
SECONDS = 120.0  # before a process counts as hung, on a busy machine


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of its own, nor modules that an earlier run compiled."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIXART_")}
    return inherited | {"PIXART_CACHE": "none"} | variables


@dataclass
class Server:
    """A server process, and what it said so far."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)
    _fresh: "queue.Queue[str | None]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._fresh.put(line.rstrip())
        self._fresh.put(None)

    def wait_for_end(self) -> None:
        """Read whatever it still says."""
        while (line := self._fresh.get(timeout=SECONDS)) is not None:
            self.lines.append(line)

    def wait_for(self, word: str) -> str:
        """Read on until a line holds `word`."""
        while (line := self._fresh.get(timeout=SECONDS)) is not None:
            self.lines.append(line)
            if word in line:
                return line
        raise AssertionError("the server ended:\n" + "\n".join(self.lines))


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """A whole model of random weights, exported. Do not write into the folder."""
    return tiny.tiny_bundle()[1]


@pytest.fixture(scope="session")
def run_server(tiny_bundle: Path) -> Iterator[Callable[..., Server]]:
    """Start servers; those still running at the end are stopped."""
    started: list[Server] = []

    def start(until: str = "ready: http", port: str = "0", **variables: str) -> Server:
        command = [str(PIXART), "serve", "--bundle", str(tiny_bundle), "--port", port]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(**variables))
        server = Server(process)
        started.append(server)
        line = server.wait_for("listening at ")
        server.url = line.partition("listening at ")[2].partition(";")[0]
        if until != "listening":
            server.wait_for(until)
        return server

    yield start
    for server in started:
        server.process.terminate()
        server.process.wait(SECONDS)


@pytest.fixture
def start_server(run_server: Callable[..., Server]) -> Callable[..., Server]:
    """A server of a test's own."""
    return run_server


@pytest.fixture(scope="session")
def server(run_server: Callable[..., Server]) -> Server:
    """The server that most tests share."""
    return run_server()


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Content-Type": "application/json"}, timeout=SECONDS) as client:
        yield client


@pytest.fixture
def pixart(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line to its end."""

    def run(*arguments: str, **variables: str) -> Any:
        return subprocess.run(
            [str(PIXART), *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment(**variables),
            cwd=tmp_path,
        )

    return run
