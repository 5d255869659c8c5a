"""rescue-virt as an operator runs it, and what must be the same after a rescue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
from guest import Guest

# What only a rescue domain has in its XML.
MARK = "urn:rescue-virt:session"
DEFINITION = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Program:
    """The command line, on a state directory of its own."""

    def __init__(self, state: Path, *, entry: tuple[str, ...] = ("-m", "rescue_virt")) -> None:
        self.state = state
        self._entry = entry

    @property
    def sessions(self) -> list[Path]:
        directory = self.state / "sessions"
        return sorted(directory.iterdir()) if directory.is_dir() else []

    def run(
        self, *arguments: str, expect: int = 0, stdin: str = "", timeout: float = 240
    ) -> Result:
        """Run a command to its end; its exit code has to be `expect`."""
        done = subprocess.run(
            self._argv(arguments), input=stdin, env=self._environment(), timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        result = Result(done.returncode, done.stdout, done.stderr)
        assert result.code == expect, f"{arguments}: {result}"
        return result

    def start(self, *arguments: str) -> Running:
        return Running(self._argv(arguments), self._environment())

    def with_entry(self, *entry: str) -> Program:
        """The same state, another way to start."""
        return Program(self.state, entry=entry)

    def _argv(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, *self._entry, *arguments]

    def _environment(self) -> dict[str, str]:
        return os.environ | {"OS_RESCUE__STATE_DIR": str(self.state)}


class Running:
    """A command that is still at work."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            argv, env=environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._seen = ""

    def wait_for(self, step: str) -> None:
        """Read stderr until it names a step."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._seen += line
            if step in line:
                return
        raise AssertionError(f"the command ended without {step!r}: {self._seen}")

    def end(self, number: signal.Signals | None, *, expect: int, timeout: float = 120) -> Result:
        """Send a signal and wait; the exit code has to be `expect`."""
        if number is not None:
            self._process.send_signal(number)
        out, err = self._process.communicate(timeout=timeout)
        result = Result(self._process.returncode, out, self._seen + err)
        assert result.code == expect, result
        return result


class Witness:
    """A guest as it was: its definition byte for byte, its run state, its host's files."""

    def __init__(self, guest: Guest, program: Program) -> None:
        self._guest = guest
        self._program = program
        self._persistent = bool(guest.domain.isPersistent())
        self._definition = guest.domain.XMLDesc(DEFINITION)
        self._runs = guest.is_running()
        self._snapshots = _snapshots(guest)
        self._pid = guest.qemu_pid() if self._runs else None

    def assert_given_back(self) -> None:
        """The guest is as it was, and nothing of the rescue is left."""
        domain = self._guest.domain
        assert domain.XMLDesc(DEFINITION) == self._definition
        assert bool(domain.isPersistent()) is self._persistent
        assert self._guest.is_running() is self._runs
        assert MARK not in domain.XMLDesc()
        assert not domain.isPersistent() or not domain.hasManagedSaveImage()
        assert _snapshots(self._guest) == self._snapshots
        assert self._program.sessions == []

    def assert_untouched(self) -> None:
        """As it was, and it never stopped running either."""
        self.assert_given_back()
        assert self._pid is None or self._guest.qemu_pid() == self._pid


def _snapshots(guest: Guest) -> list[str]:
    return sorted(snapshot.getXMLDesc() for snapshot in guest.domain.listAllSnapshots())


def wait_until(condition: Any, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {condition}"
        time.sleep(0.1)
