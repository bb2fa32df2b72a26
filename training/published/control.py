"""Training of a ControlNet-Transformer on a published checkpoint on a GPU: PixArt-δ, section 4.

    python -m training.published.control --model PixArt-alpha/PixArt-XL-2-1024-MS --data PREPARED \\
        --config training/configs/xl2.toml --out control.safetensors

The branch learns by the ε loss on the frozen base; `pixart compile --controlnet` takes it, with that base or with the
student distilled from it. A run that was stopped goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.writer import write_safetensors
from models.config import PixArtConfig
from models.consistency import NoiseSchedule
from models.controlnet import ControlNetTransformer
from models.dit import DiT
from models.pipeline import denoise, place_and_size
from training import config as recipes
from training.base import snr_weight
from training.loop import LoopConfig, averaged_weights, run
from training.published.blocks import recompute
from training.published.command import command_line, open_model, refusals
from training.published.device import Placement
from training.published.prepared import Batch, PreparedSet
from training.published.samples import Decoder
from training.sampling import seeded_noise


@dataclass(frozen=True)
class ControlConfig:
    """How the branch is trained: `depth` copied blocks, a share of captions left empty, min-SNR weights."""

    loop: LoopConfig
    depth: int = 13
    drop_caption: float = 0.1
    snr_clip: float = 5.0


class Control:
    """The stage: the branch in float32 on a base in half precision."""

    def __init__(
        self,
        pixart: PixArtConfig,
        base: DiT,
        decoder: Decoder,
        data: PreparedSet,
        config: ControlConfig,
        place: Placement,
    ) -> None:
        """
        Raises:
            ValueError: the data was prepared without edges.
        """
        if not data.has_edges:
            raise ValueError("this data has no edges; prepare it with --hed")
        self.pixart, self.data, self.config, self.place = pixart, data, config, place
        self.schedule = NoiseSchedule(pixart.sampler)
        self.decoder = decoder
        self.model = place.hold(ControlNetTransformer(base, config.depth), torch.float32).requires_grad_(True)
        self.result = self.model
        self.base = place.hold(base, place.half).requires_grad_(False)
        recompute(self.model.blocks)
        recompute(self.base.blocks)
        self.controlled = self.model.attached_to(self.base)
        self.optimizers: Sequence[torch.optim.Optimizer] = [
            torch.optim.AdamW(self.model.parameters(), lr=config.loop.lr, weight_decay=0.0, fused=True)
        ]
        self.empty = tuple(part.to(place.device) for part in data.empty)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        batch = self.data.draw(self.config.loop.batch, generator).to(self.place.device)
        count = len(batch.latents)
        t = torch.randint(self.schedule.config.train_timesteps, (count,), generator=generator)
        noise = torch.randn(batch.latents.shape, generator=generator).to(self.place.device)
        dropped = (torch.rand(count, generator=generator) < self.config.drop_caption).to(self.place.device)
        error = self.errors(batch, noise, t, dropped)
        weight = snr_weight(self.schedule.alphas_cumprod[t], self.config.snr_clip).to(self.place.device)
        return (weight * error).mean(), {
            "eps_mse": error.mean().item(),
            "memory_gb": self.place.gigabytes_used(),
        }

    def errors(self, batch: Batch, noise: Tensor, t: Tensor, dropped: Tensor) -> Tensor:
        """Mean squared error of ε [B], at timesteps `t` [B], captions left empty where `dropped` [B]."""
        caption = torch.where(dropped[:, None, None], self.empty[0], batch.caption)
        mask = torch.where(dropped[:, None], self.empty[1], batch.mask)
        noisy = self.schedule.add_noise(batch.latents, noise, t)
        position, sizes = place_and_size(self.pixart.dit, noisy)
        with self.place.mixed_precision():
            eps = self.controlled(
                noisy,
                t.to(self.place.device),
                caption,
                mask,
                position,
                control_latents=batch.edges,
                strength=torch.ones(len(noisy), device=self.place.device),
                **sizes,
            )
        return (eps.float() - noise).square().mean(dim=(1, 2, 3))

    def averaged(self, average: Any) -> None:
        """Nothing follows the average here."""

    def samples(self, average: Any) -> Tensor:
        """The first pictures, their edges, and what 8 consistency steps draw along them.

        On a base that was not distilled these are soft, but they show whether edges are followed.
        """
        batch = self.data.first(4).to(self.place.device)
        assert batch.edges is not None
        noise = seeded_noise(range(len(batch.latents)), 8, batch.latents.shape[1:]).to(self.place.device)
        control = {"control_latents": batch.edges, "strength": torch.ones(len(batch.latents), device=self.place.device)}
        network = average.attached_to(self.base)
        with self.place.mixed_precision():
            drawn = denoise(self.pixart, network, batch.caption, batch.mask, noise, **control)
        return torch.stack([self.decoder(latents.float()) for latents in (batch.latents, batch.edges, drawn)])


def main(arguments: list[str] | None = None) -> None:
    """The stage's command.

    Raises:
        SystemExit: with the reason, if model, data or recipe cannot be used.
    """
    parser = command_line("Train a control branch on a published model.")
    parser.add_argument("--out", type=Path, help="also write the branch to this safetensors file, in half precision")
    args = parser.parse_args(arguments)
    with refusals():
        recipe = recipes.read(args.config)
        config = recipes.parse(ControlConfig, recipe["controlnet"], "controlnet")
        opened = open_model(args)
        pixart = opened.checkpoint.config
        stage = Control(pixart, opened.dit, opened.decoder, opened.data, config, opened.place)
    folder = args.runs / recipe["name"] / "controlnet"
    run(stage, config.loop, folder, opened.origin(recipe, "controlnet"))
    if args.out:
        write_safetensors(args.out, averaged_weights(folder), torch.float16)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
