"""What a command found or did, as an object with stable keys; text and JSON are made from it."""

from __future__ import annotations

import shlex
from typing import Any

from rescue_virt.cli.invocation import Invocation
from rescue_virt.cli.messages import printable
from rescue_virt.model import (
    Attach,
    LiveState,
    Originals,
    RescueDomain,
    RescuePlan,
    RescueSession,
    RescueStatus,
    RunState,
)

View = dict[str, Any]


def session(found: RescueSession) -> View:
    return {
        "guest": found.name,
        "uuid": found.guest,
        "phase": found.phase,
        "owner": found.owner,
        "image": found.image,
        "digest": found.digest,
        "since": found.since,
        "user": found.user,
        "password": found.password,
        "original_disks": found.originals,
    }


def status(found: RescueStatus) -> View:
    return session(found.session) | {
        "state": _state(found.live),
        "agent": found.live is not None and found.live.agent,
        "console": found.access.console,
        "addresses": list(found.access.addresses),
        "note": found.note,
    }


def commands(found: RescueSession, addresses: tuple[str, ...], invocation: Invocation) -> View:
    """What to type to log in, and to end the rescue."""
    name = shlex.quote(found.name)
    logins = [f"ssh {shlex.quote(printable(f'{found.user}@{address}'))}" for address in addresses]
    return {
        "log_in": [invocation.typed(f"rescue-virt console {name}"), *logins],
        "end": invocation.typed(f"rescue-virt unrescue {name}"),
    }


def plan(decided: RescuePlan, domain: RescueDomain) -> View:
    guest = decided.guest
    return {
        "guest": guest.domain.name,
        "uuid": guest.domain.uuid,
        "state": _word(guest.run_state),
        "image": decided.image.name,
        "digest": str(decided.image.digest) if decided.image.digest else None,
        "layout": decided.layout,
        "rescue_disk": f"{decided.target} ({decided.device} on the {decided.bus} bus)",
        "original_disks": _when(decided),
        "why_pending": decided.why_late,
        "attached_late": len(domain.late),
        "left_out": sorted(decided.dropped),
    }


def given_back(found: RescueSession, live: LiveState | None) -> View:
    return {"guest": found.name, "uuid": found.guest, "state": _state(live)}


def _when(decided: RescuePlan) -> str:
    late = decided.attach is Attach.LATE
    return Originals.PENDING if late else Originals.ATTACHED


def _state(live: LiveState | None) -> str:
    return "undefined" if live is None else _word(live.run_state)


def _word(state: RunState) -> str:
    return "off" if state is RunState.SHUTOFF else state.value
