"""How far a compilation is, at a terminal."""

import importlib
import sys
from typing import Any


class Bar:
    """A progress bar at a terminal, naming module and phase; nothing where nobody watches."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> "Bar":
        if sys.stderr.isatty():
            try:
                tqdm = importlib.import_module("tqdm").tqdm
                self._bar = tqdm(total=1.0, bar_format="{desc:<60} |{bar:20}| {elapsed}", leave=False, file=sys.stderr)
            except ImportError:
                self._bar = None  # the extra that brings it is not installed; compiling may not need the rest of it
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, module: str, phase: str, done: float) -> None:
        """Show where the compilation of `module` is."""
        if self._bar is not None:
            self._bar.set_description_str(f"{module}: {phase}"[:60], refresh=False)
            self._bar.n = done
            self._bar.refresh()

    def clear(self) -> None:
        """Make room for a line."""
        if self._bar is not None:
            self._bar.clear()
