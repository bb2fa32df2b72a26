"""Features from networks: what a Fréchet distance is measured in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.hed import HED
from training.evaluation.sampler import Pictures


class TorchScriptFeatures:
    """Any TorchScript file that maps pictures [B, 3, side, side] to features [B, D].

    For Inception-v3 as published FIDs use it, take the TorchScript file that StyleGAN's authors
    distribute (it resizes by itself and reads 0..255): `TorchScriptFeatures(path, value_range=(0,
    255), arguments={"return_features": True})`. Loading TorchScript runs code: use files you trust.
    """

    def __init__(
        self,
        path: Path,
        *,
        side: int | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = torch.jit.load(path, map_location="cpu").eval()
        self.side = side
        self.low, self.high = value_range
        self.arguments = dict(arguments or {})

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> NDArray[np.float32]:
        values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
        if self.side is not None:
            size = (self.side, self.side)
            values = F.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)
        values = self.low + values / 255 * (self.high - self.low)
        return self.model(values, **self.arguments).float().flatten(1).numpy()


class HedFeatures:
    """Means of the activations after each of VGG-16's five stages, as an edge detector has tuned them: [B, 1472].

    A place's activations are brought to length 1 before the mean, as LPIPS does (Zhang et al., 2018),
    so that every stage has a say.
    """

    def __init__(self, detector: HED) -> None:
        self.detector = detector.eval()

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> NDArray[np.float32]:
        values = (torch.from_numpy(pictures).float() - self.detector.mean).permute(0, 3, 1, 2)
        means = []
        for index, stage in enumerate(self.detector.stages):
            if index:
                values = F.max_pool2d(values, 2, ceil_mode=True)
            values, _ = stage(values)
            means.append(F.normalize(values, dim=1).mean(dim=(2, 3)))
        return torch.cat(means, dim=1).numpy()


class VaeFeatures:
    """Latents and colours of a 4×4 grid: 4·4·(C latent means, C deviations, 3 colours) numbers.

    Few enough for a covariance of some hundred pictures. Deviations within a cell stand for texture
    and sharpness, which means cannot see. `encoder` maps uint8 [B, H, W, 3] to latents [B, C, h, w]
    of about unit variance, as models.vae.VaeEncoder does.
    """

    GRID = 4

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder.eval()

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> NDArray[np.float32]:
        images = torch.from_numpy(pictures)
        latents = self.encoder(images).float()
        colors = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        mean = self._cells(latents)
        spread = (self._cells(latents.square()) - mean.square()).clamp(min=0).sqrt()
        return torch.cat([part.flatten(1) for part in (mean, spread, self._cells(colors))], dim=1).numpy()

    def _cells(self, values: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(values, self.GRID)
