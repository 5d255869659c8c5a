"""Notes what a rescue guest was given, and looks at it again before it is left."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping

from rescue_virt import durable, way_back
from rescue_virt.errors import WrongState
from rescue_virt.libvirt import facts
from rescue_virt.libvirt.host import Host
from rescue_virt.model import LiveState, Phase, RescueSession
from rescue_virt.sessions import Sessions, boot_id

log = logging.getLogger(__name__)


def live(host: Host, session: RescueSession) -> LiveState:
    """The rescue guest as it runs.

    :raises WrongState: if it does not.
    """
    found = host.look(session.guest)
    if found is None or found.session_id != session.id or not found.is_up:
        name = shlex.quote(session.name)
        raise WrongState(f"{session.label} is off: rescue-virt resume {name}")
    return found


def note(host: Host, sessions: Sessions, session: RescueSession, **changes: Phase) -> RescueSession:
    """Record the source chains that the running rescue guest has now."""
    chains = live(host, session).chains
    own = f"{session.directory}/"
    behind = {path for chain in chains.values() for path in chain[1:] if not path.startswith(own)}
    bases = {path: time for path in behind if (time := durable.modified(path)) is not None}
    return sessions.mark(session, chains=chains, bases=bases, **changes)


def is_stopping(session: RescueSession, found: LiveState) -> bool:
    """Whether what runs is still the original that was told to stop, in this boot of the host."""
    same_run = found.run is not None and found.run == session.stopping
    return same_run and session.boot_id == boot_id()


def note_leaving(
    sessions: Sessions, session: RescueSession, found: LiveState | None
) -> RescueSession:
    """Record that the rescue is being left; a full disk must not stop that.

    What was snapshotted until now has been looked at, and is no surprise later.
    """
    seen = tuple(found.snapshots) if found else ()
    try:
        return sessions.mark(session, phase=Phase.RESTORING, snapshots=seen)
    except OSError as exc:
        log.warning("%s: its record cannot be written: %s", session.label, exc)
        return session


def check_way_back(
    host: Host, sessions: Sessions, session: RescueSession, found: LiveState | None
) -> None:
    """:raises WayBackFailed: if leaving now would lose something."""
    way_back.check(
        session,
        found,
        definition=_definition(host, sessions, session),
        bases={path: durable.modified(path) for path in session.bases},
    )


def check_same_disks(host: Host, sessions: Sessions, session: RescueSession) -> None:
    """:raises WrongState: if the guest's definition has gone over to other disks meanwhile."""
    original = sessions.original(session)
    given = facts.chains(original) if original else {}
    way_back.check_same_disks(session, _definition(host, sessions, session), given)


def _definition(
    host: Host, sessions: Sessions, session: RescueSession
) -> Mapping[str, tuple[str, ...]]:
    """The source chains of what the guest goes back to: kept by us if it was undefined."""
    definition = host.definition(session.guest)
    if definition is None or way_back.names_rescue(session, definition):
        definition = sessions.original(session)
    return facts.chains(definition) if definition else {}
