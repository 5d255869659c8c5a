"""The only place that starts a program."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from oslo_concurrency import processutils

from rescue_virt.errors import RescueVirtError

log = logging.getLogger(__name__)

# A program sees this environment and nothing of ours: no proxy, no credentials, no locale.
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class ProgramFailed(RescueVirtError):
    """A program ended with a code that was not expected; `stderr` is its last line."""

    def __init__(self, program: str, code: int, stderr: str) -> None:
        last = stderr.strip().splitlines()[-1] if stderr.strip() else f"exit code {code}"
        super().__init__(f"{program} failed: {last}")
        self.code = code
        self.stderr = stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use: address space and written file size in bytes, CPU and wall time
    in seconds."""

    address_space: int = 2 << 30
    cpu: int = 60
    wall: int = 120
    file_size: int | None = None


def run(argv: list[str], *, limits: Limits | None = None, accept: tuple[int, ...] = (0,)) -> str:
    """Run `argv` (an absolute program path first) and return what it wrote to stdout.

    :raises ProgramFailed: on any exit code outside `accept`, and when a limit was hit.
    """
    limits = limits or Limits()
    # prlimit(1) costs 3 ms; oslo's own ProcessLimits starts a Python for it (35 ms a call).
    prefix = [
        "/usr/bin/timeout", "--kill-after=5", str(limits.wall),
        "/usr/bin/prlimit", f"--as={limits.address_space}", f"--cpu={limits.cpu}", "--core=0",
    ]  # fmt: skip
    if limits.file_size is not None:
        prefix.append(f"--fsize={limits.file_size}")
    program = Path(argv[0]).name
    log.debug("%s: %s", program, argv[1:])
    try:
        stdout, _ = processutils.execute(
            *prefix, "--", *argv, check_exit_code=list(accept), env_variables=_ENVIRONMENT
        )
    except processutils.ProcessExecutionError as exc:
        raise ProgramFailed(program, int(exc.exit_code or 0), str(exc.stderr or "")) from exc
    except OSError as exc:
        raise ProgramFailed(program, 127, f"{exc.strerror}: {argv[0]}") from exc
    return str(stdout)


def become(argv: list[str]) -> NoReturn:
    """Replace this process by `argv` (an absolute program path first), terminal and all.

    :raises ProgramFailed: if the program is not there.
    """
    try:
        os.execv(argv[0], argv)  # noqa: S606 - no shell is the point
    except OSError as exc:
        raise ProgramFailed(Path(argv[0]).name, 127, f"{exc.strerror}: {argv[0]}") from exc


def is_running(name: str) -> bool:
    """Whether any process on this host was started as `name` (the program or a script)."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        # The program, or its interpreter, that one's options, and the script.
        words = [word for word in words if not word.startswith(b"-")][:2]
        if any(Path(word.decode(errors="replace")).name == name for word in words):
            return True
    return False
