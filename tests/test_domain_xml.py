"""The rescue domain, as a diff against the guest's own definition."""

import re
from pathlib import Path

import pytest
from fakes import DIRECTORY, DOMAINS, decide, domain, make_guest, make_image, xml_diff
from lxml import etree

from rescue_virt.libvirt.domain_xml import difference, render, without_secrets
from rescue_virt.libvirt.facts import read
from rescue_virt.model import ImageFormat, Layout, RescueDomain

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
SEEDS = {"pc": ("hda",), "kernel": ("vdb",)}
ALL = sorted(path.stem for path in DOMAINS.glob("*.xml"))

SESSION = '<rescue:session xmlns:rescue="urn:rescue-virt:session:1" id="5e55-10"'
OVERLAY = f"""
    <driver name='qemu' type='qcow2'/>
    <source file='{DIRECTORY}/rescue.qcow2'/>
    <backingStore type='file'>
    <format type='qcow2'/>
    <source file='{DIRECTORY}/base.img'>
    <seclabel model='dac' relabel='no'/>
    </source>
    <backingStore/>
    </backingStore>
"""
AGENT = """
    <channel type='unix'>
    <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
"""


def lines(text: str, sign: str = "") -> list[str]:
    return [sign + line.strip() for line in text.splitlines() if line.strip()]


def rescue(name: str, *changes: tuple[str, str], late: bool = False) -> RescueDomain:
    return render(decide(make_guest(edited(name, *changes)), late=late, seeds=SEEDS.get(name, ())))


def edited(name: str, *changes: tuple[str, str]) -> str:
    xml: str = domain(name)
    for before, after in changes:
        assert before in xml
        xml = xml.replace(before, after, 1)
    return xml


def added(name: str, xml: str) -> list[str]:
    return [line[1:] for line in xml_diff(domain(name), xml) if line.startswith("+")]


def gone(name: str, xml: str) -> list[str]:
    return [line[1:] for line in xml_diff(domain(name), xml) if line.startswith("-")]


def disks(xml: str) -> dict[str, etree._Element]:
    found = {}
    for disk in etree.fromstring(xml.encode()).iterfind("devices/disk"):
        target = disk.find("target")
        assert target is not None
        found[target.get("dev", "")] = disk
    return found


def attributes(disk: etree._Element, path: str) -> dict[str, str]:
    element = disk.find(path)
    assert element is not None
    return {str(k): str(v) for k, v in element.attrib.items()}


def place(disk: etree._Element) -> str:
    address = attributes(disk, "address")
    return f"{address['bus']}:{address.get('slot', address.get('unit'))}"


def element(text: str) -> str:
    """One `<disk>`, without the indentation that its place in a document gives it."""
    return "".join(line.strip() for line in text.splitlines())


def disk_text(xml: str, source: str) -> str:
    blocks = re.findall(r" *<disk .*?</disk>", xml, re.DOTALL)
    return next(element(block) for block in blocks if source in block)


# --- layouts ---------------------------------------------------------------------------------


def test_in_the_classic_layout_the_rescue_takes_the_place_of_the_root_and_the_others_move_up() -> (
    None
):
    xml = rescue("pc").xml
    assert xml_diff(domain("pc"), xml) == [
        "+<metadata>",
        f'+{SESSION} since="2026-01-02T03:04:05+00:00"/>',
        "+</metadata>",
        "-<boot dev='cdrom'/>",
        "-<boot dev='hd'/>",
        "-<bootmenu enable='yes' timeout='3000'/>",
        *lines(OVERLAY, "+"),
        "+<target dev='vda' bus='virtio'/>",
        "+<serial>RESCUE</serial>",
        "+<boot order='1'/>",
        "+<address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>",
        "+</disk>",
        "+<disk type='file' device='disk'>",
        "-<target dev='vda' bus='virtio'/>",
        "-<address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>",
        "+<target dev='vdb' bus='virtio'/>",
        "+<serial>ORIGINAL-ROOT</serial>",
        "+<address type='pci' domain='0x0000' bus='0x00' slot='0x06' function='0x0'/>",
        "-<target dev='vdb' bus='virtio'/>",
        "+<target dev='vdc' bus='virtio'/>",
        "-<address type='pci' domain='0x0000' bus='0x00' slot='0x06' function='0x0'/>",
        "+<address type='pci' domain='0x0000' bus='0x00' slot='0x09' function='0x0'/>",
        "-<disk type='file' device='cdrom'>",
        "+<disk type='file' device='disk'>",
        "-<source file='/srv/guests/web1-seed.iso'/>",
        "-<target dev='hda' bus='ide'/>",
        f"+<source file='{DIRECTORY}/seed.iso'/>",
        "+<backingStore/>",
        "+<target dev='vdd' bus='virtio'/>",
        "-<address type='drive' controller='0' bus='0' target='0' unit='0'/>",
        "+<serial>RESCUE-SEED</serial>",
        "+<address type='pci' domain='0x0000' bus='0x00' slot='0x0a' function='0x0'/>",
        f"+<log file='{DIRECTORY}/console.log' append='on'/>",
        *lines(AGENT, "+"),
    ]


def test_in_the_stable_layout_the_originals_stay_and_the_rescue_comes_behind_all() -> None:
    guest = make_guest(domain("pc"))
    xml = render(decide(guest, layout=Layout.STABLE, seeds=("hda",))).xml
    assert list(disks(xml)) == ["vda", "vdb", "vdc", "vdd"]
    assert [place(disk) for disk in disks(xml).values()] == [
        "0x00:0x05", "0x00:0x06", "0x00:0x09", "0x00:0x0a",
    ]  # fmt: skip
    changed = xml_diff(domain("pc"), xml)
    assert "+<serial>ORIGINAL-ROOT</serial>" in changed
    assert "-<target dev='vda' bus='virtio'/>" not in changed
    assert disks(xml)["vdc"].findtext("serial") == "RESCUE"


def test_on_pci_express_the_last_disk_and_the_seed_get_a_port_behind_all_disks() -> None:
    xml = rescue("q35-efi").xml
    assert [(name, place(disk)) for name, disk in disks(xml).items() if name != "sda"] == [
        ("vda", "0x04:0x00"), ("vdb", "0x05:0x00"), ("vdc", "0x07:0x00"), ("vdd", "0x08:0x00"),
    ]  # fmt: skip
    # Port 7 was free, port 8 is new; both say which is which by their index.
    assert "<controller type='pci' index='8' model='pcie-root-port'/>" in added("q35-efi", xml)


def test_the_rescue_of_a_root_that_is_not_the_first_disk_still_comes_first() -> None:
    found = disks(rescue("q35-efi").xml)
    sources = {name: disk.find("source") for name, disk in found.items()}
    files = {k: v.get("file") for k, v in sources.items() if v is not None}
    assert files == {
        "vda": f"{DIRECTORY}/rescue.qcow2",
        "vdb": "/srv/guests/db1.qcow2",
        "vdc": "/srv/guests/db1-data.qcow2",
        "vdd": f"{DIRECTORY}/seed.iso",
    }
    assert list(found) == ["vda", "vdb", "vdc", "sda", "vdd"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ide", ["hda RESCUE", "hdd ORIGINAL-ROOT", "hdc -", "vda RESCUE-SEED"]),
        ("sata", ["sda RESCUE", "sdc ORIGINAL-ROOT", "sdb -", "vda RESCUE-SEED"]),
        ("scsi", ["sda RESCUE", "sdb ORIGINAL-ROOT", "sdd -", "sdc -", "vda RESCUE-SEED"]),
    ],
)
def test_on_other_buses_drives_keep_their_names_and_disks_move_past_them(
    name: str, expected: list[str]
) -> None:
    found = disks(rescue(name).xml)
    assert [f"{k} {v.findtext('serial') or '-'}" for k, v in found.items()] == expected
    assert place(next(iter(found.values()))) == "0:0"


def test_scsi_disks_move_up_by_one_unit_past_those_that_are_taken() -> None:
    found = disks(rescue("scsi").xml)
    assert place(found["sdb"]) == "0:1"
    assert place(found["sdd"]) == "0:3"
    assert place(found["sdc"]) == "0:2"


def test_a_scsi_root_that_is_not_at_the_first_unit_does_not_collide_with_its_rescue() -> None:
    """libvirt gives sdb unit 1, which the rescue disk has inherited (refused by libvirt 9.0)."""
    only_root = re.sub(
        r"    <disk type='network'.*?</disk>\n    <disk type='file' device='cdrom'>.*?</disk>\n",
        "",
        domain("scsi"),
        flags=re.DOTALL,
    ).replace("target='0' unit='0'/>", "target='0' unit='1'/>", 1)
    found = disks(render(decide(make_guest(only_root))).xml)
    assert place(found["sda"]) == "0:1"
    assert place(found["sdb"]) == "0:2"


def test_disks_without_addresses_are_left_to_libvirt_in_document_order() -> None:
    bare = re.sub(r"\s*<address type='(pci|drive)'[^>]*/>", "", domain("pc"))
    found = disks(render(decide(make_guest(bare), seeds=("hda",))).xml)
    assert list(found) == ["vda", "vdb", "vdc", "vdd"]
    assert all(disk.find("address") is None for disk in found.values())


def test_a_full_pci_bus_is_left_to_libvirt() -> None:
    found = disks(rescue("pc", ("slot='0x08'", "slot='0x1f'")).xml)
    assert found["vdc"].find("address") is None
    assert found["vdd"].find("address") is None


def test_a_rescue_cd_is_read_only_and_has_no_serial() -> None:
    guest = make_guest(domain("ide"))
    xml = render(decide(guest, make_image(format=ImageFormat.ISO))).xml
    disk = disks(xml)["hdd"]
    assert disk.get("device") == "cdrom"
    assert disk.find("readonly") is not None
    assert disk.find("serial") is None
    assert attributes(disk, "backingStore/format") == {"type": "raw"}
    assert attributes(disk, "boot") == {"order": "1"}


# --- the original's disks --------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ["pc", "q35-efi", "scsi", "kernel", "nova", "q35-nvram"])
def test_an_original_disk_keeps_driver_source_and_backing_store_as_they_are(
    name: str, late: bool
) -> None:
    guest = make_guest(domain(name))
    rendered = render(decide(guest, seeds=SEEDS.get(name, ()), late=late))
    text = rendered.xml + "".join(rendered.late)

    def kept(block: str) -> str:
        return re.sub(r"<(target|serial|boot|address)\b[^>]*?(/>|>[^<]*</\1>)", "", block)

    for disk in guest.domain.disks:
        if disk.source and disk.target not in SEEDS.get(name, ()):
            source = disk.source.removeprefix("rbd:")
            assert kept(disk_text(text, source)) == kept(disk_text(guest.xml, source))


def test_no_terminator_is_added_to_an_original_disk() -> None:
    """It would hide the disk's base: the guest reads zeros, and fsck destroys it."""
    found = disks(rescue("q35-nvram").xml)
    assert found["vdb"].find("backingStore") is None


def test_the_seeds_of_the_original_are_left_out() -> None:
    xml = rescue("kernel").xml
    assert "tiny1-cidata.img" not in xml
    assert "ds=nocloud" not in xml
    assert "com.coreos" not in xml
    assert "<sysinfo type='fwcfg'>" not in xml
    assert "io.systemd.credential" not in xml
    kept = ["<entry name='manufacturer'>ACME</entry>", "<entry>something else</entry>"]
    assert all(entry in xml for entry in kept)


def test_other_firmware_configuration_stays() -> None:
    other = "<entry name='opt/org.example' file='/srv/other'/>"
    xml = rescue("kernel", ("<sysinfo type='fwcfg'>", f"<sysinfo type='fwcfg'>\n    {other}")).xml
    assert other in xml
    assert "com.coreos" not in xml


@pytest.mark.parametrize(
    "argument",
    [
        ("-fw_cfg", "name=opt/com.coreos/config,file=/srv/guests/tiny1.ign"),
        ("-smbios", "type=1,serial=ds=nocloud;s=http://10.0.0.1/"),
    ],
)
def test_a_seed_on_the_qemu_command_line_is_left_out_too(argument: tuple[str, str]) -> None:
    """The way in which Fedora CoreOS' manual gives a libvirt guest its Ignition file."""
    more = "".join(f"<qemu:arg value='{word}'/>" for word in argument)
    xml = rescue(
        "kernel", ("<qemu:arg value='pvpanic'/>", f"<qemu:arg value='pvpanic'/>{more}")
    ).xml
    assert argument[1] not in xml
    assert f"value='{argument[0]}'" not in xml
    assert "<qemu:arg value='pvpanic'/>" in xml


def test_serials_are_added_only_where_there_are_none() -> None:
    xml = rescue("pc", ("<target dev='vda' bus='virtio'/>", "<target dev='vda' bus='virtio'/>\n      <serial>MINE</serial>")).xml  # fmt: skip  # noqa: E501
    serials = [disk.findtext("serial") for disk in disks(xml).values()]
    assert serials == ["RESCUE", "MINE", "DATA1", "RESCUE-SEED"]


def test_a_lun_gets_no_serial_which_libvirt_would_refuse() -> None:
    found = disks(rescue("scsi", ("device='disk'", "device='lun'")).xml)
    assert found["sdb"].find("serial") is None


# --- our own disks ---------------------------------------------------------------------------


def test_our_disks_name_their_chain_down_to_its_end() -> None:
    found = disks(rescue("pc").xml)
    assert found["vda"].find("backingStore/backingStore") is not None
    assert len(found["vda"].findall("backingStore/backingStore/*")) == 0
    seed = found["vdd"].find("backingStore")
    assert seed is not None
    assert len(seed) == 0


def test_a_libvirt_that_relabels_nothing_is_told_nothing_about_labels() -> None:
    guest = make_guest(domain("pc"), relabels=False)
    assert "seclabel" not in render(decide(guest, seeds=("hda",))).xml


# --- late ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pc", "q35-efi", "scsi", "kernel"])
def test_in_the_late_way_no_original_disk_is_there_at_boot(name: str) -> None:
    guest = make_guest(domain(name))
    rendered = rescue(name, late=True)
    originals = [d for d in guest.domain.disks if d.device == "disk"]
    for disk in originals:
        assert (disk.source or "").removeprefix("rbd:") not in rendered.xml
    assert len(rendered.late) == len([d for d in originals if d.target not in SEEDS.get(name, ())])


def test_late_disks_come_root_first_and_leave_their_pci_place_to_libvirt() -> None:
    first, second = rescue("q35-efi", late=True).late
    assert first == (
        "<disk type='file' device='disk'>\n"
        "  <driver name='qemu' type='qcow2'/>\n"
        "  <source file='/srv/guests/db1.qcow2'/>\n"
        "  <target dev='vdb' bus='virtio'/>\n"
        "  <serial>ORIGINAL-ROOT</serial>\n"
        "</disk>\n"
    )
    assert "db1-data.qcow2" in second
    assert "<address" not in first + second
    assert "<boot" not in first + second


def test_late_scsi_disks_keep_their_units() -> None:
    first, _ = rescue("scsi", late=True).late
    assert "<address type='drive' controller='0' bus='0' target='0' unit='1'/>" in first


def test_pci_express_gets_free_ports_for_the_disks_to_be_plugged() -> None:
    xml = rescue("q35-efi", late=True).xml
    ports = [line for line in added("q35-efi", xml) if "pcie-root-port" in line]
    assert ports == [
        f"<controller type='pci' index='{index}' model='pcie-root-port'/>"
        for index in range(8, 12)  # two disks, two controllers that libvirt adds itself
    ]


def test_in_the_late_way_the_seed_is_a_cd_so_that_the_root_is_the_second_virtio_disk() -> None:
    xml = rescue("pc", late=True).xml
    seed = disks(xml)["sda"]
    assert seed.get("device") == "cdrom"
    assert attributes(seed, "target") == {"dev": "sda", "bus": "scsi"}
    assert attributes(seed, "address")["controller"] == "0"
    assert "<controller type='scsi' index='0' model='virtio-scsi'/>" in added("pc", xml)


def test_the_seed_gets_a_controller_of_its_own_beside_those_of_the_guest() -> None:
    existing = ("<input type='mouse' bus='ps2'/>", "<controller type='scsi' index='0' model='lsilogic'/>\n    <input type='mouse' bus='ps2'/>")  # fmt: skip  # noqa: E501
    xml = rescue("pc", existing, late=True).xml
    assert "<controller type='scsi' index='1' model='virtio-scsi'/>" in xml
    assert attributes(disks(xml)["sda"], "address")["controller"] == "1"


def test_drives_for_removable_media_stay_in_the_late_way() -> None:
    assert "sda" in disks(rescue("q35-efi", late=True).xml)


# --- booting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_rescue_disk_alone_is_booted(name: str) -> None:
    xml = rescue(name).xml
    root = etree.fromstring(xml.encode())
    assert root.findall("os/boot") == []
    orders = root.findall("devices/*/boot")
    assert len(orders) == 1
    parent = orders[0].getparent()
    assert parent is not None
    assert parent.findtext("serial") == "RESCUE"


def test_the_kernel_of_the_original_is_not_booted() -> None:
    xml = rescue("kernel").xml
    for tag in ("kernel", "initrd", "cmdline"):
        assert f"<{tag}>" not in xml
    assert "<smbios mode='sysinfo'/>" in xml


def test_the_rescue_writes_into_a_copy_of_the_firmware_variables() -> None:
    changed = [line for line in xml_diff(domain("q35-nvram"), rescue("q35-nvram").xml) if "nvram" in line]  # fmt: skip  # noqa: E501
    assert changed == [
        "-<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>"
        "/var/lib/libvirt/qemu/nvram/app1_VARS.fd</nvram>",
        f"+<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{DIRECTORY}/nvram.fd</nvram>",
    ]


def test_with_a_firmware_that_libvirt_picks_the_copy_is_named_as_well() -> None:
    xml = rescue("q35-efi").xml
    assert f"<nvram>{DIRECTORY}/nvram.fd</nvram>" in added("q35-efi", xml)
    assert "<os firmware='efi'>" in xml


def test_a_guest_whose_firmware_keeps_no_variables_is_given_none() -> None:
    """libvirt 9.0: NVRAM is not permitted when loader is stateless."""
    stateless = ("<os firmware='efi'>", "<os firmware='efi'>\n    <loader stateless='yes'/>")
    assert "<nvram" not in rescue("q35-efi", stateless).xml


def test_a_bios_guest_gets_no_firmware_variables() -> None:
    assert "nvram" not in rescue("pc").xml


def test_the_tpm_is_left_out_of_the_run() -> None:
    assert "<tpm" in domain("q35-efi")
    assert "<tpm" not in rescue("q35-efi").xml


def test_a_reboot_stays_in_the_rescue_and_a_power_off_ends_it() -> None:
    xml = rescue("q35-efi", ("<on_poweroff>destroy", "<on_poweroff>preserve")).xml
    assert "<on_reboot>restart</on_reboot>" in xml
    assert "<on_poweroff>destroy</on_poweroff>" in xml
    assert "<on_crash>restart</on_crash>" in xml


def test_a_definition_that_says_nothing_of_reboots_gets_both_actions() -> None:
    bare = ("  <on_poweroff>destroy</on_poweroff>\n  <on_reboot>restart</on_reboot>\n", "")
    xml = rescue("pc", bare).xml
    assert "\n  <on_reboot>restart</on_reboot>\n" in xml
    assert "\n  <on_poweroff>destroy</on_poweroff>\n" in xml


# --- console, agent, metadata ----------------------------------------------------------------


def test_a_console_that_is_logged_already_stays_as_it_is() -> None:
    assert not [line for line in added("q35-nvram", rescue("q35-nvram").xml) if "<log" in line]


def test_a_guest_without_a_serial_console_gets_one_with_a_log() -> None:
    for name in ("ide", "sata"):
        xml = rescue(name).xml
        assert "".join(added(name, xml)).count("<serial type='pty'>") == 1
        assert f"<log file='{DIRECTORY}/console.log' append='on'/>" in xml
    assert "<target type='virtio' port='0'/>" in rescue("sata").xml


def test_the_log_stands_behind_the_source_of_a_console_that_has_one() -> None:
    serial = etree.fromstring(rescue("kernel").xml.encode()).find("devices/serial")
    assert serial is not None
    assert [child.tag for child in serial] == ["source", "log", "target"]


def test_of_two_consoles_the_one_is_read_that_is_logged() -> None:
    """The session reads `facts.read(...).console_log` where the guest has one."""
    second = """    <serial type='pty'>
      <target type='isa-serial' port='0'/>
    </serial>
    <serial type='pty'>"""
    xml = edited("q35-nvram", ("    <serial type='pty'>", second))
    guest = make_guest(xml)
    before = guest.domain.console_log
    rendered = render(decide(guest)).xml
    first = etree.fromstring(rendered.encode()).find("devices/serial/log")
    assert first is not None
    assert first.get("file") == str(before or DIRECTORY / "console.log")


def test_an_agent_channel_is_added_only_where_there_is_none() -> None:
    assert rescue("q35-efi").xml.count("org.qemu.guest_agent.0") == 1
    assert rescue("pc").xml.count("org.qemu.guest_agent.0") == 1
    assert lines(AGENT)[1] not in added("q35-efi", rescue("q35-efi").xml)


@pytest.mark.parametrize("name", ["pc", "nova", "q35-efi"])
def test_the_live_domain_says_of_which_session_it_is(name: str) -> None:
    assert read(rescue(name).xml).session_id == "5e55-10"


def test_the_metadata_of_others_stays_byte_for_byte() -> None:
    """libvirt writes metadata with double quotes, as libxml2 does."""
    changed = xml_diff(domain("nova"), rescue("nova").xml)
    assert [line for line in changed if "nova:" in line] == []


def test_a_definition_without_a_uuid_can_be_rendered_for_a_preview() -> None:
    xml = re.sub(r"  <uuid>.*</uuid>\n", "", domain("pc"))
    rendered = render(decide(make_guest(xml), seeds=("hda",))).xml
    assert rendered.index("<name>") < rendered.index("<metadata>") < rendered.index("<memory")


def test_the_number_of_a_running_domain_is_not_asked_for_again() -> None:
    assert "id='7'" not in rescue("pc", ("<domain type='qemu'>", "<domain type='qemu' id='7'>")).xml


# --- the rest --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_what_has_nothing_to_do_with_booting_stays_byte_for_byte(name: str) -> None:
    """Of the whole diff only these elements are about the rescue."""
    ours = re.compile(
        r"[-+]<(/?disk|driver|/?source|/?backingStore|format|seclabel|target|readonly|serial>|boot"
        r"|bootmenu|address|log|/?channel|/?metadata|rescue:session|nvram|on_reboot|/?tpm|backend"
        r"|kernel|initrd|cmdline|entry|/?sysinfo|controller type='(pci|scsi)'|/?serial"
        r"|host |qemu:arg value='-fw_cfg')"
    )
    changed = xml_diff(domain(name), rescue(name).xml)
    assert [line for line in changed if not ours.match(line)] == []


def test_what_nobody_understands_stays() -> None:
    odd = "<future xmlns='urn:x' a='1'>\n      <b>c</b>\n    </future>"
    xml = rescue("pc", ("<memballoon", f"{odd}\n    <memballoon")).xml
    assert odd in xml
    qemu = rescue("kernel").xml
    assert "<qemu:arg value='pvpanic'/>\n    <qemu:env name='A' value='b'/>" in qemu


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("name", [name for name in ALL if name not in {"ide", "sata"}])
def test_libvirt_s_schema_knows_what_is_rendered(name: str, layout: Layout, late: bool) -> None:
    plan = decide(make_guest(domain(name)), layout=layout, late=late, seeds=SEEDS.get(name, ()))
    assert_valid(render(plan).xml)


@pytest.mark.parametrize("name", ["ide", "sata"])
@pytest.mark.parametrize(
    "properties", [{}, {"hw_rescue_device": "cdrom"}, {"hw_rescue_device": "floppy"}]
)
def test_libvirt_s_schema_knows_rescue_devices(name: str, properties: dict[str, str]) -> None:
    assert_valid(render(decide(make_guest(domain(name)), make_image(**properties))).xml)


def test_a_hand_written_disk_without_a_bus_gives_a_valid_rescue() -> None:
    assert_valid(rescue("pc", ("dev='vda' bus='virtio'", "dev='vda'")).xml)


def assert_valid(xml: str) -> None:
    schema = etree.RelaxNG(etree.parse(str(SCHEMA)))
    assert schema.validate(etree.fromstring(xml.encode())), schema.error_log


def test_secrets_are_not_shown() -> None:
    shown = without_secrets(domain("pc"))
    assert "hunter22" not in shown
    assert xml_diff(domain("pc"), shown) == [
        "-<graphics type='vnc' port='-1' autoport='yes' passwd='hunter22'>",
        "+<graphics type='vnc' port='-1' autoport='yes'>",
    ]


def test_a_difference_names_both_sides() -> None:
    text = difference("a\nb\n", "a\nc\n", name="web1")
    assert text.splitlines() == [
        "--- web1 (original)", "+++ web1 (rescue)", "@@ -1,2 +1,2 @@", " a", "-b", "+c",
    ]  # fmt: skip
    assert difference("a", "a", name="web1") == ""


def test_a_domain_without_devices_can_be_rendered() -> None:
    xml = "<domain type='qemu'><name>x</name><os><type>hvm</type></os></domain>"
    from dataclasses import replace

    plan = replace(decide(make_guest(domain("pc"))), originals=(), guest=make_guest(xml))
    assert read(render(plan).xml).disks[0].target == "vda"
