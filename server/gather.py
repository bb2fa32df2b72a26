"""Several pictures from one engine, for one client: all of them or none."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from starlette.types import Message

from engine.client import EngineClient, Event, Picture
from engine.request import GenerateRequest

# Clients may send one X-Request-Id twice; the engine must not see an id twice.
_serial = itertools.count(1)


T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up before its answer was ready."""


def engine_id(request_id: str) -> str:
    """An id for one of a request's pictures, unique in this process."""
    return f"{request_id}.{next(_serial)}"


async def _single(client: EngineClient, request: GenerateRequest, request_id: str) -> AsyncGenerator[Event, None]:
    """What happens to one picture, which is the last event."""
    async with aclosing(client.submit(request, engine_id(request_id))) as events:
        async for event in events:
            yield event
            if isinstance(event, Picture):
                return
    raise AssertionError("the engine ended a request without a picture or an error")


async def stream(
    client: EngineClient, request: GenerateRequest, n: int, request_id: str
) -> AsyncGenerator[tuple[int, Event], None]:
    """What happens to pictures with the seeds `seed` … `seed + n - 1`, as (index, event), as soon as it happens.

    If one fails, or the generator is closed, all are cancelled.

    Raises:
        InvalidRequest, NotReady, Overloaded, DeadlineMissed, WorkerFailed, Cancelled: what the first failure was.
    """
    if n == 1:
        async with aclosing(_single(client, request, request_id)) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue()

    async def one(index: int) -> None:
        try:
            seeded = replace(request, seed=request.seed + index)
            async with aclosing(_single(client, seeded, request_id)) as events:
                async for event in events:
                    queue.put_nowait((index, event))
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(one(index)) for index in range(n)]
    try:
        unfinished = n
        while unfinished:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            unfinished -= isinstance(item[1], Picture)
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def make(client: EngineClient, request: GenerateRequest, n: int, request_id: str) -> list[Picture]:
    """The pictures with the seeds `seed` … `seed + n - 1`: all or none.

    Raises:
        InvalidRequest, NotReady, Overloaded, DeadlineMissed, WorkerFailed, Cancelled: what the first failure was.
    """
    made: dict[int, Picture] = {}
    async with aclosing(stream(client, request, n, request_id)) as events:
        async for index, event in events:
            if isinstance(event, Picture):
                made[index] = event
    return [made[index] for index in range(n)]


async def while_connected(receive: Callable[[], Awaitable[Message]], work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client hangs up. The request's body must have been read.

    Raises:
        ClientGone: it hung up.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, hanging_up = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        hanging_up.cancel()
        await asyncio.gather(working, hanging_up, return_exceptions=True)
