"""The time below which no implementation can go: operations and bytes counted from the graphs, over peaks of devices.

    python -m benchmarks.roofline [--bundle models/zoo/emoji] [--full] [--graphs FOLDER] [--json out.json]

A module's floor is max(operations / peak, bytes / bandwidth). What is counted is a lower bound (see
benchmarks/counting.py): every weight is read once, everything pointwise is fused away, attention scores stay on the
chip. A picture is the text encoder once, the denoiser four times, the decoder once; batch 1, no guidance.
"""

import argparse
import json
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import machine
from benchmarks.counting import ConcreteGraph, Count
from benchmarks.devices import GPUS, Device, this_cpu
from benchmarks.fullsize import FullSize, sizes_at
from engine.bundle import Bundle

STEPS = 4
PICTURE = f"picture, {STEPS} steps"
MODULES = ("text_encoder", "denoiser", "denoiser_control", "vae_decoder", "vae_encoder", "edge_detector")


@dataclass(frozen=True)
class Row:
    """One module, or a whole picture, at one size."""

    model: str
    module: str
    pixels: int
    count: Count

    @property
    def parts(self) -> tuple[tuple[int, Count], ...]:
        """How often which count; a picture's modules each have a floor of their own."""
        return ((1, self.count),)

    def floor(self, device: Device) -> float:
        """Seconds."""
        return sum(times * floor(count, device) for times, count in self.parts)


@dataclass(frozen=True)
class Picture(Row):
    """A row made of others."""

    modules: tuple[tuple[int, Count], ...] = ()

    @property
    def parts(self) -> tuple[tuple[int, Count], ...]:
        return self.modules


def floor(count: Count, device: Device) -> float:
    """Seconds that one call takes at least."""
    return max(count.flops / device.peak, count.bytes(device.width) / device.bandwidth)


def rows(model: str, pixels: int, counts: dict[str, Count]) -> list[Row]:
    """The modules that there are, then the picture."""
    found = [Row(model, name, pixels, counts[name]) for name in MODULES if name in counts]
    times = {"text_encoder": 1, "denoiser": STEPS, "vae_decoder": 1}
    parts = tuple((number, counts[name]) for name, number in times.items())
    whole = Count()
    for number, count in parts:
        # A module's weights are stored once, however often it runs.
        stored = Count(weights=count.weights, matrices=count.matrices, tables=count.tables)
        whole += count * number - stored * (number - 1)
    return [*found, Picture(model, PICTURE, pixels, whole, parts)]


def bundle_rows(folder: Path) -> list[Row]:
    """Of a bundle at its default size."""
    bundle = Bundle.load(folder)
    size = bundle.manifest.images.default
    symbols = sizes_at(size.width, size.height, bundle.manifest.max_tokens)
    counts: dict[str, Count] = {
        name: ConcreteGraph(bundle.path(spec.graph), symbols).count() for name, spec in bundle.manifest.modules.items()
    }
    return rows(bundle.manifest.name, size.width, counts)


def full_rows(graphs: Path) -> list[Row]:
    """Of PixArt-δ at its published size."""
    model = FullSize(graphs)
    found = []
    for pixels in (512, 1024):
        found += rows("PixArt-δ XL/2", pixels, {name: model.count(name, pixels) for name in MODULES})
    return found


def cost_table(found: Iterable[Row]) -> str:
    """Markdown: operations in billions, weights in millions of numbers, traffic in MB at two bytes a number."""
    lines = [
        "| model, module | pixels | GFLOP | of it attention | weights, M | bytes in fp16, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        attention = row.count.attention / max(1, row.count.flops)
        traffic = sum(times * count.bytes(2) for times, count in row.parts)
        lines.append(
            f"| {row.model}, {row.module} | {row.pixels} | {row.count.flops / 1e9:,.1f} | {attention:.0%} "
            f"| {row.count.weights / 1e6:,.1f} | {traffic / 1e6:,.0f} |"
        )
    return "\n".join(lines)


def floor_table(found: Iterable[Row], devices: Iterable[Device]) -> str:
    """Markdown: milliseconds, fp16 on GPUs and float32 on the CPU, and published figures where there are any."""
    chosen = list(devices)
    lines = [
        "| floor, ms | pixels | " + " | ".join(device.name for device in chosen) + " |",
        "|---" * 2 + "|---:" * len(chosen) + "|",
    ]
    for row in found:
        cells = " | ".join(f"{1000 * row.floor(device):,.2f}" for device in chosen)
        lines.append(f"| {row.model}, {row.module} | {row.pixels} | {cells} |")
        if row.module == PICTURE and row.pixels == 1024:
            known = " | ".join(f"{1000 * device.published:,.0f}" if device.published else "" for device in chosen)
            lines.append(f"| PixArt-δ's paper, the same picture | {row.pixels} | {known} |")
    return "\n".join(lines)


def as_json(found: Iterable[Row], devices: Iterable[Device]) -> dict[str, Any]:
    """Everything that the tables are made of."""
    chosen = list(devices)
    return {
        "devices": [asdict(device) for device in chosen],
        "rows": [
            {
                "model": row.model,
                "module": row.module,
                "pixels": row.pixels,
                **asdict(row.count),
                "flops": row.count.flops,
                "floor_seconds": {device.name: row.floor(device) for device in chosen},
            }
            for row in found
        ],
    }


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Operations, bytes and the least time of each module.")
    parser.add_argument("--bundle", type=Path, default=Path("models/zoo/emoji"))
    parser.add_argument("--full", action="store_true", help="also PixArt-δ XL/2 at full size (exports for minutes)")
    parser.add_argument("--graphs", type=Path, help="keep the full-size graphs here, and use those that are here")
    parser.add_argument("--no-cpu", action="store_true", help="leave out this machine, which has to be measured")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args(arguments)
    logging.getLogger("torch").setLevel(logging.ERROR)
    found = bundle_rows(options.bundle)
    if options.full:
        with ExitStack() as stack:
            found += full_rows(options.graphs or Path(stack.enter_context(TemporaryDirectory())))
    devices = [*GPUS, *([] if options.no_cpu else [this_cpu()])]
    print(cost_table(found), floor_table(found, devices), sep="\n\n", end="\n\n")
    for device in devices:
        print(f"{device.name}: {device.peak / 1e12:.3g} TFLOP/s, {device.bandwidth / 1e9:.4g} GB/s ({device.source})")
    if options.json:
        about = machine.describe("onnx", "torch")
        options.json.write_text(json.dumps({"machine": about, **as_json(found, devices)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
