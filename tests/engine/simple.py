"""A backend with trivial arithmetic, which starts at once and fails on demand: for tests of what happens around it.

Every sample is computed from its own rows alone, so batches change no bit.
"""

import os
import signal
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.backends.base import Array, Arrays, CompileError, Source, prepare

Fault = Literal["kill", "hang", "raise", "memory", "compile", "hang_loading"]


@dataclass(frozen=True)
class SimpleBackend:
    """`seconds` is how long each denoiser call takes. A denoiser call with a prompt whose first token is `token` has
    the `fault`; `memory` strikes calls with more than `limit` samples instead, and the last two every start."""

    seconds: float = 0.0
    fault: Fault | None = None
    token: int = -1
    limit: int = 0
    name: str = "simple"

    def compile(self, source: Source) -> "SimpleModule":
        if self.fault == "compile":
            raise CompileError(f"{source.graph.name}: refused")
        if self.fault == "hang_loading":
            signal.pause()
        return SimpleModule(self, source)


@dataclass(frozen=True)
class SimpleModule:
    backend: SimpleBackend
    source: Source

    def run(self, inputs: Arrays, outputs: Arrays | None = None) -> dict[str, Array]:
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
        backend = self.backend
        if backend.fault == "memory" and len(inputs["latents"]) > backend.limit:
            raise MemoryError
        for row, (caption, mask) in enumerate(zip(inputs["caption"], inputs["mask"], strict=True)):
            if int(caption[0, 0]) == backend.token:
                self._fail()
            shift = np.sin(caption[mask].mean(dtype=np.float64)).astype(np.float32)
            x0 = np.tanh(inputs["latents"][row] + shift)
            if "strength" in inputs:
                x0 += inputs["strength"][row] * inputs["control_latents"][row]
            alpha, sigma = inputs["coefficients"][row, 4:6]
            outputs["x0"][row] = x0
            outputs["next_latents"][row] = alpha * x0 + sigma * inputs["noise"][row]
        time.sleep(backend.seconds)

    def _fail(self) -> None:
        match self.backend.fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                signal.pause()
            case "raise":
                raise RuntimeError("this prompt cannot be drawn")
