"""Send Ctrl-C to a separate process at a reproducible moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Everything that is saved is renamed into place. The process then sends the signal to itself, once.
_PROGRAM = """
import fnmatch, os, signal, sys

pattern, replace = sys.argv.pop(1), os.replace

def replace_and_interrupt(source, target, **options):
    replace(source, target, **options)
    if fnmatch.fnmatch(os.fspath(target), pattern):
        os.replace = replace
        os.kill(os.getpid(), signal.SIGINT)

os.replace = replace_and_interrupt
"""


def interrupted(
    program: str, pattern: str, arguments: Sequence[str | Path], **options: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run a Python program that gets SIGINT once a path of the pattern has been written.

    Args:
        program: source of the program.
        pattern: shell-style pattern for the whole path.
        arguments: `sys.argv[1:]` of the program.
        options: options of `subprocess.run`.
    """
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM + program, pattern, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
