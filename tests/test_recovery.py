"""What `recover` makes of what an interrupted run left."""

import os
from pathlib import Path

import pytest
from test_rescuer import LATE, ORIGINAL, UUID, Lab, lab, open_lab, transient

from rescue_virt.errors import RescueVirtError, WrongState
from rescue_virt.libvirt import facts
from rescue_virt.model import GuestUuid, Owner, Phase
from rescue_virt.recovery import Recovered, recover
from rescue_virt.sessions import Sessions
from rescue_virt.settings import OnHostReboot, Settings

__all__ = ["lab", "transient"]

OTHER = GuestUuid("00000000-0000-4000-8000-000000000000")


def mend(lab: Lab, policy: OnHostReboot = OnHostReboot.STAY) -> Recovered:
    (mended,) = recover(lab.rescuer, Owner.CLI, policy)
    return mended


def reboot_host(lab: Lab) -> None:
    """What runs is gone, and the boot has another name."""
    lab.sessions.mark(lab.session, boot_id="an earlier boot")
    lab.host.put("live", UUID, None)
    lab.story.effects.clear()


def is_in_rescue(lab: Lab) -> bool:
    return facts.read(lab.host.live[UUID]).session_id == lab.session.id


def test_there_may_be_nothing_to_recover(lab: Lab) -> None:
    assert recover(lab.rescuer, Owner.CLI, OnHostReboot.STAY) == []


def test_a_rescue_that_is_complete_is_left_alone(lab: Lab) -> None:
    lab.enter()
    assert mend(lab) == Recovered(guest="web1", done="in rescue: nothing to recover")
    lab.host.put("live", UUID, None)
    assert mend(lab).done == "in rescue: nothing to recover"
    assert lab.effects == []


@pytest.mark.parametrize("phase", [Phase.SWAPPING, Phase.BOOTING])
def test_a_rescue_that_was_never_complete_is_undone(lab: Lab, phase: Phase) -> None:
    lab.sessions.mark(lab.enter().session, phase=phase)
    assert mend(lab) == Recovered(guest="web1", done="undone: given back as it was")
    assert "force off" in lab.effects
    lab.assert_as_before()


def test_a_leaving_that_was_interrupted_is_finished_and_asks_first(lab: Lab) -> None:
    lab.sessions.mark(lab.enter().session, phase=Phase.RESTORING)
    assert mend(lab).done == "finished: given back"
    assert "ask to stop within 60 s" in lab.effects
    lab.assert_as_before()


def test_files_of_a_rescue_that_never_began_are_removed(lab: Lab) -> None:
    directory = lab.sessions.directory(OTHER)
    directory.mkdir(parents=True)
    (directory / "base.img").touch()
    assert mend(lab) == Recovered(guest=OTHER, done="removed files of a rescue that never began")
    assert not directory.exists()


def test_what_another_command_works_on_is_left_to_it(lab: Lab) -> None:
    lab.sessions.mark(lab.enter().session, phase=Phase.BOOTING)
    draft = lab.sessions.directory(OTHER)
    draft.mkdir(parents=True)
    other = Sessions(Settings(state_dir=draft.parents[1]))
    with other.lock(OTHER, OTHER), other.lock(UUID, "web1"):
        first, second = recover(lab.rescuer, Owner.CLI, OnHostReboot.STAY)
    assert first.done.startswith("left alone: ")
    assert second.done.startswith("left alone: guest web1 is being worked on")
    assert draft.exists()
    assert lab.session.phase is Phase.BOOTING


def test_what_another_face_began_is_its_own_to_recover(lab: Lab) -> None:
    session = lab.enter(owner=Owner.NOVA).session
    lab.sessions.mark(session, phase=Phase.BOOTING)
    assert recover(lab.rescuer, Owner.CLI, OnHostReboot.STAY) == []
    (mended,) = recover(lab.rescuer, Owner.NOVA, OnHostReboot.STAY)
    assert mended.done.startswith("undone")


def test_after_a_host_reboot_the_rescue_goes_on(lab: Lab) -> None:
    lab.enter()
    reboot_host(lab)
    assert mend(lab).done == "in rescue again, as the host was rebooted"
    assert is_in_rescue(lab)
    assert lab.session.phase is Phase.ACTIVE
    assert mend(lab).done == "in rescue: nothing to recover"


def test_after_a_host_reboot_a_rescue_that_was_saved_goes_on_where_it_was(lab: Lab) -> None:
    lab.enter()
    lab.host.save_guest(UUID)
    reboot_host(lab)
    mend(lab)
    assert "start saved" in lab.effects
    assert is_in_rescue(lab)


def test_a_saved_rescue_that_went_on_after_a_host_reboot_and_was_powered_off_stays_off(
    lab: Lab,
) -> None:
    lab.enter()
    lab.host.save_guest(UUID)
    reboot_host(lab)
    mend(lab)
    lab.host.put("live", UUID, None)
    assert mend(lab).done == "in rescue: nothing to recover"
    assert lab.host.live == {}


def test_after_a_host_reboot_the_guest_is_given_back_if_that_is_the_policy(lab: Lab) -> None:
    lab.enter()
    reboot_host(lab)
    assert mend(lab, OnHostReboot.END).done == "given back, as the host was rebooted"
    lab.assert_as_before()


def test_a_saved_rescue_is_dropped_if_that_is_the_policy(lab: Lab) -> None:
    lab.enter()
    lab.host.save_guest(UUID)
    reboot_host(lab)
    mend(lab, OnHostReboot.END)
    assert lab.effects == ["mark restoring", "drop managed save", "start", "forget"]


def test_an_original_that_the_host_started_is_not_called_in_rescue(lab: Lab) -> None:
    """Autostart booted it normally: design.md §6 wants the policy to decide."""
    lab.enter()
    reboot_host(lab)
    lab.host.put("live", UUID, ORIGINAL)
    assert "in rescue" not in mend(lab).done


def test_the_session_of_an_original_that_the_host_started_ends_if_that_is_the_policy(
    lab: Lab,
) -> None:
    lab.enter()
    reboot_host(lab)
    lab.host.put("live", UUID, ORIGINAL)
    mend(lab, OnHostReboot.END)
    lab.assert_as_before()


def test_a_failure_is_told_and_the_others_are_mended(lab: Lab) -> None:
    lab.sessions.mark(lab.enter().session, phase=Phase.BOOTING)
    lab.fail("force off", RescueVirtError("no"))
    mended = mend(lab)
    assert mended.done == "not recovered"
    assert "giving it back failed: no" in str(mended.error)
    assert mend(lab).error is None
    lab.assert_as_before()


@pytest.mark.parametrize("error", [RescueVirtError("no"), WrongState("operation is not valid")])
def test_libvirt_s_refusal_is_not_taken_for_another_command(
    lab: Lab, error: RescueVirtError
) -> None:
    """libvirt's "operation invalid" is a WrongState too; nothing was recovered."""
    lab.sessions.mark(lab.enter().session, phase=Phase.RESTORING)
    lab.fail("start", error)
    assert mend(lab).error is not None


def test_one_broken_record_does_not_stop_the_others(lab: Lab) -> None:
    lab.sessions.mark(lab.enter().session, phase=Phase.BOOTING)
    broken = lab.sessions.directory(OTHER)
    broken.mkdir()
    (broken / "session.json").write_text("{")
    recover(lab.rescuer, Owner.CLI, OnHostReboot.STAY)
    lab.assert_as_before()


CALLS = [
    "find", "inspect", "check source", "fetch", "findings", "validate", "check space", "prepare",
    "keep", "stop", "note boot", "run rescue", "look", "mark booting", "mark active",
]  # fmt: skip


def killed(lab: Lab, action: str, call: str, *, after: bool, tmp_path: Path) -> bool:
    """Run the command in a process that is gone at `call`; whether it was (it may not come)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mine = open_lab(tmp_path)
            mine.host.agent = lab.host.agent
            mine.images.found = lab.images.found

            def die(name: str) -> None:
                if name.startswith(call):
                    os._exit(9)

            mine.story.before, mine.story.after = (
                (mine.story.after, die) if after else (die, mine.story.before)
            )
            run(mine, action)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, 9}
    return code == 9


def run(lab: Lab, action: str) -> None:
    if action == "enter":
        lab.enter(wait=lab.host.agent)
    elif action == "resume":
        lab.rescuer.resume("web1", wait=lab.host.agent, timeout=5)
    else:
        lab.leave()


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_an_enter_that_was_killed_anywhere_is_undone(
    lab: Lab, tmp_path: Path, call: str, after: bool
) -> None:
    assert killed(lab, "enter", call, after=after, tmp_path=tmp_path)
    recover(lab.rescuer, Owner.CLI, OnHostReboot.STAY)
    if lab.directory.exists():  # it was complete
        assert (call, after) == ("mark active", True)
        assert is_in_rescue(lab)
        lab.leave()
    lab.assert_as_before()
    assert lab.host.defined == {UUID: ORIGINAL}


@pytest.mark.parametrize("call", ["stop", "note boot", "run rescue", "look", "mark booting"])
def test_an_enter_of_a_transient_guest_that_was_killed_is_undone(
    transient: Lab, tmp_path: Path, call: str
) -> None:
    killed(transient, "enter", call, after=True, tmp_path=tmp_path)
    recover(transient.rescuer, Owner.CLI, OnHostReboot.STAY)
    transient.assert_as_before()


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("call", ["mark restoring", "look", "ask to stop", "start", "forget"])
def test_a_leaving_that_was_killed_anywhere_is_finished(
    lab: Lab, tmp_path: Path, call: str, after: bool
) -> None:
    lab.enter()
    assert killed(lab, "leave", call, after=after, tmp_path=tmp_path)
    recover(lab.rescuer, Owner.CLI, OnHostReboot.STAY)
    if lab.directory.exists():
        assert is_in_rescue(lab)
        lab.leave()
    lab.assert_as_before()


@pytest.mark.parametrize(
    "call", ["note boot", "run rescue", "mark active", "set password", "plug", "mark attached"]
)
def test_a_resume_that_was_killed_costs_nobody_the_work_in_the_rescue(
    lab: Lab, tmp_path: Path, call: str
) -> None:
    """Its overlay holds what was done before: it was complete once, and is never just undone."""
    lab.images.found, lab.host.agent = LATE, True
    lab.enter(wait=True)
    overlay = lab.directory / "rescue.qcow2"
    overlay.write_text("hours of work")
    lab.host.put("live", UUID, None)
    assert killed(lab, "resume", call, after=True, tmp_path=tmp_path)
    recover(lab.rescuer, Owner.CLI, OnHostReboot.STAY)
    assert overlay.read_text() == "hours of work"
    assert "force off" not in lab.effects


def test_a_killed_resume_does_not_take_pending_disks_for_attached_ones(
    lab: Lab, tmp_path: Path
) -> None:
    lab.images.found, lab.host.agent = LATE, True
    lab.enter(wait=True)
    lab.host.put("live", UUID, None)
    assert killed(lab, "resume", "run rescue", after=True, tmp_path=tmp_path)
    lab.rescuer.attach("web1", 1)
    assert "vdb" in facts.chains(lab.host.live[UUID])
