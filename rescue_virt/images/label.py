"""The volume label of a disk, read from its first sectors without trusting any of it."""

from __future__ import annotations

import os
from pathlib import Path

_ISO_DESCRIPTOR = 32768
_ISO_LABEL = slice(40, 72)
_FAT_SIGNATURE = slice(510, 512)
# (where the type is written, where the label is): FAT32, then FAT12 and FAT16
_FAT_LAYOUTS = ((slice(82, 87), slice(71, 82)), (slice(54, 57), slice(43, 54)))
_FAT_TYPES = (b"FAT32", b"FAT")


def volume_label(path: Path) -> str | None:
    """The ISO 9660 or FAT label of a raw disk, or None: none there, odd, or not to be read."""
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        label = _iso_label(os.pread(fd, 72, _ISO_DESCRIPTOR)) or _fat_label(os.pread(fd, 512, 0))
    except OSError:
        return None
    finally:
        os.close(fd)
    return label.decode(errors="replace").strip(" \0") or None if label else None


def _iso_label(descriptor: bytes) -> bytes | None:
    return descriptor[_ISO_LABEL] if descriptor[:6] == b"\x01CD001" else None


def _fat_label(sector: bytes) -> bytes | None:
    if sector[_FAT_SIGNATURE] != b"\x55\xaa":
        return None
    for (kind, label), expected in zip(_FAT_LAYOUTS, _FAT_TYPES, strict=True):
        if sector[kind] == expected:
            return sector[label]
    return None
