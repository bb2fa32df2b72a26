"""What can be checked of the GPU benchmark without one: inputs that every module accepts, and the table."""

from pathlib import Path

from benchmarks.gpu import Row, random_inputs, table
from engine.backends import Source
from engine.backends.base import prepare
from engine.bundle import Bundle


def test_inputs_fit_every_module() -> None:
    bundle = Bundle.load(Path("models/zoo/emoji"))
    for name, spec in bundle.manifest.modules.items():
        inputs = random_inputs(spec, bundle.manifest, bundle.manifest.images.default, 2)
        source = Source(bundle.path(spec.graph), spec, bundle.manifest.dimensions, bundle.digest(name))
        ready, results = prepare(source, inputs)
        assert all(len(array) == 2 for key, array in (ready | results).items() if key != "position")


def test_the_table_shows_a_ratio_where_there_is_a_peer() -> None:
    lines = table([Row("denoiser", "512x512", 1, 12.5), Row("picture", "512x512", 1, 100.0, 250.0)]).splitlines()
    assert lines[2:] == [
        "| denoiser | 512x512 | 1 | 12.50 |  |  |",
        "| picture | 512x512 | 1 | 100.00 | 250.00 | 2.50 |",
    ]
