"""Whatever kind of guest it was, it is given back byte for byte, in the state that it was in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
import recipes
from guest import Disk, Guest, domain_xml, wait_console_log
from program import MARK, Program, Witness

# The guest need not boot for this: what libvirt knows of it is what counts.
QUICKLY = ("--no-wait", "--force-off")

SNAPSHOT = "<domainsnapshot><name>before</name></domainsnapshot>"
GRAPHICS = "<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1' passwd='secret7'/>"


def check_rescue_and_back(program: Program, guest: Guest, image: Path) -> None:
    witness = Witness(guest, program)
    program.run("rescue", guest.name, "--image", str(image), *QUICKLY)
    assert guest.is_running()
    assert MARK in guest.domain.XMLDesc()
    program.run("unrescue", guest.name, "--force-off")
    witness.assert_given_back()


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_guest_is_given_back_as_it_was(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program,
    running: bool, machine: str,
) -> None:  # fmt: skip
    guest = make_guest(disk, machine=machine)
    if running:
        guest.start()
    check_rescue_and_back(program, guest, rescue_image)
    # Twice, as nothing of the first time may be in the way.
    check_rescue_and_back(program, guest, rescue_image)


def test_a_guest_with_snapshots_keeps_them(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program
) -> None:
    guest = make_guest(disk)
    guest.domain.snapshotCreateXML(SNAPSHOT)
    guest.start()
    check_rescue_and_back(program, guest, rescue_image)
    guest.domain.revertToSnapshot(guest.domain.snapshotLookupByName("before"))


def test_a_guest_on_a_chain_of_two_keeps_it(
    make_guest: Callable[..., Guest], disk: Path, directory: Path, rescue_image: Path,
    program: Program,
) -> None:  # fmt: skip
    top = recipes.overlay(disk, directory / "top.qcow2")
    before = disk.read_bytes()
    check_rescue_and_back(program, make_guest(top).start(), rescue_image)
    assert disk.read_bytes() == before


def test_a_transient_guest_is_created_again(
    connection: libvirt.virConnect, disk: Path, rescue_image: Path, program: Program
) -> None:
    guest = Guest(connection, domain_xml("transient", [Disk(source=disk)]))
    connection.createXML(guest.xml)
    try:
        uuid = guest.domain.UUIDString()
        check_rescue_and_back(program, guest, rescue_image)
        assert guest.domain.UUIDString() == uuid
    finally:
        guest.remove()


def test_a_guest_with_a_graphics_password_keeps_it_and_never_shows_it(
    connection: libvirt.virConnect, disk: Path, rescue_image: Path, program: Program
) -> None:
    xml = domain_xml("graphics", [Disk(source=disk)]).replace("</devices>", f"{GRAPHICS}</devices>")
    with Guest(connection, xml) as guest:
        shown = program.run("xml", guest.name, "--image", str(rescue_image)).out
        assert "graphics" in shown
        assert "secret7" not in shown
        check_rescue_and_back(program, guest, rescue_image)


def test_a_guest_with_a_tpm_keeps_its_state(
    connection: libvirt.virConnect, disk: Path, rescue_image: Path, program: Program
) -> None:
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    xml = domain_xml("tpm", [Disk(source=disk)]).replace("</devices>", f"{tpm}</devices>")
    with Guest(connection, xml) as guest:
        guest.start()
        state = Path(f"/var/lib/libvirt/swtpm/{guest.domain.UUIDString()}/tpm2/tpm2-00.permall")
        guest.destroy()
        before = state.read_bytes()
        check_rescue_and_back(program, guest, rescue_image)
        assert state.read_bytes() == before


def test_a_running_guest_is_asked_to_shut_down_before_it_is_forced(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program
) -> None:
    guest = make_guest(disk).start()
    wait_console_log(guest.console_log, "^READY", 60)
    program.run("rescue", guest.name, "--image", str(rescue_image), "--no-wait")
    # A clean shutdown says so on the console; pulling the plug does not.
    wait_console_log(guest.console_log, "reboot: Power down", 5)
    program.run("unrescue", guest.name, "--force-off")
    assert guest.is_running()


def test_a_dry_run_and_the_xml_command_create_nothing(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, directory: Path
) -> None:
    guest = make_guest(disk).start()
    program = Program(directory / "never-made")
    witness = Witness(guest, program)
    out = program.run("rescue", guest.name, "--image", str(rescue_image), "--dry-run").out
    assert "+      <serial>RESCUE</serial>" in out
    program.run("xml", guest.name, "--image", str(rescue_image), "--diff")
    witness.assert_untouched()
    assert not program.state.exists()


def test_the_cached_image_is_neither_written_nor_owned_by_qemu(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program
) -> None:
    guest = make_guest(disk)
    program.run("rescue", guest.name, "--image", str(rescue_image), *QUICKLY)
    (session,) = program.sessions
    base, overlay = session / "base.img", session / "rescue.qcow2"
    assert (base.stat().st_uid, base.stat().st_mode & 0o777) == (0, 0o444)
    assert base.stat().st_nlink > 1
    assert overlay.stat().st_uid != 0
    for secret in ("seed.iso", "original.xml", "session.json", "rescue.json", "console.log"):
        assert (session / secret).stat().st_mode & 0o077 == 0, secret
    program.run("unrescue", guest.name, "--force-off")


def test_the_password_is_nowhere_on_the_host(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program
) -> None:
    guest = make_guest(disk)
    password = "nowhere-to-be-found-1234"
    arguments = ("rescue", guest.name, "--image", str(rescue_image), *QUICKLY)
    result = program.run(*arguments, "-vv", "--password-stdin", stdin=password)
    assert password not in result.out + result.err
    (session,) = program.sessions
    logs = Path("/var/log/libvirt")
    files = [*session.iterdir(), *(path for path in logs.rglob("*") if path.is_file())]
    assert len(files) > 5
    assert [path for path in files if password.encode() in path.read_bytes()] == []
    pid = guest.qemu_pid()
    assert password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    program.run("unrescue", guest.name, "--force-off")
