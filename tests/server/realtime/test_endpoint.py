"""Who may open a session, and what is remembered of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from server import keys
from server.realtime.endpoint import Memory
from server.realtime.protocol import SessionSettings
from tests.server.realtime.client import session


def settings(prompt: str) -> SessionSettings:
    return SessionSettings(prompt=prompt)


def test_settings_are_kept_for_their_time_and_given_once() -> None:
    now = [0.0]
    memory = Memory(10.0, clock=lambda: now[0])
    memory.keep("a", settings("an apple"))
    memory.keep("b", settings("a banana"))
    now[0] = 10.0
    assert memory.take("a") == settings("an apple")
    assert memory.take("a") is None
    now[0] = 10.1
    assert memory.take("b") is None
    assert memory.take("nobody") is None


def test_the_oldest_are_forgotten_first() -> None:
    memory = Memory(10.0, most=2, clock=lambda: 0.0)
    for name in ("a", "b", "a", "c"):
        memory.keep(name, settings(name))
    assert [memory.take(name) for name in ("a", "b", "c")] == [settings("a"), None, settings("c")]


def test_what_has_expired_takes_no_memory() -> None:
    now = [0.0]
    memory = Memory(10.0, clock=lambda: now[0])
    for index in range(100):
        memory.keep(str(index), settings("x"))
        now[0] += 5.0
    assert len(memory._kept) <= 3


async def test_a_key_opens_a_session_and_its_rate_holds_for_inputs(
    start_server: Callable[..., Any], tmp_path: Path
) -> None:
    text, key = keys.create("alice", rate=0.001)
    keys.write(tmp_path / "keys.json", [key])
    running = start_server(until="listening", PIXART_API_KEYS=str(tmp_path / "keys.json"))
    async with session(running.url, subprotocols=["pixart", f"pixart-key.{text}"]) as live:
        assert live.socket.subprotocol == "pixart"
        # The handshake was the one request that this rate allows for now.
        await live.send("session.update", session={"prompt": "an apple"})
        await live.send("generate")
        error = await live.until("error")
        assert error["input"] == 1 and error["error"]["type"] == "rate_limit_error"
        await live.send("ping", id=1)
        await live.until("pong", id=1)


async def test_inputs_wait_for_the_keys_rate_and_the_newest_wins(
    start_server: Callable[..., Any], tmp_path: Path
) -> None:
    text, key = keys.create("alice", rate=0.2)
    keys.write(tmp_path / "keys.json", [key])
    running = start_server(PIXART_API_KEYS=str(tmp_path / "keys.json"))
    async with session(running.url, subprotocols=["pixart", f"pixart-key.{text}"]) as live:
        await live.update(prompt="an apple")
        for _ in range(5):
            await live.send("generate")
        outcomes = await live.outcomes(5)
    assert outcomes[5] == "image.completed"
    assert set(outcomes.values()) == {"image.completed", "superseded"}


async def test_a_withdrawn_key_ends_its_session_alone(start_server: Callable[..., Any], tmp_path: Path) -> None:
    (alice, alices), (bob, bobs) = keys.create("alice"), keys.create("bob")
    keys.write(tmp_path / "keys.json", [alices, bobs])
    running = start_server(until="listening", PIXART_API_KEYS=str(tmp_path / "keys.json"))
    async with (
        session(running.url, additional_headers={"Authorization": f"Bearer {alice}"}) as withdrawn,
        session(running.url, additional_headers={"Authorization": f"Bearer {bob}"}) as other,
    ):
        keys.write(tmp_path / "keys.json", [bobs])
        with pytest.raises(ConnectionClosed) as closed:
            await withdrawn.receive()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4401
        await other.send("ping", id=1)
        await other.until("pong", id=1)
