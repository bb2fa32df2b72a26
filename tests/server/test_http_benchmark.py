"""What the benchmark of HTTP asks a real server for."""

import re
from collections.abc import Callable

import httpx

from benchmarks.http import TYPES, WARM_UP, ask
from tests.server.conftest import Server


def prompts(url: str, found: str) -> float:
    line = re.search(rf"^pixart_prompt_cache_{found}_total (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    assert line
    return float(line[1])


def test_no_prompt_is_found_encoded(start_server: Callable[..., Server]) -> None:
    url = start_server().url
    before = {found: prompts(url, found) for found in ("hits", "misses")}
    asked = ask(url, requests=2)
    assert {kind: len(some) for kind, some in asked.items()} == dict.fromkeys(TYPES, 2)
    assert prompts(url, "hits") == before["hits"]
    assert prompts(url, "misses") == before["misses"] + len(TYPES) * (WARM_UP + 2)
