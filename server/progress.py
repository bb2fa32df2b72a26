"""Progress lines for the person at the terminal."""

import sys
import time

_START = time.perf_counter()


def progress(line: str) -> None:
    """Say what happened, and how long after the program's start."""
    print(f"[{time.perf_counter() - _START:5.1f} s] {line}", file=sys.stderr, flush=True)
