"""What is decided about a rescue before anything is done."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import decide, domain, make_guest, make_image, names

from rescue_virt.errors import Refused, WrongState
from rescue_virt.model import (
    GIB,
    Attach,
    Disk,
    Evidence,
    Findings,
    GuestFacts,
    ImageFormat,
    ImageRef,
    Layout,
    LiveState,
    Options,
    Originals,
    Owner,
    Phase,
    RescueRequest,
    RescueSession,
    RunState,
    Target,
)
from rescue_virt.plan import (
    begin_session,
    check_guest,
    check_unchanged,
    describe,
    find_root,
    originals_at_boot,
)
from rescue_virt.secret import Credentials, Secret


def guest_with(*disks: Disk, machine: str = "pc-i440fx-7.2", **changes: Any) -> GuestFacts:
    guest = make_guest(domain("pc"), **changes)
    return replace(guest, domain=replace(guest.domain, disks=disks, machine=machine))


def disk(name: str, bus: str = "virtio", device: str = "disk", **changes: Any) -> Disk:
    given = Disk(
        target=Target(name), bus=bus, device=device, source=f"/srv/{name}",
        path=Path(f"/srv/{name}"), format="qcow2", boot_order=None, readonly=False,
    )  # fmt: skip
    return replace(given, **changes)


def root_of(*disks: Disk, seeds: tuple[str, ...] = ()) -> str:
    found = frozenset(Target(seed) for seed in seeds)
    return find_root(guest_with(*disks), Findings(seeds=found)).target


# --- the root --------------------------------------------------------------------------------


def test_the_root_is_the_first_disk() -> None:
    assert root_of(disk("vda"), disk("vdb")) == "vda"


def test_the_root_is_the_disk_that_boots_first() -> None:
    assert root_of(disk("vda", boot_order=3), disk("vdb", boot_order=2), disk("vdc")) == "vdb"


def test_drives_seeds_and_empty_disks_are_no_roots() -> None:
    cd = disk("hda", "ide", "cdrom", boot_order=1)
    floppy = disk("fda", "fdc", "floppy")
    empty = disk("vdz", source=None)
    assert root_of(cd, floppy, empty, disk("vda"), disk("vdb"), seeds=("vda",)) == "vdb"
    assert root_of(disk("sda", "scsi", "lun")) == "sda"


def test_a_guest_without_a_disk_is_refused() -> None:
    with pytest.raises(Refused, match="guest web1 has no disk: there is nothing to rescue"):
        root_of(disk("hda", "ide", "cdrom"))


# --- refusals --------------------------------------------------------------------------------


def refusal(guest: GuestFacts, *, nova: bool = False, **options: Any) -> str:
    with pytest.raises((Refused, WrongState)) as caught:
        check_guest(guest, nova_runs_here=nova, options=Options(**options))
    assert str(caught.value).startswith("guest ")
    return str(caught.value)


def test_a_guest_that_is_well_is_not_refused() -> None:
    for state in (RunState.RUNNING, RunState.SHUTOFF):
        check_guest(
            make_guest(domain("pc"), run_state=state), nova_runs_here=True, options=Options()
        )


@pytest.mark.parametrize(
    ("changes", "reason", "remedy"),
    [
        ({"run_state": RunState.PAUSED}, "web1 is paused", "virsh resume web1"),
        ({"run_state": RunState.OTHER}, "neither running nor off", "wait"),
        ({"managed_save": True}, "web1 has a managed-save image", "virsh managedsave-remove web1"),
        ({"block_jobs": (Target("vdb"),)}, "on disk vdb", "virsh blockjob web1 vdb"),
    ],
)
def test_a_guest_that_must_not_be_stopped_is_refused_with_a_remedy(
    changes: dict[str, Any], reason: str, remedy: str
) -> None:
    message = refusal(make_guest(domain("pc"), **changes))
    assert reason in message
    assert remedy in message


def test_a_transient_guest_would_lose_its_tpm() -> None:
    message = refusal(make_guest(domain("q35-efi"), persistent=False))
    assert "stopping it would delete the state of its TPM" in message
    assert "virsh define" in message
    kept = domain("q35-efi").replace("version='2.0'", "version='2.0' persistent_state='yes'")
    for guest in (
        make_guest(kept, persistent=False),
        make_guest(domain("q35-efi"), persistent=True),
        make_guest(domain("pc"), persistent=False),
    ):
        check_guest(guest, nova_runs_here=False, options=Options())


def test_a_guest_of_nova_is_left_to_nova_unless_it_is_taken() -> None:
    guest = make_guest(domain("nova"))
    assert "--take-from-nova" in refusal(guest, nova=True)
    check_guest(guest, nova_runs_here=False, options=Options())
    check_guest(guest, nova_runs_here=True, options=Options(take_from_nova=True))


def test_a_guest_that_runs_somebody_s_rescue_is_refused() -> None:
    """A transient guest in rescue from another state directory: its XML is not the original."""
    guest = make_guest(domain("pc"), persistent=False)
    guest = replace(guest, domain=replace(guest.domain, session_id="5e55"))
    assert "rescue" in refusal(guest)


def test_a_name_is_quoted_in_what_is_to_be_typed() -> None:
    guest = make_guest(domain("pc"), run_state=RunState.PAUSED)
    guest = replace(guest, domain=replace(guest.domain, name="my web"))
    assert "virsh resume 'my web'" in refusal(guest)


CHANGES: list[dict[str, Any]] = [
    {"xml": domain("pc").replace("2</vcpu>", "3</vcpu>")},
    {"run_state": RunState.SHUTOFF},
    {"chains": {Target("vda"): ("/srv/guests/web1.snap3",)}},
]


@pytest.mark.parametrize("change", CHANGES, ids=["definition", "run state", "disks"])
def test_a_guest_that_somebody_works_on_meanwhile_is_refused(change: dict[str, Any]) -> None:
    guest = make_guest(domain("pc"))
    check_unchanged(guest, make_guest(domain("pc")))
    with pytest.raises(Refused, match="guest web1 was changed while its rescue was being prep"):
        check_unchanged(guest, replace(guest, **change))


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"hw_architecture": "aarch64"}, "image rescue.qcow2 is for aarch64, guest web1 is x86_64"),
        ({"hw_firmware_type": "uefi"}, "boots with uefi only, guest web1 has bios firmware"),
        ({"hw_rescue_device": "tape"}, "must be disk, cdrom or floppy"),
        ({"hw_rescue_bus": "uml"}, "hw_rescue_bus must be one of fdc, ide, sata, scsi, usb, virt"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(properties: dict[str, str], message: str) -> None:
    with pytest.raises(Refused, match=re.escape(message)):
        decide(make_guest(domain("pc")), make_image(**properties))


def test_an_image_that_fits_is_not_refused() -> None:
    image = make_image(hw_architecture="amd64", hw_firmware_type="uefi")
    assert decide(make_guest(domain("q35-efi")), image).image == image


@pytest.mark.parametrize(("name", "target"), [("ide", "hda on the ide"), ("sata", "sda on the sa")])
def test_disks_that_cannot_be_plugged_cannot_come_late(name: str, target: str) -> None:
    expected = target.replace(" on", " is on")
    with pytest.raises(Refused, match=f"must get its own disks after boot.*{expected}"):
        decide(make_guest(domain(name)), late=True)


def test_a_seed_on_ide_need_not_be_plugged_late() -> None:
    plan = decide(make_guest(domain("pc")), late=True, seeds=("hda",))
    assert plan.attach is Attach.LATE
    assert plan.why_late == "both are backed by /srv/base.img"


# --- places ----------------------------------------------------------------------------------


def test_the_classic_layout_moves_the_disks_of_the_root_s_bus_up_by_one() -> None:
    cd = disk("sda", "sata", "cdrom")
    plan = decide(guest_with(disk("vda"), cd, disk("sdb", "scsi"), disk("vdb")))
    assert (plan.layout, plan.device, plan.bus, plan.target) == ("classic", "disk", "virtio", "vda")
    assert names(plan.originals) == ["vda→vdb root", "sda→sda", "sdb→sdb", "vdb→vdc"]
    assert (plan.seed_bus, plan.seed_target) == ("virtio", "vdd")


def test_gaps_between_names_stay_gaps() -> None:
    plan = decide(guest_with(disk("vdb"), disk("vdd")))
    assert plan.target == "vdb"
    assert names(plan.originals) == ["vdb→vdd root", "vdd→vde"]


def test_a_root_that_is_not_first_comes_first_and_the_rest_keeps_its_order() -> None:
    plan = decide(guest_with(disk("vda"), disk("vdb"), disk("vdc", boot_order=1)))
    assert plan.target == "vda"
    assert names(plan.originals) == ["vdc→vdb root", "vda→vdc", "vdb→vdd"]


def test_names_go_on_behind_vdz() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    plan = decide(guest_with(*(disk(f"vd{letter}") for letter in letters)))
    assert (plan.originals[-1].now, plan.seed_target) == ("vdaa", "vdab")
    many = [*(disk(f"vd{letter}") for letter in letters), disk("vdaz"), disk("vdzz")]
    assert decide(guest_with(*many), layout=Layout.STABLE).target == "vdaaa"


def test_ide_has_four_places_and_uses_the_gaps() -> None:
    disks = (disk("hda", "ide"), disk("hdd", "ide", "cdrom"))
    plan = decide(guest_with(*disks))
    assert (plan.target, *names(plan.originals)) == ("hda", "hda→hdb root", "hdd→hdd")
    full = tuple(disk(f"hd{letter}", "ide") for letter in "abcd")
    assert decide(guest_with(*full)).originals[-1].now == "hde"  # which libvirt refuses


def test_the_stable_layout_appends() -> None:
    plan = decide(guest_with(disk("vda"), disk("vdc")), layout=Layout.STABLE)
    assert plan.target == "vdd"
    assert names(plan.originals) == ["vda→vda root", "vdc→vdc"]
    assert plan.seed_target == "vde"


@pytest.mark.parametrize(
    ("image", "layout"),
    [
        (make_image(), "classic"),
        (make_image(hw_disk_bus="scsi"), "classic"),
        (make_image(hw_rescue_bus="virtio"), "stable"),
        (make_image(hw_rescue_device="disk"), "stable"),
        (make_image(format=ImageFormat.ISO), "stable"),
    ],
)
def test_the_image_says_which_layout(image: Any, layout: str) -> None:
    assert decide(make_guest(domain("pc")), image).layout == layout
    assert decide(make_guest(domain("pc")), image, layout=Layout.CLASSIC).layout == "classic"


ISO = ImageFormat.ISO


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("pc", {"format": ISO}, "cdrom ide hdb"),
        ("sata", {"format": ISO}, "cdrom sata sdc"),
        ("pc", {"hw_rescue_device": "cdrom", "hw_rescue_bus": "scsi"}, "cdrom scsi sda"),
        ("q35-efi", {"hw_rescue_device": "cdrom", "hw_rescue_bus": "ide"}, "cdrom sata sdb"),
        ("pc", {"hw_rescue_device": "floppy"}, "floppy fdc fda"),
        ("pc", {"hw_rescue_device": "disk"}, "disk virtio vdc"),
        ("pc", {"hw_rescue_device": "disk", "hw_disk_bus": "scsi"}, "disk scsi sda"),
        ("pc", {"hw_rescue_bus": "usb"}, "disk usb sda"),
        ("pc", {"format": ISO, "hw_rescue_device": "disk"}, "disk virtio vdc"),
    ],
)
def test_the_rescue_device_is_on_a_bus_that_the_machine_has(
    name: str, image: dict[str, Any], expected: str
) -> None:
    plan = decide(make_guest(domain(name)), make_image(**image))
    assert f"{plan.device} {plan.bus} {plan.target}" == expected


def test_a_cd_on_arm_is_on_scsi() -> None:
    guest = guest_with(disk("vda"), machine="virt-7.2")
    guest = replace(guest, domain=replace(guest.domain, arch="aarch64"))
    assert decide(guest, make_image(format=ISO)).bus == "scsi"


@pytest.mark.parametrize(
    ("bus", "late", "expected"),
    [
        ("virtio", False, "virtio vdc"),
        ("virtio", True, "scsi sda"),
        ("scsi", True, "virtio vda"),
        ("ide", False, "virtio vda"),
    ],
)
def test_the_seed_is_no_virtio_disk_before_a_late_virtio_root(
    bus: str, late: bool, expected: str
) -> None:
    first = {"virtio": "vda", "scsi": "sda", "ide": "hda"}[bus]
    plan = decide(guest_with(disk(first, bus)), late=late)
    assert f"{plan.seed_bus} {plan.seed_target}" == expected


def test_every_name_is_unique() -> None:
    for late in (False, True):
        for layout in Layout:
            disks = (disk("sda", "scsi"), disk("sdb", "sata", "cdrom"), disk("vda"))
            plan = decide(guest_with(*disks), layout=layout, late=late)
            used = [plan.target, plan.seed_target, *(p.now for p in plan.originals)]
            assert len(set(used)) == len(used)


def test_the_overlay_is_as_large_as_the_image_wants() -> None:
    guest = make_guest(domain("pc"))
    assert decide(guest, make_image(virtual_size=3 * GIB)).overlay_size == 3 * GIB
    assert decide(guest, make_image(virtual_size=GIB, min_disk=5)).overlay_size == 5 * GIB


def test_seeds_are_dropped() -> None:
    plan = decide(make_guest(domain("kernel")), seeds=("vdb",))
    assert plan.dropped == {"vdb"}
    assert names(plan.originals) == ["vda→vdb root"]


# --- the session -----------------------------------------------------------------------------


def begin(guest: GuestFacts, *, late: bool = False) -> RescueSession:
    request = RescueRequest(
        guest="web1",
        image=ImageRef(location="/x"),
        credentials=Credentials(user="admin", password=Secret("p"), ssh_keys=("k",)),
        options=Options(owner=Owner.NOVA),
    )
    return begin_session(decide(guest, late=late), request, "$6$x")


def test_a_session_begins_before_the_swap_and_knows_no_password() -> None:
    session = begin(make_guest(domain("pc"), run_state=RunState.SHUTOFF, persistent=False))
    assert session.phase is Phase.SWAPPING
    assert (session.was_running, session.persistent) == (False, False)
    assert (session.owner, session.user, session.ssh_keys) == (Owner.NOVA, "admin", ("k",))
    assert session.password_hash == "$6$x"
    assert session.password is Evidence.INJECTED
    assert session.digest == "sha256:" + "ab" * 32
    assert session.console_log == session.directory / "console.log"
    assert session.originals is Originals.ATTACHED
    assert begin(make_guest(domain("pc")), late=True).originals is Originals.PENDING
    assert originals_at_boot(Attach.LATE) is Originals.PENDING


def test_a_console_that_is_logged_already_is_read_where_it_is() -> None:
    assert begin(make_guest(domain("q35-nvram"))).console_log == Path(
        "/var/log/libvirt/qemu/app1-serial.log"
    )


# --- status ----------------------------------------------------------------------------------

ACTIVE = replace(begin(make_guest(domain("pc"))), phase=Phase.ACTIVE)
UP = LiveState(
    run_state=RunState.RUNNING, persistent=True, session_id=ACTIVE.id, managed_save=False,
    chains={}, block_jobs=(), agent=False,
)  # fmt: skip
OFF = replace(UP, run_state=RunState.SHUTOFF, session_id=None)


@pytest.mark.parametrize(
    ("session", "live", "note"),
    [
        (ACTIVE, UP, "in rescue"),
        (ACTIVE, None, "undefined meanwhile: rescue-virt unrescue web1 defines it again"),
        (
            ACTIVE,
            OFF,
            "powered off: rescue-virt resume web1, or rescue-virt unrescue web1",
        ),
        (
            ACTIVE,
            replace(OFF, managed_save=True, session_id=ACTIVE.id),
            "saved in rescue: rescue-virt resume web1, or rescue-virt unrescue web1",
        ),
        (
            ACTIVE,
            replace(UP, session_id=None),
            "the original was started by hand: rescue-virt unrescue web1 cleans up",
        ),
        (
            replace(ACTIVE, originals=Originals.PENDING, why_late="both are X"),
            UP,
            "its own disks are to come late, as both are X: rescue-virt attach web1",
        ),
        (
            replace(ACTIVE, phase=Phase.RESTORING),
            UP,
            "unfinished (restoring): if no command works on it, rescue-virt recover",
        ),
    ],
)
def test_the_status_says_what_to_do_next(
    session: RescueSession, live: LiveState | None, note: str
) -> None:
    assert describe(session, live) == note


def test_a_transient_guest_that_powered_off_was_not_undefined() -> None:
    note = describe(replace(ACTIVE, persistent=False), None)
    assert "powered off: rescue-virt resume web1" in note


def test_an_image_of_the_original_itself_is_not_called_saved_in_rescue() -> None:
    note = describe(ACTIVE, replace(OFF, managed_save=True))
    assert "saved in rescue" not in note
