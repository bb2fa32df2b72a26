"""The fp16 graphs' numbers, run by ONNX Runtime on the CPU, against the fp32 graphs and against torch.

Tolerances are in units of float16's rounding, 2^-11. A product in half precision rounds both operands and its result;
rounding errors of the layers are independent and meet in residual streams that are kept in single, so that the
relative error of a module stays near one unit however deep it is: at most 2 are allowed (root mean square).
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import T5Config

from engine.backends import BackendOptions, Module, Source, create
from engine.backends.base import Arrays, prepare
from engine.bundle import Bundle
from engine.pipeline import Pipeline
from engine.request import GenerateRequest, validate
from engine.sampler import schedule
from models.config import DiTConfig
from models.controlnet import ControlNetTransformer
from models.dit import DiT
from models.export.graph import ModulePlan, TensorPlan, write_graph
from models.export.half import SINGLE_OPERATIONS, GraphPrecision, typed_graph
from models.export.modules import ControlledDenoiser, Parts, plan_modules
from models.export.weights import save_weights
from models.text import TextEncoder
from models.vae import VaeDecoder
from tests.export.tiny import VOCABULARY, tiny_config, tiny_parts

DEMO = Path("models/zoo/emoji")
ROUNDING = 2.0**-11
GRAPHS = ["text_encoder", "denoiser", "vae_decoder", "denoiser_control", "vae_encoder", "edge_detector"]


def session(model: onnx.ModelProto, folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of the expected values, in units of `ROUNDING`."""
    assert np.isfinite(result).all()
    want = expected.astype(np.float64)
    return float(np.sqrt(np.mean((result - want) ** 2) / np.mean(want**2)) / ROUNDING)


class Compared:
    """A module that runs both graphs, notes how far they are apart, and gives back what the fp32 one says."""

    def __init__(self, source: Source, reference: Module, errors: dict[str, list[float]]) -> None:
        self._source, self._reference = source, reference
        self._half = session(typed_graph(source.graph, "fp16"), source.graph.parent)
        self._errors = errors.setdefault(source.graph.stem, [])

    def run(self, inputs: Arrays, outputs: Arrays | None = None) -> dict[str, np.ndarray]:
        expected = self._reference.run(inputs, outputs)
        ready, _ = prepare(self._source, inputs)
        for result, want in zip(self._half.run(list(expected), dict(ready)), expected.values(), strict=True):
            assert result.dtype == want.dtype and result.shape == want.shape
            if want.dtype == np.uint8:
                assert np.abs(result.astype(int) - want).max() <= 1
            self._errors.append(relative_error(result.astype(np.float64), want))
        return expected


class ComparedBackend:
    name = "compared"

    def __init__(self) -> None:
        self.errors: dict[str, list[float]] = {}
        self._reference = create("onnxruntime", BackendOptions(threads=1))

    def compile(self, source: Source) -> Compared:
        return Compared(source, self._reference.compile(source), self.errors)


def test_every_module_of_the_demo_rounds_and_no_more_on_what_it_meets_in_use() -> None:
    bundle, backend = Bundle.load(DEMO), ComparedBackend()
    pipeline = Pipeline(bundle, backend)
    size = bundle.manifest.images.default
    control = np.zeros((size.height, size.width, 3), np.uint8)
    control[40:90, 40:90] = 200
    for request in (
        GenerateRequest("a red apple on a blue background", seed=1, control=control, control_kind="picture"),
        GenerateRequest("a cat", seed=2),
    ):
        job = validate(request, bundle.manifest)
        sample = pipeline.start(job, pipeline.encode_text(job.prompt), pipeline.encode_control(job))
        while not sample.finished:
            pipeline.denoise([sample])
        pipeline.decode([sample])
    print({name: [f"{error:.2f}" for error in errors] for name, errors in backend.errors.items()})
    assert set(backend.errors) == set(GRAPHS)
    for name, errors in backend.errors.items():
        assert errors and max(errors) <= 2, name
        assert name == "edge_detector" or max(errors) > 0, f"{name} was not rounded at all: is it half?"


def single_products(model: onnx.ModelProto) -> Counter[str]:
    """Products by whether they take half precision, as ONNX's own type inference sees it."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    found: Counter[str] = Counter()
    for node in inferred.node:
        kind = onnx.TensorProto.DataType.Name(types.get(node.output[0], 0))
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            found[kind] += 1
        elif node.op_type in SINGLE_OPERATIONS:
            assert kind in ("FLOAT", "INT64"), node
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_products_are_half_and_what_half_cannot_hold_is_single(name: str) -> None:
    found = single_products(typed_graph(DEMO / f"{name}.onnx", "fp16"))
    # The transformer's ends: patches (twice with control), final projection, timestep's two layers and modulation.
    ends = {"denoiser": 5, "denoiser_control": 6}.get(name, 0)
    assert found.pop("FLOAT", 0) == ends
    assert set(found) == {"FLOAT16"} and found["FLOAT16"] > 0
    if name != "edge_detector":
        assert single_products(typed_graph(DEMO / f"{name}.onnx", "bf16"))["BFLOAT16"] == found["FLOAT16"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_inputs_and_outputs_stay_and_uint8_is_at_the_border_alone(precision: GraphPrecision) -> None:
    for name in GRAPHS:
        before = onnx.load(DEMO / f"{name}.onnx", load_external_data=False)
        after = typed_graph(DEMO / f"{name}.onnx", precision)
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        inferred = onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True).graph
        inner = {value.type.tensor_type.elem_type for value in inferred.value_info}
        assert onnx.TensorProto.UINT8 not in inner
        assert len(after.SerializeToString()) < 400_000, "weights stay in their files"


def test_the_fp32_variant_computes_the_same_bits() -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 6, 8), dtype=np.float32)
    original = onnx.load(DEMO / "vae_decoder.onnx", load_external_data=False)
    variants = [original, typed_graph(DEMO / "vae_decoder.onnx", "fp32")]
    first, second = (session(model, DEMO).run(None, {"latents": latents})[0] for model in variants)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"half"])
def test_a_damaged_graph_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    sound = (DEMO / "vae_encoder.onnx").read_bytes()
    path = tmp_path / "vae_encoder.onnx"
    path.write_bytes(sound[: len(sound) // 2] if content == b"half" else content)
    with pytest.raises(ValueError, match=r"vae_encoder\.onnx: is damaged"):
        typed_graph(path, "fp16")


def half_and_reference(
    plan: ModulePlan, weights: dict[str, nn.Module], folder: Path, inputs: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Results of the fp16 graph and of torch in float32."""
    index = save_weights(weights, folder, torch.float16)
    write_graph(plan, index, {"B": 2, "L": 11, "H": 6, "W": 10, "N": 15}, folder)
    result = session(typed_graph(folder / f"{plan.name}.onnx", "fp16"), folder).run(None, dict(inputs))[0]
    with torch.no_grad():
        expected = plan.module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    return result, (expected[0] if isinstance(expected, tuple) else expected).numpy()


def plan_of(name: str, parts: Parts) -> ModulePlan:
    return next(plan for plan in plan_modules(parts) if plan.name == name)


def round_to_half(module: nn.Module) -> None:
    for parameter in module.requires_grad_(False).parameters():
        parameter.copy_(parameter.half().float())


def inner_peak(module: nn.Module, part: Callable[[nn.Module], bool], run: Callable[[], object]) -> float:
    """The largest magnitude that any of the chosen parts puts out during `run`."""
    peaks: list[float] = []
    hooks = [
        inner.register_forward_hook(lambda _module, _inputs, output: peaks.append(float(output.detach().abs().max())))
        for inner in module.modules()
        if part(inner)
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return max(peaks)


def check_text_encoder(encoder: TextEncoder, parts: Parts, folder: Path, tokens: int) -> None:
    """With states past float16's range, as T5-XXL has them: plain half precision fails, the fp16 graph does not."""
    for block in encoder.t5.encoder.block:
        block.layer[1].DenseReluDense.wo.weight.mul_(6e4)
    round_to_half(encoder)
    generator = np.random.default_rng(0)
    ids = generator.integers(0, parts.config.text["vocab_size"], (2, tokens))
    inputs = {"ids": ids, "mask": np.arange(tokens) < np.array([[tokens // 2], [tokens]])}
    arguments = [torch.from_numpy(inputs["ids"]), torch.from_numpy(inputs["mask"])]
    products = [block.layer[1].DenseReluDense.wo for block in encoder.t5.encoder.block]
    peak = inner_peak(encoder, lambda inner: any(inner is wo for wo in products), lambda: encoder(*arguments))
    assert 65504 < peak < 64 * 65504
    result, expected = half_and_reference(
        plan_of("text_encoder", parts), {"weights/text_encoder.safetensors": encoder}, folder, inputs
    )
    real = inputs["mask"]
    assert relative_error(result[real], expected[real]) <= 2
    with torch.no_grad():
        plain = encoder.half()(*arguments).float().numpy()[real]  # transformers clips infinite states, so all is finite
    assert not np.isfinite(plain).all() or relative_error(plain, expected[real]) > 20


def check_vae_decoder(vae: AutoencoderKL, folder: Path, height: int) -> None:
    """With residuals past float16's range, as some autoencoders have them."""
    vae.decoder.conv_in.weight.mul_(1e5)
    for block in vae.decoder.up_blocks:
        block.resnets[0].conv2.weight.mul_(2e3)
    round_to_half(vae)
    decoder = VaeDecoder(vae, tiny_config().latent).eval()
    latents = np.random.default_rng(0).standard_normal((1, 4, height, height), dtype=np.float32)
    tensor = torch.from_numpy(latents)
    peak = inner_peak(decoder, lambda inner: isinstance(inner, nn.Conv2d), lambda: decoder(tensor))
    assert 65504 < peak < 64 * 65504, "plain half precision would hold this"
    plan = ModulePlan(
        "vae_decoder",
        decoder,
        (TensorPlan("latents", "float32", ("B", 4, "H", "W")),),
        (TensorPlan("image", "uint8", ("B", "8*H", "8*W", 3)),),
    )
    result, expected = half_and_reference(plan, {"weights/vae.safetensors": vae}, folder, {"latents": latents})
    assert expected.std() > 2, "a flat picture would prove nothing"
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= 1 and np.mean(difference) < 0.1


def enlarged(name: str, pattern: str, factor: float, folder: Path) -> Path:
    """The demo's graph `name` in `folder`, with the weights that `pattern` finds multiplied."""
    model = onnx.load(DEMO / f"{name}.onnx", load_external_data=False)
    content = {path.name: bytearray(path.read_bytes()) for path in (DEMO / "weights").iterdir()}
    hits = 0
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place and re.search(pattern, tensor.name):
            start, length = int(place["offset"]), int(place["length"])
            stored = content[Path(place["location"]).name]
            values = np.frombuffer(stored[start : start + length], np.float16).astype(np.float32) * factor
            assert np.abs(values).max() < 65504
            stored[start : start + length] = values.astype(np.float16).tobytes()
            hits += 1
    assert hits
    (folder / "weights").mkdir()
    for file, data in content.items():
        (folder / "weights" / file).write_bytes(data)
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return folder / f"{name}.onnx"


def run_both(path: Path, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
    """The fp16 graph's result, the fp32 graph's, and the largest result of a product in the latter."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Conv"):
            model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    expected, *products = session(model, path.parent).run(None, inputs)
    result = session(typed_graph(path, "fp16"), path.parent).run(None, inputs)[0]
    return result, expected, max(float(np.abs(product).max()) for product in products)


def test_text_states_past_the_range_of_float16_are_no_harm(tmp_path: Path) -> None:
    path = enlarged("text_encoder", r"\.wo\.weight$", 2.0**15, tmp_path)
    inputs = {"ids": np.random.default_rng(0).integers(0, 1000, (2, 24)), "mask": np.ones((2, 24), np.bool_)}
    result, expected, peak = run_both(path, inputs)
    assert 65504 < peak < 64 * 65504, "plain half precision would hold this"
    assert relative_error(result, expected) <= 2


def test_autoencoder_residuals_past_the_range_of_float16_are_no_harm(tmp_path: Path) -> None:
    path = enlarged("vae_decoder", r"decoder\.conv_in\.weight$|resnets\.0\.conv2\.weight$", 2.0**12, tmp_path)
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16), dtype=np.float32)
    result, expected, peak = run_both(path, {"latents": latents})
    assert 65504 < peak < 64 * 65504, "plain half precision would hold this"
    difference = np.abs(result.astype(int) - expected)
    assert expected.std() > 2 and difference.max() <= 1 and np.mean(difference) < 0.1


XL_TEXT = {
    "vocab_size": VOCABULARY, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 1,
    "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0,
}  # fmt: skip
SD_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}


@pytest.mark.slow
def test_a_text_encoder_of_full_width(tmp_path: Path) -> None:
    parts = tiny_parts()
    encoder = TextEncoder(T5Config(**XL_TEXT), 1152).requires_grad_(False).eval()
    for linear in (encoder.projection.fc1, encoder.projection.fc2):
        nn.init.normal_(linear.weight, std=0.3 / 64)
    config = replace(parts.config, text=XL_TEXT, dit=DiTConfig(sample_size=128))
    check_text_encoder(encoder, replace(parts, config=config, text_encoder=encoder), tmp_path, 24)


@pytest.mark.slow
def test_an_autoencoder_of_full_width(tmp_path: Path) -> None:
    check_vae_decoder(AutoencoderKL(**SD_VAE).requires_grad_(False), tmp_path, 8)


@pytest.mark.slow
def test_a_slice_of_xl_with_control(tmp_path: Path) -> None:
    parts = tiny_parts()
    dit = DiT(DiTConfig(sample_size=64, depth=2))
    control = ControlNetTransformer(dit, 1)
    for part in (dit, control):
        for parameter in part.requires_grad_(False).parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        round_to_half(part.eval())
    parts = replace(
        parts, config=replace(parts.config, dit=dit.config, controlnet_depth=1), dit=dit, controlnet=control
    )
    plan = plan_of("denoiser_control", parts)
    assert isinstance(plan.module, ControlledDenoiser)
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    steps = schedule(Bundle.load(DEMO).manifest.sampler, 4)
    inputs = {
        "latents": normal(2, 4, 32, 48),
        "caption": 3 * normal(2, 24, 1152),
        "mask": np.arange(24) < np.array([[9], [24]]),
        "timestep": np.asarray(steps.timesteps[:2], np.float32),
        "coefficients": np.stack([steps.coefficients[0], steps.coefficients[1]]),
        "noise": normal(2, 4, 32, 48),
        "position": normal(1, 384, 1152),
        "control_latents": normal(2, 4, 32, 48),
        "strength": np.array([1.0, 0.5], np.float32),
    }
    weights: dict[str, nn.Module] = {"weights/dit.safetensors": dit, "weights/controlnet.safetensors": control}
    result, expected = half_and_reference(plan, weights, tmp_path, inputs)
    assert relative_error(result, expected) <= 2
