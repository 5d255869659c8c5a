"""A real Debian guest: systemd, cloud-init, the guest agent, sshd."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import paramiko
import pycdlib
import pytest
import recipes
from guest import Disk, Guest, wait_console_log
from program import Program, Witness

BOOT = 180
OWN_SEED = """\
#cloud-config
chpasswd: {expire: false, list: "root:of-the-original"}
runcmd: [touch /own]
"""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def broken(directory: Path) -> Path:
    """The disk of a Debian that stops in emergency mode: its fstab names a disk that is not."""
    disk = recipes.overlay(recipes.debian_image("original"), directory / "debian.qcow2")
    fstab = recipes.read_root_file(disk, "/etc/fstab")
    recipes.write_root_file(
        disk, "/etc/fstab", f"{fstab}/dev/vdz1 /data ext4 x-systemd.device-timeout=1s 0 2\n"
    )
    return disk


def ssh(port: int, **how: Any) -> paramiko.SSHClient:
    """Log in as root; sshd may take its time, a refusal is final."""
    deadline = time.monotonic() + 60
    while True:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            client.connect(
                "127.0.0.1", port, "root", look_for_keys=False, allow_agent=False,
                timeout=30, banner_timeout=60, auth_timeout=60, **how,
            )  # fmt: skip
        except paramiko.AuthenticationException:
            client.close()
            raise
        except (paramiko.SSHException, OSError):
            client.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return client


def output(client: paramiko.SSHClient, command: str) -> str:
    return str(client.exec_command(command, timeout=60)[1].read().decode().strip())


def ssh_key(directory: Path) -> tuple[paramiko.PKey, Path]:
    key = paramiko.ECDSAKey.generate()
    public = directory / "key.pub"
    public.write_text(f"{key.get_name()} {key.get_base64()} somebody\n")
    return key, public


def own_seed(path: Path) -> Path:
    """A NoCloud seed, as the original was made with: it would win over ours."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, rock_ridge="1.09", joliet=3, vol_ident="cidata")
    for name, text in (("user-data", OWN_SEED), ("meta-data", "instance-id: original\n")):
        data = text.encode()
        plain = name.replace("-", "").upper()
        iso.add_fp(BytesIO(data), len(data), f"/{plain}.;1", rr_name=name, joliet_path=f"/{name}")
    iso.write(str(path))
    iso.close()
    return path


@pytest.mark.timeout(900)
def test_a_broken_debian_is_repaired_over_ssh_with_the_generated_password(
    make_guest: Callable[..., Guest], broken: Path, directory: Path, program: Program, port: int
) -> None:
    key, public = ssh_key(directory)
    seed = Disk(source=own_seed(directory / "seed.iso"), target="sda", bus="scsi", device="cdrom")
    how = {"memory": 768, "ssh_port": port, "agent": True}
    guest = make_guest(Disk(source=broken), seed, machine="q35", **how).start()
    wait_console_log(guest.console_log, "emergency mode|Emergency Mode", BOOT)
    witness = Witness(guest, program)

    result = program.run(
        "rescue", guest.name, "--image", str(recipes.debian_image("rescue")),
        "--ssh-key", str(public), "--shutdown-timeout", "1", "-o", "json",
    )  # fmt: skip
    said = result.json
    assert (said["password"], said["original_disks"]) == ("confirmed", "attached")
    password = said["generated_password"]
    assert result.out.count(password) == 1
    assert password not in result.err

    with guest.serial() as serial:
        assert not serial.login("root", "of-the-original", BOOT)
        assert serial.login("root", password, BOOT)
        assert serial.run("cat /etc/marker") == "rescue"
        assert serial.run("findmnt -no SOURCE /") == "/dev/vda2"
        assert serial.run("readlink -f /dev/disk/by-id/virtio-ORIGINAL-ROOT") == "/dev/vdb"
        assert serial.run("cloud-init status --wait >/dev/null; ls /own 2>&1 || true") != "/own"
    with pytest.raises(paramiko.AuthenticationException):
        ssh(port, password="wrong")
    ssh(port, pkey=key).close()
    client = ssh(port, password=password)
    repair = "mount /dev/vdb2 /mnt && sed -i /vdz1/d /mnt/etc/fstab && umount /mnt && echo done"
    assert output(client, repair) == "done"
    client.close()

    seen = guest.console_log.stat().st_size
    program.run("unrescue", guest.name)
    witness.assert_given_back()
    wait_console_log(guest.console_log, r"login: ", BOOT, seen)


@pytest.mark.timeout(900)
def test_a_debian_without_agent_channel_is_rescued_from_its_own_base_image(
    make_guest: Callable[..., Guest], broken: Path, program: Program, port: int
) -> None:
    guest = make_guest(broken, machine="pc", memory=768, ssh_port=port)
    witness = Witness(guest, program)
    password = "a given one: ü\"'$%"
    result = program.run(
        "rescue", guest.name, "--image", str(recipes.debian_image("original")),
        "--password-stdin", stdin=password,
    )  # fmt: skip
    assert re.search(r"password +confirmed", result.out)
    assert password not in result.out + result.err
    client = ssh(port, password=password)
    assert output(client, "findmnt -no SOURCE /") == "/dev/vda2"
    assert output(client, "mount /dev/vdb2 /mnt && grep -c vdz1 /mnt/etc/fstab") == "1"
    client.close()
    program.run("unrescue", guest.name)
    witness.assert_given_back()
