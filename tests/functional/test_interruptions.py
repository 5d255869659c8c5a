"""Whatever interrupts a rescue, at whatever point, the guest is as it was."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guest import Guest, wait_console_log
from program import MARK, Program, Witness
from web_server import serve

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
KILLPOINT = str(Path(__file__).with_name("killpoint.py"))


@pytest.fixture
def guest(make_guest: Callable[..., Guest], disk: Path) -> Guest:
    return make_guest(disk).start()


def code_of(number: signal.Signals) -> int:
    """We roll back and say 130; nobody can do anything about SIGKILL."""
    return -signal.SIGKILL if number is signal.SIGKILL else 130


def recover_if_killed(program: Program, number: signal.Signals) -> None:
    if number is signal.SIGKILL:
        program.run("recover")


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_image_is_downloaded(
    guest: Guest, rescue_image: Path, program: Program, directory: Path, number: signal.Signals
) -> None:
    witness = Witness(guest, program)
    # Not what other tests have cached: the digest of a file of its own.
    image = directory / "download.qcow2"
    image.write_bytes(rescue_image.read_bytes() + number.name.encode())
    with serve(image, stall=True) as server:
        arguments = ("rescue", guest.name, "--image", server.url, "--sha256", server.sha256)
        command = program.start(*arguments)
        command.wait_for("fetching the image")
        command.end(number, expect=code_of(number))
    recover_if_killed(program, number)
    witness.assert_untouched()


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_guest_is_asked_to_shut_down(
    guest: Guest, rescue_image: Path, program: Program, number: signal.Signals
) -> None:
    witness = Witness(guest, program)
    command = program.start("rescue", guest.name, "--image", str(rescue_image))
    command.wait_for("stopping the guest")
    command.end(number, expect=code_of(number))
    recover_if_killed(program, number)
    witness.assert_given_back()


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("number", SIGNALS)
def test_at_the_swap(
    guest: Guest, rescue_image: Path, program: Program, where: str, number: signal.Signals
) -> None:
    witness = Witness(guest, program)
    cut = program.with_entry(KILLPOINT, where, number.name)
    command = cut.start("rescue", guest.name, "--image", str(rescue_image), "--force-off")
    command.end(None, expect=code_of(number))
    if number is signal.SIGKILL:
        # In between, the definition is what it was: only the run state is not.
        assert guest.is_running() is (where == "after")
        assert MARK not in guest.domain.XMLDesc(2)
    recover_if_killed(program, number)
    witness.assert_given_back()


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_rescue_guest_boots(
    guest: Guest, rescue_image: Path, program: Program, number: signal.Signals
) -> None:
    witness = Witness(guest, program)
    command = program.start("rescue", guest.name, "--image", str(rescue_image), "--force-off")
    command.wait_for("waiting until the rescue guest is ready")
    command.end(number, expect=code_of(number))
    recover_if_killed(program, number)
    witness.assert_given_back()


def test_recover_leaves_a_finished_rescue_and_a_working_command_alone(
    guest: Guest, rescue_image: Path, program: Program
) -> None:
    witness = Witness(guest, program)
    command = program.start("rescue", guest.name, "--image", str(rescue_image))
    command.wait_for("stopping the guest")
    assert "left alone" in program.run("recover").out
    command.wait_for("waiting until the rescue guest is ready")
    command.end(None, expect=0)
    assert "nothing to recover" in program.run("recover").out
    assert "in rescue" in program.run("status", guest.name).out
    program.run("unrescue", guest.name, "--force-off")
    witness.assert_given_back()


@pytest.fixture
def refuse_to_start_rescues(guest: Guest, run_directory: Path) -> Iterator[None]:
    """libvirt's own hook, which fails the start of this guest as a rescue."""
    hook = run_directory / "hook"
    hook.write_text(
        f'#!/bin/sh\n[ "$1 $2" = "{guest.name} prepare" ] || exit 0\n'
        'if grep -q "urn:rescue-virt:session"; then echo "no rescues here" >&2; exit 1; fi\n'
    )
    hook.chmod(0o755)
    yield
    hook.unlink()


@pytest.mark.usefixtures("refuse_to_start_rescues")
@pytest.mark.parametrize("running", [True, False])
def test_when_libvirt_does_not_start_the_rescue(
    guest: Guest, rescue_image: Path, program: Program, running: bool
) -> None:
    if not running:
        guest.destroy()
    witness = Witness(guest, program)
    arguments = ("rescue", guest.name, "--image", str(rescue_image), "--force-off")
    error = program.run(*arguments, expect=1).err
    assert "no rescues here" in error
    witness.assert_given_back()


def test_a_guest_that_obeys_runs_after_an_interruption_of_its_shutdown(
    guest: Guest, rescue_image: Path, program: Program
) -> None:
    wait_console_log(guest.console_log, "^READY marker=original", 60)
    witness = Witness(guest, program)
    pid = guest.qemu_pid()
    command = program.start("rescue", guest.name, "--image", str(rescue_image))
    command.wait_for("stopping the guest")
    time.sleep(0.3)  # by now it has been told
    command.end(signal.SIGINT, expect=130)
    witness.assert_given_back()
    assert guest.qemu_pid() != pid
    wait_console_log(guest.console_log, "reboot: Power down", 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_leaving_can_be_run_again(
    guest: Guest, rescue_image: Path, program: Program, number: signal.Signals
) -> None:
    witness = Witness(guest, program)
    program.run("rescue", guest.name, "--image", str(rescue_image), "--force-off", "--no-wait")
    command = program.start("unrescue", guest.name)
    command.wait_for("stopping the rescue guest")
    command.end(number, expect=130)
    assert guest.is_running()
    program.run("unrescue", guest.name, "--force-off")
    witness.assert_given_back()


def test_when_leaving_is_killed_half_way_it_is_finished_by_recover(
    guest: Guest, rescue_image: Path, program: Program
) -> None:
    witness = Witness(guest, program)
    program.run("rescue", guest.name, "--image", str(rescue_image), "--force-off", "--no-wait")
    command = program.start("unrescue", guest.name)
    command.wait_for("stopping the rescue guest")
    command.end(signal.SIGKILL, expect=-signal.SIGKILL)
    guest.destroy()
    assert "finished" in program.run("recover").out
    witness.assert_given_back()
