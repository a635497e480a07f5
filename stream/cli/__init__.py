"""The command line: one program, ``ztf-stream``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: run a command, turn our own errors into a sentence and an exit status."""
    from stream.cli.main import run

    sys.exit(run())
