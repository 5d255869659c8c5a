"""The commands that look at guests in rescue: all of them, one of them, or its console."""

from __future__ import annotations

import click

from rescue_virt.cli import messages, output, present
from rescue_virt.cli.invocation import Invocation, shared_options
from rescue_virt.cli.options import guest_argument

_COLUMNS = ("guest", "phase", "state", "image", "since", "note")


@click.command()
@click.argument("guest", required=False)
@shared_options
@click.pass_obj
def status(invocation: Invocation, guest: str | None) -> None:
    """Show how the rescue of GUEST stands, or of every guest in rescue."""
    if guest is None:
        views = _all(invocation)
        _write(invocation, views, "\n\n".join(output.fields(view) for view in views))
        return
    with invocation.engine().connect(messages.steps()) as rescuer:
        view = present.status(rescuer.status(guest))
    if invocation.as_json:
        output.write_json(view)
    else:
        output.write(output.fields(view))


@click.command("list")
@shared_options
@click.pass_obj
def list_all(invocation: Invocation) -> None:
    """List the guests in rescue."""
    views = _all(invocation)
    _write(invocation, views, output.table(views, _COLUMNS))


@click.command()
@guest_argument
@shared_options
@click.pass_obj
def console(invocation: Invocation, guest: str) -> None:
    """Open the serial console of GUEST; ^] leaves it."""
    engine = invocation.engine()
    with engine.connect(messages.steps()) as rescuer:
        _, name = rescuer.host.find(guest)
        uri = rescuer.host.uri()
    engine.open_console(uri, name)


def _all(invocation: Invocation) -> list[present.View]:
    with invocation.engine().connect(messages.steps()) as rescuer:
        return [present.status(found) for found in rescuer.status_of_all()]


def _write(invocation: Invocation, views: list[present.View], text: str) -> None:
    if invocation.as_json:
        output.write_json({"guests": views})
    elif views:
        output.write(text)
    else:
        messages.say("no guest is in rescue")
