"""One directory per rescued guest: its files, and the record that says how far it has come."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oslo_concurrency import lockutils

from rescue_virt import durable
from rescue_virt.errors import BrokenRecord, GuestBusy, RescueVirtError
from rescue_virt.model import (
    Attach,
    DomainXml,
    Draft,
    Evidence,
    GuestUuid,
    Originals,
    Owner,
    Phase,
    RescueDomain,
    RescueSession,
)
from rescue_virt.settings import Settings

log = logging.getLogger(__name__)

_RECORD = "session.json"
_ORIGINAL = "original.xml"
_RESCUE = "rescue.json"


class Sessions:
    """The sessions of one state directory."""

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.sessions_dir
        self._locks = settings.locks_dir

    def directory(self, guest: GuestUuid) -> Path:
        return self._directory / guest

    @contextmanager
    def lock(self, guest: GuestUuid, name: str) -> Iterator[None]:
        """One command at a time works on a guest; a killed one's lock is free again.

        :raises GuestBusy: at once, if another command holds it.
        """
        durable.make_directory(self._locks)
        lock = lockutils.lock(
            f"guest-{guest}", external=True, lock_path=str(self._locks), blocking=False
        )
        try:
            with lock:
                yield
        except lockutils.AcquireLockFailedException as exc:
            raise GuestBusy(
                f"guest {name} is being worked on by another rescue-virt command: "
                f"wait for it, or interrupt it"
            ) from exc

    # --- making ----------------------------------------------------------------------------

    @contextmanager
    def draft(self, guest: GuestUuid) -> Iterator[Draft]:
        """A session's directory, which vanishes unless `keep` was called."""
        directory = self.directory(guest)
        durable.make_directory(self._directory)
        self._remove_draft(directory)
        durable.make_directory(directory)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            yield Draft(directory=directory, session_id=str(uuid.uuid4()), since=now)
        finally:
            self._remove_draft(directory)

    def keep(self, session: RescueSession, *, original: str, rescue: RescueDomain) -> RescueSession:
        """Write the record: from here on the session exists, whatever crashes."""
        durable.write(session.directory / _ORIGINAL, original)
        domain = {"xml": rescue.xml, "late": list(rescue.late)}
        durable.write(session.directory / _RESCUE, json.dumps(domain))
        return self._write(session)

    def mark(self, session: RescueSession, **changes: Any) -> RescueSession:
        """Replace the record by one with `changes`; returns that one."""
        return self._write(dataclasses.replace(session, **changes))

    def forget(self, session: RescueSession) -> None:
        """Remove the session's files, and its record last.

        :raises RescueVirtError: if one cannot be removed.
        """
        try:
            for path in session.directory.iterdir():
                if path.name not in {_RECORD, _ORIGINAL}:
                    _remove(path)
            (session.directory / _ORIGINAL).unlink(missing_ok=True)
            (session.directory / _RECORD).unlink(missing_ok=True)
            session.directory.rmdir()
        except OSError as exc:
            raise RescueVirtError(
                f"{session.label}: the files of its rescue cannot be removed: {exc}"
            ) from exc
        durable.sync_directory(self._directory)
        log.info("%s: session %s forgotten", session.name, session.id)

    # --- reading ---------------------------------------------------------------------------

    def find(self, guest: GuestUuid) -> RescueSession | None:
        return self._read(self.directory(guest))

    def find_by_name(self, guest: str) -> RescueSession | None:
        """The session of a guest by name or UUID, whether or not libvirt still knows it."""
        return next((s for s in self.all() if guest in {s.name, s.guest}), None)

    def all(self) -> list[RescueSession]:
        """Every session whose record can be read."""
        found = [self._read_or_error(path) for path in self._directories()]
        return [session for session in found if isinstance(session, RescueSession)]

    def unreadable(self) -> list[BrokenRecord]:
        """What is wrong with the others."""
        found = [self._read_or_error(path) for path in self._directories()]
        return [error for error in found if isinstance(error, BrokenRecord)]

    def abandoned_drafts(self) -> list[GuestUuid]:
        """Guests whose session directory has no record: somebody died before keeping it."""
        paths = self._directories()
        return [GuestUuid(path.name) for path in paths if not (path / _RECORD).exists()]

    def drop_draft(self, guest: GuestUuid) -> None:
        self._remove_draft(self.directory(guest))

    def original(self, session: RescueSession) -> DomainXml | None:
        """The definition as it was; None when the session has been all but forgotten."""
        try:
            return DomainXml((session.directory / _ORIGINAL).read_text())
        except FileNotFoundError:
            return None

    def rescue_domain(self, session: RescueSession) -> RescueDomain:
        domain = json.loads((session.directory / _RESCUE).read_text())
        return RescueDomain(xml=DomainXml(domain["xml"]), late=tuple(domain["late"]))

    # --- helpers ---------------------------------------------------------------------------

    def _remove_draft(self, directory: Path) -> None:
        if directory.is_dir() and not (directory / _RECORD).exists():
            shutil.rmtree(directory)

    def _directories(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(path for path in self._directory.iterdir() if path.is_dir())

    def _read_or_error(self, directory: Path) -> RescueSession | BrokenRecord | None:
        try:
            return self._read(directory)
        except BrokenRecord as exc:
            return exc

    def _write(self, session: RescueSession) -> RescueSession:
        record = dataclasses.asdict(session)
        record["directory"] = str(session.directory)
        record["console_log"] = str(session.console_log)
        durable.write(session.directory / _RECORD, json.dumps(record, indent=1) + "\n")
        log.info("%s: session is %s", session.name, session.phase)
        return session

    def _read(self, directory: Path) -> RescueSession | None:
        try:
            return _session(json.loads((directory / _RECORD).read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as exc:
            raise BrokenRecord(
                f"session {directory} has an unreadable record; the guest's own definition in "
                f"libvirt is untouched: read {directory / _ORIGINAL}, then remove the directory",
                guest=directory.name,
            ) from exc


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def boot_id() -> str:
    """A name of this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _session(record: dict[str, Any]) -> RescueSession:
    return RescueSession(
        **record
        | {
            "guest": GuestUuid(record["guest"]),
            "directory": Path(record["directory"]),
            "console_log": Path(record["console_log"]),
            "phase": Phase(record["phase"]),
            "owner": Owner(record["owner"]),
            "password": Evidence(record["password"]),
            "attach": Attach(record["attach"]),
            "originals": Originals(record["originals"]),
            "ssh_keys": tuple(record["ssh_keys"]),
            "snapshots": tuple(record["snapshots"]),
            "chains": {target: tuple(chain) for target, chain in record["chains"].items()},
        }
    )
