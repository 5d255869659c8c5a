"""The story that scripts/demo tells: what an operator types and sees, and what it proves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import recipes
from guest import URI, Disk, Guest, domain_xml, wait_console_log

NAME = "web1"
BOOT = 150
REPAIR = "sed -i /vdz1/d /mnt/etc/fstab"
SOURCE = Path(__file__).resolve().parents[2]
PRODUCT = ("setup.py", "pyproject.toml", "rescue_virt", "templates", "docs")


class Story:
    """Tells each step with its time, and remembers what it proved."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._began = time.monotonic()
        self._proofs: list[tuple[bool, str]] = []

    def tell(self, text: str) -> None:
        print(f"\n[{time.monotonic() - self._began:5.1f} s] {text}", flush=True)

    def prove(self, what: str, holds: bool) -> None:
        print(f"    {'proved' if holds else 'NOT PROVED'}: {what}", flush=True)
        self._proofs.append((holds, what))

    def type(self, *arguments: str) -> str:
        """Run rescue-virt as the operator would; what it wrote on stdout."""
        print(f"    # rescue-virt {' '.join(arguments)}", flush=True)
        process = subprocess.Popen(
            [str(self.state / "product/bin/rescue-virt"), *arguments],
            env=os.environ
            | {
                "PYTHONPATH": str(self.state / "product"),
                "OS_RESCUE__STATE_DIR": str(self.state / "rescue-virt"),
                "PYTHONUNBUFFERED": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            print(f"    {line}", end="", flush=True)
        self.prove(f"rescue-virt {arguments[0]} exits 0", process.wait() == 0)
        return seen

    def end(self) -> int:
        print(f"\n=== what was proved ({time.monotonic() - self._began:.0f} s)")
        for holds, what in self._proofs:
            print(f"  {'yes' if holds else 'NO '}  {what}")
        return 0 if all(holds for holds, _ in self._proofs) else 1


def main() -> int:
    with tempfile.TemporaryDirectory(dir=os.environ["RESCUE_VIRT_RUN"]) as directory:
        state = Path(directory)
        state.chmod(0o711)
        story = Story(state)
        story.tell("installing rescue-virt with pip, and building two Debian 12 images")
        install(state)
        rescue_image = recipes.debian_image("rescue")
        disk = recipes.overlay(recipes.debian_image("original"), state / f"{NAME}.qcow2")
        break_fstab(disk)
        xml = domain_xml(NAME, [Disk(source=disk)], machine="q35", memory=768, nics=1)
        with connected() as connection, Guest(connection, xml) as guest:
            try:
                tell(story, guest, rescue_image)
            except (TimeoutError, EOFError, RuntimeError) as error:
                story.prove(str(error), False)
        return story.end()


def tell(story: Story, guest: Guest, rescue_image: Path) -> None:
    story.tell(f"starting {NAME}, whose /etc/fstab names a disk that does not exist")
    guest.start()
    wait_console_log(guest.console_log, "[Ee]mergency [Mm]ode", BOOT)
    story.prove(f"{NAME} does not boot: it stops in emergency mode, and nobody can log in", True)
    definition = definition_of(guest)

    story.tell("rescuing it with an image of our choice")
    out = story.type("rescue", NAME, "--image", str(rescue_image), "--shutdown-timeout", "5")
    password = re.search(r"generated.password\s+(\S+)", out)
    story.prove("a password was generated and printed", password is not None)
    if password is not None:
        repair(story, guest, password[1])
    story.type("status", NAME)

    story.tell("giving it back")
    seen = guest.console_log.stat().st_size
    story.type("unrescue", NAME)
    story.prove("its definition is what it was, byte for byte", definition_of(guest) == definition)
    story.prove("no file of the rescue is left", not list(sessions(story.state)))
    wait_console_log(guest.console_log, "login: ", BOOT, seen)
    story.prove(f"{NAME} boots from its own disk to its login prompt", True)


def repair(story: Story, guest: Guest, password: str) -> None:
    story.tell("logging in on the serial console, and repairing the original disk")
    with guest.serial() as serial:
        story.prove("a wrong password is refused", not serial.login("root", "wrong", BOOT))
        story.prove("the printed password logs in", serial.login("root", password, BOOT))
        marker = serial.run("cat /etc/marker")
        story.prove(f"/ is the rescue image ({marker})", marker == "rescue")
        root = serial.run("readlink -f /dev/disk/by-id/virtio-ORIGINAL-ROOT")
        story.prove(f"the original root is the second disk ({root})", root == "/dev/vdb")
        serial.run("mount /dev/vdb2 /mnt")
        story.prove("it is the original", serial.run("cat /mnt/etc/marker") == "original")
        print(f"    # {REPAIR}", flush=True)
        serial.run(f"{REPAIR} && umount /mnt")


def install(state: Path) -> None:
    """`pip install .`, from a copy: setuptools writes beside what it builds."""
    copy = state / "source"
    copy.mkdir()
    for name in PRODUCT:
        path = SOURCE / name
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, copy / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--no-build-isolation", "--target", str(state / "product"), str(copy)],
        check=True, timeout=120,
    )  # fmt: skip


def break_fstab(disk: Path) -> None:
    fstab = recipes.read_root_file(disk, "/etc/fstab")
    broken = f"{fstab}/dev/vdz1 /data ext4 x-systemd.device-timeout=1s 0 2\n"
    recipes.write_root_file(disk, "/etc/fstab", broken)


@contextmanager
def connected() -> Iterator[libvirt.virConnect]:
    connection = libvirt.open(URI)
    try:
        yield connection
    finally:
        connection.close()


def definition_of(guest: Guest) -> str:
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    return str(guest.domain.XMLDesc(flags))


def sessions(state: Path) -> Iterator[Path]:
    return (state / "rescue-virt" / "sessions").iterdir()


if __name__ == "__main__":
    sys.exit(main())
