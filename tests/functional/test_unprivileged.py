"""A user without rights rescues guests of a libvirt of their own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import recipes
from guest import Disk, domain_xml

import rescue_virt

USER = "nobody"
Run = Callable[..., str]


@pytest.fixture
def home() -> Iterator[Path]:
    """A short one: the sockets of libvirt and QEMU below it must fit into 107 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        home = Path(path)
        for name in ("run", "config", "cache", "data"):
            (home / name).mkdir(mode=0o700)
        # The checkout may lie where nobody else can look.
        source = Path(rescue_virt.__file__).parent
        shutil.copytree(source, home / "product" / "rescue_virt", dirs_exist_ok=True)
        for entry in (home, *home.rglob("*")):
            os.chown(entry, *_ids())
        yield home


def _ids() -> tuple[int, int]:
    entry = pwd.getpwnam(USER)
    return entry.pw_uid, entry.pw_gid


@pytest.fixture
def run(home: Path) -> Run:
    """Run a program as the user; its stdout."""
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(home / "product"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LIBVIRT_DEFAULT_URI": "qemu:///session",
        "XDG_RUNTIME_DIR": str(home / "run"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_DATA_HOME": str(home / "data"),
    }
    uid, gid = _ids()

    def as_user(*argv: str, expect: int = 0) -> str:
        done = subprocess.run(
            argv, env=environment, cwd=home, user=uid, group=gid, extra_groups=[],
            capture_output=True, text=True, check=False, timeout=180,
        )  # fmt: skip
        assert done.returncode == expect, done
        return done.stdout + (done.stderr if expect else "")

    return as_user


@pytest.fixture
def program(run: Run) -> Run:
    def program(*arguments: str, expect: int = 0) -> str:
        return run(sys.executable, "-m", "rescue_virt", *arguments, expect=expect)

    return program


def test_a_guest_of_the_session_daemon_is_rescued_and_given_back(
    home: Path, run: Run, program: Run, small: Path, rescue_image: Path
) -> None:
    disk = home / "disk.qcow2"
    recipes.overlay(small, disk)
    os.chown(disk, *_ids())
    definition = home / "guest.xml"
    definition.write_text(domain_xml("mine", [Disk(source=disk)], log=False))
    definition.chmod(0o644)
    run("virsh", "define", str(definition))
    run("virsh", "start", "mine")
    before = run("virsh", "dumpxml", "--inactive", "--security-info", "mine")

    out = program("rescue", "mine", "--image", str(rescue_image), "--force-off")
    assert "rescue-virt unrescue mine" in out.splitlines()[-1]
    (log,) = (home / "data" / "rescue-virt" / "sessions").glob("*/console.log")
    assert "READY marker=rescue root=/dev/vda2 disks=vda vdb" in log.read_text(errors="replace")
    program("unrescue", "mine")

    assert run("virsh", "dumpxml", "--inactive", "--security-info", "mine") == before
    assert run("virsh", "domstate", "mine").strip() == "running"
    assert list((home / "data" / "rescue-virt" / "sessions").iterdir()) == []
    run("virsh", "destroy", "mine")
    run("virsh", "undefine", "mine")


def test_the_system_daemon_needs_root(program: Run, rescue_image: Path) -> None:
    arguments = ("-c", "qemu:///system", "rescue", "any", "--image", str(rescue_image))
    assert "as root" in program(*arguments, expect=5)
