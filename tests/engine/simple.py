"""A backend with trivial arithmetic, which starts at once and fails on demand: for tests of what happens around it.

Every sample is computed from its own rows alone, so batches change no bit.
"""

import os
import resource
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from engine.backends.base import Array, Arrays, CompileError, Precision, Source, prepare
from engine.tokenizer import Tokenizer
from server.settings import DEMO_BUNDLE

Fault = Literal["kill", "hang once", "raise", "memory", "break once"]

SAMPLE_BYTES = 256 * 2**20  # what a call takes for each sample once memory is short
ROOM = 2.5 * SAMPLE_BYTES


def token(prompt: str) -> int:
    """The first token's id."""
    return int(Tokenizer(DEMO_BUNDLE / "tokenizer.json", 64)([prompt]).ids[0, 0])


@dataclass
class SimpleBackend:
    """`seconds` is how long a denoiser call takes. `faults` maps the first token of a prompt to what happens when it
    is drawn; what happens `once` leaves the file `happened`. `loading`: what happens at the start."""

    seconds: float = 0.0
    faults: Mapping[int, Fault] = field(default_factory=dict)
    happened: Path | None = None
    loading: Literal["works", "refused", "hangs", "short of memory"] = "works"
    name: str = "simple"
    precision: Precision = "f32"
    broken: bool = False  # no call works any more in this process

    def compile(self, source: Source) -> "SimpleModule":
        if self.loading == "refused":
            raise CompileError(f"{source.graph.name}: refused")
        if self.loading == "hangs":
            signal.pause()
        return SimpleModule(self, source)


@dataclass
class SimpleModule:
    backend: SimpleBackend
    source: Source

    def run(self, inputs: Arrays, outputs: Arrays | None = None) -> dict[str, Array]:
        if self.backend.broken:
            raise RuntimeError("the device is lost")
        ready, results = prepare(self.source, inputs, outputs)
        kind = self.source.graph.stem
        if kind == "text_encoder":
            results["caption"][:] = ready["ids"][:, :, None]
        elif kind == "edge_detector":
            results["edges"][:] = 255 - ready["image"]
        elif kind == "vae_encoder":
            results["latents"][:] = ready["image"][:, None, ::8, ::8, 0] / 255.0
        elif kind == "vae_decoder":
            coarse = np.clip(127.5 + 60.0 * ready["latents"][:, :3], 0, 255).astype(np.uint8)
            results["image"][:] = coarse.repeat(8, axis=2).repeat(8, axis=3).transpose(0, 2, 3, 1)
        else:
            self._denoise(ready, results)
        return results

    def _denoise(self, inputs: Arrays, outputs: Arrays) -> None:
        if self.backend.loading == "short of memory":
            _need_memory(len(inputs["latents"]))
        for row, (caption, mask) in enumerate(zip(inputs["caption"], inputs["mask"], strict=True)):
            fault = self.backend.faults.get(int(caption[0, 0]))
            if fault is not None:
                self._fail(fault, len(inputs["latents"]))
            shift = np.sin(caption[mask].mean(dtype=np.float64)).astype(np.float32)
            x0 = np.tanh(inputs["latents"][row] + shift)
            if "strength" in inputs:
                x0 += inputs["strength"][row] * inputs["control_latents"][row]
            alpha, sigma = inputs["coefficients"][row, 4:6]
            outputs["x0"][row] = x0
            outputs["next_latents"][row] = alpha * x0 + sigma * inputs["noise"][row]
        time.sleep(self.backend.seconds)

    def _fail(self, fault: Fault, batch: int) -> None:
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "hang once" and self._first():
            signal.pause()
        elif fault == "break once" and self._first():
            self.backend.broken = True
            raise RuntimeError("the device is lost")
        elif fault == "raise":
            raise RuntimeError("this prompt cannot be drawn")
        elif fault == "memory":
            _need_memory(batch)

    def _first(self) -> bool:
        """Whether this happens for the first time, in any process."""
        assert self.backend.happened is not None
        try:
            self.backend.happened.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _need_memory(samples: int) -> None:
    """Allocate under a limit of this process's memory that leaves room for two samples, and no more."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + int(ROOM)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    np.empty(samples * SAMPLE_BYTES, dtype=np.uint8)
