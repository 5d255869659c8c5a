"""What the functional tests share: a libvirt of their own, images, guests, and the program."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import libvirt
import pytest
import recipes
from guest import URI, Disk, Guest, domain_xml
from program import Program

PASSWORD = "correct horse battery"

# Two workers share one libvirt; what they must not share is named after them.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "functional" in item.path.parts:
            item.add_marker(pytest.mark.functional)
            item.add_marker(pytest.mark.timeout(600))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that was to be functional and skipped everything has proved nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_worker = hasattr(session.config, "workerinput")
    if reporter and not is_worker and not _ran(reporter.stats):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def _ran(stats: dict[str, list[Any]]) -> bool:
    return any(stats.get(outcome) for outcome in ("passed", "failed", "error"))


@pytest.fixture(scope="session")
def run_directory() -> Path:
    if "RESCUE_VIRT_RUN" not in os.environ:
        pytest.fail("the functional tests need a lab: scripts/lab PYTHON -m pytest -m functional")
    return Path(os.environ["RESCUE_VIRT_RUN"])


@pytest.fixture
def connection() -> Iterator[libvirt.virConnect]:
    connection = libvirt.open(URI)
    yield connection
    connection.close()


@pytest.fixture
def directory(run_directory: Path) -> Iterator[Path]:
    """Unlike pytest's tmp_path, one in which QEMU may open files."""
    with tempfile.TemporaryDirectory(dir=run_directory) as path:
        Path(path).chmod(0o711)
        yield Path(path)


@pytest.fixture
def program(run_directory: Path) -> Iterator[Program]:
    """The cached images stay for the tests that follow; a session that is left is a failure."""
    program = Program(run_directory / f"state-{WORKER}")
    yield program
    left = program.sessions
    for session in left:
        shutil.rmtree(session)
    assert left == []


@pytest.fixture
def small() -> Path:
    """The image that the broken guests were made from."""
    return recipes.small_image("original")


@pytest.fixture
def rescue_image() -> Path:
    return recipes.small_image("rescue")


@pytest.fixture
def disk(small: Path, directory: Path) -> Path:
    return recipes.overlay(small, directory / "disk.qcow2")


@pytest.fixture
def make_guest(
    connection: libvirt.virConnect, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Guest]]:
    """`make_guest(*disks, **how)`: a defined guest, named after the test."""
    with ExitStack() as stack:

        def make(*disks: Disk | Path, **how: Any) -> Guest:
            given = [disk if isinstance(disk, Disk) else Disk(source=disk) for disk in disks]
            name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]")
            return stack.enter_context(Guest(connection, domain_xml(name, given, **how)))

        yield make
