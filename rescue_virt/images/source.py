"""What a place that images come from must offer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What is known of an image without fetching it.

    `name` is for people and holds no credentials.  `identity` changes when the content may have
    changed; it may hold credentials and is never shown.  `size` is in bytes.  `origin` is the
    local file.
    """

    name: str
    identity: str
    size: int | None = None
    origin: Path | None = None


class Body(Protocol):
    """Image bytes.  `size` is how many there are, `space` how many of disk a copy takes."""

    @property
    def size(self) -> int | None: ...

    @property
    def space(self) -> int | None: ...

    def read(self, count: int, /) -> bytes: ...


class Source(Protocol):
    """One image somewhere.

    `stat` costs no transfer; `open` starts at a byte offset.  Both raise `NotFound` if there is no
    such image and `ImageError` if it cannot be had.
    """

    def stat(self) -> SourceFacts: ...

    def open(self, offset: int) -> AbstractContextManager[Body]: ...
