"""PixArt's diffusion transformer: adaLN-single, masked cross-attention, optional size conditions.

Source: PixArt-α (Chen et al., arXiv 2310.00426), §2.3 and figure 4. Letters in shapes: B samples, N
image tokens, L text tokens, W width, H×W' latent pixels. Parity with diffusers' PixArtTransformer2DModel
is tested; its last four output channels (a variance that no sampler here uses) are left out.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import DiTConfig

FREQUENCIES = 256
NORM_EPS = 1e-6
# Added to the scores of padded text tokens; exp(-1e4) is zero in float32, and -1e4 exists in float16.
MASKED_SCORE = -1e4


def sinusoid(values: Tensor) -> Tensor:
    """[cos, sin] features [..., 256] in float32 of scalars [...], with frequencies 10000^(-k/128)."""
    half = FREQUENCIES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[..., None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters, then x·(1 + scale) + shift; x is [B, N, W], shift and scale [B, 1, W]."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


class ScalarEmbedder(nn.Module):
    """Sinusoid, Linear, SiLU, Linear: scalars [...] to embeddings [..., width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(FREQUENCIES, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, values: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(sinusoid(values).to(self.fc1.weight.dtype))))


class Attention(nn.Module):
    """What both attentions share: the number of heads and softmax(q·kᵀ/√d + bias)·v."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """[B, N, heads·d] from q [B, heads, N, d], k and v [B, heads, L, d] and a bias [B, 1, 1, L]."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class SelfAttention(Attention):
    """Multi-head attention among image tokens [B, N, W]; `qkv` stacks the three projections in this order."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.attend(q, k, v))


class CrossAttention(Attention):
    """Multi-head attention from image tokens [B, N, W] to caption tokens [B, L, W]; `kv` stacks keys, then values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(heads)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, caption: Tensor, bias: Tensor) -> Tensor:
        """`bias` [B, 1, 1, L] is added to the scores: 0 for a real token, very negative for a padded one."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(caption).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.attend(q, k, v, bias))


class Mlp(nn.Module):
    """Linear, GELU (tanh), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Self-attention, cross-attention, MLP; the first and the last are modulated by the timestep.

    adaLN-single: the timestep gives one modulation [B, 6·W] to all blocks, and each block adds its own
    `scale_shift_table` to it. Cross-attention has neither norm nor gate.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attn = SelfAttention(width, heads)
        self.cross = CrossAttention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, modulation: Tensor, caption: Tensor, bias: Tensor) -> Tensor:
        table = self.scale_shift_table + modulation.unflatten(-1, (6, -1))
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=1)
        x = torch.addcmul(x, gate_attn, self.attn(modulate(x, shift_attn, scale_attn)))
        x = x + self.cross(x, caption, bias)
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(x, shift_mlp, scale_mlp)))


class FinalLayer(nn.Module):
    """Modulated norm and the projection of each token to a patch of ε, ordered row, column, channel."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, config.width) / config.width**0.5)
        self.proj = nn.Linear(config.width, config.patch_size**2 * config.in_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + embedding[:, None]).chunk(2, dim=1)
        return self.proj(modulate(x, shift, scale))


class DiT(nn.Module):
    """Predicts the noise ε in latents, for every sample at its own timestep.

    `forward` is embed, condition, blocks, unembed; control branches (models/controlnet.py) run the same
    parts with something between the blocks.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch = nn.Conv2d(config.in_channels, width, config.patch_size, stride=config.patch_size)
        self.time_mlp = ScalarEmbedder(width)
        if config.size_conditions:
            self.resolution_mlp = ScalarEmbedder(width // 3)
            self.aspect_ratio_mlp = ScalarEmbedder(width // 3)
        self.time_modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.final = FinalLayer(config)
        self._initialise()

    def _initialise(self) -> None:
        """As PixArt: each block begins without cross-attention, and the network predicts zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ScalarEmbedder):
                nn.init.normal_(module.fc1.weight, std=0.02)
                nn.init.normal_(module.fc2.weight, std=0.02)
            if isinstance(module, CrossAttention):
                nn.init.zeros_(module.proj.weight)
        nn.init.normal_(self.time_modulation.weight, std=0.02)
        nn.init.zeros_(self.final.proj.weight)

    def embed(self, latents: Tensor, position: Tensor) -> Tensor:
        """Tokens [B, N, W] of latents [B, C, H, W'], with `position` [1, N, W] (models/positions.py) added."""
        return self.patch(latents).flatten(2).transpose(1, 2) + position.to(self.patch.weight.dtype)

    def embed_timestep(
        self, timestep: Tensor, resolution: Tensor | None = None, aspect_ratio: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Modulation [B, 6·W] for all blocks and embedding [B, W] for the final layer.

        `timestep` is [B]; models with size conditions need `resolution` [B, 2] (height, width in pixels) and
        `aspect_ratio` [B, 1] (height / width). Their embeddings, W/3 wide each, are concatenated
        and added to the timestep's.
        """
        embedding = self.time_mlp(timestep)
        if self.config.size_conditions:
            if resolution is None or aspect_ratio is None:
                raise ValueError("this model needs resolution [B, 2] and aspect_ratio [B, 1]")
            size = [self.resolution_mlp(resolution).flatten(1), self.aspect_ratio_mlp(aspect_ratio).flatten(1)]
            embedding = embedding + torch.cat(size, dim=1)
        return self.time_modulation(F.silu(embedding)), embedding

    def unembed(self, x: Tensor, embedding: Tensor, height: int, width: int) -> Tensor:
        """ε [B, C, height, width] of tokens [B, N, W]; height and width in latent pixels."""
        patch, channels = self.config.patch_size, self.config.in_channels
        patches = self.final(x, embedding)
        grid = patches.view(-1, height // patch, width // patch, patch, patch, channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        caption: Tensor,
        mask: Tensor,
        position: Tensor,
        resolution: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
    ) -> Tensor:
        """ε [B, C, H, W'].

        Args:
            latents: normalised noisy latents [B, C, H, W'], sides divisible by the patch size.
            timestep: [B], may differ between samples.
            caption: projected text states [B, L, W] (models/text.py).
            mask: [B, L], true for real tokens; padded ones have no influence.
            position: [1, N, W] from `sincos_positions`.
            resolution: [B, 2] and `aspect_ratio` [B, 1]: see `embed_timestep`.
        """
        x = self.embed(latents, position)
        modulation, embedding = self.embed_timestep(timestep, resolution, aspect_ratio)
        bias = score_bias(mask, caption)
        for block in self.blocks:
            x = block(x, modulation, caption, bias)
        return self.unembed(x, embedding, latents.shape[2], latents.shape[3])


def score_bias(mask: Tensor, caption: Tensor) -> Tensor:
    """`CrossAttention`'s bias [B, 1, 1, L] for a mask [B, L], in the caption's type."""
    return torch.where(mask.bool(), 0.0, MASKED_SCORE).to(caption.dtype)[:, None, None, :]
