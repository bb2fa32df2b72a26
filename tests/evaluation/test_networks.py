from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from models.config import LatentConfig
from models.hed import HED
from models.vae import VaeEncoder
from training.evaluation.networks import HedFeatures, TorchScriptFeatures, VaeFeatures
from training.evaluation.sampler import Pictures


def random_pictures(count: int = 3, size: int = 32) -> Pictures:
    return np.random.default_rng().integers(0, 256, (count, size, size, 3), np.uint8)


class Moments(nn.Module):
    """A stand-in for Inception that is small enough to predict."""

    def forward(self, x: torch.Tensor, squares: bool = False) -> torch.Tensor:
        return (x.square() if squares else x).mean(dim=[2, 3])[:, :, None, None]


def test_torchscript_file_with_range_size_and_arguments(tmp_path: Path) -> None:
    path = tmp_path / "features.pt"
    torch.jit.script(Moments()).save(str(path))
    pictures = random_pictures()
    plain = TorchScriptFeatures(path)(pictures)
    np.testing.assert_allclose(plain, pictures.mean((1, 2)) / 127.5 - 1, atol=1e-4)
    raw = TorchScriptFeatures(path, value_range=(0, 255), arguments={"squares": True})(pictures)
    np.testing.assert_allclose(raw, np.square(pictures.astype(float)).mean((1, 2)), rtol=1e-4)
    flat = np.full((2, 32, 32, 3), 51, np.uint8)
    np.testing.assert_allclose(TorchScriptFeatures(path, side=17, value_range=(0, 1))(flat), 0.2, atol=1e-5)


def test_hed_features_are_the_stages_normalised_means() -> None:
    detector = HED()
    pictures = random_pictures(size=48)
    seen = []
    hooks = [s.register_forward_hook(lambda _m, _i, out: seen.append(out[0])) for s in detector.stages]
    with torch.no_grad():
        detector(torch.from_numpy(pictures))
    for hook in hooks:
        hook.remove()
    expected = torch.cat([(x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)).mean((2, 3)) for x in seen], dim=1)
    features = HedFeatures(detector)(pictures)
    assert features.shape == (3, 64 + 128 + 256 + 512 + 512)
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)


def test_vae_features_by_slicing() -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4)
    encoder = VaeEncoder(vae, LatentConfig(mean=(0.0,) * 4, std=(1.0,) * 4))
    pictures = random_pictures(size=64)
    features = VaeFeatures(encoder)(pictures)
    assert features.shape == (3, 16 * (4 + 4 + 3))
    with torch.no_grad():
        latents = encoder(torch.from_numpy(pictures)).numpy()
    cells = latents.reshape(3, 4, 4, 2, 4, 2)
    np.testing.assert_allclose(features[:, :64], cells.mean((3, 5)).reshape(3, -1), atol=1e-5)
    np.testing.assert_allclose(features[:, 64:128], cells.std((3, 5)).reshape(3, -1), atol=1e-3)
    colors = F.avg_pool2d(torch.from_numpy(pictures).permute(0, 3, 1, 2).double(), 16) / 127.5 - 1
    np.testing.assert_allclose(features[:, 128:], colors.flatten(1).numpy(), atol=1e-5)
