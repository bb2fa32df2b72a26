"""How far the retrieval and control measures can be trusted: they judge real pictures, changed in known ways.

`python -m training.evaluation.ceiling --config training/configs/emoji.toml --out ceiling.json`
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from training import config as recipes
from training import vae as vae_stage
from training.data import emoji
from training.evaluation.control import control_score, soft_edges
from training.evaluation.demo import EvaluationConfig
from training.evaluation.distortions import FORGIVABLE, UNFORGIVABLE
from training.evaluation.draws import Draws
from training.evaluation.features import PictureFeatures, extract
from training.evaluation.retrieval import near_pairs, ranks, squared_distances
from training.evaluation.sampler import Pictures

RECONSTRUCTION = "autoencoder's reconstruction"


def on_white(data: emoji.EmojiSet, index: Sequence[int]) -> Tensor:
    """Pictures `index` on white, [B, 3, S, S] in 0..1."""
    return (data.composite(torch.tensor(index), torch.ones(len(index), 3)) + 1) / 2


def to_uint8(pictures: Tensor) -> Pictures:
    """[B, 3, H, W] in 0..1 → uint8 [B, H, W, 3]."""
    return (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """What the autoencoder makes of pictures [B, 3, H, W] in 0..1."""
    parts = [vae.decode(vae.encode(part * 2 - 1).latent_dist.mean).sample for part in pictures.split(16)]
    return (torch.cat(parts) + 1) / 2


def control_bounds(draws: Draws, config: EvaluationConfig, vae: AutoencoderKL) -> dict[str, float]:
    """F-scores between which the control measure moves, on its own held-out pictures.

    No model can follow edges better than the autoencoder reproduces the picture; a model that ignores
    them does as well as another subject's picture.
    """
    pictures = draws.pictures(draws.pairs(draws.held_out, config.controls, salt=3))
    asked = soft_edges(pictures)
    decoded = to_uint8(reconstruct(vae, torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255))
    limits = {"threshold": config.edge_threshold, "tolerance": config.edge_tolerance}
    return {
        RECONSTRUCTION: control_score(soft_edges(decoded), asked, **limits).f_score,
        "another subject's picture": control_score(np.roll(asked, 1, axis=0), asked, **limits).f_score,
    }


def measure(
    data: emoji.EmojiSet, groups: Sequence[str], count: int, seed: int, vae: AutoencoderKL | None = None
) -> dict[str, Any]:
    """Top-1 and top-5 retrieval of changed pictures' own labels, their edge scores, and near duplicates.

    The gallery holds every subject of `groups` that is not held out, on white, as in the evaluation.
    """
    seen = [i for i, s in enumerate(data.subjects) if s.group in groups and not emoji.is_held_out_picture(s)]
    features = PictureFeatures()
    gallery = np.concatenate([features(to_uint8(on_white(data, seen[i : i + 64]))) for i in range(0, len(seen), 64)])
    own = np.random.default_rng(seed).permutation(len(seen))[:count]
    real = on_white(data, [seen[i] for i in own])
    true_edges = soft_edges(to_uint8(real))
    changes = {**FORGIVABLE, **UNFORGIVABLE}
    changed = {name: change(real, torch.Generator().manual_seed(seed)) for name, change in changes.items()}
    if vae is not None:
        changed[RECONSTRUCTION] = reconstruct(vae, real)
    rows = {}
    for name, pictures in changed.items():
        images = to_uint8(pictures)
        rank = ranks(extract(features, images), gallery, own)
        match = control_score(soft_edges(images), true_edges)
        rows[name] = {"top1": float((rank < 1).mean()), "top5": float((rank < 5).mean()), "edges": match.f_score}
    typical = float(np.sqrt(squared_distances(gallery, gallery).sum() / (len(seen) * (len(seen) - 1))))
    pairs = near_pairs(gallery, typical / 4)
    labels = [data.subjects[i].label for i in seen]
    return {
        "subjects": len(seen),
        "pictures": len(own),
        "seed": seed,
        "chance_top5": 5 / len(seen),
        "typical_distance": typical,
        "changes": rows,
        "near_duplicates": [[labels[p.first], labels[p.second], round(p.distance / typical, 3)] for p in pairs],
        "subjects_with_five_near_duplicates": _crowded(gallery, labels, typical / 4),
    }


def _crowded(gallery: np.ndarray, labels: Sequence[str], below: float) -> list[str]:
    """Subjects with five or more near duplicates: a top-5 hit on these is luck."""
    near = (squared_distances(gallery, gallery) < below**2).sum(axis=1) - 1
    return [label for label, count in zip(labels, near, strict=True) if count >= 5]


def main() -> None:
    """Print the table and write JSON."""
    parser = recipes.command_line("Measure what the retrieval and control measures forgive.")
    parser.add_argument("--groups", nargs="*", help="emoji groups; the recipe's own if left out")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    recipe = recipes.read(args.config)
    data = emoji.load(args.runs / "data", recipe["data"]["size"])
    vae = None
    if (args.runs / recipe["name"] / "vae" / "checkpoint.pt").exists():
        vae_config = recipes.parse(vae_stage.VaeConfig, recipe["vae"], "vae")
        vae = vae_stage.load(args.runs / recipe["name"] / "vae", vae_config, data.size)
    groups = args.groups or recipe["base"]["groups"]
    result = measure(data, groups, args.count, args.seed, vae)
    print(f"{result['pictures']} of {result['subjects']} subjects, seed {args.seed}")
    if vae is not None:
        config = recipes.parse(EvaluationConfig, recipe.get("evaluation", {}), "evaluation")
        result["control_bounds"] = control_bounds(Draws(data, groups, config.seed), config, vae)
    for name, row in result["changes"].items():
        print(f"{name:36s} top-1 {row['top1']:6.1%}  top-5 {row['top5']:6.1%}  edges {row['edges']:.2f}")
    for name, score in result.get("control_bounds", {}).items():
        print(f"control measure, {name}: {score:.2f}")
    print(f"near duplicates: {len(result['near_duplicates'])} pairs")
    print(f"subjects with five or more: {', '.join(result['subjects_with_five_near_duplicates']) or 'none'}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
