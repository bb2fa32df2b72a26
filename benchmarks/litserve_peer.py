"""A peer for `benchmarks.load`: the same bundle and backend behind LitServe, which batches whole requests in a window.

    python -m benchmarks.litserve_peer --port 8001 [--bundle models/zoo/emoji] [--batch 4] [--window 0.01]

What a careful user of LitServe would write: one worker, pictures as raw PNG, a batch's pictures in shared calls where
their shapes allow it, whatever their numbers of steps.
"""

import argparse
from pathlib import Path
from typing import Any

import litserve
from fastapi import Response

from benchmarks.client import ROUTE
from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.generate import Generator
from engine.pipeline import Images
from engine.request import GenerateRequest, validate
from engine.sources import BATCHES
from server.pictures import from_base64, read_control, to_png

MAX_CONTROL_PIXELS = 1 << 24


class PixArtAPI(litserve.LitAPI):
    """Prompt, seed, steps and control image in; a PNG out."""

    def __init__(self, folder: Path, backend: str, batch: int, window: float) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=window, api_path=ROUTE)
        self._folder, self._backend = folder, backend

    def setup(self, device: str) -> None:
        """Compile the bundle in the worker's process, and make one batch as a warm-up."""
        bundle = Bundle.load(self._folder)
        self._manifest = bundle.manifest
        self._generator = Generator(bundle, create(self._backend, BackendOptions(precision="auto")), BATCHES)
        self._generator.generate_batch([GenerateRequest("a picture")] * self.max_batch_size)

    def decode_request(self, request: dict[str, Any]) -> GenerateRequest:
        """From the JSON body."""
        wanted = {name: request[name] for name in ("prompt", "seed", "steps") if name in request}
        plain = GenerateRequest(**wanted)
        if "control" not in request:
            return plain
        size = validate(plain, self._manifest).size
        data = from_base64(request["control"]["image"])
        return GenerateRequest(**wanted, control=read_control(data, "edges", MAX_CONTROL_PIXELS, size))

    def batch(self, inputs: list[GenerateRequest]) -> list[GenerateRequest]:
        """They stay a list; the generator stacks what can be stacked."""
        return inputs

    def predict(self, inputs: list[GenerateRequest] | GenerateRequest) -> list[Images]:
        """A picture for each; without batching, LitServe gives one request alone."""
        return self._generator.generate_batch([inputs] if isinstance(inputs, GenerateRequest) else inputs)

    def unbatch(self, output: list[Images]) -> list[Images]:
        """One for each request."""
        return output

    def encode_response(self, output: Images | list[Images]) -> Response:
        """The bytes of a PNG."""
        picture = output[0] if isinstance(output, list) else output
        return Response(to_png(picture), media_type="image/png")


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description="The same model behind LitServe.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("models/zoo/emoji"))
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--batch", type=int, default=1, help="requests that a batch holds at most (1: no batching)")
    parser.add_argument("--window", type=float, default=0.0, help="seconds that the first waits for others")
    options = parser.parse_args()
    api = PixArtAPI(options.bundle, options.backend, options.batch, options.window)
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=options.port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()
