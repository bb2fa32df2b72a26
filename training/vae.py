"""Stage 1: the autoencoder. `python -m training.vae --config training/configs/emoji.toml`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from training import config as recipes
from training.data import emoji
from training.loop import LoopConfig, averaged_weights, run
from training.optim import muon_and_adamw
from training.origin import tables
from training.precision import mixed_precision

# How far the alternating offsets of a near-identity start lie above the signal, whose deviation is below 1.
OFFSET = 4.0


@dataclass(frozen=True)
class VaeConfig:
    """Architecture (diffusers' names) and loss weights of the autoencoder."""

    loop: LoopConfig
    channels: tuple[int, ...] = (16, 32, 64, 128)
    norm_groups: int = 8
    gradient_weight: float = 1.0
    mse_weight: float = 1.0
    kl_weight: float = 1e-5
    thumbnail_weight: float = 1.0
    near_identity: bool = True


def build(config: VaeConfig, size: int) -> AutoencoderKL:
    """A standard 8× autoencoder with four latent channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=config.norm_groups,
        sample_size=size,
    )


@torch.no_grad()
def soften_norms(vae: AutoencoderKL) -> None:
    """Start every group norm near the identity, so that plain colour passes from the first step.

    A group norm divides by its group's deviation and so hides how strong a flat colour is. Here each convolution
    in front of a norm adds +OFFSET and -OFFSET to its channels in turn: they dominate the group's statistics, which
    are then nearly constant, and the norm's own scale and shift take both out again. What is left is x minus its
    group's mean. Convolutions that read the sum of residuals are made blind to the offsets, at the borders too.
    """
    for half in (vae.encoder, vae.decoder):
        for name, module in half.named_modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.fill_(OFFSET)
                module.bias.copy_(-_alternating(module.num_channels))
            elif isinstance(module, nn.Conv2d) and module.bias is not None and not name.endswith(("conv2", "conv_out")):
                module.bias.copy_(_alternating(module.out_channels))
                if name.endswith(("conv_shortcut", "samplers.0.conv")):
                    sign = _alternating(module.in_channels)[None, :, None, None] / OFFSET
                    module.weight -= (module.weight * sign).mean(dim=1, keepdim=True) * sign


def _alternating(channels: int) -> Tensor:
    """+OFFSET, -OFFSET, +OFFSET, …: [channels]."""
    return OFFSET * (1.0 - 2.0 * (torch.arange(channels) % 2))


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Zoom, shift and mirror premultiplied pictures uint8 [B, 4, S, S]; zooming in spends fewer pixels on margins."""
    batch = pictures.shape[0]
    zoom = torch.empty(batch).uniform_(0.65, 1.1, generator=generator)
    mirror = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    shift = torch.empty(batch, 2).uniform_(-1, 1, generator=generator) * (1.1 - zoom)[:, None]
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = zoom * mirror
    theta[:, 1, 1] = zoom
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures.float(), grid, align_corners=False)


def random_colors(batch: int, generator: torch.Generator) -> Tensor:
    """Half the named backgrounds, half any colour: [B, 3] in 0..1."""
    named = emoji.background_colors()
    pick = torch.randint(len(named), (batch,), generator=generator)
    any_color = torch.rand(batch, 3, generator=generator)
    return torch.where(torch.rand(batch, 1, generator=generator) < 0.5, named[pick], any_color)


def gradient_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical pixel differences: keeps edges sharp."""
    delta = first - second
    return delta.diff(dim=-1).abs().mean() + delta.diff(dim=-2).abs().mean()


class VaeStage:
    """L1 + gradients + MSE + a little KL on augmented pictures, and a thumbnail.

    A linear map reads each latent pixel's mean colour off its four channels. Without this task the
    encoder leaves out one of the three colour dimensions for thousands of steps: group normalisation
    hides plain colour from the decoder, so nothing asks for it. It also makes linear previews good.
    """

    def __init__(self, config: VaeConfig, data: emoji.EmojiSet) -> None:
        torch.manual_seed(config.loop.seed)
        self.config = config
        keep = [i for i, s in enumerate(data.subjects) if not emoji.is_held_out_picture(s)]
        self.pictures = torch.from_numpy(data.pictures[keep])
        held = [i for i, s in enumerate(data.subjects) if emoji.is_held_out_picture(s)]
        self.held_out = data.composite(torch.tensor(held[:16]), random_colors(16, torch.Generator().manual_seed(0)))
        self.vae, self.thumbnail = build(config, data.size), nn.Conv2d(4, 3, 1)
        if config.near_identity:
            soften_norms(self.vae)
        self.model = self.result = nn.ModuleDict({"vae": self.vae, "thumbnail": self.thumbnail})
        self.optimizers: Sequence[torch.optim.Optimizer] = muon_and_adamw(
            self.model, config.loop.lr, embedding_lr=config.loop.lr, matrices=("_blocks", "mid_block")
        )

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        batch = self.config.loop.batch
        index = torch.randint(len(self.pictures), (batch,), generator=generator)
        pictures = augment(self.pictures[index], generator)
        target = emoji.composite(pictures, random_colors(batch, generator))
        with mixed_precision():
            posterior = self.vae.encode(target).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            latents = posterior.mean.float() + posterior.std.float() * noise
            decoded = self.vae.decode(latents).sample
        decoded = decoded.float()
        thumbnail = F.mse_loss(self.thumbnail(latents), F.avg_pool2d(target, 8))
        l1 = F.l1_loss(decoded, target)
        kl = posterior.kl().float().mean()
        loss = l1 + self.config.gradient_weight * gradient_loss(decoded, target)
        loss = loss + self.config.mse_weight * F.mse_loss(decoded, target) + self.config.kl_weight * kl
        loss = loss + self.config.thumbnail_weight * thumbnail
        return loss, {"l1": l1.item(), "kl": kl.item(), "thumbnail": thumbnail.item()}

    def averaged(self, average: Any) -> None:
        """Nothing follows the average here."""

    def samples(self, average: Any) -> Tensor:
        """Held-out pictures above their reconstructions."""
        vae = average["vae"]
        decoded = vae.decode(vae.encode(self.held_out).latent_dist.mean).sample
        return torch.stack([self.held_out[:8], decoded[:8], self.held_out[8:], decoded[8:]])


def load(folder: Path, config: VaeConfig, size: int) -> AutoencoderKL:
    """The averaged autoencoder of a finished or running stage, frozen."""
    vae = build(config, size)
    vae.load_state_dict(averaged_weights(folder, "vae."))
    return vae.requires_grad_(False).eval()


def main() -> None:
    """The stage's command."""
    args = recipes.command_line("Train the autoencoder.").parse_args()
    recipe = recipes.read(args.config)
    config = recipes.parse(VaeConfig, recipe["vae"], "vae")
    data = emoji.load(args.runs / "data", recipe["data"]["size"])
    origin = tables(recipe, "data", "vae") | {"pictures": data.digest()}
    run(VaeStage(config, data), config.loop, args.runs / recipe["name"] / "vae", origin)


if __name__ == "__main__":
    main()
