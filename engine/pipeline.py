"""The model's operations on batches of samples: encode text, encode control, one denoising step, decode."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine import noise
from engine.backends.base import Array, Backend, Module
from engine.bundle import Bundle
from engine.manifest import ModuleName, Size
from engine.positions import sincos_positions
from engine.profiles import VAE_SCALE
from engine.request import Job
from engine.sampler import Schedule, schedule
from engine.sources import module_source
from engine.tokenizer import Tokenizer

LATENT_CHANNELS = 4

Floats = NDArray[np.float32]
Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Text:
    """An encoded prompt: caption float32 [L, D], real tokens only; whether tokens beyond the limit were cut."""

    caption: Floats
    truncated: bool


@dataclass(eq=False)
class Sample:
    """One picture on its way. Its future depends on these fields alone, not on its company in a batch."""

    job: Job
    schedule: Schedule
    caption: Floats  # [1, L, D], padded to the model's limit
    mask: NDArray[np.bool_]  # [1, L], True for a real token
    control: Floats | None  # latents of the edge map, [4, H, W]
    latents: Floats  # [4, H, W]
    x0: Floats | None = None  # predicted by the last step, [4, H, W]
    step: int = 0

    @property
    def finished(self) -> bool:
        """Whether no step is left, so that `latents` can be decoded."""
        return self.step == len(self.schedule)

    @property
    def shape_class(self) -> tuple[Size, bool]:
        """Samples of one class may share a denoiser call, whatever step each is at."""
        return self.job.size, self.control is not None


class Pipeline:
    """A bundle's modules, compiled on a backend, for batches of `batches` above all. Not thread-safe.

    `progress` is called before a module is compiled, or loaded from a cache, which may take minutes.

    Raises:
        BundleError, CompileError: the bundle cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        batches: Sequence[int] = (1,),
        progress: Callable[[ModuleName], None] = lambda name: None,
    ) -> None:
        self.manifest = manifest = bundle.manifest
        self.max_batch = manifest.dimensions["B"].max
        self._tokenizer = Tokenizer(bundle.path("tokenizer.json"), manifest.max_tokens)
        self._modules: dict[ModuleName, Module] = {}
        for name in manifest.modules:
            progress(name)
            self._modules[name] = backend.compile(module_source(bundle, name, batches))
        self._buffers = _Buffers()
        counts = range(manifest.steps.min, manifest.steps.max + 1)
        self._schedules = {steps: schedule(manifest.sampler, steps) for steps in counts}
        patch = VAE_SCALE * manifest.positions.patch_size
        self._positions = {
            size: sincos_positions(manifest.positions, size.height // patch, size.width // patch)
            for size in manifest.images.allowed
        }
        for position in self._positions.values():
            position.setflags(write=False)  # so that a GPU backend may keep it on the device between steps

    def encode_text(self, prompt: str) -> Text:
        """Encode one prompt, always alone, so that its caption has the same bits in any company."""
        tokens = self._tokenizer([prompt])
        caption: Floats = self._modules["text_encoder"].run({"ids": tokens.ids, "mask": tokens.mask})["caption"]
        return Text(caption[0, tokens.mask[0]], tokens.truncated[0])

    def encode_control(self, job: Job) -> Floats | None:
        """Latents [4, H, W] of the job's edge map (found first, if its control is a picture); None without control."""
        if job.control is None:
            return None
        edges: Array = job.control[None]
        if job.control_kind == "picture":
            edges = self._modules["edge_detector"].run({"image": edges})["edges"]
        latents: Floats = self._modules["vae_encoder"].run({"image": edges})["latents"][0]
        return latents

    def start(self, job: Job, text: Text, control: Floats | None) -> Sample:
        """A sample before its first step: pure noise."""
        shape = (LATENT_CHANNELS, job.size.height // VAE_SCALE, job.size.width // VAE_SCALE)
        first = noise.normal(job.seed, 0, shape)
        return Sample(job, self._schedules[job.steps], *self._padded(text.caption), control, first)

    def denoise(self, samples: Sequence[Sample]) -> None:
        """Take the next step of unfinished samples of one shape class, at most `max_batch`, in one call."""
        size, controlled = samples[0].shape_class
        stack = self._buffers.stack
        inputs: dict[str, Array] = {
            "latents": stack("latents", [sample.latents for sample in samples]),
            "caption": self._buffers.join("caption", [sample.caption for sample in samples]),
            "mask": samples[0].mask if len(samples) == 1 else np.concatenate([sample.mask for sample in samples]),
            "timestep": np.array([sample.schedule.timesteps[sample.step] for sample in samples]),
            "coefficients": np.stack([sample.schedule.coefficients[sample.step] for sample in samples]),
            "noise": stack("noise", [_step_noise(sample) for sample in samples]),
            "position": self._positions[size],
        }
        if self.manifest.size_conditions:
            row = np.array([[size.height, size.width]], dtype=np.float32)
            inputs["resolution"] = np.repeat(row, len(samples), axis=0)
            inputs["aspect_ratio"] = inputs["resolution"][:, :1] / inputs["resolution"][:, 1:]
        if controlled:
            controls = [sample.control for sample in samples if sample.control is not None]
            inputs["control_latents"] = stack("control_latents", controls)
            inputs["strength"] = np.array([sample.job.strength for sample in samples], dtype=np.float32)
        results = self._modules["denoiser_control" if controlled else "denoiser"].run(inputs)
        for index, sample in enumerate(samples):
            sample.latents = results["next_latents"][index]
            sample.x0 = results["x0"][index]
            sample.step += 1

    def preview(self, samples: Sequence[Sample]) -> Images:
        """Pictures uint8 [B, height, width, 3] of what samples of one size are predicted to become."""
        return self._decode([sample.x0 for sample in samples if sample.x0 is not None], None)

    def decode(self, samples: Sequence[Sample], into: Images | None = None) -> Images:
        """Pictures uint8 [B, height, width, 3] of samples of one size, at most `max_batch`.

        They are written to `into`, if it is given. A sample that is not finished is decoded as its last step
        predicted it.
        """
        return self._decode([s.latents if s.finished or s.x0 is None else s.x0 for s in samples], into)

    def _decode(self, latents: Sequence[Floats], into: Images | None) -> Images:
        outputs = None if into is None else {"image": into}
        images: Images = self._modules["vae_decoder"].run(
            {"latents": self._buffers.stack("latents", latents)}, outputs
        )["image"]
        return images

    def _padded(self, caption: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """A caption [L, D] as [1, limit, D] and its mask [1, limit], which nobody changes any more.

        The mask keeps padding out of the result whatever the length, but kernels round differently for different
        lengths, and a picture should not depend on the longest prompt in its batch.
        """
        length, width = caption.shape
        padded = np.zeros((1, self.manifest.dimensions["L"].max, width), dtype=np.float32)
        padded[0, :length] = caption
        mask = np.zeros(padded.shape[:2], dtype=np.bool_)
        mask[0, :length] = True
        for array in (padded, mask):
            array.setflags(write=False)
        return padded, mask


class _Buffers:
    """Float arrays that are used again at the next call, by name. They grow to the largest that was asked for."""

    def __init__(self) -> None:
        self._flat: dict[str, Floats] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> Floats:
        """An array of this shape, C-contiguous, with old content; the one that had the name before is lost."""
        count = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.size < count:
            flat = self._flat[name] = np.empty(count, dtype=np.float32)
        return flat[:count].reshape(shape)

    def join(self, name: str, arrays: Sequence[Floats]) -> Floats:
        """What `np.concatenate` makes of arrays of equal shape; a single one is passed on without a copy."""
        if len(arrays) == 1:
            return arrays[0]
        return np.concatenate(arrays, out=self.array(name, (len(arrays), *arrays[0].shape[1:])))

    def stack(self, name: str, rows: Sequence[Floats]) -> Floats:
        """What `np.stack` makes of them; a single one is passed on without a copy."""
        if len(rows) == 1:
            return rows[0][None]
        return np.stack(rows, out=self.array(name, (len(rows), *rows[0].shape)))


def _step_noise(sample: Sample) -> Floats:
    """What is added after this step; the last step adds nothing."""
    if sample.step + 1 == len(sample.schedule):
        return np.zeros_like(sample.latents)
    return noise.normal(sample.job.seed, sample.step + 1, sample.latents.shape)
