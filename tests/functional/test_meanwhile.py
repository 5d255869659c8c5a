"""What others do to a guest while it is in rescue loses no byte of the original."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
import recipes
from guest import Guest, wait_console_log
from program import DEFINITION, MARK, Program, Witness, wait_until

SNAPSHOT = """<domainsnapshot><name>during</name><disks>
<disk name='vda' snapshot='no'/><disk name='vdb'><source file='{overlay}'/></disk>
<disk name='vdc' snapshot='no'/></disks></domainsnapshot>"""


@pytest.fixture
def guest(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program
) -> Guest:
    """A guest that was off, is in rescue, and runs."""
    guest = make_guest(disk)
    program.run("rescue", guest.name, "--image", str(rescue_image), "--no-wait")
    return guest


def leave(guest: Guest, program: Program) -> None:
    program.run("unrescue", guest.name, "--force-off")
    assert MARK not in guest.domain.XMLDesc()
    assert not guest.is_running()
    assert program.sessions == []


def typed(error: str) -> None:
    """Type the commands that were printed, all but the last one (which the test looks at)."""
    commands = [line.strip() for line in error.splitlines() if line.startswith("  ")]
    assert commands[-1].startswith("rescue-virt unrescue")
    for command in commands[:-1]:
        subprocess.run(["/bin/sh", "-c", command], check=True, timeout=60)


def test_a_snapshot_is_committed_first(
    guest: Guest, disk: Path, directory: Path, program: Program
) -> None:
    snapshot = SNAPSHOT.format(overlay=directory / "snapshot.qcow2")
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    no_metadata = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    guest.domain.snapshotCreateXML(snapshot, flags | no_metadata)
    pid = guest.qemu_pid()
    error = program.run("unrescue", guest.name, "--force-off", expect=6).err
    assert "virsh blockcommit" in error
    assert guest.qemu_pid() == pid

    typed(error)
    leave(guest, program)
    assert recipes.read_root_file(disk, "/etc/marker") == "original\n"


def test_a_snapshot_is_not_forgotten_when_the_rescue_guest_powers_off(
    guest: Guest, disk: Path, directory: Path, program: Program
) -> None:
    snapshot = SNAPSHOT.format(overlay=directory / "snapshot.qcow2")
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    guest.domain.snapshotCreateXML(snapshot, flags)
    guest.destroy()  # and with it went the chain that was in use
    error = program.run("unrescue", guest.name, expect=6).err
    assert "snapshot during was taken" in error
    assert not guest.is_running()

    typed(error)
    leave(guest, program)
    assert guest.domain.listAllSnapshots() == []
    assert recipes.read_root_file(disk, "/etc/marker") == "original\n"


def test_a_disk_that_was_pivoted_to_its_base_is_named_in_the_definition_first(
    guest: Guest, disk: Path, directory: Path, rescue_image: Path, program: Program
) -> None:
    base = directory / "base.qcow2"
    # The chain must be ours to write to: not the image that all tests share.
    program.run("unrescue", guest.name, "--force-off")
    base.write_bytes(recipes.small_image("original").read_bytes())
    disk.unlink()
    recipes.overlay(base, disk)
    program.run("rescue", guest.name, "--image", str(rescue_image), "--no-wait")

    start_commit(guest, base)
    assert "block job" in program.run("unrescue", guest.name, "--force-off", expect=6).err
    pivot(guest)
    error = program.run("unrescue", guest.name, "--force-off", expect=6).err
    assert f"replace {disk} by {base}" in error
    assert guest.is_running()

    edit(guest, str(disk), str(base))
    leave(guest, program)


def edit(guest: Guest, old: str, new: str) -> None:
    """`virsh edit`, with sed for an editor."""
    definition = guest.domain.XMLDesc(DEFINITION)
    assert old in definition
    guest.domain.connect().defineXML(definition.replace(old, new))


def test_a_guest_saved_in_rescue_never_resumes_onto_its_own_disks(
    guest: Guest, program: Program
) -> None:
    guest.domain.managedSave()
    assert "saved in rescue" in program.run("status", guest.name).out
    leave(guest, program)
    assert not guest.domain.hasManagedSaveImage()


def test_a_guest_saved_in_rescue_can_go_on_in_rescue(guest: Guest, program: Program) -> None:
    wait_console_log(guest.console_log, "^READY marker=rescue", 60)
    seen = guest.console_log.stat().st_size
    guest.domain.managedSave()
    program.run("resume", guest.name, "--no-wait")
    assert MARK in guest.domain.XMLDesc()
    with guest.serial() as serial:
        serial.send("")
        serial.expect("login: ", 30)
    # It went on where it was: no second boot.
    assert b"READY" not in guest.console_log.read_bytes()[seen:]
    leave(guest, program)


def test_an_edited_definition_is_what_is_given_back(guest: Guest, program: Program) -> None:
    edit(guest, "<vcpu placement='static'>1</vcpu>", "<vcpu placement='static'>2</vcpu>")
    leave(guest, program)
    assert "<vcpu placement='static'>2</vcpu>" in guest.domain.XMLDesc(DEFINITION)


@pytest.mark.parametrize("stopped", [False, True])
def test_an_undefined_guest_is_defined_again(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program,
    stopped: bool,
) -> None:  # fmt: skip
    guest = make_guest(disk).start()
    witness = Witness(guest, program)
    arguments = ("--image", str(rescue_image), "--no-wait", "--force-off")
    program.run("rescue", guest.name, *arguments)
    domain = guest.domain
    domain.undefine()
    if stopped:
        domain.destroy()
        assert "undefined meanwhile" in program.run("status", guest.name).out
    program.run("unrescue", guest.name, "--force-off")
    witness.assert_given_back()


def test_an_original_started_by_hand_is_left_running(guest: Guest, program: Program) -> None:
    guest.destroy()
    guest.start()
    pid = guest.qemu_pid()
    assert "started by hand" in program.run("status", guest.name).out
    program.run("unrescue", guest.name)
    assert guest.qemu_pid() == pid
    assert program.sessions == []


def test_a_base_that_was_written_behind_our_back_stops_the_way_back(
    make_guest: Callable[..., Guest], disk: Path, directory: Path, rescue_image: Path,
    program: Program,
) -> None:  # fmt: skip
    top = recipes.overlay(disk, directory / "top.qcow2")
    guest = make_guest(top)
    program.run("rescue", guest.name, "--image", str(rescue_image), "--no-wait")
    start_commit(guest, disk)
    pivot(guest)
    guest.destroy()  # and with it went what libvirt knew of the pivot
    disk.touch()
    error = program.run("unrescue", guest.name, expect=6).err
    assert f"replace {top} by it" in error
    assert not guest.is_running()
    edit(guest, str(top), str(disk))
    leave(guest, program)


def start_commit(guest: Guest, base: Path) -> None:
    flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
    guest.domain.blockCommit("vdb", str(base), None, 0, flags)


def pivot(guest: Guest) -> None:
    def has_caught_up() -> bool:
        job = guest.domain.blockJobInfo("vdb")
        return bool(job["end"]) and job["cur"] == job["end"]

    wait_until(has_caught_up)
    # libvirt learns a moment later than the figures show that the job can be ended.
    time.sleep(0.5)
    guest.domain.blockJobAbort("vdb", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def test_the_agents_power_on_starts_the_rescue_and_never_the_original(
    guest: Guest, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rescue_virt.driver import RescueDriver

    monkeypatch.setenv("OS_RESCUE__STATE_DIR", str(program.state))
    driver = RescueDriver()

    class Instance:
        uuid = guest.domain.UUIDString()
        name = guest.name

    driver.power_off(Instance)
    assert driver.get_info(Instance).state == "shutoff"
    driver.power_on(None, Instance, None)
    assert MARK in guest.domain.XMLDesc()
    leave(guest, program)


def test_a_host_agent_loads_the_driver_and_rescues(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from rescue_virt.driver import RescueDriver

    monkeypatch.setenv("OS_RESCUE__STATE_DIR", str(program.state))
    guest = make_guest(disk)
    witness = Witness(guest, program)

    class Instance:
        uuid = guest.domain.UUIDString()
        name = guest.name

    driver = RescueDriver()
    driver.init_host("here")
    assert guest.name in driver.list_instances()
    assert Instance.uuid in driver.list_instance_uuids()
    driver.rescue(None, Instance, None, {"location": str(rescue_image)}, "driver-password")
    with guest.serial() as serial:
        assert serial.login("root", "driver-password", 60)
        assert serial.run("cat /etc/marker") == "rescue"
    # Another face's session: the command line's recover must leave it alone.
    assert guest.name not in program.run("recover").out
    driver.unrescue(None, Instance)
    witness.assert_given_back()
