"""Decides what the rescue domain will be; pure."""

from __future__ import annotations

import shlex

from rescue_virt.errors import Refused, WrongState
from rescue_virt.model import (
    GIB,
    Attach,
    CachedImage,
    Disk,
    Draft,
    Evidence,
    Findings,
    GuestFacts,
    ImageFormat,
    Layout,
    LiveState,
    Options,
    Originals,
    Phase,
    Placement,
    RescuePlan,
    RescueRequest,
    RescueSession,
    RunState,
    Target,
)

# Disks on these buses can be plugged into a running guest; IDE, SATA and floppies cannot.
HOT_PLUG_BUSES = frozenset({"virtio", "scsi", "usb"})

_PREFIXES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd", "fdc": "fd"}
_IDE_PLACES = 4
_RESCUE_DEVICES = frozenset({"disk", "cdrom", "floppy"})
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64", "i386": "i686"}


def make_plan(
    guest: GuestFacts, image: CachedImage, *, findings: Findings, options: Options, draft: Draft
) -> RescuePlan:
    """Decide the rescue of `guest` with `image`.

    :raises Refused: if the two do not go together; the message says why.
    """
    _check_image_fits(guest, image)
    root = find_root(guest, findings)
    layout = _layout(image, options)
    attach = Attach.LATE if findings.duplicate else Attach.BOOT
    kept = tuple(d for d in guest.domain.disks if d.target not in findings.seeds)
    if attach is Attach.LATE:
        _check_hot_plug(guest, kept)
    device, bus = _device_and_bus(guest, image, layout=layout, root=root)
    target, originals = _place(kept, root, layout=layout, bus=bus)
    # A virtio disk every cloud image can read (Debian's cloud kernel has no AHCI).  But a guest
    # numbers its virtio disks as they come: so that a root plugged late is the second one all the
    # same, the seed must not be one of them then.
    late_virtio = attach is Attach.LATE and "virtio" in {bus, *(disk.bus for disk in kept)}
    seed_bus = "scsi" if late_virtio else "virtio"
    names = [target, *(placement.now for placement in originals)]
    return RescuePlan(
        guest=guest,
        image=image,
        directory=draft.directory,
        session_id=draft.session_id,
        since=draft.since,
        layout=layout,
        attach=attach,
        why_late=findings.duplicate,
        device=device,
        bus=bus,
        target=target,
        seed_bus=seed_bus,
        seed_target=_next_name(names, seed_bus),
        originals=originals,
        dropped=findings.seeds,
        overlay_size=max(image.virtual_size, image.properties.min_disk * GIB),
    )


def begin_session(decided: RescuePlan, request: RescueRequest, hashed: str) -> RescueSession:
    """The record of a rescue that has been prepared, and of which the guest knows nothing yet."""
    guest, image = decided.guest, decided.image
    return RescueSession(
        id=decided.session_id,
        guest=guest.domain.uuid,
        name=guest.domain.name,
        directory=decided.directory,
        phase=Phase.SWAPPING,
        owner=request.options.owner,
        since=decided.since,
        image=image.name,
        digest=str(image.digest) if image.digest else None,
        user=request.credentials.user,
        password_hash=hashed,
        ssh_keys=request.credentials.ssh_keys,
        password=Evidence.INJECTED,
        was_running=guest.run_state is RunState.RUNNING,
        persistent=guest.persistent,
        attach=decided.attach,
        why_late=decided.why_late,
        originals=originals_at_boot(decided.attach),
        boot_id="",
        console_log=guest.domain.console_log or decided.console_log,
        console_offset=0,
        snapshots=guest.snapshots,
        autostart=guest.autostart,
        uri=guest.uri,
    )


def originals_at_boot(attach: Attach) -> Originals:
    return Originals.PENDING if attach is Attach.LATE else Originals.ATTACHED


def check_guest(guest: GuestFacts, *, nova_runs_here: bool, options: Options) -> None:
    """Refuse a guest that must not be stopped, or could not be given back.

    :raises Refused: with the reason.
    """
    name = shlex.quote(guest.domain.name)
    if guest.domain.session_id:
        raise WrongState(
            f"{guest.label} runs a rescue that is not recorded here: end it where it was begun, or "
            f"shut it off (virsh destroy {name})"
        )
    if guest.run_state is RunState.PAUSED:
        raise Refused(f"{guest.label} is paused: resume it or shut it off (virsh resume {name})")
    if guest.run_state is RunState.OTHER:
        raise Refused(
            f"{guest.label} is neither running nor off (crashed, suspended or on its way): "
            f"wait until it is, or shut it off (virsh destroy {name})"
        )
    if guest.managed_save:
        raise Refused(
            f"{guest.label} has a managed-save image, which would resume onto changed disks: "
            f"start it, or drop the image (virsh managedsave-remove {name})"
        )
    if guest.block_jobs:
        job = guest.block_jobs[0]
        raise Refused(
            f"{guest.label} has a block job running on disk {job}: "
            f"wait for it or end it (virsh blockjob {name} {job})"
        )
    if guest.domain.has_tpm and not guest.persistent and not guest.domain.tpm_is_persistent:
        raise Refused(
            f"{guest.label} is transient and stopping it would delete the state of its TPM: "
            f"make it persistent first (virsh define)"
        )
    if guest.domain.is_nova and nova_runs_here and not options.take_from_nova:
        raise Refused(
            f"{guest.label} belongs to the nova-compute on this host: "
            f"rescue it through Nova (openstack server rescue), or give --take-from-nova"
        )


def check_unchanged(before: GuestFacts, now: GuestFacts) -> None:
    """:raises Refused: if somebody worked on the guest while its rescue was prepared."""
    if (before.xml, before.run_state, before.chains) != (now.xml, now.run_state, now.chains):
        raise Refused(
            f"{before.label} was changed while its rescue was being prepared; it was not touched: "
            f"try again when nobody else works on it"
        )


def describe(session: RescueSession, live: LiveState | None) -> str:
    """One phrase: where the rescue stands, and what to do next where something is due."""
    name = shlex.quote(session.name)
    if session.phase is not Phase.ACTIVE:
        return f"unfinished ({session.phase}): if no command works on it, rescue-virt recover"
    if live is None and session.persistent:
        return f"undefined meanwhile: rescue-virt unrescue {name} defines it again"
    if live is not None and live.is_up and live.session_id != session.id:
        return f"the original was started by hand: rescue-virt unrescue {name} cleans up"
    if live is None or not live.is_up:
        saved = live is not None and live.managed_save and live.session_id == session.id
        how = "saved in rescue" if saved else "powered off"
        return f"{how}: rescue-virt resume {name}, or rescue-virt unrescue {name}"
    if session.originals is Originals.PENDING:
        return f"its own disks are to come late, as {session.why_late}: rescue-virt attach {name}"
    return "in rescue"


def find_root(guest: GuestFacts, findings: Findings) -> Disk:
    """The disk the guest boots from: the lowest boot order, else the first disk.

    :raises Refused: if the guest has no disk that could be a root.
    """
    disks = [
        disk
        for disk in guest.domain.disks
        if is_original(disk) and disk.source and disk.target not in findings.seeds
    ]
    if not disks:
        raise Refused(f"{guest.label} has no disk: there is nothing to rescue")
    ordered = [disk for disk in disks if disk.boot_order is not None]
    return min(ordered, key=lambda disk: disk.boot_order or 0) if ordered else disks[0]


def is_original(disk: Disk) -> bool:
    """Whether a disk is a disk, and not a drive for removable media."""
    return disk.device in {"disk", "lun"}


def _check_image_fits(guest: GuestFacts, image: CachedImage) -> None:
    wanted = image.properties.hw_architecture
    if wanted and _ARCHITECTURES.get(wanted, wanted) != guest.domain.arch:
        raise Refused(
            f"image {image.name} is for {wanted}, {guest.label} is {guest.domain.arch}: "
            f"choose an image of the guest's architecture"
        )
    firmware = image.properties.hw_firmware_type
    own = "uefi" if guest.domain.uefi else "bios"
    if firmware and firmware != own:
        raise Refused(
            f"image {image.name} boots with {firmware} only, {guest.label} has {own} firmware: "
            f"choose an image that boots with {own}"
        )


def _check_hot_plug(guest: GuestFacts, disks: tuple[Disk, ...]) -> None:
    for disk in disks:
        if is_original(disk) and disk.bus not in HOT_PLUG_BUSES:
            raise Refused(
                f"{guest.label} must get its own disks after boot, as the rescue image is its base "
                f"image, but {disk.target} is on the {disk.bus} bus, which cannot be plugged into "
                f"a running guest: choose another rescue image"
            )


def _layout(image: CachedImage, options: Options) -> Layout:
    if options.layout is not None:
        return options.layout
    properties = image.properties
    if properties.hw_rescue_device or properties.hw_rescue_bus or image.format is ImageFormat.ISO:
        return Layout.STABLE
    return Layout.CLASSIC


def _device_and_bus(
    guest: GuestFacts, image: CachedImage, *, layout: Layout, root: Disk
) -> tuple[str, str]:
    if layout is Layout.CLASSIC:
        return "disk", root.bus
    properties = image.properties
    is_iso = image.format is ImageFormat.ISO
    device = properties.hw_rescue_device or ("cdrom" if is_iso else "disk")
    if device not in _RESCUE_DEVICES:
        raise Refused(
            f"image {image.name} asks for the rescue device {device!r}: "
            f"hw_rescue_device must be disk, cdrom or floppy"
        )
    bus = properties.hw_rescue_bus or _default_bus(guest, image, device=device, root=root)
    if bus not in _PREFIXES:
        raise Refused(
            f"image {image.name} asks for the rescue bus {bus!r}: "
            f"hw_rescue_bus must be one of {', '.join(sorted(_PREFIXES))}"
        )
    # q35 has no IDE; SATA is what takes its place there.
    return device, "sata" if bus == "ide" and _is_q35(guest) else bus


def _default_bus(guest: GuestFacts, image: CachedImage, *, device: str, root: Disk) -> str:
    if device == "floppy":
        return "fdc"
    if device == "disk":
        return image.properties.hw_disk_bus or root.bus
    if _is_q35(guest):
        return "sata"
    return "ide" if guest.domain.arch in {"x86_64", "i686"} else "scsi"


def _is_q35(guest: GuestFacts) -> bool:
    return "q35" in guest.domain.machine


def _place(
    kept: tuple[Disk, ...], root: Disk, *, layout: Layout, bus: str
) -> tuple[Target, tuple[Placement, ...]]:
    """The rescue disk's target, and every original's, in the order the guest should count them."""
    names = [disk.target for disk in kept]
    rest = [disk for disk in kept if disk is not root]
    if layout is Layout.STABLE:
        target = _next_name(names, bus)
        return target, tuple(_stay(disk, root) for disk in kept)
    # Only disks that are counted together with the root move up by one.
    movers = [root, *(d for d in rest if d.bus == root.bus and is_original(d))]
    free = sorted((d.target for d in movers), key=_index)
    last = _next_name(names, bus)
    now = dict(zip((d.target for d in movers), [*free[1:], last], strict=True))
    placed = [
        Placement(before=d.target, now=now.get(d.target, d.target), is_root=d is root)
        for d in (root, *rest)
    ]
    return free[0], tuple(placed)


def _stay(disk: Disk, root: Disk) -> Placement:
    return Placement(before=disk.target, now=disk.target, is_root=disk is root)


def _next_name(names: list[Target], bus: str) -> Target:
    """The name behind the last one of the bus; IDE has four places, so there a gap will do."""
    prefix = _PREFIXES.get(bus, "sd")
    used = {_index(name) for name in names if name.startswith(prefix)}
    index = max(used, default=-1) + 1
    if prefix == "hd" and index >= _IDE_PLACES:
        index = next((i for i in range(_IDE_PLACES) if i not in used), index)
    return Target(prefix + _letters(index))


def _index(name: Target) -> int:
    """vda → 0, vdz → 25, vdaa → 26, as libvirt counts."""
    index = 0
    for letter in name.lstrip("/")[2:]:
        index = index * 26 + (ord(letter) - ord("a") + 1)
    return index - 1


def _letters(index: int) -> str:
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return letters
