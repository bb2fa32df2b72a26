"""Latest wins with the real engine, which begins a request only when a test lets it: no test here depends on time."""

from typing import Any

import pytest

from tests.server.realtime.client import session

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_newer_input_takes_the_waiting_place(local: Any) -> None:
    async with session(local.url) as live:
        for number in range(1, 5):
            await live.send("session.update", session={"prompt": f"picture {number}"})
            await live.send("generate")
        for number in (2, 3):
            dropped = await live.until("dropped")
            assert dropped == {"type": "dropped", "inputs": [number], "reason": "superseded"}
        local.engine.open.release()
        assert (await live.until("image.completed"))["input"] == 1
        local.engine.open.release()
        assert (await live.until("image.completed"))["input"] == 4
    assert [local.engine.begun.get_nowait().prompt for _ in range(2)] == ["picture 1", "picture 4"]
    assert local.engine.begun.empty()


async def test_an_interruption_stops_the_engine(local: Any) -> None:
    async with session(local.url) as live:
        await live.update(prompt="picture 1", interrupt=True)
        await live.send("generate")
        assert (await local.engine.begun.get()).prompt == "picture 1"
        await live.update(prompt="picture 2")
        await live.send("generate")
        dropped = await live.until("dropped")
        assert dropped == {"type": "dropped", "inputs": [1], "reason": "interrupted"}
        assert (await local.engine.given_up.get()).prompt == "picture 1"
        assert (await local.engine.begun.get()).prompt == "picture 2"
        local.engine.open.release()
        assert (await live.receive())["input"] == 2


async def test_cancel_gives_up_both(local: Any) -> None:
    async with session(local.url) as live:
        await live.update(prompt="picture")
        await live.send("generate")
        await live.send("generate")
        await local.engine.begun.get()
        await live.send("cancel")
        assert await live.receive() == {"type": "dropped", "inputs": [1], "reason": "cancelled"}
        assert await live.receive() == {"type": "dropped", "inputs": [2], "reason": "cancelled"}
        await local.engine.given_up.get()
        await live.send("generate")
        local.engine.open.release()
        assert (await live.until("image.completed"))["input"] == 3


async def test_a_client_that_leaves_stops_the_engine(local: Any) -> None:
    async with session(local.url) as live:
        await live.update(prompt="picture")
        await live.send("generate")
        await local.engine.begun.get()
    assert (await local.engine.given_up.get()).prompt == "picture"


async def test_an_input_at_fault_makes_way_for_the_next(local: Any) -> None:
    async with session(local.url) as live:
        await live.update(prompt="picture")
        await live.send("generate")
        await live.socket.send(b"no picture")
        local.engine.open.release()
        assert (await live.until("image.completed"))["input"] == 1
        error = await live.receive()
        assert error["type"] == "error" and error["input"] == 2
        assert error["error"]["code"] == "invalid_image" and error["error"]["param"] == "control.image"
        await live.send("control.clear")
        await live.send("generate")
        local.engine.open.release()
        assert (await live.until("image.completed"))["input"] == 3


async def test_a_full_queue_delays_an_input_and_newer_input_still_wins(local: Any) -> None:
    local.engine.full = True
    async with session(local.url) as live:
        await live.update(prompt="picture 1")
        await live.send("generate")
        await local.engine.refused.wait()
        await live.update(prompt="picture 2")
        await live.send("generate")
        assert await live.receive() == {"type": "dropped", "inputs": [1], "reason": "superseded"}
        local.engine.full = False
        local.engine.open.release()
        assert (await live.receive())["input"] == 2
    assert local.engine.begun.get_nowait().prompt == "picture 2"
