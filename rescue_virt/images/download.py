"""Image bytes from where they are to a file of ours, verified on the way."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rescue_virt.errors import BadRequest, ImageError
from rescue_virt.images import web
from rescue_virt.images.local import LocalSource
from rescue_virt.images.source import Body, Source
from rescue_virt.model import GIB, Digest, ImageRef
from rescue_virt.settings import Settings

_CHUNK = 1 << 20
_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What came: its size in bytes and its digests, sha256 always among them."""

    size: int
    digests: tuple[Digest, ...]

    @property
    def sha256(self) -> str:
        return next(digest.hex for digest in self.digests if digest.algorithm == "sha256")


def source_for(ref: ImageRef, settings: Settings) -> Source:
    """The source that an image reference means: a path, or a file, http or https URL.

    :raises BadRequest: if it means none, or one that cannot be trusted without a digest.
    """
    match = _SCHEME.match(ref.location)
    scheme = match[1].lower() if match else None
    if scheme is None:
        return LocalSource(_local_path(ref.location))
    if scheme == "file":
        return LocalSource(_local_path(unquote(urlsplit(ref.location).path)))
    if scheme not in ("http", "https"):
        raise BadRequest(f"{scheme}://: not a place images come from; give a path or an https URL")
    url = web.parse(ref.location)
    if scheme == "http" and not ref.digests:
        raise BadRequest(f"{web.display_name(url)}: give --sha256 or --sha512, or an https URL")
    return web.HttpSource(url, settings)


def stream(source: Source, path: Path, *, digests: Iterable[Digest], limit: int) -> Received:
    """Copy a source to the new file `path`, sparsely, and flush it to the disk.

    `digests` are what must come out, `limit` is the largest size in bytes.

    :raises ImageError: if it cannot be had, is too large, or is not what was asked for.
    """
    name = source.stat().name
    expected = tuple(digests)
    with source.open(0) as body:
        check_size(name, body.size, limit)
        _check_space(name, body.space, path.parent)
        try:
            with path.open("xb", buffering=0) as file:
                fd = file.fileno()
                size, actual = _copy(body, fd, _Meter(name, body.size, limit), expected)
                _compare(name, actual, expected)
                os.ftruncate(fd, size)
                os.fsync(fd)
        except OSError as exc:
            raise ImageError(f"image {name} cannot be copied: {exc.strerror}") from exc
    return Received(size=size, digests=actual)


def check_size(name: str, size: int | None, limit: int) -> None:
    """:raises ImageError: if the size is known and beyond the limit."""
    if size is not None and size > limit:
        raise ImageError(
            f"image {name} is larger than max_image_size_gb ({limit / GIB:.6g}) allows"
        )


def file_digest(path: Path, algorithm: str = "sha256") -> Digest:
    """The digest of a file's content."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm)
    return Digest(algorithm=algorithm, hex=digest.hexdigest())


def _local_path(text: str) -> Path:
    if not text or "\0" in text:
        raise BadRequest("the image's path is empty or has a NUL in it; give the path of a file")
    return Path(text).absolute()


@dataclass(slots=True)
class _Meter:
    """Counts bytes, and stops a source that sends more, or fewer, than it may."""

    name: str
    declared: int | None
    limit: int
    seen: int = 0

    def add(self, count: int) -> None:
        self.seen += count
        check_size(self.name, self.seen, self.limit)
        if self.declared is not None and self.seen > self.declared:
            raise ImageError(f"image {self.name} has more than the {self.declared} bytes declared")

    def finish(self) -> int:
        if self.declared is not None and self.seen < self.declared:
            raise ImageError(
                f"image {self.name} ended after {self.seen} of {self.declared} bytes; try again"
            )
        return self.seen


def _copy(
    body: Body, fd: int, meter: _Meter, expected: tuple[Digest, ...]
) -> tuple[int, tuple[Digest, ...]]:
    """Hash one chunk in a second thread while this one writes it and reads the next."""
    hashes = {name: hashlib.new(name) for name in ("sha256", *(d.algorithm for d in expected))}

    def digest(chunk: bytes) -> None:
        for state in hashes.values():
            state.update(chunk)

    pending: Future[None] | None = None
    with ThreadPoolExecutor(max_workers=1) as pool:
        while chunk := body.read(_CHUNK):
            meter.add(len(chunk))
            if pending:
                pending.result()
            pending = pool.submit(digest, chunk)
            _write_sparse(fd, chunk)
    size = meter.finish()
    return size, tuple(Digest(algorithm=n, hex=h.hexdigest()) for n, h in hashes.items())


def _write_sparse(fd: int, chunk: bytes) -> None:
    for start in range(0, len(chunk), _BLOCK):
        block = chunk[start : start + _BLOCK]
        if block == _ZEROS:
            os.lseek(fd, _BLOCK, os.SEEK_CUR)
            continue
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(fd, rest) :]


def _compare(name: str, actual: tuple[Digest, ...], expected: tuple[Digest, ...]) -> None:
    found = {digest.algorithm: digest for digest in actual}
    for wanted in expected:
        if not hmac.compare_digest(found[wanted.algorithm].hex, wanted.hex.lower()):
            raise ImageError(
                f"image {name} is {found[wanted.algorithm]}, not {wanted} as asked for; "
                "check the digest, and where the image comes from"
            )


def _check_space(name: str, needed: int | None, directory: Path) -> None:
    stat = os.statvfs(directory)
    free = stat.f_bavail * stat.f_frsize
    if needed is not None and needed > free:
        raise ImageError(
            f"image {name} needs {needed / GIB:.1f} GiB, {free / GIB:.1f} GiB are free in "
            f"{directory}; make room there"
        )
