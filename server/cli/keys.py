"""`pixart keys`: who may use the server."""

import argparse
import dataclasses
from pathlib import Path

from server import keys
from server.keys import KeysError
from server.settings import Settings

HELP = "Add, list and remove API keys."


def add(parser: argparse.ArgumentParser) -> None:
    """Three actions on one file."""
    parser.add_argument("--file", type=Path, help="file of keys (the setting api_keys)")
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    new = actions.add_parser("add", help="make a key and print it, this once; the file keeps only its hash")
    new.add_argument("name", help="its holder: letters, digits, dots, hyphens, underscores")
    new.add_argument("--rate", type=float, default=0.0, metavar="N", help="requests a second (0: no limit)")
    new.add_argument("--concurrency", type=int, default=0, metavar="M", help="requests at once (0: no limit)")
    actions.add_parser("list", help="names, ids and limits")
    old = actions.add_parser("remove", help="withdraw a key; a running server notices within seconds")
    old.add_argument("name", help="its holder")


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Print to standard output what was asked for.

    Raises:
        KeysError: it cannot be done.
    """
    path: Path | None = options.file or settings.api_keys
    if path is None:
        raise KeysError("which file? Name it with --file or PIXART_API_KEYS")
    known = keys.read(path) if path.exists() or options.action != "add" else []
    if options.action == "list":
        for key in known:
            print(f"{key.name}\tid {key.id}\trate {key.rate:g}\tconcurrency {key.concurrency}")
        return
    named = [key for key in known if key.name == options.name]
    if options.action == "remove":
        if not named:
            raise KeysError(f"{path}: has no key of {options.name}")
        keys.write(path, [key for key in known if key.name != options.name])
        return
    if named:
        raise KeysError(f"{path}: {options.name} has a key already; remove it first")
    text, key = keys.create(options.name)
    key = dataclasses.replace(key, rate=options.rate, concurrency=options.concurrency)
    try:
        keys.check(key)
    except ValueError as error:
        raise KeysError(str(error)) from error
    keys.write(path, [*known, key])
    print(text)
