"""What is written when a rescue guest has been started or given its disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rescue_virt.cli import output, present
from rescue_virt.cli.invocation import Invocation
from rescue_virt.errors import NotInTime, RescueVirtError
from rescue_virt.model import Access, Outcome, RescueSession, RescueStatus
from rescue_virt.secret import Secret

if TYPE_CHECKING:
    from rescue_virt.rescue import Rescuer


def write_outcome(
    invocation: Invocation, rescuer: Rescuer, outcome: Outcome, *, password: Secret | None = None
) -> None:
    """Write how the rescue stands and what to type next; `password` only if it was generated.

    :raises NotInTime: afterwards, if something did not come in time.
    """
    session = outcome.session
    found = _status(rescuer, session)
    view = present.status(found) | {"ready": outcome.ready}
    if password is not None:
        view["generated_password"] = password.reveal()
    commands = present.commands(session, found.access.addresses, invocation)
    if invocation.as_json:
        output.write_json(view | {"problem": outcome.problem, "commands": commands})
    else:
        output.write(f"{output.fields(view)}\n\n{_commands(commands)}")
    if outcome.problem:
        raise NotInTime(outcome.problem)


def _status(rescuer: Rescuer, session: RescueSession) -> RescueStatus:
    try:
        return rescuer.status(session.guest)
    except RescueVirtError as exc:
        # The rescue stands, and the password has to be printed whatever else fails.
        access = Access(console=None, addresses=())
        return RescueStatus(session=session, live=None, access=access, note=str(exc))


def _commands(commands: present.View) -> str:
    logins = "\n".join(f"  {command}" for command in commands["log_in"])
    return f"to log in:\n{logins}\nto end it:\n  {commands['end']}"
