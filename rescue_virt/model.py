"""The nouns of the program: frozen values that one step hands to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NewType

from rescue_virt.secret import Credentials

DomainXml = NewType("DomainXml", str)
GuestUuid = NewType("GuestUuid", str)
Target = NewType("Target", str)
"""A disk's `<target dev>`: its name in the domain XML, unique within the guest."""

GIB = 1 << 30


class Layout(StrEnum):
    CLASSIC = "classic"
    STABLE = "stable"


class Attach(StrEnum):
    BOOT = "boot"
    LATE = "late"


class Phase(StrEnum):
    """How far a session has come; written to disk before the step it names."""

    SWAPPING = "swapping"
    BOOTING = "booting"
    ACTIVE = "active"
    RESTORING = "restoring"


class RunState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    SHUTOFF = "shutoff"
    OTHER = "other"


class Evidence(StrEnum):
    """What was seen of the password: put in front of the guest, or accepted by it."""

    INJECTED = "injected"
    CONFIRMED = "confirmed"


class Originals(StrEnum):
    ATTACHED = "attached"
    PENDING = "pending"


class Ready(StrEnum):
    AGENT = "guest agent"
    LOGIN = "login prompt"


class Owner(StrEnum):
    """The face that made a session, and alone recovers it."""

    CLI = "cli"
    AGENT = "agent"
    NOVA = "nova"


class ImageFormat(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"
    ISO = "iso"

    @property
    def driver(self) -> str:
        """QEMU's name for the format; an ISO image is raw bytes to QEMU."""
        return "raw" if self is ImageFormat.ISO else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """`algorithm` is sha256 or sha512, `hex` is lower case."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProperties:
    """What is said about an image, under Glance's property names (None: nothing was said).

    `min_disk` is in GiB, as in Glance.
    """

    hw_rescue_device: str | None = None
    hw_rescue_bus: str | None = None
    hw_disk_bus: str | None = None
    hw_architecture: str | None = None
    hw_firmware_type: str | None = None
    os_admin_user: str | None = None
    min_disk: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """The image a caller asked for: where it is and what it must be."""

    location: str
    digests: tuple[Digest, ...] = ()
    properties: ImageProperties = field(default_factory=ImageProperties)
    image_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """A verified, inspected image.  `size` and `virtual_size` are in bytes.

    `path` is the immutable blob (or, for a preview, the caller's own file); `origin` is the local
    file it was copied from, if it was.
    """

    name: str
    path: Path
    digest: Digest | None
    size: int
    virtual_size: int
    format: ImageFormat
    properties: ImageProperties
    origin: Path | None = None
    image_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to rescue.  Timeouts are in seconds; `layout` None means: as the image says."""

    layout: Layout | None = None
    force_off: bool = False
    shutdown_timeout: float = 30.0
    take_from_nova: bool = False
    wait: bool = True
    ready_timeout: float = 300.0
    owner: Owner = Owner.CLI


@dataclass(frozen=True, slots=True, kw_only=True)
class RescueRequest:
    guest: str
    image: ImageRef
    credentials: Credentials
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One `<disk>`.

    `source` is the file or block device path, or `protocol:name` of a network disk; `path` is the
    same where it is a path on this host.  `format` is the driver type.
    """

    target: Target
    bus: str
    device: str
    source: str | None
    path: Path | None
    format: str | None
    boot_order: int | None
    readonly: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainFacts:
    """What a domain's XML says.  `nova_image` is the id of the image it was built from."""

    name: str
    uuid: GuestUuid
    arch: str
    machine: str
    disks: tuple[Disk, ...]
    uefi: bool
    nvram: Path | None
    has_tpm: bool
    tpm_is_persistent: bool
    is_nova: bool
    nova_image: str | None
    session_id: str | None
    console_log: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFacts:
    """What libvirt says of a guest before its rescue.

    `xml` is the definition to give back (inactive and secure), `domain` what it says.  `nvram` is
    the existing NVRAM file to copy.  `chains` holds, per disk, its source and all that backs it,
    top first; `snapshots` are names.  `relabels` tells whether this libvirt changes the owners of
    files (it does when it runs as root).
    """

    domain: DomainFacts
    xml: DomainXml
    run_state: RunState
    persistent: bool
    managed_save: bool
    block_jobs: tuple[Target, ...]
    nvram: Path | None
    chains: Mapping[Target, tuple[str, ...]]
    relabels: bool
    snapshots: tuple[str, ...] = ()
    autostart: bool = False
    uri: str = ""

    @property
    def label(self) -> str:
        return f"guest {self.domain.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What reading the disks told: which ones are seeds, and whether the root repeats the image."""

    seeds: frozenset[Target] = frozenset()
    duplicate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one of the original's disks goes in the rescue domain."""

    before: Target
    now: Target
    is_root: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A session that is still being prepared: its directory, its id, and when it began."""

    directory: Path
    session_id: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RescuePlan:
    """Everything that was decided; rendering and preparing add no decision of their own.

    `originals` are in the order in which the rescue guest is to count them.  The seed is on the
    `seed_bus` as `seed_target`: a virtio disk, or a CD-ROM on virtio-scsi.  `overlay_size` is in
    bytes.  `why_late` says what the image and the original share.
    """

    guest: GuestFacts
    image: CachedImage
    directory: Path
    session_id: str
    since: str
    layout: Layout
    attach: Attach
    why_late: str | None
    device: str
    bus: str
    target: Target
    seed_bus: str
    seed_target: Target
    originals: tuple[Placement, ...]
    dropped: frozenset[Target]
    overlay_size: int

    @property
    def base(self) -> Path:
        return self.directory / "base.img"

    @property
    def overlay(self) -> Path:
        return self.directory / "rescue.qcow2"

    @property
    def seed(self) -> Path:
        return self.directory / "seed.iso"

    @property
    def nvram(self) -> Path:
        return self.directory / "nvram.fd"

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class RescueDomain:
    """The rescue domain: what `createXML` gets, and the `<disk>` elements to plug afterwards."""

    xml: DomainXml
    late: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RescueSession:
    """The record of one rescue, as kept on disk.

    `chains` are the source chains of the rescue guest's disks as it was given them, by target,
    `bases` the modification times (ns) of files that only back them and that nobody may write, and
    `snapshots` those that the guest had before.  `password_hash` is what the guest agent is handed;
    the password itself is kept nowhere.  `boot_id` names the host's boot that the rescue was
    started in, `console_offset` is where this boot of the guest begins in `console_log` (bytes).
    `stopping` is the run of the original that was told to stop, which it may do any time later.
    """

    id: str
    guest: GuestUuid
    name: str
    directory: Path
    phase: Phase
    owner: Owner
    since: str
    image: str
    digest: str | None
    user: str
    password_hash: str
    ssh_keys: tuple[str, ...]
    password: Evidence
    was_running: bool
    persistent: bool
    attach: Attach
    why_late: str | None
    originals: Originals
    boot_id: str
    console_log: Path
    console_offset: int
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bases: Mapping[str, int] = field(default_factory=dict)
    snapshots: tuple[str, ...] = ()
    autostart: bool = False
    uri: str = ""
    stopping: int | None = None

    @property
    def label(self) -> str:
        return f"guest {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveState:
    """What libvirt says of a guest now.

    `session_id` is the rescue session that the live (or, for a guest that is off, the saved)
    domain names.  `chains` are its source chains by target.  `snapshots` holds, by name, the files
    that hold what was written since.  `run` is libvirt's number of this run of the guest.
    """

    run_state: RunState
    persistent: bool
    session_id: str | None
    managed_save: bool
    chains: Mapping[str, tuple[str, ...]]
    block_jobs: tuple[str, ...]
    agent: bool
    snapshots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    run: int | None = None

    @property
    def is_up(self) -> bool:
        return self.run_state is not RunState.SHUTOFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a rescue guest: its serial console's pty, and addresses that it reported."""

    console: str | None
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RescueStatus:
    """What the session and libvirt say together; `live` None: libvirt does not know the guest."""

    session: RescueSession
    live: LiveState | None
    access: Access
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A rescue that was begun.  `ready` None: it was not waited for, or did not come in time."""

    session: RescueSession
    ready: Ready | None = None
    problem: str | None = None
