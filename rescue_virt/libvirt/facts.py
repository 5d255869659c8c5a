"""Domain XML read into facts; pure."""

from __future__ import annotations

from pathlib import Path

from lxml import etree

from rescue_virt.errors import BadRequest
from rescue_virt.model import Disk, DomainFacts, GuestUuid, Target

SESSION_NAMESPACE = "urn:rescue-virt:session:1"
NOVA_NAMESPACE = "http://openstack.org/xmlns/libvirt/nova/1.1"
AGENT_CHANNEL = "org.qemu.guest_agent.0"

# What libvirt takes for granted of a disk that names no bus.
_BUSES = {"vd": "virtio", "sd": "scsi", "hd": "ide", "fd": "fdc"}

# Nova has used 1.0 and 1.1; what is inside has the same names in both.
_NOVA_NAMESPACES = (NOVA_NAMESPACE, "http://openstack.org/xmlns/libvirt/nova/1.0")


def parse(xml: str) -> etree._Element:
    """Parse a `<domain>`; comments are dropped, nothing outside the text is ever read.

    :raises BadRequest: if it is not well-formed XML or not a domain.
    """
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, huge_tree=False, remove_comments=True
    )
    try:
        root = etree.fromstring(xml.encode(), parser)
    except etree.XMLSyntaxError as exc:
        raise BadRequest(f"not a libvirt domain: {exc.msg}") from exc
    if root.tag != "domain":
        raise BadRequest("not a libvirt domain: the document has another root element")
    return root


def read(xml: str) -> DomainFacts:
    """What a domain's XML says.

    :raises BadRequest: if it is not a domain, or lacks what libvirt itself requires.
    """
    root = parse(xml)
    os_type = root.find("os/type")
    if os_type is None or root.findtext("name") is None:
        raise BadRequest("not a libvirt domain: it has no <name> or no <os><type>")
    return DomainFacts(
        name=_text(root, "name"),
        uuid=GuestUuid(root.findtext("uuid", "").strip()),
        arch=os_type.get("arch", "x86_64"),
        machine=os_type.get("machine", ""),
        disks=tuple(_disk(element) for element in root.iterfind("devices/disk")),
        uefi=_is_uefi(root),
        nvram=_path(root.findtext("os/nvram")) or _nvram_source(root),
        has_tpm=root.find("devices/tpm") is not None,
        tpm_is_persistent=_tpm_is_persistent(root),
        is_nova=_nova(root) is not None,
        nova_image=_nova_image(root),
        session_id=_session_id(root),
        console_log=_console_log(root),
    )


def chains(xml: str) -> dict[str, tuple[str, ...]]:
    """Each disk's source and what backs it, top first, by target; not those of removable media.

    Only a live domain's XML tells the whole chain; elsewhere it is what the definition spells.
    """
    found = {}
    for element in parse(xml).iterfind("devices/disk"):
        target = element.find("target")
        if target is not None and element.get("device", "disk") in {"disk", "lun"}:
            found[target.get("dev", "")] = tuple(_chain(element))
    return found


def snapshot_files(xml: str) -> tuple[str, ...]:
    """The files that an external snapshot has the guest write to; none if it is internal."""
    disks = etree.fromstring(xml.encode()).iterfind("disks/disk[@snapshot='external']/source")
    return tuple(disk.get("file", "") for disk in disks if disk.get("file"))


def disk_target(disk: str) -> str:
    """The target of one `<disk>` element on its own."""
    target = etree.fromstring(disk).find("target")
    return "" if target is None else target.get("dev", "")


def console_path(xml: str) -> str | None:
    """The pty of a live domain's first serial console."""
    source = parse(xml).find("devices/serial[@type='pty']/source")
    return None if source is None else source.get("path")


def has_reachable_nic(xml: str) -> bool:
    """Whether a network card leads anywhere but into QEMU's own user-mode network."""
    cards = parse(xml).iterfind("devices/interface")
    return any(card.get("type") != "user" for card in cards)


def agent_is_connected(xml: str) -> bool:
    """Whether a live domain's guest agent has opened its channel."""
    return any(
        target.get("state") == "connected"
        for target in parse(xml).iterfind("devices/channel/target")
        if target.get("name") == AGENT_CHANNEL
    )


def _text(root: etree._Element, path: str) -> str:
    return root.findtext(path, "").strip()


def _path(text: str | None) -> Path | None:
    return Path(text.strip()) if text and text.strip() else None


def _disk(element: etree._Element) -> Disk:
    target = element.find("target")
    driver = element.find("driver")
    boot = element.find("boot")
    if target is None or not target.get("dev"):
        raise BadRequest("not a libvirt domain: a disk has no <target dev>")
    source = _source(element)
    return Disk(
        target=Target(target.get("dev", "")),
        bus=target.get("bus") or _BUSES.get(target.get("dev", "")[:2], ""),
        device=element.get("device", "disk"),
        source=source,
        path=Path(source) if source and source.startswith("/") else None,
        format=None if driver is None else driver.get("type"),
        boot_order=None if boot is None else _number(boot.get("order", "")),
        readonly=element.find("readonly") is not None,
    )


def _number(text: str) -> int:
    if not text.isdecimal():
        raise BadRequest(f"not a libvirt domain: {text!r} is no <boot order>")
    return int(text)


def _source(element: etree._Element) -> str | None:
    """A disk's (or backing store's) source: a path, or `kind:name` of what is not a path."""
    source = element.find("source")
    if source is None:
        return None
    for attribute in ("file", "dev", "dir"):
        if source.get(attribute):
            return source.get(attribute)
    if source.get("pool"):
        return f"volume:{source.get('pool')}/{source.get('volume')}"
    if source.get("protocol"):
        return f"{source.get('protocol')}:{source.get('name', '')}"
    return None


def _chain(element: etree._Element) -> list[str]:
    chain = []
    node: etree._Element | None = element
    while node is not None:
        source = _source(node)
        if source is not None:
            chain.append(source)
        node = node.find("backingStore")
    return chain


def _is_uefi(root: etree._Element) -> bool:
    loader = root.find("os/loader")
    named = root.find("os")
    return (named is not None and named.get("firmware") == "efi") or (
        loader is not None and loader.get("type") == "pflash"
    )


def _nvram_source(root: etree._Element) -> Path | None:
    source = root.find("os/nvram[@type='file']/source")
    return None if source is None else _path(source.get("file"))


def _tpm_is_persistent(root: etree._Element) -> bool:
    backends = root.findall("devices/tpm/backend")
    return all(backend.get("persistent_state") == "yes" for backend in backends)


def _nova(root: etree._Element) -> etree._Element | None:
    for namespace in _NOVA_NAMESPACES:
        instance = root.find(f"metadata/{{{namespace}}}instance")
        if instance is not None:
            return instance
    return None


def _nova_image(root: etree._Element) -> str | None:
    instance = _nova(root)
    if instance is None:
        return None
    for element in instance.iterfind("{*}root"):
        if element.get("type") == "image":
            return element.get("uuid")
    return None


def _session_id(root: etree._Element) -> str | None:
    element = root.find(f"metadata/{{{SESSION_NAMESPACE}}}session")
    return None if element is None else element.get("id")


def _console_log(root: etree._Element) -> Path | None:
    log = root.find("devices/serial/log")
    return None if log is None else _path(log.get("file"))
