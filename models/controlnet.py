"""ControlNet-Transformer: a trainable copy of the first blocks reads the control picture.

Source: PixArt-δ (Chen et al., arXiv 2401.05252), §4 and figure 4(b); the order of the parts is the
published code's. With x the base's tokens, c the control's tokens and s the strength:

    x_1 = base_0(x_0)                               c_0 = copy_0(x_1 + before(c))
    x_{i+2} = base_{i+1}(x_{i+1} + s·after_i(c_i))  c_{i+1} = copy_{i+1}(c_i)          i = 0 .. depth-1

`before` and `after_i` begin as zero, so training begins at the base's own output.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from models.dit import DiT, score_bias


def zero_linear(width: int) -> nn.Linear:
    """A square Linear layer whose weight and bias are zero."""
    linear = nn.Linear(width, width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class ControlNetTransformer(nn.Module):
    """The control branch's own weights: copies of the base's first `depth` blocks and the zero projections."""

    def __init__(self, base: DiT, depth: int) -> None:
        super().__init__()
        if not 1 <= depth < len(base.blocks):
            raise ValueError(f"control depth must be in 1..{len(base.blocks) - 1}, not {depth}")
        width = base.config.width
        self.blocks = deepcopy(base.blocks[:depth]).requires_grad_(True)
        self.before_proj = zero_linear(width)
        self.after_proj = nn.ModuleList(zero_linear(width) for _ in range(depth))

    def attached_to(self, base: DiT) -> "ControlledDiT":
        """`base` with this branch at work."""
        return ControlledDiT(base, self)


class ControlledDiT(nn.Module):
    """A base transformer with its control branch; both read captions and timesteps in the same way."""

    def __init__(self, base: DiT, controlnet: ControlNetTransformer) -> None:
        super().__init__()
        self.base = base
        self.controlnet = controlnet

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        caption: Tensor,
        mask: Tensor,
        position: Tensor,
        control_latents: Tensor,
        strength: Tensor,
        resolution: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
    ) -> Tensor:
        """ε [B, C, H, W'] as `DiT.forward`, drawn towards `control_latents`.

        Args:
            latents, timestep, caption, mask, position, resolution, aspect_ratio: as in `DiT.forward`.
            control_latents: normalised VAE latents [B, C, H, W'] of the edge map.
            strength: [B]; 1 is the trained strength, 0 gives exactly the base's output.
        """
        base, branch = self.base, self.controlnet
        modulation, embedding = base.embed_timestep(timestep, resolution, aspect_ratio)
        conditions = modulation, caption, score_bias(mask, caption)

        x = base.blocks[0](base.embed(latents, position), *conditions)
        gain = strength[:, None, None].to(x.dtype)
        control = x + branch.before_proj(base.embed(control_latents, position))
        for copy, after, block in zip(branch.blocks, branch.after_proj, base.blocks[1:], strict=False):
            control = copy(control, *conditions)
            x = block(torch.addcmul(x, gain, after(control)), *conditions)
        for block in base.blocks[len(branch.blocks) + 1 :]:
            x = block(x, *conditions)
        return base.unembed(x, embedding, latents.shape[2], latents.shape[3])
