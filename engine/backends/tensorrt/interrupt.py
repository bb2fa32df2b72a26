"""Ctrl-C while the package works: its callbacks swallow exceptions, KeyboardInterrupt included."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Interrupt:
    """Whether somebody wants an end."""

    wanted: bool = False


@contextmanager
def noted_interrupt() -> Iterator[Interrupt]:
    """Within, SIGINT is only noted; at the end it becomes the KeyboardInterrupt that it would have been.

    Where SIGINT is not Python's own to handle, and in other threads, nothing changes.
    """
    noted = Interrupt()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, lambda *_: setattr(noted, "wanted", True))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if noted.wanted:
            raise KeyboardInterrupt
