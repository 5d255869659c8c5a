"""What people and the host do meanwhile costs nobody the guest."""

from __future__ import annotations

import errno

import pytest
from test_rescuer import ORIGINAL, UUID, Lab, lab, transient

from rescue_virt.errors import Interrupted, RescueVirtError, WayBackFailed, WrongState
from rescue_virt.model import Options, Phase
from rescue_virt.recovery import recover
from rescue_virt.sessions import Sessions
from rescue_virt.settings import OnHostReboot

__all__ = ["lab", "transient"]


@pytest.fixture
def asked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The guest has been told to shut down and has not yet, when the command is interrupted."""
    stop = lab.host.stop

    def interrupt(_uuid: str, _options: Options) -> None:
        monkeypatch.setattr(lab.host, "stop", stop)
        raise KeyboardInterrupt

    monkeypatch.setattr(lab.host, "stop", interrupt)
    return lab


def test_a_guest_that_was_told_to_stop_is_off_before_it_is_started_again(asked: Lab) -> None:
    with pytest.raises(KeyboardInterrupt):
        asked.rescuer.enter(asked.request())
    assert asked.effects[-4:] == ["mark restoring", "stop", "start", "forget"]
    asked.assert_as_before()


def test_a_guest_that_somebody_has_started_again_since_is_not_stopped(asked: Lab) -> None:
    asked.fail("mark restoring", RescueVirtError("killed"))
    with pytest.raises(WayBackFailed):
        asked.rescuer.enter(asked.request())
    asked.host.put("live", UUID, None)
    asked.host.start(UUID)
    asked.effects.clear()
    recover(asked.rescuer, asked.session.owner, OnHostReboot.STAY)
    assert "stop" not in asked.effects
    asked.assert_as_before()


def test_a_guest_that_the_host_started_after_its_reboot_is_not_stopped(
    asked: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt begins to count anew, so the number of the run alone does not tell."""
    asked.fail("mark restoring", RescueVirtError("killed"))
    with pytest.raises(WayBackFailed):
        asked.rescuer.enter(asked.request())
    asked.effects.clear()
    monkeypatch.setattr("rescue_virt.storage.boot_id", lambda: "another")
    recover(asked.rescuer, asked.session.owner, OnHostReboot.STAY)
    assert "stop" not in asked.effects
    asked.assert_as_before()


def test_a_transient_guest_that_was_told_to_stop_is_created_again(
    asked: Lab, transient: Lab
) -> None:
    assert asked is transient
    with pytest.raises(KeyboardInterrupt):
        asked.rescuer.enter(asked.request())
    assert asked.effects[-4:] == ["mark restoring", "stop", "run original", "forget"]
    asked.assert_as_before()


def test_a_rescue_domain_that_became_the_definition_is_replaced_by_the_original(lab: Lab) -> None:
    lab.enter()
    lab.host.put("defined", UUID, lab.host.live[UUID])
    lab.leave()
    assert lab.effects[:3] == ["mark restoring", "define", "ask to stop within 60 s"]
    assert lab.host.defined == {UUID: ORIGINAL}
    lab.assert_as_before()


def test_a_rescue_whose_metadata_was_removed_is_not_taken_for_the_original(lab: Lab) -> None:
    lab.enter()
    lab.change_live("urn:rescue-virt:session:1", "urn:something:else")
    with pytest.raises(WayBackFailed, match="no longer says so"):
        lab.leave()
    assert lab.effects == []


def test_a_transient_guest_that_was_defined_meanwhile_runs_again(transient: Lab) -> None:
    transient.enter()
    transient.host.put("defined", UUID, ORIGINAL)
    transient.leave()
    transient.assert_as_before()


def test_a_snapshot_after_an_interrupted_leaving_is_noticed(lab: Lab) -> None:
    lab.enter()
    lab.fail("ask to stop", Interrupted("interrupted"))
    with pytest.raises(Interrupted):
        lab.leave()
    assert lab.session.phase is Phase.ACTIVE
    lab.host.snapshots = {"during": ("/srv/guests/during.qcow2",)}
    lab.host.put("live", UUID, None)
    with pytest.raises(WayBackFailed, match="snapshot during"):
        lab.leave()


def test_a_full_disk_does_not_stop_the_way_back(lab: Lab) -> None:
    lab.enter()
    lab.fail("mark restoring", OSError(errno.ENOSPC, "No space left on device"))
    lab.leave()
    lab.assert_as_before()


def test_a_guest_that_cannot_be_given_back_is_no_rolled_back_failure(lab: Lab) -> None:
    lab.enter()
    lab.fail("start", WrongState("no such network"))
    with pytest.raises(WayBackFailed, match="could not be given back: no such network") as caught:
        lab.leave()
    assert caught.value.commands == ("rescue-virt unrescue web1",)
    lab.leave()
    lab.assert_as_before()


def test_a_session_that_was_all_but_forgotten_is_forgotten(transient: Lab) -> None:
    transient.enter()
    session = transient.session
    transient.fail("forget", Interrupted("interrupted"))
    with pytest.raises(Interrupted):
        transient.leave()
    (session.directory / "original.xml").unlink()
    transient.leave()
    transient.assert_as_before()


def test_a_guest_in_rescue_on_another_connection_is_left_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.enter()
    monkeypatch.setattr(lab.host, "uri", lambda: "other:///system")
    with pytest.raises(WrongState, match="give -c fake:///system"):
        lab.leave()
    assert recover(lab.rescuer, lab.session.owner, OnHostReboot.STAY) == []
    assert lab.effects == []


def test_a_guest_whose_record_cannot_be_read_is_not_called_not_in_rescue(lab: Lab) -> None:
    lab.enter()
    (lab.directory / "session.json").write_text("{")
    assert Sessions.all(lab.sessions) == []
    with pytest.raises(RescueVirtError, match="unreadable record"):
        lab.rescuer.status("web1")
