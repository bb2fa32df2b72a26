"""Draw a line that grows, and save the pictures that follow it.

pip install websockets pillow
python docs/examples/realtime.py ws://127.0.0.1:8000 --frames 30 --out pictures
"""

import argparse
import asyncio
import io
import json
import math
from pathlib import Path

from PIL import Image, ImageDraw
from websockets.asyncio.client import connect

SIDE = 256


def drawing(turn: float) -> bytes:
    """A circle of which `turn` (0 to 1) is drawn so far, as PNG: white lines on black."""
    canvas = Image.new("L", (SIDE, SIDE))
    points = [
        (SIDE / 2 + SIDE / 3 * math.cos(angle), SIDE / 2 + SIDE / 3 * math.sin(angle))
        for angle in (2 * math.pi * turn * i / 64 for i in range(65))
    ]
    ImageDraw.Draw(canvas).line(points, fill=255, width=6, joint="curve")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


async def run(server: str, prompt: str, frames: int, out: Path) -> None:
    """Send `frames` drawings, one every 30 ms, and write what comes back."""
    out.mkdir(parents=True, exist_ok=True)
    async with connect(f"{server}/v1/realtime") as socket:
        settings = {"prompt": prompt, "seed": 7, "output_format": "png"}
        await socket.send(json.dumps({"type": "session.update", "session": settings}))

        async def draw() -> None:
            for frame in range(1, frames + 1):
                await socket.send(drawing(frame / frames))  # each frame is an input; they count from 1
                await asyncio.sleep(0.03)

        drawn = asyncio.create_task(draw())
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "image.completed":
                picture = await socket.recv()  # a picture follows its header
                (out / f"{message['input']:04d}.png").write_bytes(picture)
                print(f"input {message['input']}: {1000 * message['latency']:.0f} ms")
                if message["input"] == frames:  # the newest input is never dropped
                    break
            elif message["type"] == "error":
                raise SystemExit(message["error"]["message"])
        await drawn


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", nargs="?", default="ws://127.0.0.1:8000")
    parser.add_argument("--prompt", default="a red apple on a blue background")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    options = parser.parse_args()
    asyncio.run(run(options.server, options.prompt, options.frames, options.out))


if __name__ == "__main__":
    main()
