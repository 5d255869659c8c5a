"""What a guest's disks and a rescue image have to do with each other."""

from __future__ import annotations

from pathlib import Path

from rescue_virt.errors import Refused
from rescue_virt.images import qemu_img
from rescue_virt.images.download import file_digest
from rescue_virt.images.label import volume_label
from rescue_virt.model import CachedImage, Disk, GuestFacts, Target
from rescue_virt.process import ProgramFailed

_SEED_LABELS = frozenset({"cidata", "config-2"})
_SEED_DEVICES = frozenset({"disk", "cdrom", "floppy"})


def seeds(guest: GuestFacts) -> frozenset[Target]:
    """The disks that cloud-init would take its orders from."""
    return frozenset(disk.target for disk in guest.domain.disks if _is_seed(disk))


def refuse_own_disk(guest: GuestFacts, image: Path) -> None:
    """:raises Refused: if the image is a file that the guest itself writes to."""
    read_only = {disk.target for disk in guest.domain.disks if disk.readonly}
    wanted = _identity(str(image))
    for target, chain in guest.chains.items():
        if target not in read_only and chain and wanted and _identity(chain[0]) == wanted:
            raise Refused(
                f"image {image} is disk {target} of {guest.label} itself; "
                "rescue it from another image"
            )


def duplicate(guest: GuestFacts, image: CachedImage) -> str | None:
    """Why disk and image certainly carry the same file system identities, if they do."""
    if image.image_id is not None and image.image_id == guest.domain.nova_image:
        return f"image id {image.image_id} is the guest's own"
    disks = {disk.target: disk for disk in guest.domain.disks}
    chains = [_whole(chain, disks.get(target)) for target, chain in guest.chains.items()]
    for chain in chains:
        for member in chain:
            if _is_image(member, image):
                return f"both are backed by {member}"
    for chain in chains:
        for base in chain[1:]:
            if _has_content_of(base, image):
                return f"{base} holds the same bytes as the image"
    return None


def _is_seed(disk: Disk) -> bool:
    if disk.path is None or disk.format not in (None, "raw") or disk.device not in _SEED_DEVICES:
        return False
    return (volume_label(disk.path) or "").lower() in _SEED_LABELS


def _whole(known: tuple[str, ...], disk: Disk | None) -> tuple[str, ...]:
    """A disk's chain.  Of a guest that is off libvirt may know the top only: the files tell.

    A file that cannot be read by now ends the chain: whether the guest starts is libvirt's to say.
    """
    if len(known) != 1 or disk is None or disk.path is None or disk.format in {None, "raw"}:
        return known
    try:
        return tuple(str(member) for member in qemu_img.chain(disk.path, disk.format))
    except ProgramFailed:
        return known


def _is_image(member: str, image: CachedImage) -> bool:
    identity = _identity(member)
    return identity is not None and identity in {
        _identity(str(path)) for path in (image.path, image.origin) if path
    }


def _identity(member: str) -> tuple[int, int] | None:
    """Device and inode, so that links and other spellings of a name count as the same file."""
    try:
        facts = Path(member).stat() if member.startswith("/") else None
    except OSError:
        return None
    return (facts.st_dev, facts.st_ino) if facts else None


def _has_content_of(base: str, image: CachedImage) -> bool:
    path = Path(base)
    try:
        if not path.is_absolute() or not path.is_file() or path.stat().st_size != image.size:
            return False
        digest = image.digest or file_digest(image.path)
        return file_digest(path, digest.algorithm) == digest
    except OSError:
        return False
