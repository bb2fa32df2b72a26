"""What a bundle's `manifest.json` says: the model, its graphs, their tensors, the limits, and a hash of every file."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

FORMAT_VERSION = 1
# Beyond any model that there is, and within what a machine can hold: a wrong number is refused, not allocated for.
MAX_SIDE = 8192  # pixels
MAX_TOKENS = 4096
MAX_TIMESTEPS = 100_000
MAX_WIDTH = 65_536
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"

DType = Literal["float32", "int64", "bool", "uint8"]
ModuleName = Literal["text_encoder", "denoiser", "denoiser_control", "vae_decoder", "vae_encoder", "edge_detector"]

REQUIRED_MODULES: tuple[ModuleName, ...] = ("text_encoder", "denoiser", "vae_decoder")
CONTROL_MODULES: tuple[ModuleName, ...] = ("denoiser_control", "vae_encoder", "edge_detector")

_SYMBOL = re.compile(r"(?:([1-9]\d*)\*)?([A-Z])")


def parse_dimension(text: str) -> tuple[int, str]:
    """Split a dynamic dimension into factor and symbol: `"8*H"` → `(8, "H")`.

    Raises:
        ValueError: the text is not `S` or `n*S` with one capital letter S.
    """
    match = _SYMBOL.fullmatch(text)
    if match is None:
        raise ValueError(f"dimension {text!r} is neither a number nor of the form 'H' or '8*H'")
    return int(match[1] or 1), match[2]


class _Part(BaseModel):
    """Immutable, and closed: a field this version does not know is an error, not something to ignore."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TensorSpec(_Part):
    """One input or output of a graph; a dynamic dimension is a symbol of `Manifest.dimensions`, maybe with a factor."""

    name: str = Field(min_length=1)
    dtype: DType
    shape: tuple[int | str, ...]

    @model_validator(mode="after")
    def _shape_is_sound(self) -> Self:
        for dimension in self.shape:
            if isinstance(dimension, str):
                parse_dimension(dimension)
            elif dimension < 1:
                raise ValueError(f"dimension {dimension} of {self.name!r} is not positive")
        return self


class ModuleSpec(_Part):
    """One ONNX graph and the weight files that its external data points into."""

    graph: str
    weights: tuple[str, ...]
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)


class DimensionRange(_Part):
    """Allowed values of a dynamic dimension: multiples of `multiple` from `min` to `max`, both included."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)
    multiple: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}")
        return self

    def allows(self, value: int) -> bool:
        """Whether a dimension may have this value."""
        return self.min <= value <= self.max and value % self.multiple == 0


class FileEntry(_Part):
    """Length and SHA-256 of a file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Size(_Part):
    """An image size in pixels."""

    width: int = Field(ge=8, le=MAX_SIDE)
    height: int = Field(ge=8, le=MAX_SIDE)


class Images(_Part):
    """The image sizes that the model was trained for; others are refused."""

    default: Size
    allowed: tuple[Size, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if self.default not in self.allowed:
            raise ValueError("default is not among the allowed sizes")
        return self


class Steps(_Part):
    """The step counts that may be asked for."""

    default: int = Field(ge=1, le=8)
    min: int = Field(ge=1, le=8)
    max: int = Field(ge=1, le=8)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.default <= self.max:
            raise ValueError(f"default {self.default} is not between min {self.min} and max {self.max}")
        return self


class Sampler(_Part):
    """Constants of the noise schedule and of the consistency model's boundary condition (see engine/sampler.py)."""

    train_timesteps: int = Field(ge=1, le=MAX_TIMESTEPS)
    beta_start: float = Field(gt=0, lt=1)
    beta_end: float = Field(gt=0, lt=1)
    origin_steps: int = Field(ge=8)
    sigma_data: float = Field(gt=0, le=1e6)
    timestep_scaling: float = Field(gt=0, le=1e6)


class Positions(_Part):
    """How the denoiser's positional embedding is made (see engine/positions.py)."""

    width: int = Field(ge=4, le=MAX_WIDTH, multiple_of=4)
    patch_size: int = Field(ge=1)
    base_size: int = Field(ge=1)
    interpolation_scale: float = Field(gt=0)


class Manifest(_Part):
    """The whole of `manifest.json`. docs/bundle.md explains each field."""

    format_version: Literal[1]
    name: str = Field(pattern=NAME)
    licence: str = Field(min_length=1)
    origin: str = Field(min_length=1)
    model: Annotated[dict[str, JsonValue], Field(min_length=1)]
    sampler: Sampler
    positions: Positions
    size_conditions: bool
    max_tokens: int = Field(ge=1, le=MAX_TOKENS)
    steps: Steps
    images: Images
    dimensions: dict[str, DimensionRange]
    modules: dict[ModuleName, ModuleSpec]
    files: dict[str, FileEntry]

    @property
    def controllable(self) -> bool:
        """Whether the bundle can follow a control image."""
        return "denoiser_control" in self.modules

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for path in self.files:
            check_path(path)
        for name in REQUIRED_MODULES:
            if name not in self.modules:
                raise ValueError(f"modules: {name!r} is missing")
        present = [name for name in CONTROL_MODULES if name in self.modules]
        if present and len(present) != len(CONTROL_MODULES):
            absent = next(name for name in CONTROL_MODULES if name not in present)
            raise ValueError(f"modules: {absent!r} is missing beside {present[0]!r}")
        for name, module in self.modules.items():
            for path in (module.graph, *module.weights):
                if path not in self.files:
                    raise ValueError(f"modules.{name}: {path!r} is not among the files")
            for tensor in (*module.inputs, *module.outputs):
                for dimension in tensor.shape:
                    if isinstance(dimension, str) and parse_dimension(dimension)[1] not in self.dimensions:
                        raise ValueError(f"modules.{name}.{tensor.name}: dimension {dimension!r} has no range")
        if "tokenizer.json" not in self.files:
            raise ValueError("files: 'tokenizer.json' is missing")
        return self


def check_path(path: str) -> None:
    """Accept plain relative POSIX paths only.

    Raises:
        ValueError: the path is absolute, climbs with `..`, or is not in its simplest form.
    """
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or str(pure) != path:
        raise ValueError(f"path {path!r} is not a plain path inside the bundle")
