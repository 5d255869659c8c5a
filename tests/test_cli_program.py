"""The program as a whole, in a process of its own, on a machine without libvirtd."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"
HEAVY = {"libvirt", "lxml", "oslo_config", "oslo_concurrency", "oslo_utils", "rich", "urllib3"}

Done = subprocess.CompletedProcess[str]
Program = Callable[..., Done]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def program(state: Path, tmp_path: Path) -> Program:
    environment = os.environ | {
        "OS_RESCUE__STATE_DIR": str(state),
        "LIBVIRT_DEFAULT_URI": f"qemu+unix:///system?socket={tmp_path}/none",
    }

    def program(*argv: str, stdin: str | None = None) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "rescue_virt", *argv],
            env=environment, input=stdin, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip

    return program


def shown_by(done: Done) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- without a command -------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["--version", "--help", "rescue --help", "xml --help"])
def test_neither_version_nor_help_waits_for_a_library(argument: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rescue_virt", *argument.split()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert done.returncode == 0
    assert "click" in imported
    assert not imported & HEAVY


def test_version_is_told_on_stdout(program: Program) -> None:
    from rescue_virt import __version__

    assert shown_by(program("--version")) == f"rescue-virt {__version__}\n"


def test_help_lists_every_command_and_every_exit_code(program: Program) -> None:
    text = shown_by(program("--help"))
    block = text.partition("Commands:\n")[2].partition("\n\n")[0]
    commands = " ".join(line.split()[0] for line in block.splitlines())
    assert commands == "rescue unrescue status list console attach resume xml recover"
    assert [line.strip() for line in text.partition("Exit codes:\n")[2].splitlines()] == [
        "0  done",
        "1  failed and rolled back, the guest is as before",
        "2  usage",
        "3  no such guest or image",
        "4  wrong state",
        "5  refused before anything was touched",
        "6  failed, and the way back failed too: what to do by hand is printed",
        "7  image could not be had, did not verify, or is unsafe",
        "8  not ready or not stopped in time (it is left in rescue)",
        "130  interrupted, rolled back",
    ]


@pytest.mark.parametrize(
    "argv",
    [[], ["frob"], ["--frob"], ["rescue"], ["rescue", "web1"], ["unrescue"], ["-o", "xml", "list"]],
)
def test_what_makes_no_sense_is_a_usage_error(program: Program, argv: list[str]) -> None:
    done = program(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: rescue-virt ")


def test_settings_that_cannot_be_read_are_a_usage_error(program: Program, tmp_path: Path) -> None:
    done = program("list", "--config", str(tmp_path / "none.conf"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rescue-virt: configuration: ")
    assert done.stderr.count("\n") == 1


def test_without_libvirt_a_guest_cannot_be_looked_at(program: Program) -> None:
    done = program("status", "web1")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.count("\n") == 1


# --- xml FILE ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "flags", "code"),
    [
        ("q35.xml", [], 0),
        ("pc.xml", [], 0),
        ("uefi.xml", ["--diff"], 0),
        ("q35.xml", ["--property", "what=ever"], 2),
        ("q35.xml", ["--image", "/nonexistent.img"], 3),
        ("diskless.xml", [], 5),
        ("uefi.xml", ["--property", "hw_firmware_type=bios"], 5),
        ("q35.xml", ["--image", "/dev/null"], 7),
    ],
)
def test_xml_of_a_file_needs_no_libvirt_creates_nothing_and_tells_by_its_exit_code(
    program: Program, tmp_path: Path, file: str, flags: list[str], code: int
) -> None:
    image = tmp_path / "rescue.img"
    image.write_bytes(bytes(1 << 20))
    done = program("xml", str(DATA / file), "--image", str(image), *flags)
    assert done.returncode == code
    assert bool(done.stdout) is (code == 0)
    assert not (tmp_path / "state").exists()


# --- signals -----------------------------------------------------------------------------------

# Enters a rescue that waits for a signal, and takes its time to undo it.
ENTERING = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
from rescue_virt.cli import interrupts, main
from rescue_virt.cli.engine import Engine
from rescue_virt.cli.invocation import Invocation
from rescue_virt.settings import Settings

class Rescuer:
    def enter(self, request):
        try:
            print("entered", flush=True)
            time.sleep(20)
        finally:
            print("undoing", flush=True)
            time.sleep(0.5)
            print("undone", flush=True)

@contextmanager
def connect(report):
    yield Rescuer()

interrupts.listen()
engine = Engine(settings=Settings(state_dir=Path("/nonexistent")), connect=connect)
main.cli(["rescue", "web1", "--image", "x"], obj=Invocation(make_engine=lambda _: engine))
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_undoes_the_rescue_and_a_second_does_not_disturb_that(
    first: signal.Signals,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENTERING],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "entered\n"
    process.send_signal(first)
    assert process.stdout.readline() == "undoing\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert stdout == "undone\n"
    assert stderr == "rescue-virt: interrupted; guest web1 is as it was\n"
    assert process.returncode == 130
