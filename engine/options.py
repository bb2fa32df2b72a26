"""How a pool of workers behaves."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from engine.backends import Backend, BackendOptions, create


def log_plainly() -> None:
    """Logs to standard error, as a worker's default."""
    form = "%(levelname)s %(name)s: %(message)s %(request_id)s"
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(form, defaults={"request_id": ""}))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


@dataclass(frozen=True)
class PoolOptions:
    """Seconds, unless it says otherwise.

    `capacity` is how many requests may wait or run in the whole pool. A worker shows a sign of life every `heartbeat`;
    if there is none for 2.5 of them, or one call takes longer than `hang` and than 20 times what it should, or the
    model is not loaded after `load`, it is killed and replaced. `warmup` is about how long costs are measured before
    a worker is ready. A request on which workers died is tried again at most `replays` times; its like are refused
    for `quarantine` then. `logging` is called in each worker first; it must be picklable.
    """

    capacity: int = 32
    heartbeat: float = 2.0
    hang: float = 30.0
    load: float = 600.0
    warmup: float = 1.0
    replays: int = 2
    quarantine: float = 600.0
    prompt_cache_bytes: int = 64 * 1024 * 1024
    logging: Callable[[], None] = log_plainly


def backends(name: str, options: BackendOptions, workers: int) -> list[Callable[[], Backend]]:
    """What `workers` processes call to make their backends."""
    return [partial(create, name, each) for each in spread(options, (), workers)]


def spread(options: BackendOptions, devices: Sequence[str], workers: int) -> list[BackendOptions]:
    """Options of each process: `workers` for each of `devices`, or for the device of `options` if there are none.

    Threads that were left open are shared out by cores.
    """
    places = [device for device in devices or (options.device,) for _ in range(workers)]
    threads = options.threads
    if not threads and len(places) > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // len(places))
    return [replace(options, device=device, threads=threads) for device in places]
