"""ControlNet-UNet, for comparison: the control enters the second half of the blocks as skip connections.

Source: PixArt-δ (arXiv 2401.05252), §4 and figure 4(a), which treats the transformer like a U-Net: its
first half is the encoder, its second half the decoder. ControlNet (Zhang et al., arXiv 2302.05543) copies the
encoder and adds the copies' zero-projected outputs to the skips, which join encoder and decoder in mirror order.
A transformer has no skips of its own, so what arrives at the decoder is the control alone. The paper published
no code for this variant; with D blocks in the base, x its tokens, c the control's and s the strength, it is read as

    c_0 = copy_0(x_0 + before(c)),  c_{i+1} = copy_{i+1}(c_i)
    x_{j+1} = base_j(x_j)                                   j < D - depth
    x_{j+1} = base_j(x_j + s·after_i(c_i)),  i = D - 1 - j   j = D - depth .. D - 1

so the last copy (the deepest) feeds the first decoder block. The paper has depth = D/2 = 14.
"""

import torch
from torch import Tensor

from models.controlnet import ControlledDiT, ControlNetTransformer
from models.dit import DiT, score_bias


class ControlNetUNet(ControlNetTransformer):
    """The same weights as ControlNet-Transformer's; the copies may reach half of the base at most."""

    def __init__(self, base: DiT, depth: int) -> None:
        if not 1 <= depth <= len(base.blocks) // 2:
            raise ValueError(f"control depth must be in 1..{len(base.blocks) // 2}, not {depth}")
        super().__init__(base, depth)

    def attached_to(self, base: DiT) -> "UNetControlledDiT":
        """See `ControlNetTransformer.attached_to`."""
        return UNetControlledDiT(base, self)


class UNetControlledDiT(ControlledDiT):
    """A base transformer under a ControlNet-UNet; called like `ControlledDiT`."""

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
        """ε [B, C, H, W']; arguments as in `ControlledDiT.forward`."""
        base, branch = self.base, self.controlnet
        modulation, embedding = base.embed_timestep(timestep, resolution, aspect_ratio)
        conditions = modulation, caption, score_bias(mask, caption)

        x = base.embed(latents, position)
        gain = strength[:, None, None].to(x.dtype)
        control = x + branch.before_proj(base.embed(control_latents, position))
        skips = []
        for copy, after in zip(branch.blocks, branch.after_proj, strict=True):
            control = copy(control, *conditions)
            skips.append(after(control))
        encoder = len(base.blocks) - len(skips)
        for block in base.blocks[:encoder]:
            x = block(x, *conditions)
        for block in base.blocks[encoder:]:
            x = block(torch.addcmul(x, gain, skips.pop()), *conditions)
        return base.unembed(x, embedding, latents.shape[2], latents.shape[3])
