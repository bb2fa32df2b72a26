"""What tests of compiling have in common."""

from dataclasses import replace
from pathlib import Path

from engine.bundle import Bundle
from engine.compile import CompilePlan
from engine.profiles import make_profiles


def plan(folder: Path, **changes: object) -> CompilePlan:
    profiles = tuple(make_profiles(Bundle.load("models/zoo/emoji").manifest, (), 1))
    return replace(CompilePlan("tensorrt_rtx", "fp16", profiles, folder, ("sm80",)), **changes)  # type: ignore[arg-type]


def only(bundle: Bundle, *names: str) -> Bundle:
    """The bundle as if it had these modules alone."""
    modules = {name: spec for name, spec in bundle.manifest.modules.items() if name in names}
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"modules": modules}))
