"""Renders a plan as the XML of the rescue domain; pure.

It starts from the guest's own definition, changes what the rescue is about and keeps the rest,
understood or not.
"""

from __future__ import annotations

import difflib
import itertools

from lxml import etree
from lxml.builder import E

from rescue_virt.libvirt import disks
from rescue_virt.libvirt.facts import AGENT_CHANNEL, SESSION_NAMESPACE, parse
from rescue_virt.libvirt.tree import append, insert, remove, serialize
from rescue_virt.model import DomainXml, RescueDomain, RescuePlan

# What would run the guest's own scripts in the rescue system, or win over our password.
_SEED_ENTRIES = ("opt/com.coreos/", "opt/org.flatcar-linux/", "opt/io.systemd.credentials/")
_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_SEED_STRINGS = ("io.systemd.credential", "io.systemd.stub")


def render(plan: RescuePlan) -> RescueDomain:
    """The rescue domain of `plan`: the same name and UUID, and disks to boot the rescue from."""
    root = parse(plan.guest.xml)
    # A live domain's number; createXML would take it for a request.
    root.attrib.pop("id", None)
    _name_session(root, plan)
    _boot_from_disk_only(root)
    _replace_nvram(root, plan)
    _leave_out_seeds(root)
    _leave_out_passed_seeds(root)
    _stay_in_rescue(root)
    devices = _devices(root)
    remove(devices, "tpm")
    late = disks.arrange(devices, plan)
    _add_console_log(devices, plan)
    _add_agent_channel(devices)
    return RescueDomain(
        xml=DomainXml(serialize(root)), late=tuple(serialize(disk) for disk in late)
    )


def difference(before: str, after: str, *, name: str) -> str:
    """A unified diff of two domain definitions."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"{name} (original)", f"{name} (rescue)", "", "",
        lineterm="",
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def without_secrets(xml: str) -> str:
    """The same definition without what libvirt shows only on request (VNC and SPICE passwords)."""
    root = parse(xml)
    for graphics in root.iterfind("devices/graphics"):
        graphics.attrib.pop("passwd", None)
    return serialize(root)


def _devices(root: etree._Element) -> etree._Element:
    devices = root.find("devices")
    if devices is None:
        devices = E.devices()
        append(root, devices)
    return devices


def _name_session(root: etree._Element, plan: RescuePlan) -> None:
    metadata = root.find("metadata")
    if metadata is None:
        metadata = E.metadata()
        after = root.find("uuid")
        insert(root, 1 if after is None else root.index(after) + 1, metadata)
    session = etree.Element(
        etree.QName(SESSION_NAMESPACE, "session"), nsmap={"rescue": SESSION_NAMESPACE}
    )
    session.set("id", plan.session_id)
    session.set("since", plan.since)
    append(metadata, session)


def _boot_from_disk_only(root: etree._Element) -> None:
    os = root.find("os")
    if os is not None:
        remove(os, "boot", "bootmenu", "kernel", "initrd", "cmdline", "dtb")
    for device in root.iterfind("devices/*"):
        remove(device, "boot")


def _replace_nvram(root: etree._Element, plan: RescuePlan) -> None:
    """The rescue run gets its own variables: the firmware would write boot entries into them.

    With `<os firmware='efi'>` libvirt still picks the loader, and fills the file from its template
    if the guest never had one to copy.
    """
    os = root.find("os")
    if os is None or not plan.guest.domain.uefi or os.find("loader[@stateless='yes']") is not None:
        return
    old = os.find("nvram")
    kept = ("template", "format", "templateFormat")
    nvram = E.nvram(str(plan.nvram))
    if old is not None:
        nvram.attrib.update({name: old.get(name, "") for name in kept if old.get(name)})
    if old is not None:
        insert(os, os.index(old), nvram)
        remove(os, old)
    elif os.get("firmware") == "efi":
        append(os, nvram)


def _leave_out_seeds(root: etree._Element) -> None:
    for sysinfo in root.findall("sysinfo"):
        for entry in sysinfo.findall(".//entry"):
            if _is_seed_entry(entry):
                remove(_parent(entry), entry)
        if sysinfo.get("type") == "fwcfg" and sysinfo.find("entry") is None:
            remove(root, sysinfo)


def _leave_out_passed_seeds(root: etree._Element) -> None:
    """Those that were handed to QEMU itself, behind libvirt's back."""
    commandline = root.find(f"{{{_QEMU_NAMESPACE}}}commandline")
    if commandline is None:
        return
    arguments = commandline.findall(f"{{{_QEMU_NAMESPACE}}}arg")
    for option, value in itertools.pairwise(arguments):
        text = value.get("value", "")
        names = tuple(f"name={prefix}" for prefix in _SEED_ENTRIES)
        is_seed = {
            "-fw_cfg": text.startswith((*names, *_SEED_ENTRIES)),
            "-smbios": "ds=nocloud" in text or any(s in text for s in _SEED_STRINGS),
        }
        if is_seed.get(option.get("value", "")):
            remove(commandline, option, value)


def _is_seed_entry(entry: etree._Element) -> bool:
    text = entry.text or ""
    return (
        "ds=nocloud" in text
        or (entry.get("name") or "").startswith(_SEED_ENTRIES)
        or text.startswith(_SEED_STRINGS)
    )


def _parent(element: etree._Element) -> etree._Element:
    parent = element.getparent()
    assert parent is not None
    return parent


def _stay_in_rescue(root: etree._Element) -> None:
    """A reboot inside stays in the rescue; a power-off ends the run and nothing else."""
    for tag, action in (("on_poweroff", "destroy"), ("on_reboot", "restart")):
        element = root.find(tag)
        if element is None:
            element = etree.Element(tag)
            insert(root, root.index(_devices(root)), element)
        element.text = action


def _add_console_log(devices: etree._Element, plan: RescuePlan) -> None:
    serial = devices.find("serial")
    if serial is None:
        serial = E.serial({"type": "pty"})
        append(devices, serial)
    if devices.find("serial/log") is None:
        # Before <target>, where libvirt itself puts it.
        place = 1 if serial.find("source") is not None else 0
        insert(serial, place, E.log({"file": str(plan.console_log), "append": "on"}))


def _add_agent_channel(devices: etree._Element) -> None:
    names = {target.get("name") for target in devices.iterfind("channel/target")}
    if AGENT_CHANNEL not in names:
        target = E.target({"type": "virtio", "name": AGENT_CHANNEL})
        append(devices, E.channel({"type": "unix"}, target))
