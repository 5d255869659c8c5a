"""`rescue-virt xml FILE`: what a rescue would run with, told by the real engine without libvirt."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from threading import Thread

import pytest

from rescue_virt.cli import main

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Program = Callable[..., Done]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def program(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Program]:
    """The program's own entry point, called in this process."""

    def program(*argv: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["rescue-virt", *argv])
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as ended:
            main.main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    monkeypatch.setenv("OS_RESCUE__STATE_DIR", str(state))
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", f"qemu+unix:///system?socket={state}/none")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield program
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "rescue.qcow2"
    subprocess.run(
        ["/usr/bin/qemu-img", "create", "-q", "-f", "qcow2", str(path), "10M"], check=True
    )
    return path


def shown_by(done: Done) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def changes(diff: str) -> tuple[list[str], list[str]]:
    """The lines that a unified diff removes, and those that it adds."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    removed = [line[1:].strip() for line in lines if line.startswith("-")]
    return removed, [line[1:].strip() for line in lines if line.startswith("+")]


def test_help_lists_the_commands(program: Program) -> None:
    assert "Give GUEST back" in shown_by(program("--help"))


def test_xml_of_a_file_is_a_domain_that_boots_from_the_image_first(
    program: Program, image: Path, state: Path
) -> None:
    text = shown_by(program("xml", str(DATA / "q35.xml"), "--image", str(image)))
    assert text.startswith("<domain type='qemu'>\n  <name>web1</name>\n")
    assert text.endswith("</domain>\n")
    overlay = text.index(f"{state}/sessions/4dea22b3-1d52-d8f3-2516-782e98ab3fa0/rescue.qcow2")
    assert overlay < text.index("/var/lib/libvirt/images/web1.qcow2")
    assert not state.exists()


def test_xml_that_is_shown_holds_no_secret(program: Program, image: Path) -> None:
    for flags in ([], ["--diff"], ["-o", "json"]):
        done = program("xml", str(DATA / "q35.xml"), "--image", str(image), *flags)
        assert "graphics" in done.stdout or "--diff" in flags
        assert "hunter22" not in shown_by(done)


def test_the_diff_shows_what_changes_and_nothing_else(program: Program, image: Path) -> None:
    removed, added = changes(
        shown_by(program("xml", str(DATA / "q35.xml"), "--image", str(image), "--diff"))
    )
    assert "<boot dev='hd'/>" in removed
    assert "<serial>RESCUE</serial>" in added
    assert not any("mac address" in line for line in removed + added)


def test_a_guest_with_uefi_gets_variables_of_its_own(program: Program, image: Path) -> None:
    removed, added = changes(
        shown_by(program("xml", str(DATA / "uefi.xml"), "--image", str(image), "--diff"))
    )
    assert [line for line in removed if "db1_VARS.fd" in line]
    assert [line for line in added if "nvram.fd" in line]


def test_the_layout_and_the_image_properties_are_taken_into_account(
    program: Program, image: Path
) -> None:
    done = program(
        "xml", str(DATA / "pc.xml"), "--image", str(image), "-o", "json", "--layout", "stable",
        "--property", "hw_rescue_device=cdrom",
    )  # fmt: skip
    told = json.loads(shown_by(done))
    assert told["schema"] == "rescue-virt/v1"
    assert told["rescue_disk"] == "hdd (cdrom on the ide bus)"
    assert (told["layout"], told["state"]) == ("stable", "off")
    assert (told["original_disks"], told["attached_late"]) == ("attached", 0)
    assert told["xml"].startswith("<domain")


def test_xml_is_read_from_stdin_and_from_a_pipe(
    program: Program, image: Path, tmp_path: Path
) -> None:
    file = DATA / "pc.xml"
    expected = shown_by(program("xml", str(file), "--image", str(image)))
    stdin = file.read_text()
    assert shown_by(program("xml", "-", "--image", str(image), stdin=stdin)) == expected
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    Thread(target=pipe.write_text, args=(stdin,), daemon=True).start()
    assert shown_by(program("xml", str(pipe), "--image", str(image))) == expected


def test_a_shared_base_is_announced_as_it_delays_the_disks(
    program: Program, image: Path, tmp_path: Path
) -> None:
    text = (DATA / "q35.xml").read_text()
    driver = "<source file='/var/lib/libvirt/images/web1.qcow2'/>"
    backing = (
        f"<backingStore type='file'><format type='qcow2'/><source file='{image}'/></backingStore>"
    )
    assert driver in text
    file = tmp_path / "web1.xml"
    file.write_text(text.replace(driver, driver + backing))
    done = program("xml", str(file), "--image", str(image), "-o", "json")
    assert done.returncode == 0
    assert done.stderr.startswith("rescue-virt: guest web1 gets its own disks only when")
    told = json.loads(done.stdout)
    assert (told["original_disks"], told["attached_late"]) == ("pending", 2)
    assert str(image) in told["why_pending"]


@pytest.mark.parametrize(
    ("file", "flags", "message"),
    [
        ("diskless", [], "guest pxe1 has no disk"),
        ("q35", ["--property", "hw_architecture=aarch64"], "is for aarch64"),
        ("q35", ["--property", "hw_firmware_type=uefi"], "boots with uefi only"),
        ("uefi", ["--property", "hw_firmware_type=bios"], "boots with bios only"),
    ],
)
def test_a_guest_that_cannot_be_rescued_is_one_line_and_exit_5(
    program: Program, image: Path, file: str, flags: list[str], message: str
) -> None:
    done = program("xml", str(DATA / f"{file}.xml"), "--image", str(image), *flags)
    assert (done.returncode, done.stdout) == (5, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_image_is_not_found(program: Program) -> None:
    done = program("xml", str(DATA / "pc.xml"), "--image", "/nonexistent.img")
    assert (done.returncode, done.stdout) == (3, "")


def test_an_unsafe_image_is_an_image_error(program: Program, tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    done = program("xml", str(DATA / "pc.xml"), "--image", str(tmp_path / "empty.img"))
    assert (done.returncode, done.stdout) == (7, "")


@pytest.mark.parametrize("content", [b"", b"<network/>", b"\xff\xfe", b"<domain><name>x</name>"])
def test_a_file_that_is_no_domain_is_a_usage_error(
    program: Program, image: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "x.xml").write_bytes(content)
    done = program("xml", str(tmp_path / "x.xml"), "--image", str(image))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_what_is_no_file_is_a_guest_and_needs_libvirt(
    program: Program, image: Path, tmp_path: Path
) -> None:
    for guest in ("web1", str(tmp_path)):
        assert program("xml", guest, "--image", str(image)).returncode == 5
