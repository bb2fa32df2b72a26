"""API keys: a file of their hashes, and what each may do. `server/auth.py` asks for them.

A key is 256 random bits, which nobody finds by trying, so a fast hash (salted SHA-256) hides it as well as a slow one
would, and costs a request microseconds. Passwords would need a slow one; these are none.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
KEY = re.compile(r"pixart-([0-9a-f]{16})-[A-Za-z0-9_-]{43}")


class KeysError(ValueError):
    """The file of keys cannot be used; the message names it."""


@dataclass(frozen=True)
class Key:
    """One holder: `id` is the key's public part. `rate` is in requests a second; 0 (as in `concurrency`): no limit."""

    name: str
    id: str
    salt: str
    hash: str
    rate: float = 0.0
    concurrency: int = 0

    def matches(self, key: str) -> bool:
        """Whether `key` is this one; takes the same time whether it is or not."""
        return hmac.compare_digest(_hash(self.salt, key), self.hash)


def create(name: str, rate: float = 0.0, concurrency: int = 0) -> tuple[str, Key]:
    """A new key, to be shown once, and what is kept of it."""
    public, salt = secrets.token_hex(8), secrets.token_hex(16)
    key = f"pixart-{public}-{secrets.token_urlsafe(32)}"
    return key, Key(name, public, salt, _hash(salt, key), rate, concurrency)


def _hash(salt: str, key: str) -> str:
    return hashlib.sha256(salt.encode() + key.encode()).hexdigest()


def read(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        KeysError: it cannot be read, or is no file of keys.
    """
    try:
        entries = json.loads(path.read_text())["keys"]
        keys = [Key(**entry) for entry in entries]
        for key in keys:
            check(key)
        if len({key.id for key in keys}) < len(keys):
            raise ValueError("two keys have one id")
        return keys
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise KeysError(f"{path}: is not a file of keys ({error})") from error


def check(key: Key) -> None:
    """Whether a key's fields are what they should be.

    Raises:
        ValueError: one is not.
    """
    if not isinstance(key.name, str) or not _NAME.fullmatch(key.name):
        raise ValueError(f"name {key.name!r} is not 1 to 64 letters, digits, dots, hyphens or underscores")
    if not all(isinstance(text, str) for text in (key.id, key.salt, key.hash)):
        raise ValueError(f"the key of {key.name} has no id, salt or hash")
    if isinstance(key.rate, bool) or not isinstance(key.rate, int | float) or not 0 <= key.rate < 1e6:
        raise ValueError(f"rate {key.rate!r} is not a number from 0 to 1000000")
    if isinstance(key.concurrency, bool) or not isinstance(key.concurrency, int) or not 0 <= key.concurrency < 10**6:
        raise ValueError(f"concurrency {key.concurrency!r} is not a whole number from 0 to 1000000")


def write(path: Path, keys: list[Key]) -> None:
    """Replace the file at once, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        json.dump({"keys": [asdict(key) for key in keys]}, file, indent=1)
        file.write("\n")
    fresh.replace(path)
