"""The commands that begin a rescue, or show what it would be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from rescue_virt.cli import messages, output, present
from rescue_virt.cli.interrupts import interrupted_as, stop_listening
from rescue_virt.cli.invocation import Invocation, shared_options
from rescue_virt.cli.options import (
    ImageChoices,
    RescueChoices,
    guest_argument,
    image_options,
    rescue_options,
)
from rescue_virt.cli.settling import write_outcome
from rescue_virt.errors import BadRequest
from rescue_virt.model import RescueDomain, RescuePlan, RescueRequest

if TYPE_CHECKING:
    from rescue_virt.cli.engine import Engine


@click.command()
@guest_argument
@rescue_options
@shared_options
@click.pass_obj
def rescue(invocation: Invocation, guest: str, **given: Unpack[RescueChoices]) -> None:
    """Boot GUEST once from another image, its own disks beside it.

    The guest is stopped only when everything else is ready.  Whatever fails is undone.
    """
    generated = _no_password_given(given)
    engine = invocation.engine()
    request = engine.request(guest, given)
    if given["dry_run"]:
        _write_dry_run(invocation, engine, request)
        return
    with engine.connect(messages.steps()) as rescuer:
        with interrupted_as(f"guest {guest} is as it was"):
            outcome = rescuer.enter(request)
            stop_listening()
        password = request.credentials.password if generated else None
        write_outcome(invocation, rescuer, outcome, password=password)


@click.command()
@click.argument("guest", metavar="FILE|GUEST")
@image_options
@click.option("--diff", is_flag=True, help="Show what changes, as a unified diff.")
@shared_options
@click.pass_obj
def xml(invocation: Invocation, guest: str, *, diff: bool, **given: Unpack[ImageChoices]) -> None:
    """Print the XML that the rescue of a guest would run with.

    With a FILE of domain XML (`-` is stdin) libvirt is not needed.  Nothing is created.
    """
    engine = invocation.engine()
    request = engine.request_for_preview(guest, given)
    text = _read(guest)
    if text is None:
        with engine.connect(messages.steps()) as rescuer:
            plan, domain = rescuer.preview(request)
    else:
        plan, domain = engine.preview_file(text, request)
    _write_xml(invocation, engine, plan, domain, diff=diff)


def _no_password_given(given: RescueChoices) -> bool:
    said = (given["password"] is not None, given["password_file"], given["password_stdin"])
    if sum(map(bool, said)) > 1:
        raise click.UsageError("give one of --password, --password-file and --password-stdin")
    return not any(said)


def _read(guest: str) -> str | None:
    """The text of the file that `guest` names, if it names one."""
    try:
        if guest == "-":
            return sys.stdin.buffer.read().decode()
        path = Path(guest)
        if path.is_dir() or not path.exists():
            return None
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise BadRequest(f"{guest} is not UTF-8 text: give the XML of a libvirt domain") from exc


def _write_dry_run(invocation: Invocation, engine: Engine, request: RescueRequest) -> None:
    with engine.connect(messages.steps()) as rescuer:
        plan, domain = rescuer.preview(request)
    view = present.plan(plan, domain)
    difference = engine.difference(plan, domain)
    if invocation.as_json:
        output.write_json(view | {"diff": difference})
    else:
        output.write(f"{output.fields(view)}\n\n{difference}")


def _write_xml(
    invocation: Invocation, engine: Engine, plan: RescuePlan, domain: RescueDomain, *, diff: bool
) -> None:
    if plan.why_late:
        messages.say(
            f"rescue-virt: {plan.guest.label} gets its own disks only when the rescue guest is up, "
            f"as {plan.why_late}"
        )
    key, text = "xml", engine.shown(domain)
    if diff:
        key, text = "diff", engine.difference(plan, domain)
    if invocation.as_json:
        output.write_json(present.plan(plan, domain) | {key: text})
    else:
        output.write(text.rstrip("\n"))
