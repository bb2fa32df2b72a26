"""Memory that the server and one worker share: pictures both ways, and a board on which the worker shows its state.

It is an anonymous file (`memfd_create`): it has no name, the worker inherits its descriptor, and the kernel frees it
with the last process that has it open. However either process ends, nothing is left behind.

Every request in the worker owns one slot: room for its control image, its finished picture, and an unfinished one
after each step. Each has a place of its own, so that nobody has to say when one was read. Pages that were never
written take no memory.
"""

import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.manifest import Manifest, Size
from engine.request import Job

_BOARD_BYTES = mmap.PAGESIZE
_MARKS = 64  # suspects that the board has room for; more would wait for one picture
_CONTROL = -1  # place of the control image in a slot; place k: after step k; place 0: the finished picture


@dataclass(frozen=True)
class Layout:
    """How the memory is divided: `slots`, each with `places` pictures of at most `picture_bytes`."""

    slots: int
    places: int
    picture_bytes: int

    @classmethod
    def of(cls, manifest: Manifest, slots: int) -> "Layout":
        """What a bundle's largest request needs."""
        largest = max(3 * size.width * size.height for size in manifest.images.allowed)
        rounded = -(-largest // mmap.PAGESIZE) * mmap.PAGESIZE
        return cls(slots, manifest.steps.max + 1, rounded)

    @property
    def bytes(self) -> int:
        """Of the whole file."""
        return _BOARD_BYTES + self.slots * self.places * self.picture_bytes


class Shared:
    """One such memory, mapped into this process. `descriptor` is what the other process needs to map it, too."""

    def __init__(self, layout: Layout, descriptor: int | None = None) -> None:
        self.layout = layout
        if descriptor is None:
            descriptor = os.memfd_create("pixart", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, layout.bytes)
        self.descriptor = descriptor
        # numpy's views keep the mapping alive; it goes when the last of them does.
        self._memory = np.frombuffer(mmap.mmap(descriptor, layout.bytes), dtype=np.uint8)
        self.board = Board(self._memory[:_BOARD_BYTES])

    def close_descriptor(self) -> None:
        """The mapping stays; no other process can join any more."""
        os.close(self.descriptor)

    def picture(self, slot: int, size: Size, step: int = 0) -> NDArray[np.uint8]:
        """The place uint8 [height, width, 3] of the picture after `step` (0: the finished one), without a copy."""
        return self._place(slot, step, size)

    def control(self, slot: int, size: Size) -> NDArray[np.uint8]:
        """The place uint8 [height, width, 3] of the control image, without a copy."""
        return self._place(slot, _CONTROL, size)

    def write_control(self, slot: int, job: Job) -> None:
        """Copy the job's control image, if it has one, to where the worker finds it."""
        if job.control is not None:
            self.control(slot, job.size)[:] = job.control

    def _place(self, slot: int, place: int, size: Size) -> NDArray[np.uint8]:
        layout = self.layout
        start = _BOARD_BYTES + (slot * layout.places + place % layout.places) * layout.picture_bytes
        count = 3 * size.width * size.height
        return self._memory[start : start + count].reshape(size.height, size.width, 3)


class Board:
    """A few 64-bit numbers, written by the worker alone and read by the server at any time.

    A read may see one number newer than another, but never half a number. They lie in a memoryview rather than an array
    of numpy's, which takes ten times as long to write one number.
    """

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        numbers = memory.data.cast("q")
        self._numbers = numbers
        self._marks = numbers[16 : 16 + _MARKS]
        self._batches = numbers[16 + _MARKS :]

    def beat(self) -> None:
        """The worker lives."""
        self._numbers[0] = time.monotonic_ns()

    @property
    def silence(self) -> float:
        """Seconds since the last beat; since boot, if there was none yet."""
        return (time.monotonic_ns() - self._numbers[0]) / 1e9

    def begin(self, slots: Sequence[int], predicted: float) -> None:
        """Work on the requests in `slots` begins, and should take `predicted` seconds.

        If the worker dies now, these are the suspects.
        """
        slots = slots[:_MARKS]
        self._numbers[3] = 0  # nobody, while it changes
        for place, slot in enumerate(slots):
            self._marks[place] = slot
        self._numbers[2] = int(predicted * 1e9)
        self._numbers[1] = time.monotonic_ns()
        self._numbers[3] = len(slots)

    def end(self) -> None:
        """That work is finished."""
        self._numbers[3] = 0
        self._numbers[1] = 0

    @property
    def suspects(self) -> tuple[int, ...]:
        """Slots that are being worked on."""
        return tuple(self._marks[: self._numbers[3]])

    @property
    def overdue(self) -> tuple[float, float]:
        """Seconds since the present work began (0: there is none), and how many it should take."""
        began = self._numbers[1]
        return ((time.monotonic_ns() - began) / 1e9 if began else 0.0), self._numbers[2] / 1e9

    def count(self, running: int, hits: int, misses: int) -> None:
        """Show how many requests have begun, and the prompt cache's counters."""
        self._numbers[4] = running
        self._numbers[5] = hits
        self._numbers[6] = misses

    def count_batch(self, size: int) -> None:
        """One more denoiser call with `size` samples."""
        self._batches[size] += 1

    @property
    def running(self) -> int:
        """Requests that have begun and are not finished."""
        return self._numbers[4]

    @property
    def prompt_hits(self) -> int:
        """Prompts whose encoding was known."""
        return self._numbers[5]

    @property
    def prompt_misses(self) -> int:
        """Prompts that had to be encoded."""
        return self._numbers[6]

    @property
    def batch_sizes(self) -> dict[int, int]:
        """Denoiser calls by number of samples."""
        return {size: count for size, count in enumerate(self._batches) if count}
