"""What a domain's XML says, and that what nobody touched is printed as it was."""

import re
from pathlib import Path

import libvirt
import pytest
from fakes import DOMAINS, domain
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from rescue_virt.errors import BadRequest
from rescue_virt.libvirt import facts
from rescue_virt.libvirt.addresses import place_behind
from rescue_virt.libvirt.domain_xml import without_secrets
from rescue_virt.libvirt.tree import append, insert, remove


def test_a_guest_is_read() -> None:
    found = facts.read(domain("q35-efi"))
    assert (found.name, found.arch) == ("db1", "x86_64")
    assert found.machine == "pc-q35-7.2"
    assert found.uuid == "6f1f4f5e-9a0c-4f0a-8d0f-3f3e2b1c0d02"
    assert (found.uefi, found.nvram, found.has_tpm, found.tpm_is_persistent) == (
        True, None, True, False,
    )  # fmt: skip
    assert [(d.target, d.boot_order) for d in found.disks] == [
        ("vda", 3), ("vdb", 2), ("sda", None),
    ]  # fmt: skip
    assert (found.is_nova, found.session_id, found.console_log) == (False, None, None)


def test_disks_are_read() -> None:
    root, data, cd = facts.read(domain("scsi")).disks
    assert (root.source, root.path, root.bus) == (
        "/dev/vg0/files1",
        Path("/dev/vg0/files1"),
        "scsi",
    )
    assert (data.source, data.path, data.format) == ("rbd:pool/files1-data", None, "raw")
    assert (cd.source, cd.device, cd.readonly) == (None, "cdrom", True)


def test_firmware_consoles_and_boot_devices_are_read() -> None:
    app = facts.read(domain("q35-nvram"))
    assert app.nvram == Path("/var/lib/libvirt/qemu/nvram/app1_VARS.fd")
    assert app.uefi
    assert app.console_log == Path("/var/log/libvirt/qemu/app1-serial.log")
    pc = facts.read(domain("pc"))
    assert not pc.uefi
    assert not facts.read(domain("kernel")).uefi


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_guest_of_nova_is_known_by_its_metadata(version: str) -> None:
    xml = domain("nova").replace("nova/1.1", f"nova/{version}")
    found = facts.read(xml)
    assert found.is_nova
    assert found.nova_image == "c0ffee00-0000-4000-8000-000000000001"
    volume = facts.read(xml.replace('type="image"', 'type="volume"'))
    assert (volume.is_nova, volume.nova_image) == (True, None)


def source(text: str) -> tuple[str, ...]:
    xml = re.sub(r"<source file='/srv/guests/tiny1.qcow2'/>", text, domain("kernel"))
    return facts.chains(xml)["vda"]


@pytest.mark.parametrize(
    ("text", "chain"),
    [
        ("<source pool='p' volume='v'/>", ("volume:p/v",)),
        ("<source dir='/d'/>", ("/d",)),
        ("<source protocol='nbd'/>", ("nbd:",)),
        ("<source type='unix' path='/s'/>", ()),
        ("", ()),
        (
            "<source file='/a'/><backingStore type='block'><source dev='/b'/><backingStore>"
            "<source protocol='rbd' name='c'/><backingStore/></backingStore></backingStore>",
            ("/a", "/b", "rbd:c"),
        ),
    ],
)
def test_a_chain_names_every_kind_of_source(text: str, chain: tuple[str, ...]) -> None:
    assert source(text) == chain


def test_chains_leave_out_removable_media() -> None:
    assert facts.chains(domain("pc")) == {
        "vda": ("/srv/guests/web1.snap2", "/srv/guests/web1.qcow2"),
        "vdb": ("/srv/guests/web1-data.img",),
    }


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "not a libvirt domain"),
        ("<domain>", "not a libvirt domain"),
        ("<network/>", "another root element"),
        ("<domain/>", "no <name> or no <os><type>"),
        ("<domain><name>x</name></domain>", "no <name> or no <os><type>"),
        (domain("kernel").replace("dev='vda'", ""), "a disk has no <target dev>"),
        (domain("q35-efi").replace("order='3'", "order='x'"), "'x' is no <boot order>"),
    ],
)
def test_what_is_no_domain_is_refused(xml: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        facts.read(xml)


def test_no_file_is_read_for_an_entity(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    xml = domain("pc").replace("<name>web1", "<name>&x;web1")
    xml = f"<!DOCTYPE domain [<!ENTITY x SYSTEM 'file://{secret}'>]>{xml}"
    assert "hunter2" not in facts.read(xml).name


def test_a_live_domain_says_where_its_console_is_and_whether_the_agent_talks() -> None:
    live = domain("q35-efi").replace(
        "<serial type='pty'>", "<serial type='pty'><source path='/dev/pts/3'/>"
    )
    assert facts.console_path(live) == "/dev/pts/3"
    assert facts.console_path(domain("pc")) is None
    assert facts.console_path(domain("kernel")) is None
    assert not facts.agent_is_connected(live)
    connected = live.replace("guest_agent.0'", "guest_agent.0' state='connected'")
    assert facts.agent_is_connected(connected)
    other = connected.replace("org.qemu.guest_agent.0", "com.redhat.spice.0")
    assert not facts.agent_is_connected(other)


def test_a_disk_on_its_own_has_a_target() -> None:
    assert facts.disk_target("<disk><target dev='vdb'/></disk>") == "vdb"
    assert facts.disk_target("<disk/>") == ""


# --- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(DOMAINS.glob("*.xml")), ids=lambda path: path.stem)
def test_what_nobody_touched_is_printed_byte_for_byte(path: Path) -> None:
    xml = re.sub(r" passwd='[^']*'", "", path.read_text())
    assert without_secrets(xml) == xml


TEXT = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="￾￿"), min_size=1
).filter(lambda text: text == text.strip() and "\n" not in text)
ODD = st.one_of(TEXT, st.text(alphabet="'\"&<>=/ äß😀x", min_size=1).map(lambda t: f"x{t}x"))


@pytest.fixture(scope="module")
def connection() -> libvirt.virConnect:
    return libvirt.open("test:///default")


@settings(deadline=None, max_examples=150)
@given(title=ODD, file=ODD)
def test_a_definition_that_libvirt_wrote_is_printed_byte_for_byte(
    connection: libvirt.virConnect, title: str, file: str
) -> None:
    root = etree.fromstring(
        "<domain type='test'><name>odd</name><title/><memory>8388</memory><os><type>hvm</type></os>"
        "<devices><disk type='file'><source/><target dev='vda'/></disk></devices></domain>"
    )
    for path in ("title", "devices/disk/source"):
        found = root.find(path)
        assert found is not None
        if path == "title":
            found.text = title
        else:
            found.set("file", f"/{file}")
    domain = connection.defineXML(etree.tostring(root, encoding="unicode"))
    try:
        written = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    finally:
        domain.undefine()
    assert without_secrets(written) == written
    assert facts.read(written).disks[0].source == f"/{file}"


def test_the_metadata_that_libvirt_wrote_is_printed_byte_for_byte(
    connection: libvirt.virConnect,
) -> None:
    xml = """<domain type='test'><name>odd</name><metadata><x:a xmlns:x="urn:x" b="it's">"q"</x:a>
    </metadata><memory>8388</memory><os><type>hvm</type></os></domain>"""
    domain = connection.defineXML(xml)
    written = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    domain.undefine()
    assert without_secrets(written) == written


# --- the tree --------------------------------------------------------------------------------


def tree(*tags: str) -> etree._Element:
    inner = "".join(f"\n    <{tag}/>" for tag in tags)
    return etree.fromstring(f"<r>\n  <p>{inner}{chr(10) + '  ' if tags else ''}</p>\n</r>")


def parent_of(root: etree._Element) -> etree._Element:
    parent = root.find("p")
    assert parent is not None
    return parent


def text(root: etree._Element) -> str:
    return etree.tostring(root, encoding="unicode")


@given(tags=st.lists(st.sampled_from("abc"), max_size=4), index=st.integers(0, 4))
def test_what_is_inserted_stands_where_libvirt_would_have_put_it(
    tags: list[str], index: int
) -> None:
    index = min(index, len(tags))
    root = tree(*tags)
    insert(parent_of(root), index, etree.Element("new"))
    assert text(root) == text(tree(*tags[:index], "new", *tags[index:])).replace("<p></p>", "<p/>")


@given(tags=st.lists(st.sampled_from("abc"), max_size=5), gone=st.sampled_from("abc"))
def test_what_is_removed_takes_its_line_along(tags: list[str], gone: str) -> None:
    root = tree(*tags)
    remove(parent_of(root), gone)
    assert text(root) == text(tree(*(tag for tag in tags if tag != gone))).replace(
        "<p></p>", "<p/>"
    )


def test_what_is_appended_is_indented_through_and_through() -> None:
    root = tree("a")
    append(parent_of(root), etree.fromstring("<new><x><y/></x></new>"))
    assert "\n    <new>\n      <x>\n        <y/>\n      </x>\n    </new>\n  </p>" in text(root)


def test_a_machine_without_pci_leaves_places_to_libvirt() -> None:
    devices = etree.fromstring("<devices><disk><address type='ccw' devno='0x1'/></disk></devices>")
    assert place_behind(devices) is None
