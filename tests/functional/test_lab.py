"""The guests of the lab behave as the tests of rescues take for granted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import libvirt
import pycdlib
import pytest
import recipes
from guest import URI, Disk, Guest, domain_xml, wait_console_log

pytestmark = pytest.mark.functional

PASSWORD = "opensesame"
# openssl passwd -6 -salt rescuevirt opensesame
PASSWORD_HASH = (
    "$6$rescuevirt$vRANSsRdj83I3xc7w.T8gvlKDRieV/LAr95i6ljK8YlWg8"
    "1QMfG7NpgwPlvq1ilIa66olxKNc5Icr4hwaTsrS0"
)
USER_DATA = f"""\
#cloud-config
chpasswd:
  expire: false
  list: |
    root:{PASSWORD_HASH}
"""
BOOT_TIMEOUT = 60


@pytest.fixture
def connection() -> Iterator[libvirt.virConnect]:
    connection = libvirt.open(URI)
    yield connection
    connection.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """Unlike pytest's tmp_path, one in which QEMU may open files."""
    with tempfile.TemporaryDirectory(dir=os.environ["RESCUE_VIRT_RUN"]) as path:
        Path(path).chmod(0o711)
        yield Path(path)


@pytest.fixture
def image(directory: Path) -> Path:
    return recipes.overlay(recipes.small_image("alpha"), directory / "disk.qcow2")


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_small_guest_reaches_its_login_and_obeys_the_power_button(
    connection: libvirt.virConnect, image: Path, machine: str
) -> None:
    xml = domain_xml(f"small-{machine}", [Disk(source=image)], machine=machine, nics=1)
    with Guest(connection, xml) as guest:
        guest.start()
        ready = wait_console_log(guest.console_log, r"^READY (.*)$", BOOT_TIMEOUT)
        assert ready[1].strip() == "marker=alpha root=/dev/vda2 disks=vda"
        wait_console_log(guest.console_log, "login: ", 10)
        guest.domain.shutdown()
        guest.wait_off(10)


def test_small_guest_boots_from_uefi(connection: libvirt.virConnect, image: Path) -> None:
    xml = domain_xml("small-efi", [Disk(source=image)], machine="q35", firmware="efi")
    with Guest(connection, xml) as guest:
        guest.start()
        ready = wait_console_log(guest.console_log, "^READY (.*)$", BOOT_TIMEOUT)
        assert ready[1].startswith("marker=alpha")


def test_small_guest_with_a_bad_fstab_boots_again_once_it_is_repaired(
    connection: libvirt.virConnect, image: Path
) -> None:
    good = recipes.read_root_file(image, "/etc/fstab")
    recipes.write_root_file(image, "/etc/fstab", f"{good}/dev/vdz1 /data ext4 defaults 0 2\n")
    with Guest(connection, domain_xml("small-fstab", [Disk(source=image)])) as guest:
        guest.start()
        wait_console_log(guest.console_log, "^BOOT FAILED: fstab: /dev/vdz1", BOOT_TIMEOUT)
        guest.destroy()
        assert "login: " not in guest.console_log.read_text(errors="replace")
        recipes.write_root_file(image, "/etc/fstab", good)
        guest.start()
        wait_console_log(guest.console_log, "login: ", BOOT_TIMEOUT)


def test_small_guest_without_a_kernel_stays_in_the_boot_loader(
    connection: libvirt.virConnect, image: Path
) -> None:
    recipes.remove_boot_file(image, "vmlinuz")
    with Guest(connection, domain_xml("small-kernel", [Disk(source=image)])) as guest:
        guest.start()
        wait_console_log(guest.console_log, "Loading /vmlinuz... failed", BOOT_TIMEOUT)
        with pytest.raises(TimeoutError):
            wait_console_log(guest.console_log, "login: ", 3)


def test_small_guest_takes_the_root_password_of_a_config_drive(
    connection: libvirt.virConnect, image: Path, directory: Path
) -> None:
    seed = _config_drive(directory / "seed.iso")
    disks = [Disk(source=image), Disk(source=seed, target="sda", bus="scsi", device="cdrom")]
    with Guest(connection, domain_xml("small-seed", disks, machine="q35")) as guest:
        guest.start()
        with guest.serial() as serial:
            serial.expect("READY ", BOOT_TIMEOUT)
            assert not serial.login("root", "wrong")
            assert serial.login("root", PASSWORD)
            assert serial.run("cat /etc/marker") == "alpha"
            with pytest.raises(RuntimeError, match="exited with 1"):
                serial.run("false")
            serial.send("poweroff")
            guest.wait_off(10)


def test_small_guest_takes_the_last_of_two_disks_with_the_same_root(
    connection: libvirt.virConnect, image: Path, directory: Path
) -> None:
    other = recipes.overlay(recipes.small_image("alpha"), directory / "other.qcow2")
    recipes.write_root_file(other, "/etc/marker", "other\n")
    disks = [Disk(source=image, boot=1), Disk(source=other, target="vdb")]
    with Guest(connection, domain_xml("small-twins", disks)) as guest:
        guest.start()
        ready = wait_console_log(guest.console_log, r"^READY (.*)$", BOOT_TIMEOUT)
        assert ready[1].strip() == "marker=other root=/dev/vdb2 disks=vda vdb"


def _config_drive(path: Path) -> Path:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, rock_ridge="1.09", vol_ident="config-2")
    iso.add_directory("/OPENSTACK", rr_name="openstack")
    iso.add_directory("/OPENSTACK/LATEST", rr_name="latest")
    data = USER_DATA.encode()
    iso.add_fp(BytesIO(data), len(data), "/OPENSTACK/LATEST/USERDATA.;1", rr_name="user_data")
    iso.write(str(path))
    iso.close()
    return path
