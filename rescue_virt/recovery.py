"""Finishes or undoes what an interrupted run left."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from rescue_virt import sessions
from rescue_virt.errors import GuestBusy, RescueVirtError
from rescue_virt.model import GuestUuid, Owner, Phase, RescueSession
from rescue_virt.rescue import LEAVE_TIMEOUT, Rescuer
from rescue_virt.settings import OnHostReboot

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What was done for one guest; `error` says why nothing could be."""

    guest: str
    done: str
    error: RescueVirtError | None = None


def recover(rescuer: Rescuer, owner: Owner, policy: OnHostReboot) -> list[Recovered]:
    """Mend every session of `owner`; a guest that another command works on is left to it."""
    drafts = [_drop(rescuer, uuid) for uuid in rescuer.sessions.abandoned_drafts()]
    mended = [
        _mend(rescuer, session, policy)
        for session in rescuer.sessions.all()
        if session.owner is owner and session.uri in {"", rescuer.host.uri()}
    ]
    broken = [
        Recovered(guest=error.guest, done="not recovered", error=error)
        for error in rescuer.sessions.unreadable()
    ]
    return [*drafts, *mended, *broken]


def _drop(rescuer: Rescuer, uuid: GuestUuid) -> Recovered:
    try:
        with rescuer.sessions.lock(uuid, uuid):
            rescuer.sessions.drop_draft(uuid)
    except GuestBusy as exc:
        return Recovered(guest=uuid, done=f"left alone: {exc}")
    return Recovered(guest=uuid, done="removed files of a rescue that never began")


def _mend(rescuer: Rescuer, session: RescueSession, policy: OnHostReboot) -> Recovered:
    try:
        with rescuer.locked(session.guest) as current:
            return Recovered(guest=session.name, done=_by_phase(rescuer, current, policy))
    except GuestBusy as exc:
        return Recovered(guest=session.name, done=f"left alone: {exc}")
    except Exception as exc:  # noqa: BLE001 - the others must be mended all the same
        log.warning("%s: not recovered: %s", session.name, exc)
        error = exc if isinstance(exc, RescueVirtError) else RescueVirtError(f"{exc!r}")
        return Recovered(guest=session.name, done="not recovered", error=error)


def _by_phase(rescuer: Rescuer, session: RescueSession, policy: OnHostReboot) -> str:
    if session.phase in {Phase.SWAPPING, Phase.BOOTING}:
        rescuer.undo(session, RescueVirtError("it was interrupted"))
        return "undone: given back as it was"
    if session.phase is Phase.RESTORING:
        rescuer.end(session, force_off=False, timeout=LEAVE_TIMEOUT)
        return "finished: given back"
    live = rescuer.host.look(session.guest)
    up = live if live is not None and live.is_up else None
    if session.boot_id == sessions.boot_id() or (up and up.session_id == session.id):
        return "in rescue: nothing to recover"
    return _after_host_reboot(rescuer, session, policy, runs=up is not None)


def _after_host_reboot(
    rescuer: Rescuer, session: RescueSession, policy: OnHostReboot, *, runs: bool
) -> str:
    """The host's reboot ended the rescue guest; `runs` if the original was started since."""
    if runs and policy is OnHostReboot.STAY:
        return "left alone: the original was started after the host's reboot"
    if policy is OnHostReboot.END:
        rescuer.end(session, force_off=False, timeout=0)
        return "given back, as the host was rebooted"
    rescuer.restart(session, wait=False, timeout=0)
    return "in rescue again, as the host was rebooted"
