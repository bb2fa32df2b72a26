"""Stages to bundle: `python -m training.release --config training/configs/emoji.toml --out models/zoo/emoji`."""

from pathlib import Path

from models.edges import SoftEdge
from models.export import Card, Parts, export_bundle
from training import base, controlnet, distill
from training import config as recipes
from training.workspace import Workspace

ORIGIN = (
    "Trained from nothing by this project (python -m training.vae, base, distill, controlnet) on pictures of "
    "@lobehub/fluent-emoji-3d 1.1.0 (MIT) with captions from emojibase-data 17.0.0 (MIT)."
)


def main() -> None:
    """The command."""
    parser = recipes.command_line("Export the trained model as a bundle.")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder; a README.md there joins it")
    args = parser.parse_args()
    recipe = recipes.read(args.config)
    space = Workspace.open(recipe, args.runs)
    student = distill.load(space.folder / "distill", base.load(space.folder / "base", space))
    parts = Parts(
        config=space.config,
        text_encoder=student.text,
        dit=student.dit,
        vae=space.vae,
        controlnet=controlnet.load(space.folder / "controlnet", space, student.dit),
        edge_detector=SoftEdge(),
    )
    card = Card(name=recipe["name"], licence="Apache-2.0", origin=ORIGIN)
    manifest = export_bundle(parts, space.folder / "tokenizer.json", args.out, card)
    size = sum(file["bytes"] for file in manifest["files"].values())
    print(f"{args.out}: {len(manifest['modules'])} modules, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
