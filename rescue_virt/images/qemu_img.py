"""qemu-img, always told the format and never given a name that it could take for a protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rescue_virt import process

PROGRAM = "/usr/bin/qemu-img"

_SOUND = 0
_LEAKED_CLUSTERS = 3


def info(path: Path, fmt: str, *, shared: bool = False) -> dict[str, Any]:
    """What `qemu-img info` says of one image, without its chain.

    `shared` reads an image that a running guest writes to.

    :raises ProgramFailed: if qemu-img cannot read it as `fmt`.
    """
    force_share = ["-U"] if shared else []
    argv = [PROGRAM, "info", "--output=json", *force_share, "-f", fmt, "--", _name(path)]
    facts: dict[str, Any] = json.loads(process.run(argv))
    return facts


def chain(path: Path, fmt: str) -> list[Path]:
    """An image and what backs it, top first; it may be in use.

    Only formats that are named are followed: the header of the image above names its base's.

    :raises ProgramFailed: if one cannot be read.
    """
    found = [path]
    while fmt != "raw":
        facts = info(path, fmt, shared=True)
        base, fmt = facts.get("full-backing-filename"), facts.get("backing-filename-format", "raw")
        if not base or not base.startswith("/") or Path(base) in found:
            break
        path = Path(base)
        found.append(path)
    return found


def check(path: Path) -> None:
    """Check a qcow2 image's metadata; clusters that are merely leaked cost space, not data.

    :raises ProgramFailed: if it is damaged.
    """
    argv = [PROGRAM, "check", "-q", "-f", "qcow2", "--", _name(path)]
    process.run(argv, accept=(_SOUND, _LEAKED_CLUSTERS))


def create_overlay(path: Path, *, base: Path, base_format: str, size: int) -> None:
    """Make a qcow2 image of `size` bytes that reads from `base` what was not written to it.

    :raises ProgramFailed: if it cannot be written.
    """
    # -u: the base was inspected when it came; it is not opened, and its format not probed, again.
    backing = ["-u", "-b", _name(base), "-F", base_format]
    process.run([PROGRAM, "create", "-q", "-f", "qcow2", *backing, "--", _name(path), str(size)])


def _name(path: Path) -> str:
    """Only a name that begins with / is never a protocol (`proto:rest`, `json:{...}`) to QEMU."""
    if not path.is_absolute():
        raise ValueError(f"not an absolute path: {path}")
    return str(path)
