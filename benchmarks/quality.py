"""What a variant of a bundle does to its pictures: the same requests to both, from the same noise.

    python -m benchmarks.quality --bundle models/zoo/emoji --variant FOLDER [--prompts FILE] [--pictures 200]
        [--references FOLDER] [--json out.json]

Prints how far pixels differ, and the Fréchet distance between the two sets in features of the bundle's own autoencoder
(training/evaluation/networks.py), beside the distance between two sets of the bundle itself with other seeds, which
is what chance alone does. With a folder of reference pictures, also each bundle's distance to them, and their ratio.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.generate import PROMPTS
from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.pipeline import Pipeline
from engine.request import GenerateRequest, validate
from models.checkpoints import load_native
from models.checkpoints.build import build
from models.vae import VaeEncoder
from training.evaluation.features import extract
from training.evaluation.frechet import Moments, between
from training.evaluation.networks import VaeFeatures

Pictures = NDArray[np.uint8]
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def draw(bundle: Bundle, backend: str, prompts: Sequence[str], seeds: range) -> Pictures:
    """A picture of the default size for each seed, of the prompts in turn: uint8 [len(seeds), H, W, 3]."""
    pipeline = Pipeline(bundle, create(backend, BackendOptions()))
    texts = {prompt: pipeline.encode_text(prompt) for prompt in prompts}
    found = []
    for index, seed in enumerate(seeds):
        job = validate(GenerateRequest(prompts[index % len(prompts)], seed=seed), bundle.manifest)
        sample = pipeline.start(job, texts[job.prompt], None)
        while not sample.finished:
            pipeline.denoise([sample])
        found.append(pipeline.decode([sample])[0])
    return np.stack(found)


def differences(first: Pictures, second: Pictures) -> dict[str, float]:
    """Mean and largest difference of pixels (of 255), and the median over pictures of the PSNR in dB."""
    gap = np.abs(first.astype(np.int16) - second)
    square = np.square(gap.astype(np.float64)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        psnr = 10 * np.log10(255**2 / square)
    return {"mean": float(gap.mean()), "largest": float(gap.max()), "median_psnr": float(np.median(psnr))}


def read_references(folder: Path, height: int, width: int) -> Pictures:
    """All pictures of a folder at one size.

    Raises:
        ValueError: there are fewer than two.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise ValueError(f"{folder} has {len(files)} pictures; a distance needs two or more")
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((width, height))) for path in files])


def compare(
    bundle: Bundle, variant: Bundle, backend: str, prompts: Sequence[str], count: int, references: Path | None
) -> dict[str, Any]:
    """Every figure; see the module's description."""
    plain = draw(bundle, backend, prompts, range(count))
    other = draw(bundle, backend, prompts, range(count, 2 * count))
    changed = draw(variant, backend, prompts, range(count))
    checkpoint = load_native(bundle.folder)
    features = VaeFeatures(VaeEncoder(build(checkpoint).vae, checkpoint.config.latent))

    def moments(pictures: Pictures) -> Moments:
        return Moments.of(extract(features, pictures))

    result: dict[str, Any] = {
        "pictures": count,
        "pixels": differences(plain, changed),
        "frechet_variant": between(moments(plain), moments(changed)),
        "frechet_other_seeds": between(moments(plain), moments(other)),
    }
    if references is not None:
        true = moments(read_references(references, *plain.shape[1:3]))
        first, second = between(true, moments(plain)), between(true, moments(changed))
        result["references"] = {"bundle": first, "variant": second, "ratio": second / first}
    return result


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Compare the pictures of a bundle and of its variant.")
    parser.add_argument("--bundle", type=Path, default=Path("models/zoo/emoji"))
    parser.add_argument("--variant", type=Path, required=True, help="a bundle made of it, such as its 8-bit one")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--prompts", type=Path, help="a prompt a line; without, those of benchmarks.generate")
    parser.add_argument("--pictures", type=int, default=200, help="per set, at least 2 (default 200)")
    parser.add_argument("--references", type=Path, help="folder of true pictures")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    if options.pictures < 2:
        parser.error("--pictures must be at least 2")
    prompts: Sequence[str] = PROMPTS
    if options.prompts:
        prompts = [line for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    bundle, variant = Bundle.load(options.bundle), Bundle.load(options.variant)
    result = compare(bundle, variant, options.backend, prompts, options.pictures, options.references)
    pixels = result["pixels"]
    print(f"pixels: mean difference {pixels['mean']:.2f} of 255, largest {pixels['largest']:.0f}")
    print(f"median PSNR: {pixels['median_psnr']:.1f} dB over {result['pictures']} pictures")
    print(f"Fréchet distance: {result['frechet_variant']:.4f}; other seeds {result['frechet_other_seeds']:.4f}")
    if "references" in result:
        print(
            "to the references: {bundle:.4f}, variant {variant:.4f}, ratio {ratio:.3f}".format(**result["references"])
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
