"""Several pictures for one client: all or none, and none for a client that left."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.client import Overloaded
from engine.local import LocalClient
from engine.request import GenerateRequest, InvalidRequest
from server.gather import ClientGone, make, while_connected
from server.settings import DEMO_BUNDLE

APPLE = GenerateRequest("a red apple on a blue background", seed=5, steps=1)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(DEMO_BUNDLE)


@pytest.fixture
async def client(bundle: Bundle) -> AsyncIterator[LocalClient]:
    client = LocalClient(bundle, lambda: create("openvino", BackendOptions(threads=1)), capacity=3)
    await client.start()
    yield client
    await client.close(60)


async def test_all_or_none(client: LocalClient) -> None:
    made = await make(client, APPLE, 3, "one")
    assert [picture.seed for picture in made] == [5, 6, 7]
    with pytest.raises(Overloaded):
        await make(client, APPLE, 4, "four")
    with pytest.raises(InvalidRequest, match="seed"):
        await make(client, GenerateRequest("an apple", seed=2**63 - 1, steps=1), 2, "two")
    assert client.stats().running == client.stats().queued == 0


async def test_what_a_client_leaves_behind_is_cancelled(client: LocalClient) -> None:
    async def receive() -> Message:
        while not client.stats().running:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        await while_connected(receive, make(client, APPLE, 3, "gone"))
    assert client.stats().running == client.stats().queued == 0


async def test_a_client_that_stays_gets_its_result() -> None:
    async def receive() -> Message:
        return await asyncio.Future()

    assert await while_connected(receive, asyncio.sleep(0, "done")) == "done"
