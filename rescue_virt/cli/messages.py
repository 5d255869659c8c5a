"""Everything that is said on stderr: steps, errors and the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

import click

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def say(text: str) -> None:
    """Write a line to stderr; that nobody reads it any more must not end a rescue."""
    with suppress(OSError):
        click.echo(text, err=True)


def printable(text: str) -> str:
    """`text` on one line; what guests and servers say reaches no terminal as control codes."""
    return "".join(character if character.isprintable() else "?" for character in text)


def steps() -> Callable[[str], None]:
    """What tells each step as it begins, with the seconds since this call."""
    start = time.monotonic()

    def report(step: str) -> None:
        say(f"[{time.monotonic() - start:5.1f} s] {step}")

    return report


def show_log(verbosity: int) -> None:
    """Show warnings; effects too if `verbosity` is 1, and everything from 2 on."""
    logger = logging.getLogger("rescue_virt")
    logger.setLevel(_LEVELS[min(verbosity, 2)])
    if not any(isinstance(handler, _Sayer) for handler in logger.handlers):
        logger.addHandler(_Sayer())


class _Sayer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"rescue-virt: {record.levelname.lower()}: {printable(self.format(record))}")
