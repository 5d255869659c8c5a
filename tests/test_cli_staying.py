"""What ends, continues or mends a rescue."""

import dataclasses
import json
from typing import Any

import pytest
from pytest_mock import MockerFixture
from test_cli import (
    SESSION,
    STATUS,
    UUID,
    FakeRescuer,
    Run,
    fields,
    rescuer,
    run,
)

from rescue_virt import recovery
from rescue_virt.errors import (
    RescueVirtError,
    WayBackFailed,
)
from rescue_virt.model import (
    Outcome,
    Owner,
    RunState,
)
from rescue_virt.recovery import Recovered
from rescue_virt.settings import OnHostReboot

__all__ = ["rescuer", "run"]

# --- unrescue, attach, resume ------------------------------------------------------------------


def test_unrescue_says_how_the_guest_is_now(run: Run, rescuer: FakeRescuer) -> None:
    rescuer.host.found = STATUS.live
    result = run("unrescue", "web1")
    assert result.stdout == "guest web1 is given back and running\n"
    assert rescuer.calls == [("web1", False, 60.0)]


def test_unrescue_forces_and_waits_as_told_and_speaks_json(run: Run, rescuer: FakeRescuer) -> None:
    assert STATUS.live
    rescuer.host.found = dataclasses.replace(STATUS.live, run_state=RunState.SHUTOFF)
    result = run("unrescue", "web1", "--force-off", "--timeout", "5", "-o", "json")
    assert rescuer.calls == [("web1", True, 5.0)]
    assert json.loads(result.stdout) == {
        "schema": "rescue-virt/v1", "guest": "web1", "uuid": UUID, "state": "off",
    }  # fmt: skip


def test_attach_waits_as_long_as_the_settings_say_or_as_told(
    run: Run, rescuer: FakeRescuer
) -> None:
    result = run("attach", "web1")
    assert result.exit_code == 0
    assert fields(result.stdout)["original disks"] == "attached"
    assert "generated password" not in result.stdout
    run("attach", "web1", "--timeout", "3")
    assert rescuer.calls == [("web1", 22), ("web1", 3.0)]


def test_resume_waits_unless_told_not_to(run: Run, rescuer: FakeRescuer) -> None:
    assert run("resume", "web1").exit_code == 0
    run("resume", "web1", "--no-wait", "--timeout", "3")
    assert rescuer.calls == [("web1", True, 22), ("web1", False, 3.0)]


def test_a_resumed_rescue_that_is_not_ready_in_time_exits_8(run: Run, rescuer: FakeRescuer) -> None:
    rescuer.outcome = Outcome(session=SESSION, problem="guest web1 was not ready within 22 s")
    assert run("resume", "web1").exit_code == 8


# --- recover -----------------------------------------------------------------------------------


@pytest.fixture
def mended(mocker: MockerFixture) -> Any:
    return mocker.patch.object(recovery, "recover", return_value=[])


def test_recover_mends_what_this_face_began_by_the_policy_of_the_settings(
    run: Run, mended: Any
) -> None:
    mended.return_value = [Recovered(guest="web1", done="undone: given back as it was")]
    result = run("recover")
    assert (result.exit_code, result.stdout) == (0, "web1: undone: given back as it was\n")
    assert mended.call_args.args[1:] == (Owner.CLI, OnHostReboot.STAY)


def test_recover_with_nothing_to_do_is_fine(run: Run, mended: Any) -> None:
    result = run("recover")
    assert (result.exit_code, result.stdout, mended.call_count) == (0, "", 1)
    assert result.stderr == "nothing to recover\n"


def test_what_recover_could_not_mend_is_told_with_its_commands_and_exits_6(
    run: Run, mended: Any
) -> None:
    mended.return_value = [
        Recovered(guest="web1", done="in rescue: nothing to recover"),
        Recovered(
            guest="db1",
            done="not recovered",
            error=WayBackFailed("guest db1: stale", commands=("virsh edit db1",)),
        ),
        Recovered(guest="x", done="not recovered", error=RescueVirtError("guest x: no")),
    ]
    result = run("recover")
    assert result.exit_code == 6
    assert result.stdout == (
        "web1: in rescue: nothing to recover\ndb1: not recovered\nx: not recovered\n"
    )
    assert result.stderr == "rescue-virt: guest db1: stale; guest x: no\n    virsh edit db1\n"
    told = json.loads(run("recover", "-o", "json").stdout)
    assert told["guests"][0]["error"] is None
    assert told["guests"][1] == {
        "guest": "db1", "done": "not recovered", "error": "guest db1: stale",
    }  # fmt: skip


def test_an_interrupted_recover_says_how_to_go_on(run: Run, mended: Any) -> None:
    mended.side_effect = KeyboardInterrupt
    result = run("recover")
    assert result.exit_code == 130
    assert result.stderr == "rescue-virt: interrupted; to go on: rescue-virt recover\n"
