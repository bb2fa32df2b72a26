"""Encoded prompts that were used lately, so that a known prompt costs no run of the text encoder."""

from collections import OrderedDict

from engine.pipeline import Text


class PromptCache:
    """Least recently used out first, at most `limit` bytes of captions; 0 keeps nothing. Not thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._texts: OrderedDict[str, Text] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, prompt: str) -> Text | None:
        """The prompt's encoding, if it is known; that is a hit."""
        text = self._texts.get(prompt)
        if text is not None:
            self.hits += 1
            self._texts.move_to_end(prompt)
        return text

    def put(self, prompt: str, text: Text) -> None:
        """Remember an encoding that had to be made (a miss), at the cost of those unused for longest.

        One that is larger than the whole limit is not kept.
        """
        self.misses += 1
        known = self._texts.pop(prompt, None)
        if known is not None:
            self.bytes -= _size(prompt, known)
        size = _size(prompt, text)
        if size > self._limit:
            return
        self._texts[prompt] = text
        self.bytes += size
        while self.bytes > self._limit:
            self.bytes -= _size(*self._texts.popitem(last=False))

    def __len__(self) -> int:
        return len(self._texts)


def _size(prompt: str, text: Text) -> int:
    """Bytes that an entry holds; four for each character is what the widest text takes."""
    return text.caption.nbytes + 4 * len(prompt)
