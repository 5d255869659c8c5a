"""What must not be rescued is refused, and goes on running as the same process."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest
from guest import Disk, Guest, domain_xml
from program import Program, Witness, wait_until

NOVA = """<metadata><nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
<nova:name>vm</nova:name></nova:instance></metadata><memory"""


@pytest.fixture
def guest(make_guest: Callable[..., Guest], disk: Path) -> Guest:
    return make_guest(disk).start()


@pytest.fixture
def refused(guest: Guest, rescue_image: Path, program: Program) -> Callable[..., str]:
    """Ask for the rescue; the guest must be untouched.  What was said on stderr."""

    def ask(*options: str, code: int, image: Path | str = rescue_image) -> str:
        witness = Witness(guest, program)
        result = program.run("rescue", guest.name, "--image", str(image), *options, expect=code)
        witness.assert_untouched()
        assert result.out == ""
        assert guest.name in result.err or str(image) in result.err
        return result.err

    return ask


def test_a_paused_guest(guest: Guest, refused: Callable[..., str]) -> None:
    guest.domain.suspend()
    assert "virsh resume" in refused(code=5)
    assert guest.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED


def test_a_guest_with_a_managed_save_image(
    guest: Guest, rescue_image: Path, program: Program
) -> None:
    guest.domain.managedSave()
    error = program.run("rescue", guest.name, "--image", str(rescue_image), expect=5).err
    assert "managedsave-remove" in error
    assert guest.domain.hasManagedSaveImage()
    guest.domain.managedSaveRemove()


def test_a_guest_with_a_running_block_job(
    guest: Guest, directory: Path, refused: Callable[..., str]
) -> None:
    copy = directory / "copy.qcow2"
    xml = f"<disk type='file'><source file='{copy}'/><driver type='qcow2'/></disk>"
    guest.domain.blockCopy("vda", xml, flags=libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    assert "virsh blockjob" in refused(code=5)
    guest.domain.blockJobAbort("vda")


def test_an_image_of_another_architecture(refused: Callable[..., str]) -> None:
    assert "aarch64" in refused("--property", "hw_architecture=aarch64", code=5)


def test_an_image_of_the_other_firmware(refused: Callable[..., str]) -> None:
    assert "uefi" in refused("--property", "hw_firmware_type=uefi", code=5)


def test_a_bus_that_the_machine_does_not_have(refused: Callable[..., str]) -> None:
    error = refused("--property", "hw_rescue_bus=fdc", "--layout", "stable", code=5)
    assert "libvirt says" in error or "hw_rescue_bus" in error


def test_an_overlay_that_does_not_fit(
    guest: Guest, rescue_image: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OS_RESCUE__OVERLAY_SPACE_MB", "1000000000")
    witness = Witness(guest, program)
    arguments = ("rescue", guest.name, "--image", str(rescue_image))
    error = program.run(*arguments, "--property", "min_disk=1000000", expect=5).err
    assert "are free in" in error
    witness.assert_untouched()


def test_a_guest_that_is_in_rescue_already(
    guest: Guest, rescue_image: Path, program: Program
) -> None:
    program.run("rescue", guest.name, "--image", str(rescue_image), "--no-wait", "--force-off")
    pid = guest.qemu_pid()
    error = program.run("rescue", guest.name, "--image", str(rescue_image), expect=4).err
    assert "in rescue already" in error
    assert guest.qemu_pid() == pid
    program.run("unrescue", guest.name, "--force-off")


def test_a_guest_of_nova_unless_it_is_taken(
    connection: libvirt.virConnect, disk: Path, directory: Path, rescue_image: Path,
    program: Program,
) -> None:  # fmt: skip
    xml = domain_xml("instance-1", [Disk(source=disk)]).replace("<memory", NOVA, 1)
    compute = directory / "nova-compute"
    compute.write_text("#!/bin/sh\nread forever\n")
    compute.chmod(0o755)
    arguments = ("rescue", "instance-1", "--image", str(rescue_image), "--no-wait", "--force-off")
    with Guest(connection, xml) as guest, _running(compute):
        guest.start()
        witness = Witness(guest, program)
        assert "openstack server rescue" in program.run(*arguments, expect=5).err
        witness.assert_untouched()
        program.run(*arguments, "--take-from-nova")
        program.run("unrescue", guest.name, "--force-off")
        witness.assert_given_back()


@contextmanager
def _running(script: Path) -> Iterator[None]:
    process = subprocess.Popen([script], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.communicate()


@pytest.mark.parametrize("uri", ["qemu+ssh://elsewhere/system", "qemu+tls://elsewhere/system"])
def test_a_guest_of_another_host(program: Program, uri: str) -> None:
    error = program.run("-c", uri, "rescue", "any", "--image", "/none", expect=5).err
    assert "another host" in error


def test_a_connection_that_is_not_qemus(program: Program) -> None:
    arguments = ("-c", "test:///default", "rescue", "test", "--image", "/none")
    assert "not a QEMU connection" in program.run(*arguments, expect=5).err


def test_a_transient_guest_whose_tpm_would_be_lost(
    connection: libvirt.virConnect, disk: Path, rescue_image: Path, program: Program
) -> None:
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>"
    xml = domain_xml("tpm-transient", [Disk(source=disk)]).replace("</devices>", tpm)
    guest = Guest(connection, xml)
    connection.createXML(xml)
    try:
        witness = Witness(guest, program)
        arguments = ("rescue", guest.name, "--image", str(rescue_image))
        assert "TPM" in program.run(*arguments, expect=5).err
        witness.assert_untouched()
    finally:
        guest.remove()


def test_images_that_cannot_be_had_or_trusted(
    refused: Callable[..., str], directory: Path, disk: Path
) -> None:
    assert "does not exist" in refused(code=3, image="/no/such/image.qcow2")
    assert "--sha256" in refused(code=2, image="http://127.0.0.1:9/image.qcow2")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    closed = f"http://127.0.0.1:{port}/image.qcow2"
    refused("--sha256", "0" * 64, code=7, image=closed)
    wrong = refused("--sha256", "0" * 64, code=7)
    assert "0" * 64 in wrong
    # An overlay names a host file as its base: a crafted one would read it.
    (directory / "evil.qcow2").write_bytes(disk.read_bytes())
    assert "backing file" in refused(code=7, image=directory / "evil.qcow2")
    assert "itself" in refused(code=5, image=disk)


def test_a_guest_that_does_not_exist(program: Program, rescue_image: Path) -> None:
    error = program.run("rescue", "nobody", "--image", str(rescue_image), expect=3).err
    assert "virsh list --all" in error


def test_a_second_command_for_the_same_guest(
    guest: Guest, rescue_image: Path, program: Program
) -> None:
    arguments = ("--image", str(rescue_image), "--shutdown-timeout", "30")
    first = program.start("rescue", guest.name, *arguments)
    first.wait_for("stopping the guest")
    wait_until(lambda: program.sessions != [])
    error = program.run("rescue", guest.name, *arguments, expect=4).err
    assert "another rescue-virt command" in error
    first.end(signal.SIGINT, expect=130)
    assert guest.is_running()
