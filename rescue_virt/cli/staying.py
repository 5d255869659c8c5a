"""The commands that keep a guest in rescue, and the one that ends it."""

from __future__ import annotations

import shlex

import click

from rescue_virt.cli import messages, output, present
from rescue_virt.cli.interrupts import interrupted_as
from rescue_virt.cli.invocation import Invocation, shared_options
from rescue_virt.cli.options import force_off_option, guest_argument, timeout_option, wait_option
from rescue_virt.cli.settling import write_outcome


@click.command()
@guest_argument
@force_off_option("Pull the plug of the rescue guest instead of asking it to shut down.")
@timeout_option("Seconds the rescue guest gets to shut down (else 60).")
@shared_options
@click.pass_obj
def unrescue(invocation: Invocation, guest: str, *, force_off: bool, timeout: float | None) -> None:
    """Give GUEST back: definition, disks and run state as before.

    A rescue guest that does not shut down in time is left in rescue.
    """
    engine = invocation.engine()
    seconds = engine.leave_timeout if timeout is None else timeout
    again = invocation.typed(f"rescue-virt unrescue {shlex.quote(guest)}")
    with (
        engine.connect(messages.steps()) as rescuer,
        interrupted_as(f"to go on where it ended: {again}"),
    ):
        session = rescuer.leave(guest, force_off=force_off, timeout=seconds)
        view = present.given_back(session, rescuer.host.look(session.guest))
    if invocation.as_json:
        output.write_json(view)
    else:
        output.write(f"guest {session.name} is given back and {view['state']}")


@click.command()
@guest_argument
@timeout_option("Seconds to wait until the rescue guest is ready (else 300).")
@shared_options
@click.pass_obj
def attach(invocation: Invocation, guest: str, *, timeout: float | None) -> None:
    """Attach the disks of GUEST that are still pending."""
    engine = invocation.engine()
    seconds = engine.settings.ready_timeout if timeout is None else timeout
    with engine.connect(messages.steps()) as rescuer:
        with interrupted_as(f"guest {guest} stays in rescue"):
            outcome = rescuer.attach(guest, seconds)
        write_outcome(invocation, rescuer, outcome)


@click.command()
@guest_argument
@wait_option
@timeout_option("Seconds to wait until the rescue guest is ready (else 300).")
@shared_options
@click.pass_obj
def resume(invocation: Invocation, guest: str, *, wait: bool, timeout: float | None) -> None:
    """Start the rescue of GUEST again after it was powered off."""
    engine = invocation.engine()
    seconds = engine.settings.ready_timeout if timeout is None else timeout
    with engine.connect(messages.steps()) as rescuer:
        with interrupted_as(f"guest {guest} stays in rescue"):
            outcome = rescuer.resume(guest, wait=wait, timeout=seconds)
        write_outcome(invocation, rescuer, outcome)
