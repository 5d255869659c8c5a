"""What arrives is what was asked for, or an error says why not."""

import contextlib
import hashlib
import os
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescue_virt.errors import BadRequest, ImageError, NotFound
from rescue_virt.images.download import file_digest, source_for, stream
from rescue_virt.images.local import LocalSource
from rescue_virt.images.source import SourceFacts
from rescue_virt.images.web import HttpSource
from rescue_virt.model import Digest, ImageRef
from rescue_virt.settings import Settings

KIB, MIB = 1 << 10, 1 << 20
SHA = Digest(algorithm="sha256", hex="0" * 64)


class Fixed:
    """A source of chosen bytes that says what it likes about them."""

    def __init__(self, content: bytes, *, size: int | None = None, space: int | None = None):
        self.content, self.size, self.space = content, size, space

    def stat(self) -> SourceFacts:
        return SourceFacts(name="x", identity="x")

    @contextlib.contextmanager
    def open(self, offset: int) -> Iterator["Fixed"]:
        self.position = offset
        yield self

    def read(self, count: int, /) -> bytes:
        chunk = self.content[self.position : self.position + count]
        self.position += len(chunk)
        return chunk


def digest(algorithm: str, content: bytes) -> Digest:
    return Digest(algorithm=algorithm, hex=hashlib.new(algorithm, content).hexdigest())


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, MIB - 1, MIB, 3 * MIB + 17])
def test_every_byte_arrives(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    received = stream(Fixed(content), tmp_path / "f", digests=(), limit=10 * MIB)
    assert (tmp_path / "f").read_bytes() == content
    assert received.size == size
    assert received.sha256 == hashlib.sha256(content).hexdigest()


def test_zero_runs_take_no_space(tmp_path: Path) -> None:
    content = b"a" * 4096 + bytes(20 * MIB) + b"b" + bytes(5 * MIB)
    stream(Fixed(content), tmp_path / "f", digests=(), limit=30 * MIB)
    assert (tmp_path / "f").read_bytes() == content
    assert (tmp_path / "f").stat().st_blocks * 512 < MIB


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(runs=st.lists(st.tuples(st.booleans(), st.integers(1, 200 * KIB)), max_size=8))
def test_sparse_or_not_the_content_is_the_same(
    tmp_path: Path, runs: list[tuple[bool, int]]
) -> None:
    content = b"".join((b"\0" if zero else b"x") * length for zero, length in runs)
    (tmp_path / "f").unlink(missing_ok=True)
    stream(Fixed(content), tmp_path / "f", digests=(), limit=10 * MIB)
    assert (tmp_path / "f").read_bytes() == content


def test_both_digests_are_verified(tmp_path: Path) -> None:
    wanted = [digest("sha256", b"image"), digest("sha512", b"image")]
    received = stream(Fixed(b"image"), tmp_path / "f", digests=wanted, limit=MIB)
    assert set(received.digests) == set(wanted)


def test_a_digest_in_capitals_is_the_same_digest(tmp_path: Path) -> None:
    wanted = digest("sha256", b"image")
    capitals = Digest(algorithm="sha256", hex=wanted.hex.upper())
    received = stream(Fixed(b"image"), tmp_path / "f", digests=[capitals], limit=MIB)
    assert received.digests == (wanted,)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_another_digest_is_refused_and_both_are_named(tmp_path: Path, algorithm: str) -> None:
    wanted, found = digest(algorithm, b"other"), digest(algorithm, b"image")
    with pytest.raises(ImageError, match=f"image x is {found}, not {wanted} as asked for"):
        stream(Fixed(b"image"), tmp_path / "f", digests=[wanted], limit=MIB)


def test_an_image_declared_too_large_is_refused_before_its_first_byte(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="larger than max_image_size_gb"):
        stream(Fixed(b"x", size=2 * MIB), tmp_path / "f", digests=(), limit=MIB)
    assert not (tmp_path / "f").exists()


def test_an_image_that_never_ends_is_stopped_at_the_limit(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="larger than max_image_size_gb"):
        stream(Fixed(os.urandom(4 * MIB)), tmp_path / "f", digests=(), limit=2 * MIB)
    assert (tmp_path / "f").stat().st_size <= 2 * MIB


def test_an_image_longer_or_shorter_than_declared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="has more than the 4 bytes declared"):
        stream(Fixed(b"image", size=4), tmp_path / "long", digests=(), limit=MIB)
    with pytest.raises(ImageError, match="ended after 5 of 6 bytes; try again"):
        stream(Fixed(b"image", size=6), tmp_path / "short", digests=(), limit=MIB)


def test_an_image_that_does_not_fit_is_refused_before_its_first_byte(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=rf"x needs 1048576\.0 GiB, .* free in {tmp_path}"):
        stream(Fixed(b"x", space=1 << 50), tmp_path / "f", digests=(), limit=1 << 60)
    assert not (tmp_path / "f").exists()


def test_a_disk_that_takes_no_more_is_an_error_that_names_the_image(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        with pytest.raises(ImageError, match="image x cannot be copied: File too large"):
            stream(Fixed(os.urandom(3 * MIB)), tmp_path / "f", digests=(), limit=4 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_is_there_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(ImageError, match="File exists"):
        stream(Fixed(b"x"), tmp_path / "f", digests=(), limit=MIB)
    assert (tmp_path / "f").read_text() == "mine"


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(os.urandom(64 * MIB))
    tracemalloc.start()
    try:
        stream(LocalSource(tmp_path / "image"), tmp_path / "f", digests=(), limit=100 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_the_digest_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"image")
    assert file_digest(tmp_path / "f", "sha512") == digest("sha512", b"image")


@pytest.fixture
def options(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/srv/image", "/srv/image"),
        ("file:///srv/an%20image", "/srv/an image"),
        ("/srv/json:{}", "/srv/json:{}"),
    ],
)
def test_a_path_and_a_file_url_are_files(options: Settings, location: str, path: str) -> None:
    assert source_for(ImageRef(location=location), options) == LocalSource(Path(path))


def test_a_relative_path_is_made_absolute(
    options: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match=f"image {tmp_path}/nbd:x does not exist"):
        source_for(ImageRef(location="nbd:x"), options).stat()


@pytest.mark.parametrize("location", ["", "/a\0b", "file://"])
def test_an_impossible_path_is_a_bad_request(options: Settings, location: str) -> None:
    with pytest.raises(BadRequest, match="give the path of a file"):
        source_for(ImageRef(location=location), options)


@pytest.mark.parametrize("scheme", ["ftp", "nbd", "ssh", "glance+x"])
def test_an_unknown_scheme_is_a_bad_request(options: Settings, scheme: str) -> None:
    with pytest.raises(BadRequest) as caught:
        source_for(ImageRef(location=f"{scheme}://host/image"), options)
    assert str(caught.value).startswith(f"{scheme}://: not a place images come from")


def test_plain_http_needs_a_digest_and_https_does_not(options: Settings) -> None:
    with pytest.raises(BadRequest, match=r"http://host/image: give --sha256 or --sha512"):
        source_for(ImageRef(location="http://u:secret@host/image"), options)
    named = ImageRef(location="HTTP://host/image", digests=(SHA,))
    assert isinstance(source_for(named, options), HttpSource)
    assert isinstance(source_for(ImageRef(location="https://host/i"), options), HttpSource)


@pytest.mark.parametrize(
    "location", ["https://", "https:///image", "https://ho st/", "https://[x/"]
)
def test_a_url_without_a_host_is_a_bad_request(options: Settings, location: str) -> None:
    with pytest.raises(BadRequest):
        source_for(ImageRef(location=location), options)
