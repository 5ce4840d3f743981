"""The command line: `fastgrow COMMAND --help` describes each command."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error is printed as one line on standard error.

    Args:
        arguments: the words after `fastgrow`; None reads them from `sys.argv`.

    Returns:
        The exit status: 0 for success, 1 for an error, 2 for a wrong command line, 130 if the user
        stopped the command.
    """
    import typer

    from fastgrow.cli.app import app
    from fastgrow.errors import FastgrowError, Interrupted

    try:
        result = app(args=arguments, prog_name="fastgrow", standalone_mode=False)
        # An early exit such as --help arrives as the returned status, and so does, in some releases
        # of typer, Ctrl-C.
        status = result if isinstance(result, int) else 0
        return _fail("stopped", status) if status == 130 else status
    except (typer.Abort, KeyboardInterrupt):
        return _fail("stopped", 130)
    except Interrupted as error:
        return _fail(str(error), 130)
    except BrokenPipeError:
        # The reader (such as `| head`) closed the pipe. Without this, Python would print the error
        # again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except FastgrowError as error:
        return _fail(str(error), 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        # A wrong command line. The exception class is click's in some releases of typer and a
        # private copy of it in others; both have this method.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if message().startswith("Usage:"):
            # A command group was called without a subcommand: the message is its help text.
            print(message(), file=sys.stderr)
            return 2
        return _fail(f"{message()} (see `{_command(error)} --help`)", 2)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Turn Ctrl-C into a message that the same command resumes the run."""
    from fastgrow.errors import Interrupted

    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("stopped; run the same command again to resume") from None


def _fail(message: str, status: int) -> int:
    print(f"fastgrow: {' '.join(message.split())}", file=sys.stderr)
    return status


def _command(error: object) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "fastgrow"
