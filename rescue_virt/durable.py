"""Writes files such that a crash leaves the old content or the new, never a part."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: str | bytes, *, mode: int = 0o600) -> None:
    """Write `path` beside itself, flush it to the disk, and rename it into place."""
    beside = path.with_name(path.name + ".new")
    data = content.encode() if isinstance(content, str) else content
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        # The mode that was asked for, whatever the umask.
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Flush a directory, so that the names in it survive a crash."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(directory: Path) -> None:
    """Make a directory that QEMU's user can pass through but not list; one that is there stays."""
    for missing in [p for p in (*reversed(directory.parents), directory) if not p.exists()]:
        missing.mkdir(exist_ok=True)
        # Whatever the umask: QEMU runs as another user.
        missing.chmod(0o711)


def modified(path: str) -> int | None:
    """When a file's content last changed (ns); None if it cannot be told."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return None
