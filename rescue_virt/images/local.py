"""Images that are files on this host."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rescue_virt.errors import ImageError, NotFound
from rescue_virt.images.source import Body, SourceFacts

_STAT_BLOCK = 512


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A regular file, by absolute path."""

    path: Path

    def stat(self) -> SourceFacts:
        with self._opened() as fd:
            facts = os.fstat(fd)
        identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        return SourceFacts(
            name=str(self.path),
            identity=f"file:{self.path}:{identity}",
            size=facts.st_size,
            origin=self.path,
        )

    @contextmanager
    def open(self, offset: int) -> Iterator[Body]:
        with self._opened() as fd:
            before = os.fstat(fd)
            os.lseek(fd, offset, os.SEEK_SET)
            yield _LocalBody(fd, before.st_size - offset, before.st_blocks * _STAT_BLOCK)
            after = os.fstat(fd)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ImageError(
                f"image {self.path} changed while it was copied; stop what writes to it"
            )

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise NotFound(f"image {self.path} does not exist") from exc
        except OSError as exc:
            raise ImageError(f"image {self.path} cannot be read: {exc.strerror}") from exc
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ImageError(f"image {self.path} is not a regular file; name an image file")
            yield fd
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class _LocalBody:
    fd: int
    size: int | None
    allocated: int

    @property
    def space(self) -> int | None:
        return min(self.size or 0, self.allocated)

    def read(self, count: int, /) -> bytes:
        return os.read(self.fd, count)
