"""`python -m training.evaluation --bundle models/zoo/emoji --config training/configs/emoji.toml --out evaluation.json`.

Without `--bundle` the student is read from the checkpoints of the recipe's run.
"""

import json
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoints.hed import read_hed
from training import config as recipes
from training.base import BaseConfig
from training.evaluation import demo, report
from training.evaluation.clip_score import ClipModel, clip_scores
from training.evaluation.draws import Draws
from training.evaluation.features import FeatureExtractor
from training.evaluation.grid import write_grid
from training.evaluation.networks import HedFeatures, TorchScriptFeatures, VaeFeatures
from training.evaluation.sampler import Sampler, sample
from training.evaluation.torch_samplers import StudentSampler, student_of_bundle, student_of_run, teacher_of_run
from training.workspace import Workspace

MEASURES = ("subject", "background", "control", "sketch", "frechet")


def _arguments() -> Namespace:
    parser = recipes.command_line("Judge the demo model: subject, background, control, sketch, Fréchet distance.")
    parser.add_argument("--bundle", type=Path, help="folder of the bundle to judge")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--grid", type=Path, help="also write an 8×8 page of samples to this PNG")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES, help="some of the measures")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the recipe's picture counts, for a quick look"
    )
    parser.add_argument("--hed", type=Path, help="also measure Fréchet distances with these HED weights")
    parser.add_argument("--torchscript", type=Path, help="also measure Fréchet distances with this feature network")
    parser.add_argument("--clip", type=Path, help="also measure the CLIP score with the CLIP model in this folder")
    return parser.parse_args()


def _config(recipe: dict[str, Any], scale: float) -> demo.EvaluationConfig:
    table = dict(recipe.get("evaluation", {}))
    for name in ("subjects", "backgrounds", "controls", "sketches", "frechet", "references"):
        whole = table.get(name, getattr(demo.EvaluationConfig, name))
        table[name] = max(4, round(whole * scale))
    return recipes.parse(demo.EvaluationConfig, table, "evaluation")


def _extractors(args: Namespace, student: StudentSampler) -> dict[str, FeatureExtractor]:
    found: dict[str, FeatureExtractor] = {"latent": VaeFeatures(student.pipeline.vae_encoder)}
    if args.hed:
        found["hed"] = HedFeatures(read_hed(args.hed))
    if args.torchscript:
        found[args.torchscript.stem] = TorchScriptFeatures(args.torchscript)
    return found


def _clip(student: Sampler, draws: Draws, config: demo.EvaluationConfig, folder: Path) -> dict[str, Any]:
    pairs = draws.pairs(draws.seen, config.subjects, salt=7)
    captions = draws.captions(pairs)
    model = ClipModel(folder)
    pictures = sample(student, captions, draws.seeds(7, len(pairs)), config.steps, batch=config.batch)
    true = clip_scores(model, draws.pictures(pairs), captions)
    return {
        "pictures": len(pairs),
        "mean": float(np.mean(clip_scores(model, pictures, captions))),
        "training_pictures": float(np.mean(true)),
    }


def evaluate(args: Namespace) -> dict[str, Any]:
    """Run the measures that the command line asks for."""
    recipe = recipes.read(args.config)
    space = Workspace.open(recipe, args.runs)
    groups = recipes.parse(BaseConfig, recipe["base"], "base").groups
    config = _config(recipe, args.scale)
    draws = Draws(space.data, groups, config.seed)
    student = student_of_bundle(args.bundle) if args.bundle else student_of_run(space)
    has_teacher = (space.folder / "base" / "checkpoint.pt").exists()
    teacher = teacher_of_run(space) if has_teacher and "frechet" in args.only else None

    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "subject": lambda: demo.subject(student, draws, config),
        "background": lambda: demo.background(student, draws, config),
        "control": lambda: demo.control(student, draws, config),
        "sketch": lambda: demo.sketch(student, draws, config),
        "frechet": lambda: demo.frechet(student, teacher, draws, config, _extractors(args, student)),
    }
    steps = {name: step for name, step in steps.items() if name in args.only}
    if args.clip:
        steps["clip"] = lambda: _clip(student, draws, config, args.clip)
    measures = {}
    for name, step in steps.items():
        began = time.monotonic()
        measures[name] = step()
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    result = {
        "model": str(args.bundle or f"run of {recipe['name']}"),
        "groups": list(groups),
        "subjects_seen": len(draws.seen),
        "subjects_held_out": len(draws.held_out),
        "config": asdict(config),
        "measures": measures,
    }
    if args.grid:
        result["grid"] = write_grid(student, draws, args.grid, steps=config.steps, batch=config.batch)
    return result


def main() -> None:
    """Print the table, write the JSON."""
    args = _arguments()
    result = evaluate(args)
    print(report.as_text(result))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
