import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import quality
from tests.export.tiny import tiny_bundle


def test_a_bundle_compared_with_itself_differs_in_nothing_but_its_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rng: np.random.Generator
) -> None:
    folder, out = str(tiny_bundle()[1]), tmp_path / "quality.json"
    references = tmp_path / "references"
    references.mkdir()
    for index in range(3):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(references / f"{index}.png")
    arguments = ["--bundle", folder, "--variant", folder, "--backend", "onnxruntime", "--pictures", "4"]
    quality.main([*arguments, "--references", str(references), "--json", str(out)])
    result = json.loads(out.read_text())
    assert result["pixels"]["largest"] == 0
    assert result["frechet_variant"] == pytest.approx(0, abs=1e-5)
    assert result["frechet_other_seeds"] > 1e-3
    assert result["references"]["ratio"] == pytest.approx(1)
    assert "ratio 1.000" in capsys.readouterr().out


def test_differences_are_those_that_were_made() -> None:
    first = np.full((3, 8, 8, 3), 100, np.uint8)
    second = first.copy()
    second[0] += 10
    second[1, 0, 0, 0] = 0
    found = quality.differences(first, second)
    assert found["largest"] == 100
    assert found["mean"] == pytest.approx((10 * 192 + 100) / (3 * 192))
    # The errors' mean squares are 100, 100²/192 = 52 and 0; the second is the median.
    assert found["median_psnr"] == pytest.approx(10 * np.log10(255**2 / (100**2 / 192)))


def test_a_folder_without_references_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 0 pictures"):
        quality.read_references(tmp_path, 8, 8)
