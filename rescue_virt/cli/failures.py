"""Turns what a command raises into one sentence on stderr, and an exit code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from rescue_virt.cli.invocation import Invocation
from rescue_virt.cli.messages import printable, say
from rescue_virt.errors import Interrupted, RescueVirtError, WayBackFailed


@contextmanager
def reported(invocation: Invocation) -> Iterator[None]:
    """:raises click.exceptions.Exit: with the code of whatever error came from inside."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except RescueVirtError as exc:
        _end(invocation, str(exc), code=exc.exit_code, commands=commands_of(exc))
    except KeyboardInterrupt:
        _end(invocation, "interrupted", code=Interrupted.exit_code)
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        _end(invocation, f"{where}{exc.strerror or exc}")
    except Exception as exc:  # noqa: BLE001 - the last line of defence
        what = " ".join(f"{type(exc).__name__}: {exc}".split())
        _end(invocation, f"{what}: this is a bug; run again with -vv")


def commands_of(error: RescueVirtError) -> tuple[str, ...]:
    """What a person has to type after this error."""
    return error.commands if isinstance(error, WayBackFailed) else ()


def _end(
    invocation: Invocation, message: str, *, code: int = 1, commands: tuple[str, ...] = ()
) -> NoReturn:
    if invocation.verbosity > 1:
        say(traceback.format_exc().rstrip())
    say(f"rescue-virt: {printable(message)}")
    for command in commands:
        say(f"    {invocation.typed(command)}")
    raise click.exceptions.Exit(code)
