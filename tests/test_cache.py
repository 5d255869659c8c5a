"""One image is fetched once, kept whole, and never used after it changed."""

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from rescue_virt.errors import ImageError
from rescue_virt.images.cache import Cache
from rescue_virt.images.local import LocalSource
from rescue_virt.images.web import HttpSource, parse
from rescue_virt.model import Digest, ImageFormat
from rescue_virt.settings import Settings

MIB = 1 << 20
CONTENT = os.urandom(MIB) + bytes(MIB)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.gets.append(self.path)  # type: ignore[attr-defined]
        time.sleep(0.1)  # long enough for every other contender to ask
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.gets = []  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def gets(server: ThreadingHTTPServer) -> int:
    return len(server.gets)  # type: ignore[attr-defined]


@pytest.fixture
def options(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state")


@pytest.fixture
def source(server: ThreadingHTTPServer, options: Settings) -> HttpSource:
    return HttpSource(parse(f"http://127.0.0.1:{server.server_port}/image"), options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(CONTENT)
    return path


def in_ingest(options: Settings) -> list[Path]:
    return list((options.images_dir / "ingest").iterdir())


def blobs(options: Settings) -> list[Path]:
    return [path for path in (options.images_dir / "blobs").rglob("*") if path.is_file()]


def test_an_image_is_published_under_its_digest_and_linked(
    source: HttpSource, options: Settings, tmp_path: Path
) -> None:
    blob = Cache(options).fetch(source, tmp_path / "base.img")
    assert blob.path == options.images_dir / "blobs" / "sha256" / SHA256[:2] / SHA256
    assert blob.path.read_bytes() == CONTENT
    assert blob.path.samefile(tmp_path / "base.img")
    assert (blob.size, blob.virtual_size, blob.format) == (2 * MIB, 2 * MIB, ImageFormat.RAW)
    assert in_ingest(options) == []


def test_nobody_may_write_to_a_blob_and_everybody_may_read_it(
    source: HttpSource, options: Settings, tmp_path: Path
) -> None:
    umask = os.umask(0o077)
    try:
        blob = Cache(options).fetch(source, tmp_path / "base.img")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(blob.path.stat().st_mode) == 0o444
    for directory in blob.path.parents[:5]:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o711


def test_a_second_request_fetches_nothing(
    source: HttpSource, server: ThreadingHTTPServer, options: Settings, tmp_path: Path
) -> None:
    first = Cache(options).fetch(source, tmp_path / "one")
    second = Cache(options).fetch(source, tmp_path / "two")
    assert gets(server) == 1
    assert first == second
    assert (tmp_path / "two").stat().st_nlink == 3


def test_looking_up_creates_nothing_and_finds_what_is_there(
    source: HttpSource, options: Settings, tmp_path: Path
) -> None:
    cache = Cache(options)
    assert cache.look_up(source) is None
    assert not options.state_dir.exists()
    blob = cache.fetch(source, tmp_path / "base.img")
    assert cache.look_up(source) == blob


def test_twenty_threads_cause_one_download(
    source: HttpSource, server: ThreadingHTTPServer, options: Settings, tmp_path: Path
) -> None:
    cache = Cache(options)
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda n: cache.fetch(source, tmp_path / f"base{n}"), range(20)))
    assert gets(server) == 1
    assert len(set(found)) == 1
    assert found[0].path.stat().st_nlink == 21


CONTENDERS = """
import os, sys
from pathlib import Path
from rescue_virt.images.cache import Cache
from rescue_virt.images.web import HttpSource, parse
from rescue_virt.settings import Settings
url, state, into = sys.argv[1:]
options = Settings(state_dir=Path(state))
for number in range(20):
    if os.fork() == 0:
        Cache(options).fetch(HttpSource(parse(url), options), Path(into) / f"base{number}")
        os._exit(0)
sys.exit(any(os.wait()[1] for _ in range(20)))
"""


def test_twenty_processes_cause_one_download(
    source: HttpSource, server: ThreadingHTTPServer, options: Settings, tmp_path: Path
) -> None:
    argv = [sys.executable, "-c", CONTENDERS, source.url.url, str(options.state_dir), str(tmp_path)]
    subprocess.run(argv, check=True, timeout=60, cwd=Path(__file__).parents[1])
    assert gets(server) == 1
    assert blobs(options)[0].stat().st_nlink == 21


def test_two_sources_of_the_same_bytes_are_one_blob(
    source: HttpSource, options: Settings, file: Path, tmp_path: Path
) -> None:
    cache = Cache(options)
    assert cache.fetch(source, tmp_path / "one") == cache.fetch(LocalSource(file), tmp_path / "two")
    assert len(blobs(options)) == 1
    assert (tmp_path / "one").samefile(tmp_path / "two")


def test_a_digest_asked_for_is_part_of_the_request(
    source: HttpSource, server: ThreadingHTTPServer, options: Settings, tmp_path: Path
) -> None:
    cache = Cache(options)
    right = Digest(algorithm="sha256", hex=SHA256)
    wrong = Digest(algorithm="sha256", hex="0" * 64)
    cache.fetch(source, tmp_path / "one", digests=[right])
    with pytest.raises(ImageError, match="as asked for"):
        cache.fetch(source, tmp_path / "two", digests=[wrong])
    assert gets(server) == 2
    assert in_ingest(options) == []
    assert not (tmp_path / "two").exists()


def test_a_local_file_that_changed_is_copied_again(
    options: Settings, file: Path, tmp_path: Path
) -> None:
    cache = Cache(options)
    cache.fetch(LocalSource(file), tmp_path / "one")
    file.write_bytes(b"x" * 4096)
    cache.fetch(LocalSource(file), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == CONTENT
    assert (tmp_path / "two").read_bytes() == b"x" * 4096


def overwrite(blob: Path) -> None:
    blob.chmod(0o600)
    blob.write_bytes(b"evil")


def replace(blob: Path) -> None:
    stamp = blob.stat().st_mtime_ns
    blob.unlink()
    blob.write_bytes(CONTENT)
    os.utime(blob, ns=(stamp, stamp))


@pytest.mark.parametrize("change", [overwrite, replace, os.unlink, os.utime])
def test_a_blob_that_changed_is_fetched_again_and_never_used(
    source: HttpSource,
    server: ThreadingHTTPServer,
    options: Settings,
    tmp_path: Path,
    change: Callable[[Path], None],
) -> None:
    cache = Cache(options)
    blob = cache.fetch(source, tmp_path / "one")
    inode = blob.path.stat().st_ino
    change(blob.path)
    assert cache.look_up(source) is None
    cache.fetch(source, tmp_path / "two")
    assert gets(server) == 2
    assert (tmp_path / "two").read_bytes() == CONTENT
    assert blob.path.stat().st_ino != inode or change is os.unlink


def test_chown_and_link_are_no_change(
    source: HttpSource, server: ThreadingHTTPServer, options: Settings, tmp_path: Path
) -> None:
    cache = Cache(options)
    blob = cache.fetch(source, tmp_path / "one")
    os.chown(blob.path, 64055, 64055)
    cache.fetch(source, tmp_path / "two")
    assert gets(server) == 1


def test_a_blob_replaced_for_one_source_serves_the_others_too(
    source: HttpSource, server: ThreadingHTTPServer, options: Settings, file: Path, tmp_path: Path
) -> None:
    cache = Cache(options)
    overwrite(cache.fetch(source, tmp_path / "one").path)
    cache.fetch(LocalSource(file), tmp_path / "two")
    cache.fetch(source, tmp_path / "three")
    assert gets(server) == 1
    assert (tmp_path / "three").read_bytes() == CONTENT


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": 7}', '{"sha256": "../../x"}'])
def test_an_index_that_is_damaged_is_made_anew(
    source: HttpSource, options: Settings, tmp_path: Path, content: str
) -> None:
    cache = Cache(options)
    cache.fetch(source, tmp_path / "one")
    for record in (options.images_dir / "index").iterdir():
        record.write_text(content)
    cache.fetch(source, tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == CONTENT


def test_the_index_holds_no_credentials(
    server: ThreadingHTTPServer, options: Settings, tmp_path: Path
) -> None:
    url = parse(f"http://u:hunter2@127.0.0.1:{server.server_port}/image?signature=hunter2")
    Cache(options).fetch(HttpSource(url, options), tmp_path / "one")
    for record in (options.images_dir / "index").iterdir():
        assert "hunter2" not in record.read_text() + record.name


def test_an_unsafe_image_never_gets_a_name(options: Settings, tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw"]
    subprocess.run([*argv, str(path), "1M"], check=True)
    with pytest.raises(ImageError, match=f"image {path} has a backing file"):
        Cache(options).fetch(LocalSource(path), tmp_path / "base.img")
    assert blobs(options) == in_ingest(options) == []
    assert list((options.images_dir / "index").iterdir()) == []


def test_left_overs_of_dead_runs_go_and_those_of_live_runs_stay(
    options: Settings, file: Path, tmp_path: Path
) -> None:
    cache = Cache(options)
    cache.fetch(LocalSource(file), tmp_path / "one")
    dead, live = (options.images_dir / "ingest" / f"{c * 64}.part" for c in "ab")
    dead.touch()
    live.touch()
    os.utime(file, ns=(0, 0))
    with cache._lock(f"source-{live.stem}"):
        cache.fetch(LocalSource(file), tmp_path / "two")
    assert in_ingest(options) == [live]


def test_a_place_that_cannot_be_written_is_an_error_that_names_the_image(
    options: Settings, file: Path, tmp_path: Path
) -> None:
    options.state_dir.write_text("a file")
    with pytest.raises(ImageError, match=f"image {file} cannot be kept in {options.images_dir}"):
        Cache(options).fetch(LocalSource(file), tmp_path / "base.img")


def test_an_existing_file_is_never_replaced_by_the_link(
    options: Settings, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "base.img").write_text("mine")
    with pytest.raises(ImageError, match="File exists"):
        Cache(options).fetch(LocalSource(file), tmp_path / "base.img")
    assert (tmp_path / "base.img").read_text() == "mine"


STEPS = ["open", "link", "rename", "replace", "unlink", "fsync", "mkdir", "chmod", "fchmod"]


def die_before_step(number: int, fetch: Callable[[], object]) -> bool:
    """Run `fetch` in a process that dies before its n-th change; False if it got to its end."""
    child = os.fork()
    if child == 0:
        left = iter(range(number))

        def wrap(step: Callable[..., object]) -> Callable[..., object]:
            def run(*args: object, **kwargs: object) -> object:
                if next(left, None) is None:
                    os._exit(9)
                return step(*args, **kwargs)

            return run

        for name in STEPS:
            setattr(os, name, wrap(getattr(os, name)))
        with contextlib.suppress(BaseException):
            fetch()
            os._exit(0)
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_whenever_it_is_killed_no_blob_is_wrong_and_the_next_run_succeeds(
    file: Path, tmp_path: Path
) -> None:
    died, number = True, -1
    while died:
        number += 1
        options = Settings(state_dir=tmp_path / f"state{number}")
        into = tmp_path / f"base{number}"
        died = die_before_step(number, partial(Cache(options).fetch, LocalSource(file), into))
        for blob in blobs(options):
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
            assert stat.S_IMODE(blob.stat().st_mode) == 0o444
        for record in (options.images_dir / "index").glob("*.json"):
            json.loads(record.read_text())
        into.unlink(missing_ok=True)
        assert Cache(options).fetch(LocalSource(file), into).sha256 == SHA256
        assert into.read_bytes() == CONTENT
        assert in_ingest(options) == []
    assert number > 15, "the steps were not counted"
