"""Files on this host are read as they are, or not at all."""

import os
from pathlib import Path

import pytest

from rescue_virt.errors import ImageError, NotFound
from rescue_virt.images.local import LocalSource


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"0123456789")
    return path


def test_the_facts_name_the_file_and_its_size(file: Path) -> None:
    facts = LocalSource(file).stat()
    assert (facts.name, facts.size, facts.origin) == (str(file), 10, file)


def test_a_file_that_changed_is_another_image(file: Path) -> None:
    before = LocalSource(file).stat().identity
    assert LocalSource(file).stat().identity == before
    os.utime(file, ns=(0, 1))
    assert LocalSource(file).stat().identity != before


def test_reading_can_begin_anywhere(file: Path) -> None:
    with LocalSource(file).open(4) as body:
        assert body.size == 6
        assert body.read(100) == b"456789"


def test_a_sparse_file_needs_only_the_space_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 40)
    with LocalSource(path).open(0) as body:
        assert body.size == 1 << 40
        assert body.space == 0


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"image {tmp_path}/x does not exist"):
        LocalSource(tmp_path / "x").stat()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="is not a regular file"):
        LocalSource(tmp_path / "pipe").stat()


@pytest.mark.parametrize("path", ["/", "/dev/null"])
def test_what_is_no_regular_file_is_refused(path: str) -> None:
    with pytest.raises(ImageError, match=f"image {path} is not a regular file"):
        LocalSource(Path(path)).stat()


def test_a_path_through_a_file_cannot_be_read(file: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read: Not a directory"):
        LocalSource(file / "below").stat()


def test_a_file_that_is_written_to_meanwhile_is_refused(file: Path) -> None:
    def write_while_reading() -> None:
        with LocalSource(file).open(0) as body:
            body.read(100)
            file.write_bytes(b"9876543210+")

    with pytest.raises(ImageError, match="changed while it was copied"):
        write_while_reading()
