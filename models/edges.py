"""Soft edges without parameters: what the demo model's control branch looks at."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Binomial blur [1 2 1] folded into Sobel's two factors: smoothing [1 2 1] and derivative [-1 0 1].
_SMOOTH = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_DERIVE = (-1 / 3, -2 / 3, 0.0, 2 / 3, 1 / 3)


class SoftEdge(nn.Module):
    """Gradient magnitude of a slightly blurred picture: uint8 [B, H, W, 3] to uint8 [B, H, W, 3], white on black.

    For each colour channel c with values in 0..1 and borders repeated:
    g_c = √((c ⋆ S⊗D)² + (c ⋆ D⊗S)²), edge = round(255·min(1, gain·max_c g_c)), the same in all three channels.
    S is the binomial filter of 5 taps, D the derivative of 5 taps whose answer to a black-white step is 1, so
    a straight step of contrast 1/gain or more gives full white. The line is about 4 pixels wide.
    """

    kernels: Tensor

    def __init__(self, gain: float = 2.0) -> None:
        super().__init__()
        self.gain = gain
        across = torch.outer(torch.tensor(_SMOOTH), torch.tensor(_DERIVE))
        # [6, 1, 5, 5]: horizontal and vertical derivative for each of three channels.
        self.register_buffer("kernels", torch.stack([across, across.T]).repeat(3, 1, 1)[:, None], persistent=False)

    def derivatives(self, colors: Tensor) -> Tensor:
        """Blurred horizontal and vertical derivatives [B, 3, 2, H, W] of colours [B, 3, H, W] in 0..1."""
        padded = F.pad(colors, (2, 2, 2, 2), mode="replicate")
        return F.conv2d(padded, self.kernels, groups=3).unflatten(1, (3, 2))

    def forward(self, image: Tensor) -> Tensor:
        colors = image.permute(0, 3, 1, 2).to(self.kernels.dtype) / 255.0
        magnitude = self.derivatives(colors).square().sum(dim=2).sqrt().amax(dim=1)
        edges = (magnitude * (255.0 * self.gain)).clamp(max=255.0).round().to(torch.uint8)
        return edges[..., None].expand(-1, -1, -1, 3)
