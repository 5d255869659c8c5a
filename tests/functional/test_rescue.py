"""A broken guest is rescued with another image, repaired from inside, and given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import recipes
from conftest import PASSWORD
from guest import Disk, Guest, Serial, wait_console_log
from program import Program, Witness
from web_server import serve

BOOT = 90


def rescue(program: Program, guest: Guest, image: Path | str, *options: str) -> str:
    """Rescue with the known password; what the program says on stdout."""
    return program.run(
        "rescue", guest.name, "--image", str(image), "--password-stdin", *options, stdin=PASSWORD
    ).out


def logged_in(guest: Guest) -> Serial:
    serial = guest.serial()
    assert serial.login("root", PASSWORD, BOOT)
    return serial


def test_a_guest_with_a_bad_fstab_is_repaired_from_inside(
    make_guest: Callable[..., Guest], disk: Path, program: Program
) -> None:
    good = recipes.read_root_file(disk, "/etc/fstab")
    recipes.write_root_file(disk, "/etc/fstab", f"{good}/dev/vdz1 /data ext4 defaults 0 2\n")
    guest = make_guest(disk).start()
    wait_console_log(guest.console_log, "^BOOT FAILED: fstab", BOOT)
    witness = Witness(guest, program)

    raw = recipes.small_image("rescue", fmt="raw")
    rescue(program, guest, raw, "--shutdown-timeout", "1")
    assert guest.name in program.run("list").out
    with logged_in(guest) as serial:
        assert serial.run("cat /etc/marker") == "rescue"
        assert serial.run("mount | grep ' on / '").startswith("/dev/vda2")
        serial.run("mount /dev/vdb2 /mnt")
        assert serial.run("cat /mnt/etc/marker") == "original"
        serial.run("sed -i /vdz1/d /mnt/etc/fstab && umount /mnt")

    given_back_at = guest.console_log.stat().st_size
    program.run("unrescue", guest.name)
    witness.assert_given_back()
    ready = wait_console_log(guest.console_log, "^READY (.*)$", BOOT, given_back_at)
    assert ready[1].startswith("marker=original root=/dev/vda2")
    wait_console_log(guest.console_log, "login: ", BOOT, given_back_at)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_a_guest_without_a_kernel_is_rescued_from_a_url(
    make_guest: Callable[..., Guest], disk: Path, program: Program, fmt: str
) -> None:
    recipes.remove_boot_file(disk, "vmlinuz")
    guest = make_guest(disk, machine="q35")
    witness = Witness(guest, program)
    image = recipes.small_image("rescue", fmt=fmt)

    with serve(image) as server:
        out = rescue(program, guest, server.url, "--sha256", server.sha256)
    assert f"sha256:{server.sha256}" in out
    with logged_in(guest) as serial:
        assert serial.run("cat /etc/marker") == "rescue"
        # By its serial, whatever the guest calls it.
        assert serial.run("cat /sys/block/vdb/serial") == "ORIGINAL-ROOT"
        serial.run("mount -t vfat /dev/vdb1 /mnt && ls /mnt/initrd && ! ls /mnt/vmlinuz")
        serial.run("mkdir -p /own && mount -t vfat /dev/vda1 /own && cp /own/vmlinuz /mnt/")
        serial.run("umount /own /mnt")
    program.run("unrescue", guest.name)
    witness.assert_given_back()
    seen = guest.console_log.stat().st_size
    guest.start()
    wait_console_log(guest.console_log, "^READY marker=original", BOOT, seen)


def test_all_disks_and_nics_are_kept_in_order(
    make_guest: Callable[..., Guest], disk: Path, directory: Path, rescue_image: Path,
    program: Program,
) -> None:  # fmt: skip
    data = []
    for number, target in enumerate(["vdb", "vdc"], start=2):
        path = directory / f"data{number}.raw"
        path.write_bytes(bytes(number << 20))
        data.append(Disk(source=path, target=target))
    guest = make_guest(Disk(source=disk), *data, nics=2)
    macs = guest.domain.XMLDesc().split("mac address='")[1:]
    for layout, expected in (
        ("classic", {"vda": "RESCUE", "vdb": "ORIGINAL-ROOT", "vdc": 4096, "vdd": 6144}),
        ("stable", {"vda": "ORIGINAL-ROOT", "vdb": 4096, "vdc": 6144, "vdd": "RESCUE"}),
    ):
        rescue(program, guest, rescue_image, "--layout", layout)
        with logged_in(guest) as serial:
            assert serial.run("cat /etc/marker") == "rescue"
            for name, what in expected.items():
                fact = "size" if isinstance(what, int) else "serial"
                assert serial.run(f"cat /sys/block/{name}/{fact}") == str(what), (layout, name)
            addresses = serial.run("cat /sys/class/net/*/address")
            assert all(mac[:17] in addresses for mac in macs)
        program.run("unrescue", guest.name)


def test_a_uefi_guest_boots_the_rescue_and_keeps_its_variables(
    make_guest: Callable[..., Guest], disk: Path, directory: Path, rescue_image: Path,
    program: Program,
) -> None:  # fmt: skip
    guest = make_guest(disk, machine="q35", firmware="efi").start()
    wait_console_log(guest.console_log, "^READY marker=original", BOOT)
    guest.domain.shutdown()
    guest.wait_off(30)
    variables = Path(f"/var/lib/libvirt/qemu/nvram/{guest.name}_VARS.fd")
    before = variables.read_bytes()

    (directory / "password").write_text(f"{PASSWORD}\n")
    password = ("--password-file", str(directory / "password"))
    program.run("rescue", guest.name, "--image", str(rescue_image), *password)
    with logged_in(guest) as serial:
        assert serial.run("cat /etc/marker") == "rescue"
        assert serial.run("ls /sys/firmware/efi") != ""
    assert str(program.state) in guest.domain.XMLDesc().partition("<nvram")[2].partition("</")[0]
    program.run("unrescue", guest.name)
    assert variables.read_bytes() == before


def test_the_rescue_guest_reboots_and_powers_off_in_rescue(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program
) -> None:
    guest = make_guest(disk)
    witness = Witness(guest, program)
    rescue(program, guest, rescue_image)
    with logged_in(guest) as serial:
        serial.run("echo kept > /root/note")
        serial.send("reboot")
        serial.expect("READY marker=rescue root=/dev/vda2", BOOT)
        assert serial.login("root", PASSWORD, BOOT)
        assert serial.run("cat /root/note") == "kept"
        serial.send("poweroff")
    guest.wait_off(30)
    assert "powered off" in program.run("status", guest.name).out

    program.run("resume", guest.name)
    with logged_in(guest) as serial:
        assert serial.run("cat /root/note") == "kept"
        serial.send("poweroff")
    guest.wait_off(30)
    program.run("unrescue", guest.name)
    witness.assert_given_back()


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_the_guests_own_base_image_boots_from_the_rescue_disk(
    make_guest: Callable[..., Guest], disk: Path, small: Path, program: Program, machine: str
) -> None:
    recipes.write_root_file(disk, "/etc/marker", "broken\n")
    guest = make_guest(disk, machine=machine)
    witness = Witness(guest, program)
    out = rescue(program, guest, small)
    assert "attached" in out
    with logged_in(guest) as serial:
        _prove_own_base(serial)
        serial.send("reboot")
    # A reset would keep the plugged disk, and come up on the broken root.
    guest.wait_off(30)
    assert "powered off" in program.run("status", guest.name).out

    program.run("resume", guest.name)
    with logged_in(guest) as serial:
        _prove_own_base(serial)
    program.run("unrescue", guest.name)
    witness.assert_given_back()
    assert recipes.read_root_file(disk, "/written") == "by the rescue\n"


def _prove_own_base(serial: Serial) -> None:
    assert serial.run("cat /etc/marker") == "original"
    assert serial.run("mount | grep ' on / '").startswith("/dev/vda2")
    serial.run("mount /dev/vdb2 /mnt")
    assert serial.run("cat /mnt/etc/marker") == "broken"
    serial.run("echo 'by the rescue' > /mnt/written && umount /mnt")


def test_late_disks_are_attached_by_hand_when_nobody_waited(
    make_guest: Callable[..., Guest], disk: Path, small: Path, program: Program
) -> None:
    guest = make_guest(disk)
    assert "pending" in rescue(program, guest, small, "--no-wait")
    assert "rescue-virt attach" in program.run("status", guest.name).out
    program.run("attach", guest.name, "--timeout", "0.1", expect=8)
    program.run("attach", guest.name)
    assert program.run("status", guest.name, "-o", "json").json["original_disks"] == "attached"
    program.run("attach", guest.name, expect=4)
    program.run("unrescue", guest.name, "--force-off")


def test_a_rescue_guest_that_is_not_ready_in_time_is_left_in_rescue(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program
) -> None:
    guest = make_guest(disk)
    result = program.run(
        "rescue", guest.name, "--image", str(rescue_image), "--timeout", "0.5", expect=8
    )
    assert "not ready within" in result.err
    assert guest.is_running()
    slow = program.run("unrescue", guest.name, "--timeout", "0.5", expect=8)
    assert "--force-off" in slow.err
    assert guest.is_running()
    program.run("unrescue", guest.name, "--force-off")
    assert not guest.is_running()


def test_the_console_command_leads_to_the_guest_and_back(
    make_guest: Callable[..., Guest], disk: Path, rescue_image: Path, program: Program
) -> None:
    guest = make_guest(disk)
    rescue(program, guest, rescue_image)
    with program.on_a_terminal("console", guest.name) as terminal:
        terminal.expect("Escape character is", 20)
        terminal.type("\n")
        terminal.expect("login: ", 20)
        terminal.type("\x1d")  # ^]
        assert terminal.wait(20) == 0
    assert guest.is_running()
    program.run("unrescue", guest.name, "--force-off")
