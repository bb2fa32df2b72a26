"""The cache of encoded prompts: least recently used out first, bounded in bytes, hits and misses counted."""

import numpy as np

from engine.pipeline import Text
from engine.prompt_cache import PromptCache


def text(tokens: int) -> Text:
    return Text(np.zeros((tokens, 256), np.float32), False)


def test_least_recently_used_goes_first() -> None:
    cache = PromptCache(3 * 10_300)
    for prompt in "abc":
        cache.put(prompt, text(10))
    assert cache.get("a") is not None
    cache.put("d", text(10))
    assert cache.get("b") is None
    assert [prompt for prompt in "acd" if cache.get(prompt) is not None] == ["a", "c", "d"]
    assert (cache.hits, cache.misses, len(cache)) == (4, 4, 3)


def test_bytes_are_bounded(rng: np.random.Generator) -> None:
    limit = 100_000
    cache = PromptCache(limit)
    for number in rng.integers(0, 50, 1000):
        if cache.get(str(number)) is None:
            cache.put(str(number), text(int(rng.integers(1, 120))))
        assert cache.bytes <= limit
    assert len(cache) > 0
    assert cache.hits + cache.misses == 1000
    cache.put("0", text(1))
    cache.put("0", text(2))
    for number in range(1, 200):
        cache.put(str(number), text(97))
    assert cache.bytes <= limit


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = PromptCache(1000)
    cache.put("a", text(1))
    assert len(cache) == 0
    assert cache.bytes == 0
    none = PromptCache(0)
    none.put("a", text(1))
    assert none.get("a") is None
