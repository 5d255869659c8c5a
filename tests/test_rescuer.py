"""What a rescue does to a guest, in order, and that it can be undone after every step."""

import dataclasses
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeHost, FakeImages, Story, WatchedSessions, domain, make_image

from rescue_virt import rescue
from rescue_virt.errors import (
    ImageError,
    Interrupted,
    NotFound,
    NotInTime,
    Refused,
    RescueVirtError,
    WayBackFailed,
    WrongState,
)
from rescue_virt.images.store import ImageStore
from rescue_virt.libvirt import facts
from rescue_virt.model import (
    Attach,
    Evidence,
    Findings,
    GuestUuid,
    ImageRef,
    Layout,
    Options,
    Originals,
    Outcome,
    Owner,
    Phase,
    Ready,
    RescueRequest,
    RescueSession,
    RunState,
    Target,
)
from rescue_virt.rescue import Rescuer
from rescue_virt.secret import Credentials, Secret
from rescue_virt.sessions import Sessions
from rescue_virt.settings import Settings

UUID = GuestUuid("6f1f4f5e-9a0c-4f0a-8d0f-3f3e2b1c0d01")
ORIGINAL = domain("pc")
LATE = Findings(seeds=frozenset({Target("hda")}), duplicate="both are backed by /srv/base.img")


@dataclasses.dataclass
class Lab:
    """A host with the guest web1, which is running, and the engine on it."""

    host: FakeHost
    images: FakeImages
    sessions: WatchedSessions
    rescuer: Rescuer
    story: Story
    steps: list[str]
    directory: Path

    @property
    def session(self) -> RescueSession:
        session = Sessions.find(self.sessions, UUID)
        assert session is not None
        return session

    @property
    def effects(self) -> list[str]:
        return self.story.effects

    def request(self, **options: object) -> RescueRequest:
        credentials = Credentials(user="root", password=Secret("secret"), ssh_keys=("ssh-x AA",))
        given = Options(wait=False, **options) if "wait" not in options else Options(**options)  # type: ignore[arg-type]
        image = ImageRef(location="/images/rescue.qcow2")
        return RescueRequest(guest="web1", image=image, credentials=credentials, options=given)

    def enter(self, **options: object) -> Outcome:
        outcome = self.rescuer.enter(self.request(**options))
        self.story.effects.clear()
        return outcome

    def enter_late(self) -> Outcome:
        self.images.found = LATE
        return self.enter()

    def leave(self, *, force_off: bool = False, timeout: float = 60) -> RescueSession:
        return self.rescuer.leave("web1", force_off=force_off, timeout=timeout)

    def fail(self, call: str, error: BaseException, *, after: bool = False) -> None:
        """Raise at the next call of that name (the start of it)."""

        def hook(name: str) -> None:
            if name.startswith(call):
                self.heal()
                raise error

        if after:
            self.story.after = hook
        else:
            self.story.before = hook

    def heal(self) -> None:
        self.story.before = self.story.after = lambda _call: None

    def change_live(self, before: str, after: str) -> None:
        xml = self.host.live[UUID]
        assert before in xml
        self.host.put("live", UUID, xml.replace(before, after))

    def prompt(self) -> None:
        with self.session.console_log.open("ab") as log:
            log.write(b"\r\nDebian GNU/Linux 12 rescue ttyS0\r\n\r\nrescue login: ")

    def assert_as_before(self, *, running: bool = True) -> None:
        assert self.host.live == ({UUID: ORIGINAL} if running else {})
        assert self.host.saved == {}
        assert not self.directory.exists()


def open_lab(path: Path) -> Lab:
    story = Story()
    host = FakeHost(path / "libvirt.json", story)
    settings = Settings(state_dir=path / "state")
    sessions, images = WatchedSessions(settings, story), FakeImages(story)
    steps: list[str] = []
    rescuer = Rescuer(host, images, sessions, steps.append)
    return Lab(host, images, sessions, rescuer, story, steps, sessions.directory(UUID))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(rescue, "_LOOK", 0.01)
    monkeypatch.setattr(rescue, "_AGENT_GRACE", 0.01)
    monkeypatch.setattr("rescue_virt.process.is_running", lambda _name: False)
    monkeypatch.setattr("os.fsync", lambda _fd: None)
    lab = open_lab(tmp_path)
    lab.host.put("defined", UUID, ORIGINAL)
    lab.host.put("live", UUID, ORIGINAL)
    return lab


@pytest.fixture
def transient(lab: Lab) -> Lab:
    lab.host.put("defined", UUID, None)
    return lab


# --- entering --------------------------------------------------------------------------------


def test_nothing_touches_the_guest_before_everything_is_prepared_and_recorded(lab: Lab) -> None:
    lab.rescuer.enter(lab.request())
    assert lab.effects == [
        "fetch", "prepare", "keep", "stop", "run rescue", "mark booting", "mark active",
    ]  # fmt: skip
    checks = [
        c for c in lab.story.calls if c in {"check source", "validate", "check space", "stop"}
    ]
    assert checks == ["check source", "validate", "check space", "stop"]
    assert lab.steps == [
        "fetching the image", "preparing the disks", "stopping the guest",
        "starting the rescue guest",
    ]  # fmt: skip


def test_a_rescue_leaves_the_definition_alone_and_runs_the_rescue(lab: Lab) -> None:
    outcome = lab.enter()
    assert lab.host.defined == {UUID: ORIGINAL}
    assert facts.read(lab.host.live[UUID]).session_id == outcome.session.id
    assert lab.sessions.original(outcome.session) == ORIGINAL
    session = lab.session
    assert session == outcome.session
    assert (session.phase, session.was_running, session.persistent) == (Phase.ACTIVE, True, True)
    assert session.chains["vdb"] == ("/srv/guests/web1.snap2", "/srv/guests/web1.qcow2")
    assert (session.attach, session.originals) == (Attach.BOOT, Originals.ATTACHED)
    assert session.password is Evidence.INJECTED
    assert session.label == "guest web1"


def test_a_guest_that_was_off_is_rescued_without_a_stop_and_is_off_afterwards(lab: Lab) -> None:
    lab.host.put("live", UUID, None)
    lab.rescuer.enter(lab.request())
    assert "stop" not in lab.effects
    assert "stopping the guest" not in lab.steps
    lab.leave()
    lab.assert_as_before(running=False)
    assert "start" not in lab.effects


def test_force_off_is_passed_on(lab: Lab) -> None:
    lab.rescuer.enter(lab.request(force_off=True))
    assert "force off" in lab.effects


def test_a_guest_that_does_not_exist_is_not_found(lab: Lab) -> None:
    with pytest.raises(NotFound):
        lab.rescuer.enter(dataclasses.replace(lab.request(), guest="other"))


def test_a_guest_in_rescue_is_not_rescued_again(lab: Lab) -> None:
    lab.enter()
    with pytest.raises(WrongState, match="web1 is in rescue already: rescue-virt status web1"):
        lab.rescuer.enter(lab.request())
    assert lab.effects == []


def test_a_guest_that_must_not_be_stopped_costs_no_download(lab: Lab) -> None:
    lab.host.state = RunState.PAUSED
    with pytest.raises(Refused, match="paused"):
        lab.rescuer.enter(lab.request())
    assert lab.effects == []
    assert not lab.directory.exists()


def test_nova_s_guests_are_refused_where_nova_runs(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "_AGENT_GRACE", 0.01)
    monkeypatch.setattr("rescue_virt.process.is_running", lambda name: name == "nova-compute")
    nova = domain("nova").replace("0d08", "0d01")
    lab.host.put("defined", UUID, nova)
    with pytest.raises(Refused, match="nova-compute"):
        lab.rescuer.enter(dataclasses.replace(lab.request(), guest=UUID))


@pytest.mark.parametrize(
    "call", ["check source", "fetch", "findings", "validate", "check space", "prepare", "keep"]
)
def test_a_failure_before_the_swap_leaves_no_file_and_never_stops_the_guest(
    lab: Lab, call: str
) -> None:
    lab.fail(call, ImageError("no"))
    with pytest.raises(ImageError, match=r"^no$"):
        lab.rescuer.enter(lab.request())
    assert "stop" not in lab.story.calls
    assert "look" not in lab.story.calls
    lab.assert_as_before()


def test_a_plan_that_is_refused_leaves_nothing(lab: Lab) -> None:
    lab.images.image = make_image(hw_architecture="aarch64")
    with pytest.raises(Refused, match="aarch64"):
        lab.rescuer.enter(lab.request())
    lab.assert_as_before()


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("call", ["stop", "run rescue", "mark booting", "mark active", "keep"])
@pytest.mark.parametrize("error", [RescueVirtError("no"), KeyboardInterrupt()])
def test_a_failure_in_the_swap_is_undone(
    lab: Lab, error: BaseException, call: str, after: bool, running: bool
) -> None:
    if not running:
        lab.host.put("live", UUID, None)
    lab.fail(call, error, after=after)
    with pytest.raises(type(error)):
        lab.rescuer.enter(lab.request())
    lab.assert_as_before(running=running)


@pytest.mark.parametrize("call", ["stop", "run rescue", "mark booting"])
def test_a_guest_that_had_snapshots_before_is_given_back_after_a_failed_swap(
    lab: Lab, call: str
) -> None:
    """They were not taken during the rescue, which has not begun."""
    lab.host.snapshots = {"old": ("/srv/guests/web1.snap1",), "last": ("/srv/guests/web1.snap2",)}
    lab.fail(call, RescueVirtError("no"))
    with pytest.raises(RescueVirtError, match=r"^no$"):
        lab.rescuer.enter(lab.request())
    lab.assert_as_before()


def test_a_transient_guest_that_could_not_be_rescued_runs_again(transient: Lab) -> None:
    transient.fail("run rescue", RescueVirtError("no"))
    with pytest.raises(RescueVirtError, match=r"^no$"):
        transient.rescuer.enter(transient.request())
    transient.assert_as_before()
    assert "run original" in transient.effects


def test_a_rescue_guest_that_is_off_at_once_is_undone(lab: Lab) -> None:
    def crash(call: str) -> None:
        if call == "run rescue":
            lab.host.put("live", UUID, None)

    lab.story.after = crash
    with pytest.raises(RescueVirtError, match="is off") as caught:
        lab.rescuer.enter(lab.request())
    assert caught.value.exit_code == 1
    lab.assert_as_before()


def test_a_rescue_that_cannot_be_undone_says_what_to_type(lab: Lab) -> None:
    def fail(call: str) -> None:
        if call in {"run rescue", "start"}:
            raise RescueVirtError(f"{call} failed")

    lab.story.before = fail
    with pytest.raises(WayBackFailed) as caught:
        lab.rescuer.enter(lab.request())
    assert str(caught.value) == (
        "guest web1 could not be rescued (run rescue failed), "
        "and giving it back failed: start failed"
    )
    assert caught.value.commands == ("rescue-virt unrescue --force-off web1",)
    assert lab.session.phase is Phase.RESTORING
    lab.heal()
    lab.leave(force_off=True)
    lab.assert_as_before()


def test_a_way_back_that_is_blocked_is_told_as_it_is(lab: Lab) -> None:
    def block(call: str) -> None:
        if call == "mark active":
            lab.host.jobs = ("vdb",)
            raise RescueVirtError("no")

    lab.story.before = block
    with pytest.raises(WayBackFailed, match="block job") as caught:
        lab.rescuer.enter(lab.request())
    assert caught.value.commands[0] == "virsh blockjob web1 vdb --info"
    assert "force off" not in lab.effects


def test_a_guest_saved_between_stop_and_start_is_given_back_as_it_was_saved(lab: Lab) -> None:
    def save(call: str) -> None:
        if call == "keep":
            lab.host.save_guest(UUID)

    lab.story.before = save
    with pytest.raises(RescueVirtError, match="saved meanwhile") as caught:
        lab.rescuer.enter(lab.request())
    assert caught.value.exit_code == 1
    assert "start saved" in lab.effects
    assert "drop managed save" not in lab.effects
    lab.assert_as_before()


def test_a_disk_that_moved_on_during_the_download_is_not_written_below_its_snapshot(
    lab: Lab,
) -> None:
    """A backup takes a snapshot while the image is fetched: the plan now names a backing file.

    Opened for writing, as the rescue guest would, the snapshot above it is destroyed.
    """
    snapshot = ORIGINAL.replace("web1.snap2", "web1.snap3")

    def back_up(call: str) -> None:
        if call == "fetch":
            lab.host.put("defined", UUID, snapshot)
            lab.host.put("live", UUID, snapshot)

    lab.story.before = back_up
    with pytest.raises(Refused, match="changed while its rescue was being prepared"):
        lab.rescuer.enter(lab.request())
    assert "run rescue" not in lab.effects
    assert lab.host.live == {UUID: snapshot}


def test_the_lock_is_held_from_the_first_look_to_the_end(lab: Lab) -> None:
    seen: list[str] = []

    def try_to_lock(call: str) -> None:
        with (
            pytest.raises(WrongState, match="another rescue-virt command"),
            Sessions(Settings(state_dir=lab.directory.parents[1])).lock(UUID, "web1"),
        ):
            pass
        seen.append(call)

    lab.story.before = lambda call: None if call == "find" else try_to_lock(call)
    lab.rescuer.enter(lab.request())
    assert seen[0] == "inspect"
    assert seen[-1] == "mark active"


def test_a_real_image_becomes_a_real_overlay(lab: Lab, tmp_path: Path) -> None:
    image = tmp_path / "rescue.qcow2"
    subprocess.run(
        ["/usr/bin/qemu-img", "create", "-q", "-f", "qcow2", str(image), "8M"], check=True
    )
    store = ImageStore(Settings(state_dir=lab.directory.parents[1]))
    rescuer = dataclasses.replace(lab.rescuer, images=store)
    request = dataclasses.replace(lab.request(), image=ImageRef(location=str(image)))
    session = rescuer.enter(request).session
    info = subprocess.run(
        ["/usr/bin/qemu-img", "info", "-U", str(lab.directory / "rescue.qcow2")],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert f"backing file: {lab.directory}/base.img" in info
    assert session.image == str(image)
    assert (session.digest or "").startswith("sha256:")
    rescuer.leave("web1", force_off=False, timeout=1)
    lab.assert_as_before()


def test_a_preview_decides_and_judges_and_creates_nothing(lab: Lab) -> None:
    plan, rendered = lab.rescuer.preview(lab.request(layout=Layout.STABLE))
    assert plan.layout is Layout.STABLE
    assert plan.directory == lab.directory
    assert facts.read(rendered.xml).session_id == "preview"
    assert lab.effects == []
    assert "validate" in lab.story.calls
    assert not lab.directory.parent.exists()


# --- settling --------------------------------------------------------------------------------


def test_a_login_prompt_shows_that_the_guest_is_ready(lab: Lab) -> None:
    def boot(call: str) -> None:
        if call == "look":
            lab.prompt()

    lab.story.after = boot
    outcome = lab.enter(wait=True)
    assert (outcome.ready, outcome.problem) == (Ready.LOGIN, None)
    assert outcome.session.password is Evidence.INJECTED


def test_an_agent_confirms_the_password(lab: Lab) -> None:
    lab.host.agent = True
    outcome = lab.rescuer.enter(lab.request(wait=True))
    assert outcome.ready is Ready.AGENT
    assert lab.session.password is Evidence.CONFIRMED
    assert lab.effects[-3:] == [
        "set password of root and 1 keys", "mark confirmed", "mark active",
    ]  # fmt: skip


def test_an_agent_that_refuses_the_password_leaves_it_injected(lab: Lab) -> None:
    lab.host.agent = True
    lab.fail("set password", RescueVirtError("the guest agent did not set the password"))
    outcome = lab.enter(wait=True)
    assert outcome.ready is Ready.AGENT
    assert outcome.problem is None
    assert lab.session.password is Evidence.INJECTED


def test_a_guest_that_is_not_ready_in_time_stays_in_rescue_and_it_is_said(lab: Lab) -> None:
    outcome = lab.enter(wait=True, ready_timeout=0.02)
    assert outcome.ready is None
    assert outcome.problem == "guest web1 was not ready within 0 s"
    assert lab.session.phase is Phase.ACTIVE


def test_a_guest_that_powers_off_while_it_boots_stays_in_rescue_and_it_is_said(lab: Lab) -> None:
    def power_off(call: str) -> None:
        if call == "mark booting":
            lab.host.put("live", UUID, None)

    lab.story.after = power_off
    outcome = lab.rescuer.enter(lab.request(wait=True))
    assert outcome.problem == "guest web1 powered off while it booted"
    assert lab.session.phase is Phase.ACTIVE


def test_an_earlier_login_prompt_in_the_guest_s_own_log_proves_nothing(
    lab: Lab, tmp_path: Path
) -> None:
    log = tmp_path / "serial.log"
    log.write_text("web1 login: ")
    logged = ORIGINAL.replace(
        "<serial type='pty'>", f"<serial type='pty'>\n      <log file='{log}' append='on'/>"
    )
    lab.host.put("defined", UUID, logged)
    lab.host.put("live", UUID, logged)
    outcome = lab.enter(wait=True, ready_timeout=0)
    assert outcome.ready is None
    assert (outcome.session.console_log, outcome.session.console_offset) == (log, 12)


def test_interrupting_the_wait_gives_the_guest_back(lab: Lab) -> None:
    def interrupt(call: str) -> None:
        if call == "look" and lab.story.calls[-2] == "look":
            lab.heal()
            raise Interrupted("interrupted")

    lab.story.before = interrupt
    with pytest.raises(Interrupted):
        lab.rescuer.enter(lab.request(wait=True))
    lab.assert_as_before()


# --- late ------------------------------------------------------------------------------------


def test_late_disks_come_when_the_guest_is_ready_the_root_first_after_reboots_are_harmless(
    lab: Lab,
) -> None:
    lab.images.found, lab.host.agent = LATE, True
    lab.rescuer.enter(lab.request(wait=True))
    assert lab.effects[-7:] == [
        "set password of root and 1 keys", "mark confirmed", "end at reboot", "plug vdb",
        "plug vdc", "mark attached", "mark active",
    ]  # fmt: skip
    session = lab.session
    assert session.originals is Originals.ATTACHED
    assert session.chains["vdb"][0] == "/srv/guests/web1.snap2"
    assert lab.host.reboot == {UUID: "destroy"}


def test_late_disks_never_come_by_a_mere_deadline(lab: Lab) -> None:
    lab.images.found = LATE
    outcome = lab.rescuer.enter(lab.request(wait=True, ready_timeout=0.02))
    assert outcome.session.originals is Originals.PENDING
    assert not [effect for effect in lab.effects if effect.startswith("plug")]
    with pytest.raises(NotInTime, match="not ready within 0 s; its original disks are still pend"):
        lab.rescuer.attach("web1", 0.02)
    assert not [effect for effect in lab.effects if effect.startswith("plug")]


@pytest.mark.parametrize("call", ["end at reboot", "plug vdb", "plug vdc"])
def test_disks_that_cannot_be_plugged_stay_pending_and_can_be_tried_again(
    lab: Lab, call: str
) -> None:
    lab.images.found, lab.host.agent = LATE, True
    lab.fail(call, RescueVirtError("no free slot"))
    outcome = lab.enter(wait=True)
    assert outcome.problem == "no free slot: try rescue-virt attach web1"
    assert outcome.session.originals is Originals.PENDING
    assert outcome.session.phase is Phase.ACTIVE

    outcome = lab.rescuer.attach("web1", 1)
    assert outcome.session.originals is Originals.ATTACHED
    live = [disk.target for disk in facts.read(lab.host.live[UUID]).disks]
    assert live == ["vda", "sda", "vdb", "vdc"]
    lab.leave()
    lab.assert_as_before()


def test_an_attach_that_was_interrupted_can_be_run_again(lab: Lab) -> None:
    lab.enter_late()
    lab.host.agent = True
    lab.fail("plug vdb", KeyboardInterrupt(), after=True)
    with pytest.raises(KeyboardInterrupt):
        lab.rescuer.attach("web1", 1)
    assert lab.rescuer.attach("web1", 1).session.originals is Originals.ATTACHED


def test_an_agent_that_comes_soon_after_the_prompt_still_confirms(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "_AGENT_GRACE", 5)
    looks = 0

    def boot(call: str) -> None:
        nonlocal looks
        looks += call == "look"
        if looks == 2:
            lab.prompt()
        lab.host.agent = looks == 5

    lab.story.before = boot
    assert lab.enter(wait=True).ready is Ready.AGENT


def test_an_attach_that_fails_says_why(lab: Lab) -> None:
    lab.enter_late()
    lab.host.agent = True
    lab.fail("plug", RescueVirtError("no free slot"))
    with pytest.raises(NotInTime, match="no free slot"):
        lab.rescuer.attach("web1", 1)


def test_attaching_what_is_attached_is_refused(lab: Lab) -> None:
    lab.enter()
    with pytest.raises(WrongState, match="attached already"):
        lab.rescuer.attach("web1", 1)


def test_nothing_is_attached_to_a_guest_that_is_off(lab: Lab) -> None:
    lab.enter_late()
    lab.host.put("live", UUID, None)
    with pytest.raises(WrongState, match="is off: rescue-virt resume web1"):
        lab.rescuer.attach("web1", 1)


def test_nothing_is_attached_to_the_original_that_was_started_by_hand(lab: Lab) -> None:
    lab.enter_late()
    lab.host.put("live", UUID, ORIGINAL)
    with pytest.raises(WrongState):
        lab.rescuer.attach("web1", 1)
    assert lab.effects == []


def test_a_partly_attached_guest_still_notices_a_snapshot_of_what_it_has(lab: Lab) -> None:
    lab.images.found, lab.host.agent = LATE, True
    lab.fail("plug vdc", RescueVirtError("no free slot"))
    lab.enter(wait=True)
    snapshot(lab)
    with pytest.raises(WayBackFailed, match="snapshot"):
        lab.leave()


# --- staying ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["attach", "resume"])
def test_an_unfinished_rescue_is_first_recovered(lab: Lab, command: str) -> None:
    session = lab.enter().session
    lab.sessions.mark(session, phase=Phase.RESTORING)
    with pytest.raises(WrongState, match=r"unfinished.*restoring.*rescue-virt recover"):
        run_command(lab, command)


def run_command(lab: Lab, command: str) -> None:
    if command == "attach":
        lab.rescuer.attach("web1", 1)
    else:
        lab.rescuer.resume("web1", wait=False, timeout=1)


def test_a_rescue_that_was_powered_off_is_started_again(lab: Lab) -> None:
    before = lab.enter().session
    lab.prompt()
    lab.host.put("live", UUID, None)
    outcome = lab.rescuer.resume("web1", wait=False, timeout=1)
    assert facts.read(lab.host.live[UUID]).session_id == before.id
    assert lab.session.phase is Phase.ACTIVE
    assert outcome.session.console_offset == lab.session.console_log.stat().st_size


def test_a_late_rescue_is_late_again(lab: Lab) -> None:
    lab.images.found, lab.host.agent = LATE, True
    lab.enter(wait=True)
    lab.host.put("live", UUID, None)
    outcome = lab.rescuer.resume("web1", wait=False, timeout=1)
    assert outcome.session.originals is Originals.PENDING
    assert "web1.snap2" not in lab.host.live[UUID]
    outcome = lab.rescuer.attach("web1", 1)
    assert outcome.session.originals is Originals.ATTACHED


def test_resuming_waits_and_attaches_where_that_is_wanted(lab: Lab) -> None:
    lab.enter_late()
    lab.host.put("live", UUID, None)
    lab.host.agent = True
    outcome = lab.rescuer.resume("web1", wait=True, timeout=1)
    assert outcome.ready is Ready.AGENT
    assert lab.session.originals is Originals.ATTACHED
    assert lab.session.phase is Phase.ACTIVE


def test_a_guest_saved_in_rescue_goes_on_where_it_was(lab: Lab) -> None:
    lab.enter()
    lab.host.save_guest(UUID)
    lab.rescuer.resume("web1", wait=False, timeout=1)
    assert "start saved" in lab.effects
    assert "run rescue" not in lab.effects


def test_a_guest_that_runs_has_nothing_to_resume(lab: Lab) -> None:
    lab.enter()
    with pytest.raises(WrongState, match="runs: there is nothing to resume"):
        lab.rescuer.resume("web1", wait=False, timeout=1)


def test_a_guest_that_was_undefined_and_is_off_can_be_resumed_and_given_back(lab: Lab) -> None:
    lab.enter()
    lab.host.put("live", UUID, None)
    lab.host.put("defined", UUID, None)
    lab.rescuer.resume("web1", wait=False, timeout=1)
    lab.leave()
    assert lab.host.defined == {UUID: ORIGINAL}
    lab.assert_as_before()


def test_interrupting_a_resume_keeps_the_rescue(lab: Lab) -> None:
    lab.enter()
    lab.host.put("live", UUID, None)

    def interrupt(call: str) -> None:
        if call == "look" and UUID in lab.host.live:
            lab.heal()
            raise KeyboardInterrupt

    lab.story.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        lab.rescuer.resume("web1", wait=True, timeout=1)
    assert lab.session.phase is Phase.ACTIVE
    assert facts.read(lab.host.live[UUID]).session_id == lab.session.id


def test_a_resume_that_fails_to_start_keeps_the_rescue(lab: Lab) -> None:
    lab.enter()
    lab.host.put("live", UUID, None)
    lab.fail("run rescue", RescueVirtError("no"))
    with pytest.raises(RescueVirtError, match=r"^no$"):
        lab.rescuer.resume("web1", wait=False, timeout=1)
    assert lab.session.phase is Phase.ACTIVE
    assert lab.directory.exists()


def test_a_resume_looks_at_the_storage_first(lab: Lab, tmp_path: Path) -> None:
    base = with_base(lab, tmp_path)
    lab.enter()
    lab.host.put("live", UUID, None)
    os.utime(base, ns=(1, 1))
    with pytest.raises(WayBackFailed, match="changed during the rescue"):
        lab.rescuer.resume("web1", wait=False, timeout=1)
    assert lab.host.live == {}


def test_a_resume_does_not_write_below_a_snapshot_that_the_definition_follows(lab: Lab) -> None:
    """The original was started by hand, a snapshot taken, and the guest shut off again."""
    lab.enter()
    lab.host.put("live", UUID, None)
    lab.host.put("defined", UUID, ORIGINAL.replace("web1.snap2", "web1.snap3"))
    with pytest.raises(RescueVirtError):
        lab.rescuer.resume("web1", wait=False, timeout=1)
    assert lab.host.live == {}


def test_status_says_how_to_log_in(lab: Lab) -> None:
    lab.enter()
    status = lab.rescuer.status("web1")
    assert status.live is not None
    assert status.live.is_up
    assert status.note == "in rescue"
    assert (status.access.console, status.access.addresses) == ("/dev/pts/7", ("192.0.2.7",))
    assert lab.rescuer.status_of_all() == [status]
    assert lab.rescuer.status(UUID) == status
    assert lab.effects == []


def test_status_of_a_rescue_that_is_off_names_no_console(lab: Lab) -> None:
    lab.enter()
    lab.host.put("live", UUID, None)
    status = lab.rescuer.status("web1")
    assert status.live is not None
    assert not status.live.is_up
    assert status.access.console is None
    assert "powered off: rescue-virt resume web1" in status.note


def test_a_guest_that_is_not_in_rescue_has_no_status_and_an_unknown_one_is_not_found(
    lab: Lab,
) -> None:
    with pytest.raises(WrongState, match="web1 is not in rescue: see rescue-virt list"):
        lab.rescuer.status("web1")
    with pytest.raises(NotFound, match="no guest other"):
        lab.rescuer.status("other")


# --- leaving ---------------------------------------------------------------------------------


def test_leaving_asks_the_rescue_guest_to_shut_down_and_starts_the_original(lab: Lab) -> None:
    lab.enter()
    lab.leave(timeout=42)
    assert lab.effects == ["mark restoring", "ask to stop within 42 s", "start", "forget"]
    lab.assert_as_before()


def test_leaving_by_force_pulls_the_plug(lab: Lab) -> None:
    lab.enter()
    lab.leave(force_off=True)
    assert lab.effects == ["mark restoring", "force off", "start", "forget"]


@pytest.mark.parametrize("phase", [Phase.ACTIVE, Phase.BOOTING])
def test_a_rescue_guest_that_does_not_shut_down_stays_in_rescue(lab: Lab, phase: Phase) -> None:
    lab.sessions.mark(lab.enter().session, phase=phase)
    lab.host.obeys = False
    with pytest.raises(NotInTime, match="rescue-virt unrescue --force-off web1"):
        lab.leave()
    assert lab.session.phase is phase
    assert facts.read(lab.host.live[UUID]).session_id == lab.session.id
    assert "force off" not in lab.effects


def test_a_guest_that_is_not_in_rescue_cannot_be_given_back(lab: Lab) -> None:
    with pytest.raises(WrongState, match="web1 is not in rescue"):
        lab.leave()
    lab.enter()
    lab.leave()
    with pytest.raises(WrongState, match="web1 is not in rescue"):
        lab.leave()
    lab.assert_as_before()


def test_a_guest_that_was_undefined_is_defined_before_the_stop(lab: Lab) -> None:
    lab.enter()
    lab.host.put("defined", UUID, None)
    lab.leave()
    assert lab.effects == [
        "mark restoring", "define", "ask to stop within 60 s", "start", "forget",
    ]  # fmt: skip
    assert lab.host.defined == {UUID: ORIGINAL}
    lab.assert_as_before()


def test_a_guest_that_was_undefined_while_it_was_off_is_defined_again(lab: Lab) -> None:
    lab.enter()
    lab.host.put("live", UUID, None)
    lab.host.put("defined", UUID, None)
    lab.leave()
    assert lab.host.defined == {UUID: ORIGINAL}
    lab.assert_as_before()


def test_a_guest_saved_in_rescue_loses_that_image_before_any_file_goes(lab: Lab) -> None:
    lab.enter()
    lab.host.save_guest(UUID)
    lab.leave()
    assert lab.effects == ["mark restoring", "drop managed save", "start", "forget"]
    lab.assert_as_before()


def test_a_saved_image_of_the_original_itself_is_kept(lab: Lab) -> None:
    lab.enter()
    lab.host.put("live", UUID, None)
    lab.host.put("saved", UUID, ORIGINAL)
    lab.leave()
    assert "drop managed save" not in lab.effects
    assert "start saved" in lab.effects


def test_an_original_that_was_started_by_hand_goes_on_running(lab: Lab) -> None:
    lab.enter()
    lab.host.put("live", UUID, ORIGINAL)
    lab.leave()
    assert lab.effects == ["mark restoring", "forget"]
    lab.assert_as_before()


def test_a_transient_guest_is_made_again(transient: Lab) -> None:
    transient.enter()
    transient.leave()
    assert transient.effects[-2:] == ["run original", "forget"]
    assert transient.host.defined == {}
    transient.assert_as_before()


def snapshot(lab: Lab) -> None:
    lab.change_live(
        "<source file='/srv/guests/web1.snap2'/>",
        "<source file='/srv/guests/during.qcow2'/><backingStore type='file'>"
        "<source file='/srv/guests/web1.snap2'/></backingStore>",
    )


@pytest.mark.parametrize("force_off", [True, False])
def test_a_snapshot_taken_in_rescue_stops_the_leaving_before_it_touches_anything(
    lab: Lab, force_off: bool
) -> None:
    lab.enter()
    snapshot(lab)
    with pytest.raises(WayBackFailed, match="snapshot was taken of disk vdb") as caught:
        lab.leave(force_off=force_off)
    assert "virsh blockcommit web1 vdb --base /srv/guests/web1.snap2" in caught.value.commands[0]
    assert lab.effects == []
    assert lab.session.phase is Phase.ACTIVE


def test_a_snapshot_that_was_committed_does_not_stop_a_leaving_that_was_interrupted(
    lab: Lab,
) -> None:
    """Its record outlives `blockcommit`; to commit its file again would bring back old blocks."""
    lab.enter()
    lab.host.snapshots = {"during": ("/srv/guests/during.qcow2",)}
    lab.fail("ask to stop", Interrupted("interrupted"), after=True)
    with pytest.raises(Interrupted):
        lab.leave()
    lab.leave()
    lab.assert_as_before()


def test_a_snapshot_is_noticed_after_the_rescue_was_powered_off(lab: Lab) -> None:
    lab.enter()
    lab.host.snapshots = {"during": ("/srv/guests/during.qcow2",)}
    lab.host.put("live", UUID, None)
    with pytest.raises(WayBackFailed, match="snapshot during was taken"):
        lab.leave()
    assert lab.effects == []


def with_base(lab: Lab, tmp_path: Path) -> Path:
    base = tmp_path / "base.qcow2"
    base.touch()
    xml = ORIGINAL.replace("/srv/guests/web1.qcow2", str(base))
    lab.host.put("defined", UUID, xml)
    lab.host.put("live", UUID, xml)
    return base


@pytest.mark.parametrize("change", [lambda p: os.utime(p, ns=(1, 1)), lambda p: p.unlink()])
def test_a_base_that_was_written_or_has_gone_stops_the_leaving(
    lab: Lab, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    base = with_base(lab, tmp_path)
    session = lab.enter().session
    assert list(session.bases) == [str(base)]
    lab.host.put("live", UUID, None)
    change(base)
    with pytest.raises(WayBackFailed, match=f"{base}, which only backs /srv/guests/web1.snap2"):
        lab.leave()
    assert lab.effects == []


def test_a_base_that_does_not_change_does_not_matter(lab: Lab, tmp_path: Path) -> None:
    with_base(lab, tmp_path)
    lab.enter()
    lab.leave()
    assert not lab.directory.exists()


EFFECTS_OF_LEAVING = [
    "mark restoring", "define", "ask to stop", "drop managed save", "start", "run original",
    "forget",
]  # fmt: skip
NOT_NEEDED = {
    "running": ("define", "drop managed save", "run original"),
    "undefined": ("drop managed save", "run original"),
    "saved": ("define", "ask to stop", "run original"),
    "off": ("define", "drop managed save", "ask to stop", "run original"),
    "was off": ("define", "drop managed save", "start", "run original"),
    "transient": ("define", "drop managed save", "start"),
}
CONDITIONS = ["running", "undefined", "saved", "off", "was off", "transient"]


def prepare_condition(lab: Lab, condition: str) -> bool:
    """Bring about what may have happened when a guest is given back; whether it was running."""
    if condition == "transient":
        lab.host.put("defined", UUID, None)
    if condition == "was off":
        lab.host.put("live", UUID, None)
    lab.enter()
    if condition == "undefined":
        lab.host.put("defined", UUID, None)
    if condition == "saved":
        lab.host.save_guest(UUID)
    if condition == "off":
        lab.host.put("live", UUID, None)
    return condition != "was off"


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_leaving_that_was_interrupted_anywhere_can_be_run_again(
    lab: Lab, condition: str, after: bool
) -> None:
    """Raise at the first call of a run, at the second of the next, and so on to the end."""
    running = prepare_condition(lab, condition)
    definition = {} if condition == "transient" else {UUID: ORIGINAL}
    for number in range(40):
        stop_at(lab, number, after=after)
        try:
            lab.leave()
        except Interrupted:
            assert lab.directory.exists() or after
            if not lab.directory.exists():  # interrupted behind the last effect
                break
        else:
            break
    else:
        pytest.fail("leaving never came to an end")
    lab.assert_as_before(running=running)
    assert lab.host.defined == definition


def stop_at(lab: Lab, number: int, *, after: bool) -> None:
    count = -1

    def hook(_call: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Interrupted("interrupted")

    lab.heal()
    if after:
        lab.story.after = hook
    else:
        lab.story.before = hook


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize(
    ("condition", "call"),
    [(c, e) for c in CONDITIONS for e in EFFECTS_OF_LEAVING if e not in NOT_NEEDED.get(c, ())],
)
def test_leaving_that_was_interrupted_once_ends_in_the_same_state(
    lab: Lab, call: str, condition: str, after: bool
) -> None:
    running = prepare_condition(lab, condition)
    lab.fail(call, Interrupted("interrupted"), after=after)
    try:
        lab.leave()
    except Interrupted:
        if lab.directory.exists():
            lab.leave()
    lab.assert_as_before(running=running)


def test_files_that_cannot_be_removed_keep_the_record(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.enter()
    unlink = Path.unlink

    def fail(path: Path, missing_ok: bool = False) -> None:
        if path.name == "rescue.qcow2":
            raise OSError(5, "Input/output error")
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", fail)
        with pytest.raises((OSError, RescueVirtError)):
            lab.leave()
    assert lab.session.phase is Phase.RESTORING
    lab.leave()
    lab.assert_as_before()


def test_a_directory_that_somebody_made_among_the_files_does_not_stop_the_leaving(
    lab: Lab,
) -> None:
    lab.enter()
    (lab.directory / "notes").mkdir()
    lab.leave()
    lab.assert_as_before()


def test_the_owner_is_recorded(lab: Lab) -> None:
    assert lab.enter(owner=Owner.NOVA).session.owner is Owner.NOVA


def test_a_name_with_a_space_is_quoted_in_what_a_person_is_told_to_type(lab: Lab) -> None:
    for where in ("defined", "live"):
        lab.host.put(where, UUID, ORIGINAL.replace("web1</name>", "web 1</name>"))
    lab.rescuer.enter(dataclasses.replace(lab.request(), guest="web 1"))
    lab.host.obeys = False
    with pytest.raises(NotInTime, match="--force-off 'web 1'"):
        lab.rescuer.leave("web 1", force_off=False, timeout=1)
    lab.host.put("live", UUID, None)
    assert "rescue-virt resume 'web 1'" in lab.rescuer.status("web 1").note
