"""Which control branch is best: `python -m training.ablation --config training/configs/emoji.toml --bundle FOLDER`.

The paper compares ControlNet-UNet with ControlNet-Transformer, and the latter with different numbers of copied blocks
(PixArt-δ, section 4). Here every variant of the recipe's `[ablation]` table is trained from nothing on the bundle's
frozen student, in the way of `[controlnet]`, with the same batches in the same order, and is then judged by
how closely held-out sketches are followed (docs/training.md, "Control"). A variant that is finished is not trained
again, so the command may be stopped and repeated.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from models.controlnet import ControlNetTransformer
from models.controlnet_unet import ControlNetUNet
from models.dit import DiT
from models.pipeline import Pipeline
from training import config as recipes
from training.base import BaseConfig
from training.controlnet import ControlConfig, ControlStage, text_to_latents
from training.evaluation import demo
from training.evaluation.draws import Draws
from training.evaluation.torch_samplers import StudentSampler
from training.loop import run
from training.model import TextToLatents
from training.origin import fingerprint
from training.workspace import Workspace

KINDS: dict[str, type[ControlNetTransformer]] = {"transformer": ControlNetTransformer, "unet": ControlNetUNet}


@dataclass(frozen=True)
class AblationConfig:
    """Branches to compare, each "transformer-N" or "unet-N" with N copied blocks, and how long each is trained."""

    variants: tuple[str, ...]
    steps: int
    batch: int
    controls: int = 100  # held-out sketches to judge by

    def __post_init__(self) -> None:
        for name in self.variants:
            branch_of(name)


@dataclass(frozen=True)
class Row:
    """One variant: its size, what its copies add to a step's operations, and how well sketches are followed (0..1)."""

    variant: str
    parameters: int
    added: float
    precision: float
    recall: float
    f_score: float


def branch_of(variant: str) -> Callable[[DiT], ControlNetTransformer]:
    """What makes a branch of this name for a base.

    Raises:
        ValueError: there is no such variant.
    """
    kind, _, depth = variant.partition("-")
    if kind not in KINDS or not depth.isdecimal():
        raise ValueError(f"variant {variant!r} is none of transformer-N and unet-N")
    return partial(KINDS[kind], depth=int(depth))


def compare(space: Workspace, student: TextToLatents, config: AblationConfig) -> list[Row]:
    """Train and judge every variant; the first row is the student without control.

    Raises:
        ValueError: the recipe trains control on a base, which a finished model no longer has.
    """
    control = recipes.parse(ControlConfig, space.recipe["controlnet"], "controlnet")
    if control.objective != "consistency":
        raise ValueError('a bundle ships no base: [controlnet] has to say objective = "consistency"')
    loop = replace(control.loop, steps=config.steps, batch=config.batch)
    groups = recipes.parse(BaseConfig, space.recipe["base"], "base").groups
    table = space.recipe.get("evaluation", {}) | {"controls": config.controls}
    measures = recipes.parse(demo.EvaluationConfig, table, "evaluation")
    draws = Draws(space.data, groups, measures.seed)
    origin = space.origin("controlnet") | {"frozen model": fingerprint(student.state_dict())}
    origin |= {"steps": str(config.steps), "batch": str(config.batch)}
    rows: list[Row] = []
    for variant in config.variants:
        stage = ControlStage(space, student, student, replace(control, loop=loop), branch_of(variant))
        branch = run(stage, loop, space.folder / "ablation" / variant, origin)
        assert isinstance(branch, ControlNetTransformer)
        pipeline = Pipeline(space.config, student.text, student.dit, space.vae, branch)
        found = demo.control(StudentSampler(pipeline, space.tokenizer), draws, measures)
        if not rows:
            rows.append(Row("none", 0, 0.0, **found["without_control"]))
        parameters = sum(parameter.numel() for parameter in branch.parameters())
        added = len(branch.blocks) / len(student.dit.blocks)
        rows.append(Row(variant, parameters, added, **found["with_control"]))
    return rows


def as_text(rows: list[Row]) -> str:
    """A table for people."""
    lines = ["| branch | parameters, M | blocks added | precision | recall | F |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        scores = " | ".join(f"{value:.3f}" for value in (row.precision, row.recall, row.f_score))
        lines.append(f"| {row.variant} | {row.parameters / 1e6:.2f} | {row.added:.0%} | {scores} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = recipes.command_line("Compare control branches on a finished model.")
    parser.add_argument("--bundle", type=Path, required=True, help="the model whose student is to be controlled")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    recipe = recipes.read(args.config)
    config = recipes.parse(AblationConfig, recipe["ablation"], "ablation")
    space, modules = Workspace.of_bundle(recipe, args.runs, args.bundle)
    rows = compare(space, text_to_latents(space, modules), config)
    print(as_text(rows))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"config": asdict(config), "rows": [asdict(row) for row in rows]}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
