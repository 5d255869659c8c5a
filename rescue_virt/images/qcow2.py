"""The qcow2 header, and the reasons not to trust one.

Layout: docs/interop/qcow2.txt in QEMU.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"QFI\xfb"

_BASE = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">QQQII")
_V2_FEATURES = (0, 0, 0, 4, _BASE.size)

_DIRTY = 1 << 0
_CORRUPT = 1 << 1
_DATA_FILE = 1 << 2
_COMPRESSION_TYPE = 1 << 3
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION_TYPE

# QEMU's own limits (block/qcow2.h); a header beyond them is only there to make somebody allocate.
_MAX_L1_BYTES = 32 << 20
_MAX_REFTABLE_BYTES = 8 << 20
_MAX_BACKING_NAME = 1023
_CLUSTER_BITS = range(9, 22)
_HEADER_LENGTHS = range(104, 513, 8)
_MAX_REFCOUNT_ORDER = 6

_REBUILD = "rebuild it with qemu-img convert"
_FETCH_AGAIN = "get the image again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The fields that are judged.  Offsets and `size` are in bytes, `l1_size` in entries."""

    version: int
    backing_offset: int
    backing_length: int
    backing_name: str
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_offset: int
    reftable_offset: int
    reftable_clusters: int
    snapshots: int
    incompatible: int
    autoclear: int
    refcount_order: int
    header_length: int


def read_header(path: Path) -> Header | None:
    """The header of a qcow2 file, or None if the file is too short to have one."""
    with path.open("rb") as file:
        start = file.read(_BASE.size + _FEATURES.size)
        if len(start) < _BASE.size:
            return None
        _, version, offset, length, bits, size, crypt, l1, l1_at, ref_at, refs, snaps, _ = (
            _BASE.unpack_from(start)
        )
        features = _V2_FEATURES
        if version >= 3:  # noqa: PLR2004 - the version that brought feature bits
            if len(start) < _BASE.size + _FEATURES.size:
                return None
            features = _FEATURES.unpack_from(start, _BASE.size)
        file.seek(min(offset, path.stat().st_size))
        name = file.read(min(length, _MAX_BACKING_NAME)) if offset else b""
    return Header(
        version=version, backing_offset=offset, backing_length=length,
        backing_name=ascii(name.decode(errors="replace"))[1:-1], cluster_bits=bits, size=size,
        crypt_method=crypt, l1_size=l1, l1_offset=l1_at, reftable_offset=ref_at,
        reftable_clusters=refs, snapshots=snaps, incompatible=features[0], autoclear=features[2],
        refcount_order=features[3], header_length=features[4],
    )  # fmt: skip


def objections(header: Header, file_size: int) -> Iterator[str]:
    """Why not to use the image, worst first; each completes "image X …"."""
    if header.version not in (2, 3):
        yield f"is qcow2 version {header.version}, which QEMU does not know; {_REBUILD}"
    yield from _outside_references(header)
    yield from _unusable_content(header)
    yield from _absurd_sizes(header)
    yield from _misplaced_tables(header, file_size)


def _outside_references(header: Header) -> Iterator[str]:
    if header.backing_offset or header.backing_length:
        yield f"has a backing file ({header.backing_name}); flatten it with qemu-img convert"
    if header.incompatible & _DATA_FILE:
        yield "keeps its data in another file; flatten it with qemu-img convert"


def _unusable_content(header: Header) -> Iterator[str]:
    if header.crypt_method:
        yield "is encrypted; decrypt it with qemu-img convert"
    if header.snapshots:
        yield f"has {header.snapshots} internal snapshots; {_REBUILD}"
    if header.incompatible & _CORRUPT:
        yield f"is marked as corrupt; {_FETCH_AGAIN}"
    if header.incompatible & _DIRTY:
        yield "was not closed properly; repair it with qemu-img check -r all"
    if header.incompatible & ~_KNOWN:
        unknown = header.incompatible & ~_KNOWN
        yield f"uses qcow2 features ({unknown:#x}) that cannot be judged; {_REBUILD}"
    if header.autoclear:
        yield f"has bitmaps or other features of its writer ({header.autoclear:#x}); {_REBUILD}"


def _absurd_sizes(header: Header) -> Iterator[str]:
    sizes = {
        "cluster size": header.cluster_bits in _CLUSTER_BITS,
        "l1 table size": header.l1_size * 8 <= _MAX_L1_BYTES,
        "refcount table size": header.reftable_clusters
        << min(header.cluster_bits, _CLUSTER_BITS[-1])
        <= _MAX_REFTABLE_BYTES,
        "refcount width": header.refcount_order <= _MAX_REFCOUNT_ORDER,
        "header length": header.version == 2  # noqa: PLR2004 - it had no such field
        or header.header_length in _HEADER_LENGTHS,
    }
    for name, plausible in sizes.items():
        if not plausible:
            yield f"has an absurd {name} in its qcow2 header; {_FETCH_AGAIN}"


def _misplaced_tables(header: Header, file_size: int) -> Iterator[str]:
    cluster = 1 << min(header.cluster_bits, _CLUSTER_BITS[-1])
    tables = {
        "l1": (header.l1_offset, header.l1_size * 8),
        "refcount": (header.reftable_offset, header.reftable_clusters * cluster),
    }
    for name, (offset, length) in tables.items():
        if offset % cluster or offset + length > file_size:
            yield f"has its {name} table outside of the file or astray; {_FETCH_AGAIN}"
