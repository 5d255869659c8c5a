"""rescue-virt as an operator runs it, and what must be the same after a rescue."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

    @contextmanager
    def on_a_terminal(self, *arguments: str) -> Iterator[Terminal]:
        """Run a command on a terminal of its own, for a person (or a test) to type to."""
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            self._argv(arguments), env=self._environment(), start_new_session=True,
            stdin=terminal, stdout=terminal, stderr=terminal,
        )  # fmt: skip
        os.close(terminal)
        try:
            yield Terminal(controller, process)
        finally:
            process.kill()
            process.wait()
            os.close(controller)

    def with_entry(self, *entry: str) -> Program:
        """The same state, another way to start."""
        return Program(self.state, entry=entry)

    def _argv(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, *self._entry, *arguments]

    def _environment(self) -> dict[str, str]:
        return os.environ | {"OS_RESCUE__STATE_DIR": str(self.state)}


class Terminal:
    """What a person at the keyboard of a command sees and does."""

    def __init__(self, controller: int, process: subprocess.Popen[bytes]) -> None:
        self._controller = controller
        self._process = process
        self._seen = b""

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def expect(self, text: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while text.encode() not in self._seen:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._controller], [], [], max(left, 0))
            assert ready, f"no {text!r} within {timeout:g} s after {self._seen!r}"
            self._seen += os.read(self._controller, 4096)

    def wait(self, timeout: float) -> int:
        return self._process.wait(timeout)


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
        self._owners = _owners(guest)

    def assert_given_back(self) -> None:
        """The guest is as it was, and nothing of the rescue is left."""
        domain = self._guest.domain
        assert domain.XMLDesc(DEFINITION) == self._definition
        assert bool(domain.isPersistent()) is self._persistent
        assert self._guest.is_running() is self._runs
        assert MARK not in domain.XMLDesc()
        assert not domain.isPersistent() or not domain.hasManagedSaveImage()
        assert _snapshots(self._guest) == self._snapshots
        assert _owners(self._guest) == self._owners
        assert self._program.sessions == []

    def assert_untouched(self) -> None:
        """As it was, and it never stopped running either."""
        self.assert_given_back()
        assert self._pid is None or self._guest.qemu_pid() == self._pid


def _snapshots(guest: Guest) -> list[str]:
    return sorted(snapshot.getXMLDesc() for snapshot in guest.domain.listAllSnapshots())


def _owners(guest: Guest) -> dict[str, tuple[int, int, int]]:
    """Who may do what with the files of the guest's disks: libvirt changes it for each run."""
    sources = re.findall("<source file='([^']+)'", guest.domain.XMLDesc(DEFINITION))
    facts = {source: Path(source).stat() for source in sources}
    return {source: (fact.st_uid, fact.st_gid, fact.st_mode) for source, fact in facts.items()}


def wait_until(condition: Any, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {condition}"
        time.sleep(0.1)
