"""Volume labels are found, and nothing else happens."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycdlib import PyCdlib

from rescue_virt.images.label import volume_label


def test_the_label_of_an_iso_image_is_read(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    iso = PyCdlib()
    iso.new(vol_ident="cidata")
    iso.write(str(path))
    iso.close()
    assert volume_label(path) == "cidata"


@pytest.mark.parametrize(("bits", "size"), [("12", "1M"), ("16", "16M"), ("32", "64M")])
def test_the_label_of_every_kind_of_fat_is_read(tmp_path: Path, bits: str, size: str) -> None:
    path = tmp_path / "seed.img"
    subprocess.run(["truncate", "-s", size, str(path)], check=True)
    subprocess.run(
        ["/usr/sbin/mkfs.vfat", "-F", bits, "-n", "CONFIG-2", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    assert volume_label(path) == "CONFIG-2"


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(65536), bytes(510) + b"\x55\xaa"])
def test_a_disk_without_a_label_has_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(content)
    assert volume_label(path) is None


def test_a_blank_label_is_none(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(32768) + b"\x01CD001" + b" " * 100)
    assert volume_label(path) is None


def test_what_cannot_be_read_has_no_label_and_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert volume_label(pipe) is None
    assert volume_label(tmp_path) is None
    assert volume_label(tmp_path / "missing") is None
    assert volume_label(Path("/nul\0")) is None


def test_reading_leaves_the_disk_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(65536))
    path.chmod(0o444)
    before = path.stat()
    volume_label(path)
    after = path.stat()
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(head=st.binary(max_size=512), descriptor=st.binary(max_size=80))
def test_no_content_whatever_is_an_error(tmp_path: Path, head: bytes, descriptor: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(head.ljust(510, b"\0")[:510] + b"\x55\xaa" + bytes(32256) + descriptor)
    assert volume_label(path) is None or isinstance(volume_label(path), str)
