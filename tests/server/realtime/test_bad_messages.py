"""Mistakes and malice: every refusal names the field, and no client can harm its neighbours."""

import asyncio
import contextlib
import json
import random
import socket as sockets
from collections.abc import Callable
from typing import Any, get_args

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from server.realtime.protocol import ClientMessage
from tests.server.realtime.client import SECONDS, drawing, session

MISTAKES: list[tuple[str | bytes, str, str | None]] = [
    ("", "invalid_json", None),
    ("{", "invalid_json", None),
    ("[]", "invalid_json", None),
    ('"generate"', "invalid_json", None),
    ("[" * 10_000, "invalid_json", None),
    (" " * 40_000 + '{"type": "generate"}', "message_too_large", None),
    ("{}", "missing_parameter", "type"),
    ('{"type": "draw"}', "invalid_value", "type"),
    ('{"type": 1}', "invalid_value", "type"),
    ('{"type": "generate", "prompt": "x"}', "unknown_parameter", "prompt"),
    ('{"type": "ping", "id": "x"}', "invalid_value", "id"),
    ('{"type": "session.update"}', "missing_parameter", "session"),
    ('{"type": "session.update", "session": {"colour": 1}}', "unknown_parameter", "colour"),
    ('{"type": "session.update", "session": {"steps": "4"}}', "invalid_value", "steps"),
    ('{"type": "session.update", "session": {"steps": 9}}', "out_of_range", "steps"),
    ('{"type": "session.update", "session": {"seed": -1}}', "out_of_range", "seed"),
    ('{"type": "session.update", "session": {"size": "1x1"}}', "out_of_range", "size"),
    ('{"type": "session.update", "session": {"prompt": "a\\u0000"}}', "out_of_range", "prompt"),
    ('{"type": "session.update", "session": {"control": {"strength": 3}}}', "out_of_range", "control.strength"),
    ('{"type": "session.update", "session": {"control": {"strength": NaN}}}', "out_of_range", "control.strength"),
    ('{"type": "session.update", "session": {"control": {"type": "sobel"}}}', "invalid_value", "control.type"),
    ('{"type": "session.update", "session": {"output_compression": 101}}', "invalid_value", "output_compression"),
    ('{"type": "session.update", "session": {"previews": 8}}', "invalid_value", "previews"),
    (b"", "invalid_image", "control.image"),
]


async def test_mistakes_are_named_and_the_session_goes_on(server: Any) -> None:
    async with session(server.url) as live:
        before = await live.update(prompt="an apple")
        for message, code, param in MISTAKES:
            await live.socket.send(message)
            error = await live.receive()
            assert error["type"] == "error" and error["input"] is None, (message, error)
            assert set(error["error"]) == {"message", "type", "param", "code"}
            assert (error["error"]["code"], error["error"]["param"]) == (code, param), (message, error)
            assert len(error["error"]["message"]) < 500
        assert await live.update() == before
        await live.send("generate")
        assert (await live.receive())["type"] == "image.completed"


async def test_an_unknown_type_is_told_every_known_one(server: Any) -> None:
    async with session(server.url) as live:
        await live.send("draw")
        message = (await live.receive())["error"]["message"]
        assert message.startswith("type is 'draw'; allowed: ")
        for model in get_args(ClientMessage):
            assert repr(get_args(model.model_fields["type"].annotation)[0]) in message


async def test_nothing_but_mistakes_ends_the_session(server: Any) -> None:
    async with session(server.url) as live:
        with pytest.raises(ConnectionClosed) as closed:
            for _ in range(10_000):
                await live.socket.send("{")
                await live.receive()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4400


async def test_a_prompt_is_needed_for_a_picture(server: Any) -> None:
    async with session(server.url) as live:
        await live.send("generate")
        error = await live.receive()
    assert error["input"] == 1 and error["error"]["param"] == "prompt" and error["error"]["code"] == "out_of_range"


async def test_too_many_sessions(tight_server: Any) -> None:
    async with session(tight_server.url), session(tight_server.url):
        with pytest.raises(ConnectionClosed) as closed:
            async with session(tight_server.url):
                pass
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4429


async def test_a_message_that_is_too_large(server: Any) -> None:
    async with session(server.url) as live:
        most = live.created["limits"]["message_bytes"]
        with pytest.raises(ConnectionClosed) as closed:
            await live.socket.send(bytes(most + 1))
            await live.receive()
    # A connection that is reset loses the close frame.
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009


async def test_an_idle_session_is_closed(start_server: Callable[..., Any]) -> None:
    running = start_server(until="listening", PIXART_REALTIME_IDLE_SECONDS="1")
    async with session(running.url) as live:
        with pytest.raises(ConnectionClosed) as closed:
            await live.receive()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4408


async def test_a_client_that_never_reads_is_let_go(tight_server: Any) -> None:
    """Its socket fills up; then nothing more is made for it, and soon its session ends."""
    narrow = sockets.socket()
    narrow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    host, _, port = tight_server.url.removeprefix("http://").partition(":")
    narrow.connect((host, int(port)))
    narrow.setblocking(False)

    async def look() -> tuple[float, float]:
        """Open sessions, and the server's memory in bytes."""
        async with httpx.AsyncClient(base_url=tight_server.url, timeout=SECONDS) as client:
            text = (await client.get("/metrics")).text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return float(values["pixart_realtime_sessions"]), float(values["process_resident_memory_bytes"])

    async def until(sessions: int) -> float:
        while (seen := await look())[0] != sessions:
            pass
        return seen[1]

    before = await until(0)
    async with session(tight_server.url, sock=narrow, max_queue=1, close_timeout=1) as live:
        settings = {"prompt": "an apple", "steps": 8, "previews": 7, "output_format": "png"}
        await live.send("session.update", session=settings)
        await until(1)
        while True:
            with contextlib.suppress(ConnectionClosed):
                await live.send("generate")
            sessions, after = await look()
            if sessions == 0:
                break
        live.socket.transport.abort()
    assert after - before < 50e6


async def test_a_storm_of_nonsense(server: Any, seed: int) -> None:
    """Random and damaged messages, then frames that break the protocol; neighbours do not notice."""
    random_source = random.Random(seed)
    async with session(server.url) as neighbour:
        await neighbour.update(prompt="an apple")
        await asyncio.gather(*(_talk_nonsense(server.url, random.Random(seed + i)) for i in range(10)))
        for _ in range(60):
            await asyncio.to_thread(_break_the_protocol, server.url, random_source)
        await neighbour.send("generate")
        assert (await neighbour.until("image.completed"))["input"] == 1


async def _talk_nonsense(url: str, source: random.Random) -> None:
    image = drawing(np.random.default_rng(source.randrange(2**31)))
    valid = [message for message, _, _ in MISTAKES if isinstance(message, str)] + [
        '{"type": "session.update", "session": {"prompt": "an apple", "steps": 2, "seed": 5}}',
        '{"type": "generate"}',
        '{"type": "cancel"}',
        '{"type": "control.clear"}',
    ]
    with contextlib.suppress(ConnectionClosed):
        async with session(url) as live:
            for _ in range(30):
                kind = source.randrange(4)
                if kind == 0:
                    await live.socket.send(_damaged(source.choice(valid).encode(), source).decode("utf-8", "replace"))
                elif kind == 1:
                    await live.socket.send(_damaged(image, source))
                elif kind == 2:
                    await live.socket.send(source.randbytes(source.randrange(2000)))
                else:
                    await live.socket.send(json.dumps(source.choice(["", None, 1e308, [[]], {"type": {}}, "\ud800"])))
            await live.send("ping", id=99)
            # Whatever else it says, it answers.
            await live.until("pong", id=99)
            return
    raise AssertionError("messages that can be read do not end a session")


def _damaged(data: bytes, source: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(source.randrange(1, 6)):
        if changed:
            changed[source.randrange(len(changed))] = source.randrange(256)
    return bytes(changed[: source.randrange(len(changed) + 1)]) if source.random() < 0.3 else bytes(changed)


def _break_the_protocol(url: str, source: random.Random) -> None:
    """Random bytes after a valid handshake: reserved bits, unmasked or endless frames, wrong lengths."""
    host, _, port = url.removeprefix("http://").partition(":")
    with sockets.create_connection((host, int(port)), timeout=SECONDS) as wire:
        wire.sendall(
            f"GET /v1/realtime HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert wire.recv(12).startswith(b"HTTP/1.1 101")
        first = source.choice([0x81, 0x82, 0x80, 0xF1, 0x83, 0x89, 0x88, 0x01])
        second = source.choice([0x00, 0x05, 0x7E, 0x7F, 0x80, 0x85, 0xFE, 0xFF])
        # The server may reset the connection at any of these bytes, which is as good an answer as any.
        with contextlib.suppress(OSError):
            wire.sendall(bytes([first, second]) + source.randbytes(source.randrange(64)))
            wire.shutdown(sockets.SHUT_WR)
            while wire.recv(65536):
                pass


@pytest.mark.slow
async def test_many_sessions_at_once(server: Any, seed: int) -> None:
    """500 idle and 50 active ones, without loss."""
    async with contextlib.AsyncExitStack() as stack:
        idle = await asyncio.gather(*(stack.enter_async_context(session(server.url)) for _ in range(500)))

        async def work(number: int) -> list[dict[str, Any]]:
            async with session(server.url) as live:
                await live.update(prompt=f"apple {number}", seed=number)
                found = []
                for _ in range(5):
                    await live.send("generate")
                    found.append(await live.receive())
                return found

        for pictures in await asyncio.gather(*(work(number) for number in range(50))):
            assert [each["type"] for each in pictures] == ["image.completed"] * 5
            assert len({each["data"] for each in pictures}) == 1
        for number, live in enumerate(idle):
            await live.send("ping", id=number)
            assert (await live.receive())["id"] == number
