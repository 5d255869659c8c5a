"""What `status`, `list` and `console` show."""

import dataclasses
import json
import sys
from io import StringIO

import pytest
from pytest_mock import MockerFixture
from test_cli import (
    LIVE,
    SESSION,
    STATUS,
    UUID,
    FakeRescuer,
    Run,
    fields,
    rescuer,
    run,
)

from rescue_virt import process
from rescue_virt.cli import output
from rescue_virt.model import (
    Access,
    LiveState,
    RunState,
)

__all__ = ["rescuer", "run"]

# --- status, list ------------------------------------------------------------------------------


def test_status_of_a_guest_tells_everything_that_is_known(run: Run) -> None:
    said = fields(run("status", "web1").stdout)
    assert said["uuid"] == UUID
    assert said["state"] == "running"
    assert said["since"] == SESSION.since
    assert said["agent"] == "yes"
    assert said["console"] == "/dev/pts/7"
    assert said["note"] == "in rescue"


def test_status_as_json_has_the_same_keys_for_one_guest_as_for_all(run: Run) -> None:
    one = json.loads(run("-o", "json", "status", "web1").stdout)
    every = json.loads(run("status", "-o", "json").stdout)
    assert every == {
        "schema": "rescue-virt/v1",
        "guests": [{key: value for key, value in one.items() if key != "schema"}],
    }
    assert json.loads(run("list", "-o", "json").stdout) == every


@pytest.mark.parametrize(
    ("live", "state"),
    [
        (None, "undefined"),
        (dataclasses.replace(LIVE, run_state=RunState.SHUTOFF, agent=False), "off"),
        (dataclasses.replace(LIVE, run_state=RunState.PAUSED, agent=False), "paused"),
    ],
)
def test_status_tells_what_libvirt_says_of_the_guest(
    run: Run, rescuer: FakeRescuer, live: LiveState | None, state: str
) -> None:
    access = Access(console=None, addresses=())
    rescuer.statuses = [dataclasses.replace(STATUS, live=live, access=access)]
    said = fields(run("status", "web1").stdout)
    assert (said["state"], said["agent"]) == (state, "no")
    assert (said["console"], said["addresses"]) == ("-", "-")


def test_status_of_a_guest_that_is_not_in_rescue_is_a_wrong_state(run: Run) -> None:
    result = run("status", "idle")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith("rescue-virt: guest idle is not in rescue")


def test_status_of_an_unknown_guest_says_that_there_is_none(run: Run) -> None:
    result = run("status", "nobody")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "rescue-virt: no guest nobody on qemu:///system\n"


def test_status_without_a_guest_shows_all_of_them(run: Run, rescuer: FakeRescuer) -> None:
    other = dataclasses.replace(STATUS, session=dataclasses.replace(SESSION, name="db1"))
    rescuer.statuses = [STATUS, other]
    blocks = run("status").stdout.split("\n\n")
    assert [fields(block)["guest"] for block in blocks] == ["web1", "db1"]


def test_list_is_aligned_text_where_no_terminal_looks(run: Run, rescuer: FakeRescuer) -> None:
    other = dataclasses.replace(SESSION, name="a-longer-name", image="x")
    rescuer.statuses = [STATUS, dataclasses.replace(STATUS, session=other)]
    assert run("list").stdout == (
        "GUEST          PHASE   STATE    IMAGE              SINCE                      NOTE\n"
        "web1           active  running  /srv/rescue.qcow2  2026-11-22T10:00:00+00:00  in rescue\n"
        "a-longer-name  active  running  x                  2026-11-22T10:00:00+00:00  in rescue\n"
    )


@pytest.mark.parametrize("command", ["list", "status"])
def test_where_no_guest_is_in_rescue_stdout_stays_empty(
    run: Run, rescuer: FakeRescuer, command: str
) -> None:
    rescuer.statuses = []
    result = run(command)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no guest is in rescue\n"
    told = json.loads(run(command, "-o", "json").stdout)
    assert told == {"schema": "rescue-virt/v1", "guests": []}


@pytest.mark.parametrize(
    ("environment", "drawn"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True),
        ({"TERM": "dumb"}, False),
    ],
)
def test_a_table_is_drawn_without_colours_and_only_on_a_terminal_that_can(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], drawn: bool
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    text = output.table([{"guest": "[red]web1[/red]", "note": None}], ["guest", "note"])
    assert "[red]web1[/red]" in text
    assert ("─" in text) is drawn
    assert "\x1b[3" not in text


# --- console -----------------------------------------------------------------------------------


def test_console_becomes_virsh_on_the_same_connection(run: Run, mocker: MockerFixture) -> None:
    become = mocker.patch.object(process, "become")
    mocker.patch("shutil.which", return_value="/usr/bin/virsh")
    assert run("console", UUID).exit_code == 0
    become.assert_called_once_with(["/usr/bin/virsh", "-c", "qemu:///system", "console", "web1"])


def test_console_of_an_unknown_guest_starts_nothing(run: Run, mocker: MockerFixture) -> None:
    become = mocker.patch.object(process, "become")
    assert run("console", "nobody").exit_code == 3
    become.assert_not_called()


def test_console_without_virsh_says_what_to_install(run: Run, mocker: MockerFixture) -> None:
    mocker.patch("shutil.which", return_value=None)
    result = run("console", "web1")
    assert result.exit_code == 1
    assert result.stderr == "rescue-virt: virsh is missing: install libvirt-clients\n"
