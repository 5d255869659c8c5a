"""Verified images on this host, each under the digest of its content."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oslo_concurrency import lockutils

from rescue_virt import durable
from rescue_virt.errors import ImageError
from rescue_virt.images.download import stream
from rescue_virt.images.inspect import inspect
from rescue_virt.images.source import Source
from rescue_virt.model import Digest, ImageFormat
from rescue_virt.settings import Settings

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A published image.  `sha256` is its name; sizes are in bytes."""

    path: Path
    sha256: str
    size: int
    virtual_size: int
    format: ImageFormat


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One request: `key` names its source and what its content must be."""

    source: Source
    digests: tuple[Digest, ...]
    name: str
    key: str


class Cache:
    """`blobs/` hold content, `index/` says which source was which blob and what a blob must be.

    Lock order: the source's key, then the blob.  Lock files are never deleted: whoever waits on a
    deleted one would no longer exclude anybody.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._root = settings.images_dir

    def look_up(self, source: Source, digests: Iterable[Digest] = ()) -> Blob | None:
        """The blob of a source, if it is there; creates nothing, promises nothing."""
        digest = self._known_digest(_wanted(source, digests))
        return self._intact(digest) if digest else None

    def fetch(self, source: Source, into: Path, *, digests: Iterable[Digest] = ()) -> Blob:
        """Link the verified image of a source to the new path `into`, fetching it if need be.

        While that link exists, nothing removes the blob.

        :raises ImageError: if it cannot be had, does not verify, or is unsafe.
        """
        wanted = _wanted(source, digests)
        try:
            self._make_directories()
            with self._lock(f"source-{wanted.key}"):
                return self._take(wanted, into) or self._ingest(wanted, into)
        except OSError as exc:
            raise ImageError(
                f"image {wanted.name} cannot be kept in {self._root}: {exc.strerror}"
            ) from exc

    def _take(self, wanted: _Wanted, into: Path) -> Blob | None:
        digest = self._known_digest(wanted)
        if digest is None:
            return None
        with self._lock(f"blob-{digest}"):
            blob = self._intact(digest)
            if blob is None:
                log.warning("image %s: its cached copy was changed or lost", wanted.name)
                self._blob_path(digest).unlink(missing_ok=True)
                return None
            os.link(blob.path, into)
        log.debug("image %s: cached as %s", wanted.name, digest)
        return blob

    def _ingest(self, wanted: _Wanted, into: Path) -> Blob:
        self._sweep()
        part = self._part(wanted.key)
        part.unlink(missing_ok=True)
        try:
            limit = self._settings.max_image_size
            received = stream(wanted.source, part, digests=wanted.digests, limit=limit)
            found = inspect(part, settings=self._settings, name=wanted.name)
            blob = Blob(
                path=self._blob_path(received.sha256),
                sha256=received.sha256,
                size=received.size,
                virtual_size=found.virtual_size,
                format=found.format,
            )
            return self._publish(wanted, part, blob, into)
        finally:
            part.unlink(missing_ok=True)

    def _publish(self, wanted: _Wanted, part: Path, blob: Blob, into: Path) -> Blob:
        _seal(part)
        with self._lock(f"blob-{blob.sha256}"):
            if self._intact(blob.sha256) is None:
                _make_directory(blob.path.parent)
                part.replace(blob.path)
                durable.sync_directory(blob.path.parent)
                _write_record(self._blob_record(blob.sha256), _blob_facts(blob))
            known = {"sha256": blob.sha256, "source": wanted.name}
            _write_record(self._source_record(wanted.key), known)
            os.link(blob.path, into)
        log.info("image %s: verified and kept as sha256:%s", wanted.name, blob.sha256)
        return blob

    def _intact(self, sha256: str) -> Blob | None:
        """The blob, if it is still the very file that was inspected."""
        path = self._blob_path(sha256)
        facts = _read_record(self._blob_record(sha256))
        try:
            if facts is None or facts["signature"] != _signature(path):
                return None
            return Blob(
                path=path,
                sha256=sha256,
                size=facts["size"],
                virtual_size=facts["virtual_size"],
                format=ImageFormat(facts["format"]),
            )
        except (OSError, KeyError, ValueError):
            return None

    def _known_digest(self, wanted: _Wanted) -> str | None:
        digest = (_read_record(self._source_record(wanted.key)) or {}).get("sha256")
        return digest if isinstance(digest, str) and _SHA256.fullmatch(digest) else None

    def _sweep(self) -> None:
        """Remove what runs that were killed left in ingest/; a live run holds its key's lock."""
        for part in (self._root / "ingest").glob("*.part"):
            try:
                with self._lock(f"source-{part.stem}", blocking=False):
                    part.unlink(missing_ok=True)
            except lockutils.AcquireLockFailedException:
                continue

    def _lock(self, name: str, *, blocking: bool = True) -> AbstractContextManager[object]:
        path = str(self._root / "locks")
        return lockutils.lock(
            name, external=True, lock_path=path, do_log=False, delay=0.01, blocking=blocking
        )

    def _make_directories(self) -> None:
        _make_directory(self._settings.state_dir)
        for name in ("", "blobs", "blobs/sha256", "index", "ingest", "locks"):
            _make_directory(self._root / name)

    def _part(self, key: str) -> Path:
        return self._root / "ingest" / f"{key}.part"

    def _blob_path(self, sha256: str) -> Path:
        return self._root / "blobs" / "sha256" / sha256[:2] / sha256

    def _blob_record(self, sha256: str) -> Path:
        return self._root / "index" / f"blob-{sha256}.json"

    def _source_record(self, key: str) -> Path:
        return self._root / "index" / f"{key}.json"


def _wanted(source: Source, digests: Iterable[Digest]) -> _Wanted:
    facts, expected = source.stat(), tuple(digests)
    canonical = json.dumps([facts.identity, sorted(map(str, expected))])
    key = hashlib.sha256(canonical.encode()).hexdigest()
    return _Wanted(source, expected, facts.name, key)


def _blob_facts(blob: Blob) -> dict[str, Any]:
    return {
        "size": blob.size,
        "virtual_size": blob.virtual_size,
        "format": blob.format.value,
        "signature": _signature(blob.path),
    }


def _signature(path: Path) -> list[int]:
    """Linking and chowning, which sessions and libvirt do, change none of these."""
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]


def _seal(part: Path) -> None:
    part.chmod(0o444)
    with part.open("rb") as file:
        os.fsync(file.fileno())


def _make_directory(path: Path) -> None:
    """Leaves the mode of a directory that somebody else made."""
    if not path.is_dir():
        durable.make_directory(path)


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write_record(path: Path, content: dict[str, Any]) -> None:
    durable.write(path, json.dumps(content))
