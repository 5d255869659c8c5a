"""Finds places on a guest's PCI bus that the guest counts after all others; pure.

A guest numbers its virtio disks in the order of their PCI addresses.  libvirt fills the first gap
it sees, which may lie before the guest's first disk, so what must come last says so itself.
"""

from __future__ import annotations

from lxml import etree
from lxml.builder import E

from rescue_virt.libvirt.tree import insert

_LAST_SLOT = 0x1F
# A narrow SCSI bus has seven places beside its host's; wider ones are rarely needed here.
_LAST_UNITS = {"scsi": 6, "sata": 5, "ide": 1}


def position(address: etree._Element) -> tuple[int, ...]:
    """Where an `<address>` stands in the guest's count."""
    parts = ("domain", "controller", "bus", "target", "slot", "unit", "function")
    return tuple(int(address.get(part, "0"), 0) for part in parts)


def is_express(devices: etree._Element) -> bool:
    return devices.find("controller[@model='pcie-root']") is not None


def place_behind(devices: etree._Element) -> etree._Element | None:
    """An `<address>` behind all PCI devices that are in `devices`; None: leave it to libvirt.

    That is right where nothing has an address yet (libvirt then assigns them in document order),
    where the bus is full, and on machines without PCI.
    """
    if devices.find(".//address[@type='pci']") is None:
        return None
    return _behind_ports(devices) if is_express(devices) else _slot_behind(devices)


def unit_behind(devices: etree._Element, last: etree._Element) -> etree._Element | None:
    """The next free place of a SCSI, SATA or IDE drive behind `last`; None: leave it to libvirt.

    Left alone, libvirt derives it from the name, and that place may be taken.
    """
    if last.get("type") != "drive":
        return None
    same = {name: last.get(name, "0") for name in ("controller", "bus", "target")}
    used = [
        int(address.get("unit", "0"))
        for address in devices.iterfind("disk/address[@type='drive']")
        if all(address.get(name, "0") == value for name, value in same.items())
        and _kind(address) == _kind(last)
    ]
    unit = max(used) + 1
    if unit > _LAST_UNITS.get(_kind(last), 0):
        return None
    return E.address({"type": "drive", **same, "unit": str(unit)})


def _kind(address: etree._Element) -> str:
    """The bus of the disk that has this address."""
    disk = address.getparent()
    target = None if disk is None else disk.find("target")
    return "" if target is None else target.get("bus", "")


def add_root_port(devices: etree._Element) -> int:
    """Add an empty PCI Express port; returns its index, the number of the bus behind it."""
    controllers = devices.findall("controller[@type='pci']")
    index = max((int(c.get("index", "0")) for c in controllers), default=0) + 1
    port = E.controller({"type": "pci", "index": str(index), "model": "pcie-root-port"})
    last = controllers[-1]
    insert(devices, devices.index(last) + 1, port)
    return index


def _slot_behind(devices: etree._Element) -> etree._Element | None:
    used = [
        int(address.get("slot", "0"), 0)
        for address in devices.iterfind(".//address[@type='pci']")
        if int(address.get("bus", "0"), 0) == 0
    ]
    slot = max(used, default=_LAST_SLOT) + 1
    return _address(bus=0, slot=slot) if slot <= _LAST_SLOT else None


def _behind_ports(devices: etree._Element) -> etree._Element:
    addresses = devices.findall(".//address[@type='pci']")
    used = {int(address.get("bus", "0"), 0) for address in addresses}
    disks = devices.findall("disk/address[@type='pci']")
    last = max((int(address.get("bus", "0"), 0) for address in disks), default=0)
    ports = (
        int(port.get("index", "0"))
        for port in devices.iterfind("controller[@model='pcie-root-port']")
    )
    free = sorted(index for index in ports if index > last and index not in used)
    return _address(bus=free[0] if free else add_root_port(devices), slot=0)


def _address(*, bus: int, slot: int) -> etree._Element:
    place = {"domain": "0x0000", "bus": f"{bus:#04x}", "slot": f"{slot:#04x}", "function": "0x0"}
    return E.address({"type": "pci", **place})
