"""Training of a published checkpoint, from a folder of pictures to what `pixart compile` takes."""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from transformers import T5EncoderModel

from models.checkpoints import build, load_checkpoint, write_tokenizer
from models.checkpoints.build import build_dit
from models.config import DiTConfig
from tests.checkpoints.published import save_pipeline
from tests.models.reference import assert_close, dit_inputs, random_dit
from training.loop import averaged_weights
from training.published import control, distill, memory, prepare
from training.published.blocks import recompute
from training.published.pictures import by_size, read_captions, upright
from training.published.prepared import PreparedSet

RECIPE = """
name = "tiny"
[distill]
guidance = 4.5
loop = { steps = 4, batch = 3, lr = 1e-3, save_every = 2, sample_every = 4, plain_attention = false }
[controlnet]
depth = 2
loop = { steps = 4, batch = 3, lr = 1e-3, save_every = 2, sample_every = 4, plain_attention = false }
"""
TEXTS = ("a red apple", "the quick brown fox", "a blue table", "photo of an astronaut", "a horse", "4k")

Published = tuple[Path, tuple[PixArtTransformer2DModel, T5EncoderModel, AutoencoderKL]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    return folder, save_pipeline(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng()
    with (folder / "metadata.jsonl").open("w") as listing:
        for number, text in enumerate(TEXTS):
            height, width = rng.integers(60, 90, 2)
            pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            listing.write(json.dumps({"file_name": f"{number}.png", "text": text}) + "\n")
    return folder


@pytest.fixture(scope="module")
def prepared(published: Published, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "data"
    command = ["--model", str(published[0]), "--pictures", str(pictures), "--out", str(out), "--soft-edges"]
    prepare.main([*command, "--device", "cpu", "--batch", "2", "--rows", "4"])
    return out


@pytest.fixture
def train(published: Published, prepared: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run a stage's command; its folder."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)

    def run(main: Callable[[list[str]], None], *more: str, data: Path = prepared) -> Path:
        command = ["--model", str(published[0]), "--data", str(data), "--config", str(recipe)]
        main([*command, "--runs", str(tmp_path / "runs"), "--device", "cpu", *more])
        return tmp_path / "runs" / "tiny"

    return run


def test_latents_and_captions_are_the_published_models(published: Published, pictures: Path, prepared: Path) -> None:
    _, (transformer, t5, vae) = published
    data = PreparedSet(prepared)
    assert len(data) == len(TEXTS)
    assert data.has_edges
    first = data.first(4)
    for i in range(4):
        shown = ImageOps.fit(upright(pictures / f"{i}.png"), (64, 64), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        assert_close(first.latents[i : i + 1], expected, 2e-3)  # stored in float16
    checkpoint = load_checkpoint(published[0])
    write_tokenizer(checkpoint.tokenizer, prepared.parent / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(prepared.parent / "tokenizer.json"))
    for i in range(4):
        ids = torch.tensor([tokenizer.encode(TEXTS[i]).ids])
        expected = transformer.caption_projection(t5(input_ids=ids).last_hidden_state)
        count = ids.shape[1]
        assert first.mask[i].sum() == count
        assert first.mask[i, :count].all()
        # T5 may have run in bfloat16: 8 bits of precision.
        assert_close(first.caption[i : i + 1, :count], expected, 3e-2)
        assert not first.caption[i, count:].any()
    assert data.empty[1].sum() == 1  # the end of the text


def test_what_was_prepared_is_not_prepared_again(published: Published, pictures: Path, prepared: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in prepared.glob("shard-*")}
    assert len(before) == 2
    gone = sorted(prepared.glob("shard-*"))[1]
    content = gone.read_bytes()
    gone.unlink()
    command = ["--model", str(published[0]), "--pictures", str(pictures), "--out", str(prepared), "--soft-edges"]
    prepare.main([*command, "--device", "cpu", "--batch", "2", "--rows", "4"])
    after = {path.name: path.stat().st_mtime_ns for path in prepared.glob("shard-*")}
    assert {name for name in after if after[name] != before[name]} == {gone.name}
    assert gone.read_bytes() == content


def test_every_picture_is_drawn_as_often(prepared: Path) -> None:
    data = PreparedSet(prepared)
    generator = torch.Generator().manual_seed(0)
    seen: Counter[float] = Counter()
    for _ in range(1500):
        batch = data.draw(2, generator)
        seen.update(batch.latents.flatten(1).sum(dim=1).tolist())
    assert len(seen) == len(TEXTS)
    assert min(seen.values()) > 400  # of 3,000 draws 500 each; draws of two from a shard: σ about 27


def test_a_student_becomes_a_checkpoint(train: Callable[..., Path], published: Published, tmp_path: Path) -> None:
    folder = train(distill.main, "--out", str(tmp_path / "lcm"))
    assert (folder / "distill" / "samples-000004.png").exists()
    teacher, student = load_checkpoint(published[0]), load_checkpoint(tmp_path / "lcm")
    averaged = averaged_weights(folder / "distill", "student.")
    assert len(averaged) == len(averaged_weights(folder / "distill"))  # the target is saved, and not averaged again
    assert student.config == teacher.config
    changed = 0
    for name, tensor in build_dit(student).state_dict().items():
        torch.testing.assert_close(tensor, averaged[name].half().float())
        changed += not torch.equal(tensor, teacher.dit[name].float().half().float())
    assert changed > 20
    for name, tensor in build(teacher).vae.state_dict().items():
        torch.testing.assert_close(build(student).vae.state_dict()[name], tensor, rtol=1e-3, atol=1e-3)


def test_a_branch_attaches_to_its_base(train: Callable[..., Path], published: Published, tmp_path: Path) -> None:
    out = tmp_path / "control.safetensors"
    folder = train(control.main, "--out", str(out))
    assert (folder / "controlnet" / "samples-000004.png").exists()
    branch = build(load_checkpoint(published[0], controlnet=out)).controlnet
    assert branch is not None
    assert len(branch.blocks) == 2
    assert all(weight.any() for name, weight in branch.after_proj.state_dict().items() if "weight" in name)


def test_a_stopped_run_goes_on_to_the_same_weights(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = averaged_weights(train(distill.main) / "distill")

    class Stopped(Exception):
        pass

    def stop_at_three(self: distill.Distillation, step: int, generator: torch.Generator) -> object:
        if step == 3:
            raise Stopped
        return loss(self, step, generator)

    loss = distill.Distillation.loss
    monkeypatch.setattr(distill.Distillation, "loss", stop_at_three)
    again = ("--runs", str(tmp_path / "again"))
    with pytest.raises(Stopped):
        train(distill.main, *again)
    monkeypatch.setattr(distill.Distillation, "loss", loss)
    train(distill.main, *again)
    for name, tensor in averaged_weights(tmp_path / "again" / "tiny" / "distill").items():
        assert torch.equal(tensor, whole[name]), name


def test_a_run_is_not_taken_for_that_of_another_model_or_recipe(
    train: Callable[..., Path], published: Published, tmp_path: Path
) -> None:
    student, recipe = tmp_path / "lcm", tmp_path / "recipe.toml"
    before = averaged_weights(train(distill.main, "--out", str(student)) / "distill")
    with pytest.raises(SystemExit, match="is of another run, with other model;"):
        train(distill.main, "--model", str(student), "--out", str(tmp_path / "twice"))
    assert not (tmp_path / "twice").exists()
    recipe.write_text(RECIPE.replace("4.5", "4.0"))
    with pytest.raises(SystemExit, match=r"is of another run, with other \[distill\];"):
        train(distill.main)
    recipe.write_text(RECIPE.replace("sample_every = 4", "sample_every = 2"))
    for name, tensor in averaged_weights(train(distill.main) / "distill").items():
        assert torch.equal(tensor, before[name])


def test_data_for_another_model_is_refused(
    published: Published, pictures: Path, prepared: Path, tmp_path: Path, train: Callable[..., Path]
) -> None:
    other = tmp_path / "other"
    save_pipeline(other, num_layers=2)
    more = shutil.copytree(pictures, tmp_path / "more")
    (more / "metadata.jsonl").write_text((pictures / "metadata.jsonl").read_text().splitlines()[0])
    command = ["--model", str(published[0]), "--out", str(prepared), "--soft-edges", "--device", "cpu", "--rows", "4"]
    with pytest.raises(SystemExit, match="or other pictures"):
        prepare.main([*command, "--pictures", str(more)])
    with pytest.raises(SystemExit, match="prepared with another model"):
        prepare.main(["--model", str(other), "--pictures", str(pictures), "--out", str(prepared), "--device", "cpu"])
    with pytest.raises(SystemExit, match="whose transformer is another"):
        train(distill.main, "--model", str(other))
    with pytest.raises(SystemExit, match="is not, or not completely, prepared"):
        train(distill.main, data=pictures)
    alike = tmp_path / "alike"
    save_pipeline(alike)
    with pytest.raises(SystemExit, match="encodes captions or pictures differently"):
        train(distill.main, "--model", str(alike))
    old = shutil.copytree(prepared, tmp_path / "old")
    about = json.loads((old / "prepared.json").read_text())
    del about["encoders"]
    (old / "prepared.json").write_text(json.dumps(about))
    with pytest.raises(SystemExit, match="by an earlier version"):
        train(distill.main, data=old)


def test_control_needs_edges(published: Published, pictures: Path, tmp_path: Path, train: Callable[..., Path]) -> None:
    plain = tmp_path / "plain"
    prepare.main(["--model", str(published[0]), "--pictures", str(pictures), "--out", str(plain), "--device", "cpu"])
    with pytest.raises(SystemExit, match="has no edges"):
        train(control.main, data=plain)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "metadata.jsonl: is missing"),
        ("", "names no picture"),
        ("nonsense", "metadata.jsonl:1: is not"),
        ('{"file_name": "a.png"}', "metadata.jsonl:1: is not"),
        ('{"file_name": "a.png", "text": "x"}', "there is no picture 'a.png'"),
        ('{"file_name": "../a.png", "text": "x"}', "there is no picture"),
    ],
)
def test_a_listing_that_cannot_be_used_is_named(tmp_path: Path, lines: str | None, message: str) -> None:
    if lines is not None:
        (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path)


def test_pictures_go_to_the_nearest_bin_and_stand_upright(tmp_path: Path) -> None:
    rows = []
    for name, size in (("wide", (300, 100)), ("square", (100, 100)), ("tall", (100, 210))):
        Image.new("RGBA", size, (255, 0, 0, 0)).save(tmp_path / f"{name}.png")
        rows.append(json.dumps({"file_name": f"{name}.png", "text": name}))
    turned = Image.new("RGB", (300, 100))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    rows.append(json.dumps({"file_name": "turned.jpg", "text": "turned"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    captions = read_captions(tmp_path)
    groups = {size: [one.text for one in some] for size, some in by_size(captions, 1024, True).items()}
    assert groups == {(576, 1728): ["wide"], (1024, 1024): ["square"], (1472, 704): ["tall"], (1728, 576): ["turned"]}
    assert set(by_size(captions, 1024, False)) == {(1024, 1024)}
    assert np.asarray(upright(tmp_path / "wide.png")).min() == 255  # transparent is white
    (tmp_path / "wide.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"wide\.png: cannot be read"):
        upright(tmp_path / "wide.png")


def test_recomputed_blocks_have_the_same_gradients() -> None:
    plain = random_dit().requires_grad_(True)
    recomputed = copy.deepcopy(plain)
    recompute(recomputed.blocks)
    inputs = dit_inputs(plain.config, 2, 8, 8, 5)
    results = [model(**inputs) for model in (plain, recomputed)]
    assert torch.equal(*results)
    for result in results:
        result.square().sum().backward()
    theirs = dict(recomputed.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(theirs[name].grad, parameter.grad)


def test_bytes_are_counted_from_making_to_the_last_reference() -> None:
    with memory.Alive() as alive:
        first = torch.zeros(1000)
        view = first.view(10, 100)
        second = first + 1
        assert (alive.bytes, alive.peak) == (8000, 8000)
        del first
        assert alive.bytes == 8000
        del view, second
        assert (alive.bytes, alive.peak) == (0, 8000)


@pytest.mark.parametrize("kind", memory.STAGES)
def test_memory_grows_by_what_a_weight_needs_and_by_what_a_token_keeps(kind: str) -> None:
    def model(depth: int, side: int) -> DiTConfig:
        return DiTConfig(sample_size=side, depth=depth, width=192, heads=4)

    block = sum(p.numel() for p in random_dit(width=192, heads=4, depth=1, caption_channels=32).blocks.parameters())
    # Distillation: student, gradient, two of AdamW, target and the student's average in float32, teacher in half.
    # Control: the same without a target for a copied block and its projection, and the base's block in half.
    weights = 26 * block if kind == "distill" else 2 * block + 20 * (block + 192 * 192 + 192)
    grown = memory.peak_bytes(kind, model(4, 8), 1) - memory.peak_bytes(kind, model(2, 8), 1)
    assert grown == pytest.approx(2 * weights, rel=0.05)
    # With many tokens a block keeps its input: 2 bytes a channel.
    kept = memory.peak_bytes(kind, model(4, 64), 2) - memory.peak_bytes(kind, model(2, 64), 2)
    assert kept >= 2 * (2 * 32 * 32) * 192 * 2


def test_the_memory_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--sizes", "64", "--batches", "1", "2", "--depth", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| stage | pixels | batch 1, GB | batch 2, GB |"
    assert len(lines) == 4
