"""The modules of a bundle: what each graph computes, and the names, types and shapes of its inputs and outputs.

Symbols: B samples, L text tokens, N image tokens, H and W latent pixels (an image has 8·H × 8·W).
"""

from dataclasses import dataclass

from diffusers import AutoencoderKL
from torch import Tensor, nn

from models.config import PixArtConfig
from models.consistency import consistency_step
from models.controlnet import ControlledDiT, ControlNetTransformer
from models.dit import DiT
from models.export.graph import ModulePlan, TensorPlan
from models.text import TextEncoder
from models.vae import VaeDecoder, VaeEncoder

COEFFICIENTS = 6


@dataclass(frozen=True)
class Parts:
    """A whole model in float32. `controlnet` and `edge_detector` are both there, or neither."""

    config: PixArtConfig
    text_encoder: TextEncoder
    dit: DiT
    vae: AutoencoderKL
    controlnet: ControlNetTransformer | None = None
    edge_detector: nn.Module | None = None

    def weight_files(self) -> dict[str, nn.Module]:
        """Which part's state each weight file holds; names in the files are the part's own."""
        parts: dict[str, nn.Module | None] = {
            "text_encoder": self.text_encoder,
            "dit": self.dit,
            "controlnet": self.controlnet,
            "vae": self.vae,
            "edge_detector": self.edge_detector,
        }
        return {f"weights/{name}.safetensors": part for name, part in parts.items() if part is not None}


class Denoiser(nn.Module):
    """One consistency step: predict ε, take x0 from it, and noise that to the next timestep."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(
        self,
        latents: Tensor,
        caption: Tensor,
        mask: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        noise: Tensor,
        position: Tensor,
        resolution: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(next latents, x0), each [B, 4, H, W]; see `denoiser_inputs` for the arguments."""
        eps = self.dit(latents, timestep, caption, mask, position, resolution, aspect_ratio)
        return consistency_step(latents, eps, coefficients, noise)


class ControlledDenoiser(nn.Module):
    """The same step under a control image's latents."""

    def __init__(self, dit: DiT, controlnet: ControlNetTransformer) -> None:
        super().__init__()
        self.controlled = ControlledDiT(dit, controlnet)

    def forward(
        self,
        latents: Tensor,
        caption: Tensor,
        mask: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        noise: Tensor,
        position: Tensor,
        control_latents: Tensor,
        strength: Tensor,
        resolution: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `Denoiser.forward`; `control_latents` [B, 4, H, W], `strength` [B]."""
        eps = self.controlled(
            latents, timestep, caption, mask, position, control_latents, strength, resolution, aspect_ratio
        )
        return consistency_step(latents, eps, coefficients, noise)


def plan_modules(parts: Parts) -> tuple[ModulePlan, ...]:
    """Every graph of the bundle, in the order in which a request meets them."""
    dit = parts.config.dit
    latents = ("B", dit.in_channels, "H", "W")
    image = ("B", "8*H", "8*W", 3)
    caption = TensorPlan("caption", "float32", ("B", "L", dit.width))
    mask = TensorPlan("mask", "bool", ("B", "L"))
    inputs = (
        TensorPlan("latents", "float32", latents),
        caption,
        mask,
        TensorPlan("timestep", "float32", ("B",)),
        TensorPlan("coefficients", "float32", ("B", COEFFICIENTS)),
        TensorPlan("noise", "float32", latents),
        TensorPlan("position", "float32", (1, "N", dit.width)),
    )
    control = (TensorPlan("control_latents", "float32", latents), TensorPlan("strength", "float32", ("B",)))
    sizes: tuple[TensorPlan, ...] = ()
    if dit.size_conditions:
        sizes = (TensorPlan("resolution", "float32", ("B", 2)), TensorPlan("aspect_ratio", "float32", ("B", 1)))
    step = (TensorPlan("next_latents", "float32", latents), TensorPlan("x0", "float32", latents))
    pictures = (TensorPlan("image", "uint8", image),)

    plans = [
        ModulePlan("text_encoder", parts.text_encoder, (TensorPlan("ids", "int64", ("B", "L")), mask), (caption,)),
        ModulePlan("denoiser", Denoiser(parts.dit), inputs + sizes, step),
        ModulePlan("vae_decoder", VaeDecoder(parts.vae, parts.config.latent), inputs[:1], pictures),
    ]
    if parts.controlnet is not None and parts.edge_detector is not None:
        controlled = ControlledDenoiser(parts.dit, parts.controlnet)
        edges = (TensorPlan("edges", "uint8", image),)
        plans += [
            ModulePlan("denoiser_control", controlled, inputs + control + sizes, step),
            ModulePlan("vae_encoder", VaeEncoder(parts.vae, parts.config.latent), pictures, inputs[:1]),
            ModulePlan("edge_detector", parts.edge_detector, pictures, edges),
        ]
    return tuple(plans)
