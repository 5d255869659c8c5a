"""Reads the log of a serial console, which virtlogd writes: nobody loses a console to us."""

from __future__ import annotations

import re
from pathlib import Path

# What a kernel says first: a prompt above it is of an earlier boot.
_BOOT = re.compile(rb"Linux version \d")
# A getty's prompt begins a line with the host's name; what was typed or printed may follow it.
_PROMPT = re.compile(rb"^(?:\x1b\[[0-9;?]*[a-zA-Z])*(?!Last )\S+ login:", re.MULTILINE)
# virtlogd begins its files anew at 2 MiB.
_LIMIT = 4 << 20


def size(path: Path) -> int:
    """Where the log ends now: the offset from which a boot that starts now will be read."""
    return path.stat().st_size if path.exists() else 0


def shows_login(path: Path, offset: int) -> bool:
    """Whether a login prompt was printed since `offset` (bytes), and no boot began after it."""
    return _PROMPT.search(_BOOT.split(read(path, offset))[-1]) is not None


def read(path: Path, offset: int, *, limit: int = _LIMIT) -> bytes:
    """The last `limit` bytes since `offset`; all of it if virtlogd has begun the file anew."""
    if not path.exists():
        return b""
    end = size(path)
    start = offset if end >= offset else 0
    with path.open("rb") as file:
        file.seek(max(start, end - limit))
        return file.read(limit)
