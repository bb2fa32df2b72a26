"""The `pixart` command line: one module a command, each with `HELP`, `add` (its options) and `run`."""

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Protocol, cast

from engine.backends import CompileError
from engine.bundle import BundleError
from engine.client import WorkerFailed
from engine.request import InvalidRequest
from server import logs
from server.cli.options import settings
from server.keys import KeysError
from server.pictures import PictureError
from server.settings import Settings, SettingsError

FAILURES = (
    BundleError,
    CompileError,
    InvalidRequest,
    KeysError,
    PictureError,
    SettingsError,
    WorkerFailed,
    OSError,
)
COMMANDS = ("serve", "generate", "compile", "bench", "doctor", "keys")


class Command(Protocol):
    """What a command's module holds. Its heavy imports stand in `run`, so that `--help` is quick."""

    HELP: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Settings], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exit status 1: a failure that the user can mend; 2: a wrong command line; 130: Ctrl-C."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        chosen = settings(options)
        logs.configure(chosen.log_format, chosen.log_level)
        for name in Settings.unknown():
            logging.getLogger(__name__).warning("%s is not a setting and is ignored", name)
        command.run(options, chosen)
    except FAILURES as error:
        sys.exit(f"pixart: {error}")
    except KeyboardInterrupt:
        print("pixart: interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Not sys.exit: threads of a runtime in the middle of a call would be waited for, or abort the process.
        os._exit(128 + signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pixart", description="A low-latency inference server for PixArt-δ.")
    parser.add_argument("--version", action="version", version=version("pixart-delta-server"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = cast(Command, importlib.import_module(f"server.cli.{name}"))
        subparser = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add(subparser)
        subparser.set_defaults(command=command)
    return parser
