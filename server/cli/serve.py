"""`pixart serve`."""

import argparse

from server.cli import options as setting_options
from server.progress import progress
from server.settings import Settings

HELP = "Answer HTTP and WebSocket requests."


def add(parser: argparse.ArgumentParser) -> None:
    """Every setting is an option."""
    setting_options.add(parser)


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Serve until a signal comes."""
    from server.serve import serve  # the HTTP packages take long to import, and only this command needs them

    serve(settings, progress)
