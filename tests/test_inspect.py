"""Only plainly safe images pass."""

import bz2
import gzip
import lzma
import struct
import subprocess
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycdlib import PyCdlib

from rescue_virt.errors import ImageError
from rescue_virt.images import qemu_img
from rescue_virt.images.inspect import Inspection, inspect
from rescue_virt.model import GIB, ImageFormat
from rescue_virt.settings import Settings

MIB = 1 << 20
CLUSTER = 65536


@pytest.fixture
def options(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", max_virtual_size=GIB)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return qemu_img_create(tmp_path / "image.qcow2")


def qemu_img_create(path: Path, *arguments: str, size: str = "10M") -> Path:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *arguments, str(path), size], check=True
    )
    return path


def patch(path: Path, offset: int, layout: str, value: int | bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(layout, value))


def refusal(path: Path, options: Settings) -> str:
    with pytest.raises(ImageError) as caught:
        inspect(path, settings=options)
    message = str(caught.value)
    assert message.startswith(f"image {path} ")
    return message.removeprefix(f"image {path} ")


def test_a_qcow2_image_passes(image: Path, options: Settings) -> None:
    found = inspect(image, settings=options)
    assert found == Inspection(format=ImageFormat.QCOW2, virtual_size=10 * MIB)


@pytest.mark.parametrize(
    "arguments", [("-o", "compat=0.10"), ("-o", "compression_type=zstd"), ("-o", "cluster_size=2M")]
)
def test_qcow2_variants_that_are_safe_pass(
    tmp_path: Path, options: Settings, arguments: tuple[str, ...]
) -> None:
    path = qemu_img_create(tmp_path / "i", *arguments)
    assert inspect(path, settings=options).format is ImageFormat.QCOW2


def test_a_disk_with_a_partition_table_is_raw(tmp_path: Path, options: Settings) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8 * MIB))
    subprocess.run(["sfdisk", "-q", str(path)], input=b"label: gpt\n,\n", check=True)
    found = inspect(path, settings=options)
    assert found == Inspection(format=ImageFormat.RAW, virtual_size=8 * MIB)


def test_a_disk_of_unknown_content_is_raw_and_is_rounded_up_to_sectors(
    tmp_path: Path, options: Settings
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 1000)
    found = inspect(path, settings=options)
    assert found == Inspection(format=ImageFormat.RAW, virtual_size=1024)


def write_iso(path: Path) -> Path:
    iso = PyCdlib()
    iso.new(vol_ident="rescue")
    iso.write(str(path))
    iso.close()
    return path


def test_an_iso_image_passes(tmp_path: Path, options: Settings) -> None:
    path = write_iso(tmp_path / "i.iso")
    found = inspect(path, settings=options)
    assert found == Inspection(format=ImageFormat.ISO, virtual_size=path.stat().st_size)


def test_a_bootable_iso_image_with_a_boot_sector_is_an_iso_image(
    tmp_path: Path, options: Settings
) -> None:
    path = write_iso(tmp_path / "i.iso")
    patch(path, 446, ">B", 0x33)  # a boot flag that no real partition table has
    patch(path, 510, ">H", 0x55AA)
    assert inspect(path, settings=options).format is ImageFormat.ISO


def test_a_backing_file_is_refused_by_name(tmp_path: Path, options: Settings) -> None:
    path = qemu_img_create(tmp_path / "i", "-u", "-b", "/etc/passwd", "-F", "raw")
    assert refusal(path, options) == (
        "has a backing file (/etc/passwd); flatten it with qemu-img convert"
    )


def test_a_backing_file_name_cannot_write_to_the_terminal(
    tmp_path: Path, options: Settings
) -> None:
    path = qemu_img_create(tmp_path / "i", "-u", "-b", "/\x1b[31m\n", "-F", "raw")
    assert r"(/\x1b[31m\n)" in refusal(path, options)


def test_a_backing_file_name_beyond_the_file_is_refused_all_the_same(
    image: Path, options: Settings
) -> None:
    patch(image, 8, ">Q", 1 << 63)
    patch(image, 16, ">I", 0xFFFFFFFF)
    assert "has a backing file ()" in refusal(image, options)


def test_an_external_data_file_is_refused(tmp_path: Path, options: Settings) -> None:
    path = qemu_img_create(tmp_path / "i", "-o", f"data_file={tmp_path}/data")
    assert "keeps its data in another file" in refusal(path, options)


def test_an_encrypted_image_is_refused(tmp_path: Path, options: Settings) -> None:
    path = qemu_img_create(
        tmp_path / "i", "--object", "secret,id=s,data=x",
        "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=100",
    )  # fmt: skip
    assert "is encrypted" in refusal(path, options)


def test_internal_snapshots_are_refused(image: Path, options: Settings) -> None:
    subprocess.run(["qemu-img", "snapshot", "-c", "one", str(image)], check=True)
    assert "has 1 internal snapshots" in refusal(image, options)


def test_bitmaps_are_refused(image: Path, options: Settings) -> None:
    subprocess.run(["qemu-img", "bitmap", "--add", str(image), "one"], check=True)
    assert "has bitmaps" in refusal(image, options)


def test_extended_l2_entries_are_refused(tmp_path: Path, options: Settings) -> None:
    path = qemu_img_create(tmp_path / "i", "-o", "extended_l2=on,cluster_size=128k")
    assert "features (0x10) that cannot be judged" in refusal(path, options)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "reason"),
    [
        (4, ">I", 1, "is qcow2 version 1"),
        (4, ">I", 4, "is qcow2 version 4"),
        (72, ">Q", 1, "was not closed properly"),
        (72, ">Q", 2, "is marked as corrupt"),
        (72, ">Q", 1 << 40, "features (0x10000000000) that cannot be judged"),
        (20, ">I", 8, "has an absurd cluster size"),
        (20, ">I", 0xFFFFFFFF, "has an absurd cluster size"),
        (36, ">I", 1 << 31, "has an absurd l1 table size"),
        (40, ">Q", 1 << 40, "has its l1 table outside of the file"),
        (40, ">Q", 7, "has its l1 table outside of the file"),
        (48, ">Q", 1 << 40, "has its refcount table outside of the file"),
        (56, ">I", 0xFFFFFFFF, "has an absurd refcount table size"),
        (60, ">I", 0xFFFF, "has 65535 internal snapshots"),
        (96, ">I", 7, "has an absurd refcount width"),
        (100, ">I", 65535, "has an absurd header length"),
        (24, ">Q", 0, "is a disk of no size"),
        (24, ">Q", 4 << 40, "is damaged"),
    ],
)
def test_a_hostile_header_field_is_refused_with_its_own_reason(
    image: Path, options: Settings, *, offset: int, layout: str, value: int, reason: str
) -> None:
    patch(image, offset, layout, value)
    assert reason in refusal(image, options)


@pytest.mark.parametrize("length", [4, 71, 80, 103])
def test_an_image_that_ends_within_its_header_is_refused(
    image: Path, options: Settings, length: int
) -> None:
    with image.open("r+b") as file:
        file.truncate(length)
    assert "ends within its qcow2 header" in refusal(image, options)


def test_damaged_metadata_is_refused(image: Path, options: Settings) -> None:
    with image.open("r+b") as file:
        file.seek(2 * CLUSTER)
        file.write(bytes(CLUSTER))
    assert "is damaged: qemu-img failed" in refusal(image, options)


def test_a_disk_larger_than_allowed_is_refused(tmp_path: Path, options: Settings) -> None:
    path = qemu_img_create(tmp_path / "i", size="2G")
    assert refusal(path, options) == (
        "is a disk of 2.0 GiB, more than max_virtual_size_gb (1) allows"
    )


@pytest.mark.parametrize("fmt", ["vmdk", "vdi", "vhdx", "vpc", "qed", "luks"])
def test_other_formats_are_refused_by_name(tmp_path: Path, options: Settings, fmt: str) -> None:
    path = tmp_path / "i"
    secret = ["--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=100"]
    extra = secret if fmt == "luks" else []
    subprocess.run(["qemu-img", "create", "-q", "-f", fmt, *extra, str(path), "2M"], check=True)
    named = "vhd" if fmt == "vpc" else fmt
    assert refusal(path, options) == f"is {named}; only qcow2, raw and ISO images are used"


def test_a_file_that_is_two_formats_at_once_is_refused(image: Path, options: Settings) -> None:
    patch(image, 32768, ">6s", b"\x01CD001")
    assert "is iso and qcow2" in refusal(image, options)


def test_a_boot_sector_without_partitions_is_refused(tmp_path: Path, options: Settings) -> None:
    path = tmp_path / "i"
    path.write_bytes(bytes(510) + b"\x55\xaa" + bytes(MIB))
    assert "is not safe: GPT MBR has no partitions defined" in refusal(path, options)


def test_a_file_in_a_format_that_is_only_begun_is_refused(
    tmp_path: Path, options: Settings
) -> None:
    path = tmp_path / "i"
    path.write_bytes(b"KDMV" + struct.pack("<I", 1) + bytes(100))
    assert "is vmdk" in refusal(path, options) or "damaged" in refusal(path, options)


@pytest.mark.parametrize(
    "seen",
    [
        {"backing-filename": "/etc/passwd"},
        {"format": "raw"},
        {"virtual-size": 1},
        {"format-specific": {"data": {"data-file": "/etc/passwd"}}},
    ],
)
def test_an_image_that_qemu_sees_otherwise_than_we_do_is_refused(
    image: Path, options: Settings, monkeypatch: pytest.MonkeyPatch, seen: dict[str, object]
) -> None:
    facts = qemu_img.info(image, "qcow2") | seen
    monkeypatch.setattr(qemu_img, "info", lambda *_: facts)
    assert refusal(image, options) == "is not what its header says; get it again"


def test_an_empty_file_is_refused(tmp_path: Path, options: Settings) -> None:
    path = tmp_path / "i"
    path.touch()
    assert refusal(path, options) == "is empty; get it again"


def test_a_compressed_file_is_refused_with_the_tool_that_unpacks_it(
    tmp_path: Path, options: Settings
) -> None:
    path = tmp_path / "i"
    packed = {
        "gunzip": gzip.compress(b"x"),
        "unxz": lzma.compress(b"x"),
        "bunzip2": bz2.compress(b"x"),
    }
    for tool, content in packed.items():
        path.write_bytes(content)
        assert f"unpack it first ({tool})" in refusal(path, options)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image", b"x")
    assert "unpack it first (unzip)" in refusal(path, options)


def test_content_that_is_not_what_its_source_says_is_refused(
    image: Path, options: Settings
) -> None:
    with pytest.raises(ImageError, match="image x is qcow2, not raw as its source says"):
        inspect(image, settings=options, name="x", declared=ImageFormat.RAW)
    assert inspect(image, settings=options, declared=ImageFormat.QCOW2).virtual_size == 10 * MIB


def test_an_image_that_a_guest_writes_to_is_refused(image: Path, options: Settings) -> None:
    writer = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(image)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert writer.stdin
        assert writer.stdout
        writer.stdin.write("length\n")
        writer.stdin.flush()
        writer.stdout.readline()
        assert "is being written to; stop the guest" in refusal(image, options)
    finally:
        writer.communicate("quit\n", timeout=10)


def test_a_missing_file_is_refused(tmp_path: Path, options: Settings) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "none", options)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(position=st.integers(0, 511), content=st.binary(min_size=1, max_size=8))
def test_no_header_whatever_makes_inspection_fail_otherwise_than_by_refusal(
    image: Path, options: Settings, position: int, content: bytes
) -> None:
    sound = image.read_bytes()
    try:
        with image.open("r+b") as file:
            file.seek(position)
            file.write(content)
        with suppress(ImageError):
            assert inspect(image, settings=options).virtual_size > 0
    finally:
        image.write_bytes(sound)
