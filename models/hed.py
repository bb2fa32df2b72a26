"""Holistically-nested edge detection (Xie and Tu, ICCV 2015): the control pictures that PixArt's branch was trained on.

VGG-16's five stages of convolutions each give an edge map through a 1×1 convolution (a side output); all are
brought to the picture's size and weighed together by a last 1×1 convolution. models/checkpoints/hed.py reads weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# VGG-16's stages without their poolings: convolutions, channels.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class Stage(nn.Module):
    """3×3 convolutions with ReLU at one resolution, and the side output [B, 1, H, W] after the last of them."""

    def __init__(self, inputs: int, channels: int, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs if index == 0 else channels, channels, 3, padding=1) for index in range(count)
        )
        self.side = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x, self.side(x)


class HED(nn.Module):
    """Pictures uint8 [B, H, W, 3] in RGB to edge maps uint8 [B, H, W, 3]: white lines on black, three equal channels.

    The edge map is round(255·sigmoid(fuse(side_1..side_5))). `mean` [3] is subtracted from the colours in 0..255; it is
    part of the weights, since published ones differ in it.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        widths = [3, *(channels for _, channels in STAGES)]
        self.stages = nn.ModuleList(
            Stage(inputs, channels, count) for inputs, (count, channels) in zip(widths, STAGES, strict=False)
        )
        self.fuse = nn.Conv2d(len(STAGES), 1, 1)

    def logits(self, image: Tensor) -> Tensor:
        """[B, 1, H, W] before the sigmoid."""
        x = (image.to(self.mean.dtype) - self.mean).permute(0, 3, 1, 2)
        sides = []
        for index, stage in enumerate(self.stages):
            if index:
                # An odd last row or column is pooled by itself, as the weights' own framework does.
                x = F.max_pool2d(x, 2, ceil_mode=True)
            x, side = stage(x)
            sides.append(F.interpolate(side, image.shape[1:3], mode="bilinear") if index else side)
        return self.fuse(torch.cat(sides, dim=1))

    def forward(self, image: Tensor) -> Tensor:
        edges = (self.logits(image).sigmoid() * 255.0).round().to(torch.uint8)
        return edges.permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
