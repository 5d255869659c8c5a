"""The story of a rescue: what happens to a guest, in order.

    enter   read the guest and the image, decide, prepare new files, then swap the guest once
    settle  wait until the rescue guest is up, then give it its password and its late disks
    leave   give the guest back; also what undoes a failed `enter`, and what follows a crash

The original's persistent definition is never written: `createXML` with the UUID of a stopped guest
changes only what runs.  So the way back needs no file and no process of ours.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rescue_virt import console_log, plan, process, sessions, storage, way_back
from rescue_virt.errors import Interrupted, NotInTime, RescueVirtError, WayBackFailed, WrongState
from rescue_virt.images import seed
from rescue_virt.images.store import ImageStore
from rescue_virt.libvirt import domain_xml, facts
from rescue_virt.libvirt.host import Host
from rescue_virt.model import (
    Access,
    Evidence,
    GuestFacts,
    GuestUuid,
    Options,
    Originals,
    Outcome,
    Phase,
    Ready,
    RescueDomain,
    RescuePlan,
    RescueRequest,
    RescueSession,
    RescueStatus,
)
from rescue_virt.preview import preview
from rescue_virt.sessions import Sessions

log = logging.getLogger(__name__)

_LOOK = 0.5  # seconds between two looks at a booting guest
_AGENT_GRACE = 3.0  # seconds that an agent may come after the login prompt: it alone can confirm
LEAVE_TIMEOUT = 60.0  # seconds that a rescue guest gets to shut down, unless somebody says


def silent(_step: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Rescuer:
    """The engine.  `report` is told each step in one short phrase."""

    host: Host
    images: ImageStore
    sessions: Sessions
    report: Callable[[str], None] = silent

    # --- entering --------------------------------------------------------------------------

    def enter(self, request: RescueRequest) -> Outcome:
        """Rescue a guest.  Until the swap nothing touches it; whatever fails later is undone.

        :raises WayBackFailed: if undoing failed too.
        """
        uuid, name = self.host.find(request.guest)
        with self.sessions.lock(uuid, name):
            self._check_is_free(uuid, name)
            guest = self._inspect(uuid, request)
            try:
                session = self._prepare(guest, request)
                return self._swap(session, request)
            except BaseException as exc:
                kept = self.sessions.find(uuid)
                if kept is None:
                    raise
                self.undo(kept, exc)
                if isinstance(exc, Interrupted) or not isinstance(exc, RescueVirtError):
                    raise
                # Whatever it was: it failed, and everything is as before.
                raise RescueVirtError(str(exc)) from exc

    def preview(self, request: RescueRequest) -> tuple[RescuePlan, RescueDomain]:
        """Decide and judge as `enter` does, and create nothing."""
        uuid, name = self.host.find(request.guest)
        self._check_is_free(uuid, name)
        guest = self._inspect(uuid, request)
        directory = self.sessions.directory(uuid)
        decided, domain = preview(guest, request, images=self.images, directory=directory)
        self.host.validate(guest.domain.name, domain.xml)
        self.images.check_space(decided)
        return decided, domain

    def _check_is_free(self, uuid: GuestUuid, name: str) -> None:
        if self.sessions.find(uuid):
            raise WrongState(f"guest {name} is in rescue already: rescue-virt status {name}")

    def _inspect(self, uuid: GuestUuid, request: RescueRequest) -> GuestFacts:
        """:raises Refused: if the guest may not be rescued as it is."""
        guest = self.host.inspect(uuid)
        runs_nova = process.is_running("nova-compute")
        plan.check_guest(guest, nova_runs_here=runs_nova, options=request.options)
        return guest

    def _prepare(self, guest: GuestFacts, request: RescueRequest) -> RescueSession:
        """Everything that can fail, while the guest still runs; ends with the record."""
        with self.sessions.draft(guest.domain.uuid) as draft:
            self.images.check_source(guest, request.image)
            self.report("fetching the image")
            image = self.images.fetch(request.image, draft.directory / "base.img")
            found = self.images.findings(guest, image)
            options = request.options
            decided = plan.make_plan(guest, image, findings=found, options=options, draft=draft)
            domain = domain_xml.render(decided)
            self.host.validate(guest.domain.name, domain.xml)
            self.images.check_space(decided)
            self.report("preparing the disks")
            hashed = seed.password_hash(request.credentials.password)
            self.images.prepare(decided, request.credentials, hashed)
            # The download may have taken an hour.
            plan.check_unchanged(guest, self._inspect(guest.domain.uuid, request))
            session = plan.begin_session(decided, request, hashed)
            return self.sessions.keep(session, original=guest.xml, rescue=domain)

    def _swap(self, session: RescueSession, request: RescueRequest) -> Outcome:
        """The only step that the guest feels."""
        session = self._stop_original(session, request.options)
        session = self._start(session, Phase.BOOTING)
        outcome = Outcome(session=session)
        if request.options.wait:
            outcome = self._settle(session, request.options.ready_timeout)
        session = self.sessions.mark(outcome.session, phase=Phase.ACTIVE)
        return dataclasses.replace(outcome, session=session)

    def _stop_original(self, session: RescueSession, options: Options) -> RescueSession:
        live = self.host.look(session.guest)
        if live is not None and live.is_up:
            self.report("stopping the guest")
            boot = sessions.boot_id()
            session = self.sessions.mark(session, stopping=live.run, boot_id=boot)
        self.host.stop(session.guest, options)
        return session

    def _start(self, session: RescueSession, phase: Phase) -> RescueSession:
        """Start the rescue domain and note what it was given; `phase` is what it then is in."""
        self.report("starting the rescue guest")
        session = self.sessions.mark(
            session,
            stopping=None,
            boot_id=sessions.boot_id(),
            console_offset=console_log.size(session.console_log),
            originals=plan.originals_at_boot(session.attach),
        )
        self.host.run(session.name, self.sessions.rescue_domain(session).xml)
        return storage.note(self.host, self.sessions, session, phase=phase)

    # --- settling --------------------------------------------------------------------------

    def _settle(self, session: RescueSession, timeout: float) -> Outcome:
        """Wait until the guest is up, then hand it what it could not have at boot."""
        self.report("waiting until the rescue guest is ready")
        ready, problem = self._wait(session, timeout)
        if ready is Ready.AGENT:
            session = self._confirm(session)
        if ready and session.originals is Originals.PENDING:
            try:
                session = self._plug(session)
            except RescueVirtError as exc:
                session = self._session(session.guest)
                problem = f"{exc}: try rescue-virt attach {shlex.quote(session.name)}"
        return Outcome(session=session, ready=ready, problem=problem)

    def _wait(self, session: RescueSession, timeout: float) -> tuple[Ready | None, str | None]:
        deadline = time.monotonic() + timeout
        prompt_since: float | None = None
        while True:
            live = self.host.look(session.guest)
            if live is None or not live.is_up:
                return None, f"{session.label} powered off while it booted"
            if live.agent:
                return Ready.AGENT, None
            now = time.monotonic()
            if console_log.shows_login(session.console_log, session.console_offset):
                prompt_since = prompt_since or now
            if prompt_since and now - prompt_since >= _AGENT_GRACE:
                return Ready.LOGIN, None
            if now >= deadline and not prompt_since:
                return None, f"{session.label} was not ready within {timeout:.0f} s"
            time.sleep(_LOOK)

    def _confirm(self, session: RescueSession) -> RescueSession:
        try:
            self.host.set_access(
                session.guest, session.user, session.password_hash, session.ssh_keys
            )
        except RescueVirtError as exc:
            # The seed has it as well; what is lost is the proof.
            log.warning("%s", exc)
            return session
        return self.sessions.mark(session, password=Evidence.CONFIRMED)

    def _plug(self, session: RescueSession) -> RescueSession:
        """Plug the original's disks, the root first, after making a reboot harmless.

        A reset keeps plugged disks, so the guest would come up on the broken root.
        """
        self.report("attaching the original disks")
        self.host.end_at_reboot(session.guest)
        late = self.sessions.rescue_domain(session).late
        for disk in late:
            if facts.disk_target(disk) not in storage.live(self.host, session).chains:
                self.host.plug(session.guest, disk)
            session = storage.note(self.host, self.sessions, session)
        return self.sessions.mark(session, originals=Originals.ATTACHED)

    # --- staying ---------------------------------------------------------------------------

    def attach(self, guest: str, timeout: float) -> Outcome:
        """Give a rescue guest the disks that it was to get late.

        :raises NotInTime: if the guest is not ready; plugged earlier, it might boot from them.
        """
        with self._locked_active(guest) as session:
            if session.originals is Originals.ATTACHED:
                raise WrongState(f"{session.label} has its original disks attached already")
            storage.live(self.host, session)
            storage.check_same_disks(self.host, self.sessions, session)
            outcome = self._settle(session, timeout)
            if outcome.session.originals is Originals.PENDING:
                raise NotInTime(f"{outcome.problem}; its original disks are still pending")
            return outcome

    def resume(self, guest: str, *, wait: bool, timeout: float) -> Outcome:
        """Start a rescue guest that was powered off, late again if it was late."""
        with self._locked_active(guest) as session:
            return self.restart(session, wait=wait, timeout=timeout)

    def restart(self, session: RescueSession, *, wait: bool, timeout: float) -> Outcome:
        """Resume, with the guest's lock held."""
        live = self.host.look(session.guest)
        if live is not None and live.is_up:
            raise WrongState(f"{session.label} runs: there is nothing to resume")
        storage.check_way_back(self.host, self.sessions, session, live)
        storage.check_same_disks(self.host, self.sessions, session)
        # It stays active all the while: what was complete once is kept, whatever ends this.
        if live is not None and live.managed_save and live.session_id == session.id:
            # Saved in rescue (as libvirt-guests does at host shutdown): this goes on where it was.
            session = self.sessions.mark(session, boot_id=sessions.boot_id())
            self.host.start(session.guest)
        else:
            session = self._start(session, Phase.ACTIVE)
        return self._settle(session, timeout) if wait else Outcome(session=session)

    def status(self, guest: str) -> RescueStatus:
        """What the session of `guest` and libvirt say together."""
        return self._status(self._session(guest))

    def status_of_all(self) -> list[RescueStatus]:
        return [self._status(session) for session in self.sessions.all()]

    def _status(self, session: RescueSession) -> RescueStatus:
        live = self.host.look(session.guest)
        access = Access(console=None, addresses=())
        if live is not None and live.session_id == session.id and live.is_up:
            access = self.host.access(session.guest)
        return RescueStatus(
            session=session, live=live, access=access, note=plan.describe(session, live)
        )

    # --- leaving ---------------------------------------------------------------------------

    def leave(self, guest: str, *, force_off: bool, timeout: float) -> RescueSession:
        """Give the guest back: its definition, its disks, its run state; no file of ours stays.

        :raises NotInTime: if the rescue guest did not shut down; it goes on, in rescue.
        :raises WayBackFailed: if its storage is not what it was; nothing was stopped.
        """
        with self.locked(guest) as session:
            try:
                self.end(session, force_off=force_off, timeout=timeout)
            except (WayBackFailed, NotInTime, Interrupted):
                raise
            except RescueVirtError as exc:
                again = (f"rescue-virt unrescue {shlex.quote(session.name)}",)
                raise WayBackFailed(
                    f"{session.label} could not be given back: {exc}", commands=again
                ) from exc
            return session

    def end(self, session: RescueSession, *, force_off: bool, timeout: float) -> None:
        """Leave, with the guest's lock held.  Idempotent: whatever interrupts it, run it again."""
        live = self.host.look(session.guest)
        storage.check_way_back(self.host, self.sessions, session, live)
        before = session.phase
        session = storage.note_leaving(self.sessions, session, live)
        self._define_again(session)
        if live is not None and live.session_id == session.id:
            if live.managed_save:
                self.host.drop_managed_save(session.guest)
            elif live.is_up:
                self._stop_rescue(session, before, force_off=force_off, timeout=timeout)
        elif live is not None and storage.is_stopping(session, live):
            # It was told to stop and may do so any time: it has to be off to be started again.
            with suppress(RescueVirtError):  # what cannot be stopped runs, as it is to
                self.host.stop(session.guest, Options())
        self._give_back(session)
        self.sessions.forget(session)

    def _define_again(self, session: RescueSession) -> None:
        """Before the stop, which takes an undefined guest's definition and TPM with it."""
        definition, original = self.host.definition(session.guest), self.sessions.original(session)
        is_gone = definition is None and session.persistent
        if original and (is_gone or (definition and way_back.names_rescue(session, definition))):
            self.host.define(session.name, original, autostart=session.autostart)

    def _stop_rescue(
        self, session: RescueSession, before: Phase, *, force_off: bool, timeout: float
    ) -> None:
        self.report("stopping the rescue guest")
        if force_off:
            self.host.force_off(session.guest)
            return
        stopped = False
        try:
            stopped = self.host.ask_to_stop(session.guest, timeout)
        finally:
            if not stopped:
                self.sessions.mark(session, phase=before)
        if not stopped:
            raise NotInTime(
                f"{session.label} did not shut down within {timeout:.0f} s and stays in rescue: "
                f"shut it down from inside, or pull its plug with "
                f"rescue-virt unrescue --force-off {shlex.quote(session.name)}"
            )

    def _give_back(self, session: RescueSession) -> None:
        if not session.was_running:
            return
        self.report("starting the original guest")
        original = self.sessions.original(session)
        live = self.host.look(session.guest)
        if session.persistent:
            self.host.start(session.guest)
        elif original and (live is None or not live.is_up):
            self.host.run(session.name, original)

    def undo(self, session: RescueSession, cause: BaseException) -> None:
        """Leave by force: nobody has worked in this rescue guest yet."""
        self.report("undoing: giving the guest back as it was")
        try:
            self.end(session, force_off=True, timeout=0)
        except WayBackFailed:
            raise
        except Exception as exc:
            raise WayBackFailed(
                f"{session.label} could not be rescued ({cause}), and giving it back failed: {exc}",
                commands=(f"rescue-virt unrescue --force-off {shlex.quote(session.name)}",),
            ) from exc

    # --- helpers ---------------------------------------------------------------------------

    @contextmanager
    def locked(self, guest: str) -> Iterator[RescueSession]:
        """The session of a guest, read under the guest's lock."""
        found = self._session(guest)
        with self.sessions.lock(found.guest, found.name):
            yield self._session(found.guest)

    @contextmanager
    def _locked_active(self, guest: str) -> Iterator[RescueSession]:
        with self.locked(guest) as session:
            if session.phase is not Phase.ACTIVE:
                how = f"unfinished ({session.phase})"
                raise WrongState(f"{session.label} has a rescue that is {how}: rescue-virt recover")
            yield session

    def _session(self, guest: str) -> RescueSession:
        """The session of a guest by name or UUID, even if libvirt no longer knows it."""
        session = self.sessions.find_by_name(guest)
        if session is None:
            uuid, name = self.host.find(guest)
            self.sessions.find(uuid)  # says so if there is one that cannot be read
            raise WrongState(f"guest {name} is not in rescue: see rescue-virt list")
        if session.uri and session.uri != self.host.uri():
            where = f"on {session.uri}: give -c {session.uri}"
            raise WrongState(f"{session.label} is in rescue {where}")
        return session
