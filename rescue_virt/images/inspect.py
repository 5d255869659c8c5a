"""The gates that an image passes before anything else opens it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oslo_utils.imageutils import format_inspector

from rescue_virt.errors import ImageError
from rescue_virt.images import qcow2, qemu_img
from rescue_virt.model import GIB, ImageFormat
from rescue_virt.process import ProgramFailed
from rescue_virt.settings import Settings

_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"BZh": ("bzip2", "bunzip2"),
    b"PK\x03\x04": ("zip", "unzip"),
}

# A partition table is content of a raw disk; bootable ISO images have one beside their own format.
_FORMATS = {
    frozenset({"qcow2"}): ImageFormat.QCOW2,
    frozenset({"raw"}): ImageFormat.RAW,
    frozenset({"gpt"}): ImageFormat.RAW,
    frozenset({"iso"}): ImageFormat.ISO,
    frozenset({"iso", "gpt"}): ImageFormat.ISO,
}

# All that identifies the formats above is in the first 34 KiB.  Without an end, a hostile VHDX or
# VMDK has its inspector read the whole file, 4 KiB at a time.
_HEAD = 1 << 20
_CHUNK = 4096
_SECTOR = 512
_LOCKED = 'Failed to get shared "write" lock'


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What an image was found to be; `virtual_size` is in bytes."""

    format: ImageFormat
    virtual_size: int


def inspect(
    path: Path, *, settings: Settings, name: str | None = None, declared: ImageFormat | None = None
) -> Inspection:
    """Find out what an image is, and refuse it if it is not plainly safe.

    `name` is what the image is called in messages, `declared` what its source says it is.

    :raises ImageError: if it is damaged, refers to other files, or is of a kind not supported.
    """
    label = f"image {name or path}"
    try:
        _refuse_empty_or_packed(path, label)
        _refuse_bad_header(path, label)
        found = _recognise(path, label)
        if declared not in (None, found):
            raise ImageError(f"{label} is {found}, not {declared} as its source says")
        size = _agree(path, found, label)
    except OSError as exc:
        raise ImageError(f"{label} cannot be read: {exc.strerror}") from exc
    _check_virtual_size(size, settings.max_virtual_size, label)
    return Inspection(format=found, virtual_size=size)


def _refuse_empty_or_packed(path: Path, label: str) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise ImageError(f"{label} is empty; get it again")
    for magic, (kind, tool) in _PACKED.items():
        if head.startswith(magic):
            raise ImageError(f"{label} is compressed with {kind}; unpack it first ({tool})")


def _refuse_bad_header(path: Path, label: str) -> None:
    with path.open("rb") as file:
        if file.read(len(qcow2.MAGIC)) != qcow2.MAGIC:
            return
    header = qcow2.read_header(path)
    if header is None:
        raise ImageError(f"{label} ends within its qcow2 header; get it again")
    for objection in qcow2.objections(header, path.stat().st_size):
        raise ImageError(f"{label} {objection}")


def _recognise(path: Path, label: str) -> ImageFormat:
    matches = _detect(path)
    names = frozenset(str(match) for match in matches)
    if names not in _FORMATS:
        seen = " and ".join(sorted(names))
        raise ImageError(f"{label} is {seen}; only qcow2, raw and ISO images are used")
    found = _FORMATS[names]
    try:
        for match in matches:
            # The boot sector of a hybrid ISO image is no partition table that a disk would have.
            if found is not ImageFormat.ISO or str(match) == "iso":
                match.safety_check()
    except format_inspector.SafetyCheckFailed as exc:
        reasons = ", ".join(str(failure) for failure in exc.failures.values())
        raise ImageError(f"{label} is not safe: {reasons}; convert it with qemu-img") from exc
    except format_inspector.ImageFormatError as exc:
        raise ImageError(f"{label} is damaged: {exc}; get it again") from exc
    return found


def _detect(path: Path) -> list[format_inspector.FileInspector]:
    with path.open("rb") as file:
        wrapper = format_inspector.InspectWrapper(file)
        for _ in range(_HEAD // _CHUNK):
            if not wrapper.read(_CHUNK) or wrapper.formats:
                break
        wrapper.close()
    return wrapper.formats or []


def _agree(path: Path, found: ImageFormat, label: str) -> int:
    """Have QEMU confirm what was found; returns the virtual size that both see."""
    try:
        facts = qemu_img.info(path, found.driver)
        if found is ImageFormat.QCOW2:
            qemu_img.check(path)
    except ProgramFailed as exc:
        if _LOCKED in exc.stderr:
            raise ImageError(f"{label} is being written to; stop the guest that uses it") from exc
        raise ImageError(f"{label} is damaged: {exc}; get it again") from exc
    size = _own_size(path, found)
    others = {"backing-filename", "full-backing-filename"} & facts.keys()
    others |= {"data-file"} & facts.get("format-specific", {}).get("data", {}).keys()
    if others or facts["format"] != found.driver or facts["virtual-size"] != size:
        raise ImageError(f"{label} is not what its header says; get it again")
    return size


def _own_size(path: Path, found: ImageFormat) -> int:
    if found is ImageFormat.QCOW2:
        header = qcow2.read_header(path)
        return header.size if header else 0
    return -(-path.stat().st_size // _SECTOR) * _SECTOR


def _check_virtual_size(size: int, limit: int, label: str) -> None:
    if size == 0:
        raise ImageError(f"{label} is a disk of no size; get it again")
    if size > limit:
        raise ImageError(
            f"{label} is a disk of {size / GIB:.1f} GiB, more than max_virtual_size_gb "
            f"({limit // GIB}) allows"
        )
