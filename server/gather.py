"""Several pictures from one engine, for one client: all of them or none."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from starlette.types import Message

from engine.client import EngineClient, Picture
from engine.request import GenerateRequest

# Clients may send one X-Request-Id twice; the engine must not see an id twice.
_serial = itertools.count(1)


T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up before its answer was ready."""


def engine_id(request_id: str) -> str:
    """An id for one of a request's pictures, unique in this process."""
    return f"{request_id}.{next(_serial)}"


async def make(client: EngineClient, request: GenerateRequest, n: int, request_id: str) -> list[Picture]:
    """Pictures with the seeds `seed` … `seed + n - 1`. If one fails, the others are cancelled.

    Raises:
        InvalidRequest, NotReady, Overloaded, DeadlineMissed, WorkerFailed, Cancelled: what the first failure was.
    """

    async def one(seed: int) -> Picture:
        async with aclosing(client.submit(replace(request, seed=seed), engine_id(request_id))) as events:
            async for event in events:
                if isinstance(event, Picture):
                    return event
        raise AssertionError("the engine ended a request without a picture or an error")

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request.seed + i)) for i in range(n)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


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
