"""From tokens to pictures in PyTorch: the reference for every other way to run the model."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from models.config import DiTConfig, PixArtConfig
from models.consistency import NoiseSchedule, consistency_step
from models.controlnet import ControlNetTransformer
from models.dit import DiT
from models.positions import sincos_positions
from models.text import TextEncoder
from models.vae import VaeDecoder, VaeEncoder


def place_and_size(dit: DiTConfig, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Positions [1, N, W] for latents [B, C, H, W], and the size conditions that `DiT.forward` needs beside them."""
    batch, _, height, width = latents.shape
    rows, columns = height // dit.patch_size, width // dit.patch_size
    position = sincos_positions(rows, columns, dit.width, dit.base_size, dit.interpolation_scale).to(latents.device)
    if not dit.size_conditions:
        return position, {}
    pixels = torch.tensor([[8.0 * height, 8.0 * width]], device=latents.device).expand(batch, 2)
    return position, {"resolution": pixels, "aspect_ratio": pixels[:, :1] / pixels[:, 1:]}


@torch.no_grad()
def denoise(
    config: PixArtConfig, network: nn.Module, caption: Tensor, mask: Tensor, noise: Tensor, **control: Tensor
) -> Tensor:
    """Clean normalised latents [B, C, H, W] after S consistency steps.

    Args:
        network: a `DiT`, or a `ControlledDiT` with its `control_latents` [B, C, H, W] and `strength` [B] as `control`.
        caption, mask: [B, L, width] and [B, L] from the text encoder.
        noise: [S, B, C, H, W] standard normal; noise[0] is where sampling begins, noise[i] comes in after step i.
    """
    steps, batch = noise.shape[:2]
    schedule = NoiseSchedule(config.sampler)
    position, sizes = place_and_size(config.dit, noise[0])
    latents = noise[0]
    timesteps = schedule.timesteps(steps)
    for index, t in enumerate(timesteps):
        last = index + 1 == steps
        coefficients = schedule.coefficients(t, None if last else timesteps[index + 1])
        now = torch.full((batch,), t, device=noise.device)
        eps = network(latents, now, caption, mask, position, **sizes, **control)
        fresh = torch.zeros_like(latents) if last else noise[index + 1]
        latents, _ = consistency_step(latents, eps, coefficients.to(noise.device).expand(batch, -1), fresh)
    return latents


class Pipeline(nn.Module):
    """A whole model, called with everything that a picture depends on, so that it draws no random numbers itself."""

    def __init__(
        self,
        config: PixArtConfig,
        text_encoder: TextEncoder,
        dit: DiT,
        vae: AutoencoderKL,
        controlnet: ControlNetTransformer | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.text_encoder = text_encoder
        self.dit = dit
        self.controlled = None if controlnet is None else controlnet.attached_to(dit)
        self.vae_encoder = VaeEncoder(vae, config.latent)
        self.vae_decoder = VaeDecoder(vae, config.latent)

    def denoise(
        self,
        caption: Tensor,
        mask: Tensor,
        noise: Tensor,
        control_latents: Tensor | None = None,
        strength: Tensor | None = None,
    ) -> Tensor:
        """`denoise` with the control branch if there are `control_latents` [B, C, H, W], at `strength` [B]."""
        if control_latents is None:
            return denoise(self.config, self.dit, caption, mask, noise)
        if self.controlled is None or strength is None:
            raise ValueError("control latents need a control branch and a strength")
        control = {"control_latents": control_latents, "strength": strength}
        return denoise(self.config, self.controlled, caption, mask, noise, **control)

    @torch.no_grad()
    def forward(
        self, ids: Tensor, mask: Tensor, noise: Tensor, edges: Tensor | None = None, strength: Tensor | None = None
    ) -> Tensor:
        """Pictures uint8 [B, 8H, 8W, 3] of token ids int64 [B, L] with mask [B, L].

        `edges`, uint8 [B, 8H, 8W, 3], is a control picture's edge map; see `denoise` for `noise` and `strength`.
        """
        caption = self.text_encoder(ids, mask)
        control = None if edges is None else self.vae_encoder(edges)
        return self.vae_decoder(self.denoise(caption, mask, noise, control, strength))
