"""The captioned pictures: which subjects there are, how they are split, how they look on a colour."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.data.colors import BACKGROUNDS
from training.data.sources import CAPTIONS, PICTURES, fetch
from training.files import written_whole

GROUPS = {
    "smileys": 0,
    "people": 1,
    "animals": 3,
    "food": 4,
    "travel": 5,
    "activities": 6,
    "objects": 7,
    "symbols": 8,
    "flags": 9,
}


@dataclass(frozen=True)
class Subject:
    """One pictured thing: its English label, further tags, and the group that it belongs to."""

    label: str
    tags: tuple[str, ...]
    group: str
    hexcode: str


@dataclass(frozen=True)
class EmojiSet:
    """Subjects and their pictures.

    `pictures` is uint8 [N, 4, S, S]: RGB multiplied by alpha, then alpha; composition on a colour
    is then one multiply-add, and resizing leaves no dark fringe.
    """

    subjects: tuple[Subject, ...]
    pictures: NDArray[np.uint8]

    @property
    def size(self) -> int:
        return int(self.pictures.shape[-1])

    def digest(self) -> str:
        """Of all pictures and what is known of them."""
        digest = hashlib.sha256(repr(self.subjects).encode())
        digest.update(np.ascontiguousarray(self.pictures).data)
        return digest.hexdigest()

    def composite(self, index: Tensor, color: Tensor) -> Tensor:
        """Pictures `index` [B] on colours [B, 3] in 0..1 → float32 [B, 3, S, S] in -1..1."""
        return composite(torch.from_numpy(self.pictures)[index], color)


def composite(picture: Tensor, color: Tensor) -> Tensor:
    """Premultiplied uint8 [B, 4, S, S] over colours [B, 3] in 0..1 → float32 [B, 3, S, S] in -1..1."""
    rgba = picture.float() / 255
    return (rgba[:, :3] + (1 - rgba[:, 3:]) * color[:, :, None, None]) * 2 - 1


def held_out(key: str, share: float) -> bool:
    """Whether `key` falls into a held-out share: by hash, so it depends on nothing but the name."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def is_held_out_picture(subject: Subject, share: float = 0.06) -> bool:
    """Pictures that no stage sees: the control branch is judged on their edges."""
    return held_out(f"picture/{subject.hexcode}", share)


def is_held_out_pair(subject: Subject, color: str, share: float = 0.1) -> bool:
    """Subject-colour pairs that no stage sees: the background measure draws from these too."""
    return held_out(f"pair/{subject.hexcode}/{color}", share)


def background_colors() -> Tensor:
    """The named colours in order, float32 [C, 3] in 0..1."""
    return torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32) / 255


def _picture(path: Path, size: int, margin: int) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        inner = size - 2 * margin
        small = image.convert("RGBA").convert("RGBa").resize((inner, inner), Image.Resampling.BOX)
    canvas = np.zeros((4, size, size), np.uint8)
    canvas[:, margin : size - margin, margin : size - margin] = np.asarray(small).transpose(2, 0, 1)
    return canvas


def load(cache: Path, size: int = 128, groups: tuple[str, ...] = tuple(GROUPS)) -> EmojiSet:
    """Load every emoji of `groups` that has a picture, in the order of the data set.

    Skin-tone variants are left out: they would make one subject in three a near copy of another.
    """
    stored = cache / f"pictures-{size}.npz"
    if not stored.exists():
        _prepare(cache, stored, size)
    with np.load(stored) as archive:
        rows = json.loads(str(archive["subjects"]))
        pictures = archive["pictures"]
    keep = [i for i, row in enumerate(rows) if row["group"] in groups]
    subjects = tuple(
        Subject(rows[i]["label"], tuple(rows[i]["tags"]), rows[i]["group"], rows[i]["hexcode"]) for i in keep
    )
    return EmojiSet(subjects, np.ascontiguousarray(pictures[keep]))


def _prepare(cache: Path, stored: Path, size: int) -> None:
    assets = fetch(PICTURES, cache) / "assets"
    entries = json.loads((fetch(CAPTIONS, cache) / "en" / "data.json").read_text())
    names = {number: name for name, number in GROUPS.items()}
    rows: list[dict[str, object]] = []
    pictures: list[NDArray[np.uint8]] = []
    for entry in sorted(entries, key=lambda entry: int(entry.get("order", 0))):
        code = entry["hexcode"].lower()
        path = next(
            (p for p in (assets / f"{code}.webp", assets / f"{code.replace('-fe0f', '')}.webp") if p.exists()), None
        )
        if path is None or entry.get("group") not in names:
            continue
        rows.append(
            {
                "label": entry["label"].lower().replace("’", "'"),
                "tags": [tag.lower() for tag in entry.get("tags", [])],
                "group": names[entry["group"]],
                "hexcode": entry["hexcode"],
            }
        )
        pictures.append(_picture(path, size, margin=size // 16))
        if len(rows) % 200 == 0:
            print(f"reading pictures: {len(rows)}", flush=True)
    # An open file, because numpy would give the scratch path another ending.
    with written_whole(stored) as scratch, scratch.open("wb") as file:
        np.savez(file, subjects=json.dumps(rows), pictures=np.stack(pictures))
