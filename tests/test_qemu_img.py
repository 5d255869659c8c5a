"""qemu-img does what we believe it does."""

import subprocess
from pathlib import Path

import pytest

from rescue_virt.images import qemu_img
from rescue_virt.process import ProgramFailed, run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.qcow2"
    run(["/usr/bin/qemu-img", "create", "-q", "-f", "qcow2", str(path), "10M"])
    return path


def test_info_tells_format_and_virtual_size(base: Path) -> None:
    facts = qemu_img.info(base, "qcow2")
    assert (facts["format"], facts["virtual-size"]) == ("qcow2", 10 << 20)


def test_info_reads_an_image_as_the_format_it_is_told_and_no_other(base: Path) -> None:
    assert qemu_img.info(base, "raw")["format"] == "raw"


def test_an_image_that_another_program_writes_to_is_only_read_when_shared(base: Path) -> None:
    # qemu-io holds the lock that a guest would hold, for as long as its input stays open.
    writer = subprocess.Popen(
        ["/usr/bin/qemu-io", "-f", "qcow2", str(base)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert writer.stdin
        assert writer.stdout
        writer.stdin.write("length\n")
        writer.stdin.flush()
        assert "10" in writer.stdout.readline()
        with pytest.raises(ProgramFailed, match="another process"):
            qemu_img.info(base, "qcow2")
        assert qemu_img.info(base, "qcow2", shared=True)["virtual-size"] == 10 << 20
    finally:
        writer.communicate("quit\n", timeout=10)


def test_an_overlay_names_its_base_and_the_format_of_it(base: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    qemu_img.create_overlay(overlay, base=base, base_format="qcow2", size=20 << 20)
    facts = qemu_img.info(overlay, "qcow2")
    assert facts["backing-filename"] == str(base)
    assert facts["backing-filename-format"] == "qcow2"
    assert facts["virtual-size"] == 20 << 20


def test_an_overlay_reads_what_its_base_holds(tmp_path: Path) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(b"rescue" + bytes(1 << 20))
    overlay, copy = tmp_path / "overlay.qcow2", tmp_path / "copy.img"
    qemu_img.create_overlay(overlay, base=base, base_format="raw", size=2 << 20)
    run(["/usr/bin/qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(overlay), str(copy)])
    assert copy.read_bytes()[:6] == b"rescue"


def test_a_name_with_colon_or_comma_is_a_file_name(tmp_path: Path) -> None:
    base = tmp_path / "nbd:odd,name=x.img"
    base.write_bytes(bytes(1 << 20))
    overlay = tmp_path / "json:{},overlay.qcow2"
    qemu_img.create_overlay(overlay, base=base, base_format="raw", size=1 << 20)
    assert qemu_img.info(overlay, "qcow2")["backing-filename"] == str(base)
    qemu_img.check(overlay)


def test_check_accepts_a_sound_image_and_one_with_leaked_clusters(base: Path) -> None:
    qemu_img.check(base)
    with base.open("r+b") as file:  # one cluster beyond the end is counted as used
        file.seek(2 * 65536 + 2 * 10)
        file.write(b"\0\1")
        file.truncate(65536 * 11)
    qemu_img.check(base)


def test_check_refuses_a_damaged_image(base: Path) -> None:
    with base.open("r+b") as file:
        file.seek(2 * 65536)
        file.write(bytes(65536))
    with pytest.raises(ProgramFailed):
        qemu_img.check(base)


def test_a_relative_name_is_never_passed_on() -> None:
    with pytest.raises(ValueError, match="not an absolute path"):
        qemu_img.info(Path("json:{}"), "raw")
