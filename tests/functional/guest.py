"""Guests of the lab's libvirt: their definition, their life and their serial console."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import libvirt
from lxml import etree

URI = "qemu:///system"
# libvirt prints every error to stderr as well, unless somebody listens.
libvirt.registerErrorHandler(lambda _context, _error: None, None)
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
# libvirt fills slots from the low end, and q35 has chips of its own from 0x1a on.
SSH_SLOT = "0x10"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk or CD-ROM; the format is told by the suffix of the file."""

    source: Path
    target: str = "vda"
    bus: str = "virtio"
    device: str = "disk"
    boot: int | None = None
    serial: str | None = None

    @property
    def format(self) -> str:
        return "qcow2" if self.source.suffix == ".qcow2" else "raw"


# --- definition -----------------------------------------------------------------------------


def domain_xml(
    name: str,
    disks: Sequence[Disk],
    *,
    machine: str = "pc",
    memory: int = 256,
    nics: int = 0,
    ssh_port: int | None = None,
    firmware: str | None = None,
    agent: bool = False,
    log: bool = True,
) -> str:
    """An emulated guest with `memory` MiB, all it says on ttyS0 being in `console_log(name)`."""
    domain = etree.Element("domain", {"type": "qemu"}, nsmap={"qemu": QEMU_NAMESPACE})
    _child(domain, "name", text=name)
    _child(domain, "memory", {"unit": "MiB"}, text=str(memory))
    _child(domain, "vcpu", text="1")
    _add_os(domain, machine, firmware)
    _child(_child(domain, "features"), "acpi")
    devices = _child(domain, "devices")
    for disk in disks:
        _add_disk(devices, disk)
    for _ in range(nics):
        _add_nic(devices)
    _add_console(devices, console_log(name) if log else None)
    if agent:
        _add_agent(devices)
    if any(disk.bus == "scsi" for disk in disks):
        # libvirt's default is a controller no kernel for virtual machines has a driver for.
        _child(devices, "controller", {"type": "scsi", "model": "virtio-scsi"})
    _child(devices, "controller", {"type": "usb", "model": "none"})
    _child(devices, "memballoon", {"model": "none"})
    if ssh_port is not None:
        _add_ssh(domain, "pcie.0" if "q35" in machine else "pci.0", ssh_port)
    return etree.tostring(domain, encoding="unicode", pretty_print=True)


def console_log(name: str) -> Path:
    return _logs() / f"{name}.console.log"


def _logs() -> Path:
    return Path(os.environ["RESCUE_VIRT_RUN"]) / "log"


def _add_os(domain: etree._Element, machine: str, firmware: str | None) -> None:
    element = _child(domain, "os", {"firmware": firmware} if firmware else {})
    _child(element, "type", {"arch": "x86_64", "machine": machine}, text="hvm")
    if firmware == "efi":
        features = _child(element, "firmware")
        _child(features, "feature", {"enabled": "no", "name": "secure-boot"})


def _add_disk(devices: etree._Element, disk: Disk) -> None:
    element = _child(devices, "disk", {"type": "file", "device": disk.device})
    _child(element, "driver", {"name": "qemu", "type": disk.format})
    _child(element, "source", {"file": str(disk.source)})
    _child(element, "target", {"dev": disk.target, "bus": disk.bus})
    if disk.device == "cdrom":
        _child(element, "readonly")
    if disk.serial is not None:
        _child(element, "serial", text=disk.serial)
    if disk.boot is not None:
        _child(element, "boot", {"order": str(disk.boot)})


def _add_nic(devices: etree._Element) -> None:
    element = _child(devices, "interface", {"type": "user"})
    _child(element, "model", {"type": "virtio"})
    _child(element, "rom", {"enabled": "no"})


def _add_console(devices: etree._Element, log: Path | None) -> None:
    serial = _child(devices, "serial", {"type": "pty"})
    if log is not None:
        _child(serial, "log", {"file": str(log), "append": "on"})
    _child(serial, "target", {"port": "0"})
    console = _child(devices, "console", {"type": "pty"})
    _child(console, "target", {"type": "serial", "port": "0"})


def _add_agent(devices: etree._Element) -> None:
    element = _child(devices, "channel", {"type": "unix"})
    _child(element, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})


def _add_ssh(domain: etree._Element, bus: str, port: int) -> None:
    commandline = _child(domain, f"{{{QEMU_NAMESPACE}}}commandline")
    netdev = f"user,id=ssh,hostfwd=tcp:127.0.0.1:{port}-:22"
    device = f"virtio-net-pci,netdev=ssh,romfile=,bus={bus},addr={SSH_SLOT}"
    for value in ("-netdev", netdev, "-device", device):
        _child(commandline, f"{{{QEMU_NAMESPACE}}}arg", {"value": value})


def _child(
    parent: etree._Element, tag: str, attributes: dict[str, str] | None = None, *, text: str = ""
) -> etree._Element:
    element = etree.SubElement(parent, tag, attributes or {})
    if text:
        element.text = text
    return element


# --- life -----------------------------------------------------------------------------------


class Guest:
    """A domain that is gone with all libvirt keeps of it when its `with` block ends."""

    def __init__(self, connection: libvirt.virConnect, xml: str) -> None:
        self.xml = xml
        self.name = str(etree.fromstring(xml).findtext("name"))
        self._connection = connection

    def __enter__(self) -> Self:
        return self.define()

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @property
    def domain(self) -> libvirt.virDomain:
        """The domain of that name as libvirt has it now, whoever defined it."""
        return self._connection.lookupByName(self.name)

    @property
    def console_log(self) -> Path:
        return console_log(self.name)

    def define(self) -> Self:
        self._connection.defineXML(self.xml)
        return self

    def start(self) -> Self:
        self.domain.create()
        return self

    def destroy(self) -> None:
        self.domain.destroy()

    def is_running(self) -> bool:
        return bool(self.domain.isActive())

    def wait_off(self, timeout: float) -> None:
        _wait(lambda: not self.is_running(), timeout, f"{self.name} does not power off")

    def qemu_pid(self) -> int:
        return int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text())

    def serial(self) -> Serial:
        return Serial(self.name)

    def remove(self) -> None:
        try:
            domain = self.domain
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return
        persistent = domain.isPersistent()
        if domain.isActive():
            # It may stop on its own just now.
            with suppress(libvirt.libvirtError):
                domain.destroy()
        if persistent:
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            )


def wait_console_log(path: Path, pattern: str, timeout: float, offset: int = 0) -> re.Match[str]:
    """The first match of `pattern` in what the console log has from byte `offset` on."""
    found: list[re.Match[str]] = []

    def search() -> bool:
        text = path.read_bytes()[offset:].decode(errors="replace") if path.exists() else ""
        found.extend(re.finditer(pattern, text, re.MULTILINE))
        return bool(found)

    _wait(search, timeout, f"{path} has no {pattern!r}")
    return found[0]


def _wait(condition: Callable[[], bool], timeout: float, failure: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{failure} within {timeout:g} s")
        time.sleep(0.1)


# --- serial console -------------------------------------------------------------------------


class Serial:
    """A session on the console of a guest; `log/NAME.transcript` keeps all that was seen."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._text = ""
        self._chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        # A connection of its own: closing it ends a read that is under way.
        self._connection = libvirt.open(URI)
        self._stream = self._connection.newStream()
        domain = self._connection.lookupByName(name)
        domain.openConsole(None, self._stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
        self._transcript = (_logs() / f"{name}.transcript").open("ab", buffering=0)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(libvirt.libvirtError):
            self._stream.abort()
        self._reader.join(timeout=10)
        self._transcript.close()
        with suppress(libvirt.libvirtError):
            self._connection.close()

    def expect(self, pattern: str, timeout: float = 30) -> re.Match[str]:
        """Wait for a match of `pattern`; what is before its end will not be seen again."""
        deadline = time.monotonic() + timeout
        while (match := re.search(pattern, self._text, re.MULTILINE | re.DOTALL)) is None:
            try:
                chunk = self._chunks.get(timeout=max(deadline - time.monotonic(), 0))
            except (queue.Empty, ValueError):
                raise TimeoutError(
                    f"{self._name}: no {pattern!r} within {timeout:g} s after {self._text[-500:]!r}"
                ) from None
            if not chunk:
                raise EOFError(f"{self._name}: the console ended after {self._text[-500:]!r}")
            self._text += chunk.decode("ascii", errors="replace").replace("\r", "")
        self._text = self._text[match.end() :]
        return match

    def send(self, line: str) -> None:
        data = f"{line}\n".encode()
        while data:
            data = data[self._stream.send(data) :]

    def login(self, user: str, password: str, timeout: float = 60) -> bool:
        """Whether the guest lets `user` in; afterwards its kernel is silent on the console."""
        self._expect_prompt(time.monotonic() + timeout)
        self.send(user)
        self.expect("Password: ", timeout)
        # login may drop what is typed before it has switched the echo off.
        time.sleep(0.5)
        self.send(password)
        # busybox says "bad salt" of an account that is locked.
        answer = self.expect(r"Login incorrect|login: bad salt|[#$] (?:\x1b\S*)?$", timeout)
        if answer[0].startswith(("Login", "login")):
            return False
        self.run("dmesg -n 1", timeout)
        return True

    def run(self, command: str, timeout: float = 30) -> str:
        """What `command` prints in the shell of the guest; it has to succeed."""
        mark = uuid.uuid4().hex[:8]
        # Put together by the shell only, so that its echo of the command is no match.
        self.send(f"echo '<<''{mark}'; {command}; echo '{mark}'\":$?>>\"")
        match = self.expect(rf"<<{mark}\n(.*?)\n?{mark}:(\d+)>>\n", timeout)
        output, status = match[1], int(match[2])
        if status != 0:
            raise RuntimeError(f"{self._name}: {command!r} exited with {status}: {output!r}")
        return output

    def _expect_prompt(self, deadline: float) -> None:
        """The prompt may have been printed before this session: then ask for another.

        Not at once: login takes an empty line for a name if its own prompt is on the way.
        """
        while True:
            left = deadline - time.monotonic()
            try:
                self.expect("login: ", min(4, max(left, 0)))
            except TimeoutError:
                if left <= 4:
                    raise
                self.send("")
            else:
                return

    def _read(self) -> None:
        with suppress(libvirt.libvirtError):
            while chunk := self._stream.recv(4096):
                self._transcript.write(chunk)
                self._chunks.put(chunk)
        self._chunks.put(b"")
