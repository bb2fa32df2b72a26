"""What a PixArt model consists of, as plain data: no PyTorch, and JSON in both directions."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the diffusion transformer; the defaults are those of PixArt-XL/2.

    Attributes:
        sample_size: side of a latent at the trained resolution (64 for 512 pixels, 128 for 1024).
        patch_size: side of the square of latent pixels that becomes one token.
        caption_channels: width of the text encoder's output, before the caption projection.
        interpolation_scale: divisor of the token grid's coordinates (2 for the 1024-pixel models).
        size_conditions: whether image size and aspect ratio are embedded beside the timestep (1024-MS).
    """

    sample_size: int
    depth: int = 28
    width: int = 1152
    heads: int = 16
    patch_size: int = 2
    in_channels: int = 4
    mlp_ratio: float = 4.0
    caption_channels: int = 4096
    interpolation_scale: float = 1.0
    size_conditions: bool = False

    def __post_init__(self) -> None:
        for name in ("sample_size", "depth", "width", "heads", "patch_size", "in_channels", "caption_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"dit.{name} must be positive, not {getattr(self, name)}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"dit.width {self.width} must be divisible by 4 and by dit.heads {self.heads}")
        if self.size_conditions and self.width % 3:
            raise ValueError(f"dit.width {self.width} must be divisible by 3 for size conditions")
        if self.sample_size % self.patch_size:
            raise ValueError(f"dit.sample_size {self.sample_size} must be divisible by patch_size {self.patch_size}")

    @property
    def base_size(self) -> int:
        """Patches per side at the trained resolution, to which positions of other sizes are scaled."""
        return self.sample_size // self.patch_size


@dataclass(frozen=True)
class SamplerConfig:
    """Noise schedule (betas evenly spaced) and constants of the consistency function.

    Attributes:
        origin_steps: size of the even grid of timesteps on which the student was distilled.
        sigma_data, timestep_scaling: constants of the boundary condition, see `models/consistency.py`.
    """

    train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    origin_steps: int = 50
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.origin_steps <= self.train_timesteps:
            raise ValueError(f"sampler.origin_steps {self.origin_steps} is not in 1..{self.train_timesteps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"sampler betas {self.beta_start}..{self.beta_end} must ascend within (0, 1)")


@dataclass(frozen=True)
class LatentConfig:
    """How the VAE's raw latents are normalised, by channel: `(raw - mean) / std`.

    Stable Diffusion's scaling factor s is mean 0 and std 1/s.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"latent.mean has {len(self.mean)} channels, latent.std has {len(self.std)}")
        if min(self.std, default=0.0) <= 0:
            raise ValueError(f"latent.std must be positive, not {self.std}")


@dataclass(frozen=True)
class PixArtConfig:
    """A whole model.

    Attributes:
        controlnet_depth: number of copied blocks in the control branch; 0 for none.
        max_tokens: prompt tokens beyond this number are cut.
        text: fields of transformers' T5Config.
        vae: configuration of diffusers' AutoencoderKL.
    """

    dit: DiTConfig
    sampler: SamplerConfig
    latent: LatentConfig
    text: dict[str, Any]
    vae: dict[str, Any]
    controlnet_depth: int = 0
    max_tokens: int = 120

    def __post_init__(self) -> None:
        if not 0 <= self.controlnet_depth < self.dit.depth:
            raise ValueError(f"controlnet_depth {self.controlnet_depth} is not in 0..{self.dit.depth - 1}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, not {self.max_tokens}")


def to_json(config: PixArtConfig) -> dict[str, Any]:
    """The configuration as values that `json.dumps` takes."""
    data = asdict(config)
    data["latent"] = {key: list(values) for key, values in data["latent"].items()}
    return data


def from_json(data: Mapping[str, Any]) -> PixArtConfig:
    """The inverse of `to_json`.

    Raises:
        ValueError: a key is unknown or missing, or a value is impossible; the message names it.
    """
    checked = dict(_checked(PixArtConfig, data, ""))
    latent = _checked(LatentConfig, checked["latent"], "latent.")
    checked["dit"] = DiTConfig(**_checked(DiTConfig, checked["dit"], "dit."))
    checked["sampler"] = SamplerConfig(**_checked(SamplerConfig, checked["sampler"], "sampler."))
    checked["latent"] = LatentConfig(mean=tuple(latent["mean"]), std=tuple(latent["std"]))
    return PixArtConfig(**checked)


def _checked(kind: type, data: Any, prefix: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'config'} must be an object, not {type(data).__name__}")
    known = {field.name: field.default is MISSING for field in fields(kind)}
    for key in data:
        if key not in known:
            raise ValueError(f"unknown key {prefix}{key}")
    for key, required in known.items():
        if required and key not in data:
            raise ValueError(f"missing key {prefix}{key}")
    return data
