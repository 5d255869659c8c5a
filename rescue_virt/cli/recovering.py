"""The command that mends what interrupted runs left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rescue_virt.cli import messages, output
from rescue_virt.cli.failures import commands_of
from rescue_virt.cli.interrupts import interrupted_as
from rescue_virt.cli.invocation import Invocation, shared_options
from rescue_virt.errors import RescueVirtError, WayBackFailed

if TYPE_CHECKING:
    from rescue_virt.recovery import Recovered


@click.command()
@shared_options
@click.pass_obj
def recover(invocation: Invocation) -> None:
    """Finish or undo whatever interrupted runs of rescue-virt left."""
    engine = invocation.engine()
    with (
        engine.connect(messages.steps()) as rescuer,
        interrupted_as(f"to go on: {invocation.typed('rescue-virt recover')}"),
    ):
        done = engine.recover(rescuer)
    if invocation.as_json:
        output.write_json({"guests": [_view(mended) for mended in done]})
    elif done:
        output.write("\n".join(f"{mended.guest}: {mended.done}" for mended in done))
    else:
        messages.say("nothing to recover")
    _raise_for([mended.error for mended in done if mended.error])


def _view(mended: Recovered) -> dict[str, str | None]:
    error = str(mended.error) if mended.error else None
    return {"guest": mended.guest, "done": mended.done, "error": error}


def _raise_for(errors: list[RescueVirtError]) -> None:
    if errors:
        commands = tuple(command for error in errors for command in commands_of(error))
        raise WayBackFailed("; ".join(map(str, errors)), commands=commands)
