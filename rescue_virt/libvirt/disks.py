"""Puts the rescue disk, the seed and the original's disks where the plan says; pure."""

from __future__ import annotations

import copy

from lxml import etree
from lxml.builder import E

from rescue_virt.libvirt.addresses import (
    add_root_port,
    is_express,
    place_behind,
    position,
    unit_behind,
)
from rescue_virt.libvirt.tree import append, insert, remove
from rescue_virt.model import Attach, Layout, RescuePlan

RESCUE_SERIAL = "RESCUE"
ROOT_SERIAL = "ORIGINAL-ROOT"
SEED_SERIAL = "RESCUE-SEED"

_DRIVES = frozenset({"cdrom", "floppy"})
_OWN_CONTROLLERS = 2


def arrange(devices: etree._Element, plan: RescuePlan) -> list[etree._Element]:
    """Rearrange the `<disk>` elements; returns those to be plugged after boot, in order."""
    originals = _take_out(devices, plan)
    place = min((devices.index(disk) for disk in devices.findall("disk")), default=0)
    remove(devices, "disk")
    rescue, seed = _rescue_disk(plan), _seed_disk(plan)
    first = 0 if plan.layout is Layout.CLASSIC else len(originals)
    for offset, disk in enumerate([*originals[:first], rescue, *originals[first:], seed]):
        insert(devices, place + offset, disk)
    _give_places(devices, [rescue, *_movers(plan, originals)], seed)
    if plan.seed_bus == "scsi":
        _add_seed_controller(devices, seed)
    return _keep_for_later(devices, originals) if plan.attach is Attach.LATE else []


def _take_out(devices: etree._Element, plan: RescuePlan) -> list[etree._Element]:
    """Copies of the original's disks in the plan's order, renamed."""
    found = {_target(disk).get("dev"): disk for disk in devices.iterfind("disk")}
    taken = []
    for placement in plan.originals:
        disk = copy.deepcopy(found[placement.before])
        _target(disk).set("dev", placement.now)
        # A passed-through LUN has a serial of its own.
        is_disk = disk.get("device", "disk") == "disk"
        if placement.is_root and is_disk and disk.find("serial") is None:
            _add_serial(disk)
        taken.append(disk)
    return taken


def _target(disk: etree._Element) -> etree._Element:
    target = disk.find("target")
    assert target is not None
    return target


def _add_serial(disk: etree._Element) -> None:
    insert(disk, disk.index(_target(disk)) + 1, E.serial(ROOT_SERIAL))


def _rescue_disk(plan: RescuePlan) -> etree._Element:
    """Our overlay, with its whole chain spelled out, so that QEMU probes nothing."""
    base = E.source({"file": str(plan.base)})
    if plan.guest.relabels:
        # An escaped guest that owns the shared image could poison it for all others.
        base.append(E.seclabel({"model": "dac", "relabel": "no"}))
    disk = E.disk(
        {"type": "file", "device": plan.device},
        E.driver({"name": "qemu", "type": "qcow2"}),
        E.source({"file": str(plan.overlay)}),
        E.backingStore(
            {"type": "file"}, E.format({"type": plan.image.format.driver}), base, E.backingStore()
        ),
        E.target({"dev": plan.target, "bus": plan.bus}),
        E.serial(RESCUE_SERIAL),
        E.boot({"order": "1"}),
    )
    if plan.device in _DRIVES:
        append(disk, E.readonly())
        remove(disk, "serial")
    return disk


def _seed_disk(plan: RescuePlan) -> etree._Element:
    is_virtio = plan.seed_bus == "virtio"
    return E.disk(
        {"type": "file", "device": "disk" if is_virtio else "cdrom"},
        E.driver({"name": "qemu", "type": "raw"}),
        E.source({"file": str(plan.seed)}),
        E.backingStore(),
        E.target({"dev": plan.seed_target, "bus": plan.seed_bus}),
        E.readonly(),
        E.serial(SEED_SERIAL),
    )


def _add_seed_controller(devices: etree._Element, seed: etree._Element) -> None:
    """A virtio-scsi controller of the seed's own: the guest's may be of a kind it has lost."""
    indexes = [int(c.get("index", "0")) for c in devices.iterfind("controller[@type='scsi']")]
    index = str(max(indexes, default=-1) + 1)
    append(devices, E.controller({"type": "scsi", "index": index, "model": "virtio-scsi"}))
    place = {"type": "drive", "controller": index, "bus": "0", "target": "0", "unit": "0"}
    append(seed, E.address(place))


def _movers(plan: RescuePlan, originals: list[etree._Element]) -> list[etree._Element]:
    """The originals that move up by one, in order; none in the stable layout."""
    if plan.layout is Layout.STABLE:
        return []
    pairs = zip(plan.originals, originals, strict=True)
    return [disk for place, disk in pairs if place.is_root or place.before != place.now]


def _give_places(
    devices: etree._Element, counted: list[etree._Element], seed: etree._Element
) -> None:
    """Classic: the rescue disk takes the root's place on the bus and the others move up by one.

    A guest counts its disks by their addresses, whatever they are called in the domain XML.  In
    the stable layout the rescue disk alone is `counted`: it comes behind all others.
    """
    found = sorted((a for disk in counted for a in disk.findall("address")), key=position)
    for disk in counted:
        remove(disk, "address")
    if len(found) == len(counted) - 1:  # else libvirt has yet to assign them: document order
        for disk, known in zip(counted, found, strict=False):
            append(disk, known)
    for disk in (counted[-1], seed):
        if disk.find("address") is None:
            address = place_behind(devices) if _bus(disk) == "virtio" else None
            if found and _bus(disk) == _bus(counted[0]) != "virtio":
                address = unit_behind(devices, found[-1])
            if address is not None:
                append(disk, address)


def _bus(disk: etree._Element) -> str | None:
    return _target(disk).get("bus")


def _keep_for_later(
    devices: etree._Element, originals: list[etree._Element]
) -> list[etree._Element]:
    """Take the originals out again: the guest gets them when it is up.

    Drives for removable media cannot be plugged, and hold no root: they stay.
    """
    late = [disk for disk in originals if disk.get("device", "disk") not in _DRIVES]
    for disk in late:
        remove(devices, disk)
        # Which ports are free by then, libvirt knows best.
        for address in disk.findall("address[@type='pci']"):
            remove(disk, address)
        etree.indent(disk)
    if is_express(devices):
        # libvirt puts the controllers it adds itself (serial, SCSI) into free ports first.
        for _ in range(len(late) + _OWN_CONTROLLERS):
            add_root_port(devices)
    return late
