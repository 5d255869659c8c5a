"""The images side of a rescue, from the outside."""

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from pycdlib import PyCdlib

from rescue_virt.errors import BadRequest, ImageError, NotFound, Refused, RescueVirtError
from rescue_virt.images import qemu_img, seed
from rescue_virt.images.store import ImageStore
from rescue_virt.model import (
    GIB,
    Attach,
    CachedImage,
    Digest,
    Disk,
    DomainFacts,
    DomainXml,
    GuestFacts,
    GuestUuid,
    ImageFormat,
    ImageProperties,
    ImageRef,
    Layout,
    RescuePlan,
    RunState,
    Target,
)
from rescue_virt.secret import Credentials, Secret
from rescue_virt.settings import Settings

MIB = 1 << 20
UUID = "6f1f4f5e-9a0c-4f0a-8d0f-3f3e2b1c0d9e"
CONTENT = b"rescue" + bytes(MIB)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/rescue.raw"
    server.shutdown()
    server.server_close()


@pytest.fixture
def options(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state")


@pytest.fixture
def store(options: Settings) -> ImageStore:
    return ImageStore(options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rescue.img"
    path.write_bytes(CONTENT)
    return path


def make_disk(target: str, path: Path | None = None, **changes: Any) -> Disk:
    disk = Disk(
        target=Target(target), bus="virtio", device="disk", source=str(path), path=path,
        format="raw", boot_order=None, readonly=False,
    )  # fmt: skip
    return replace(disk, **changes)


def make_guest(
    *disks: Disk, chains: dict[str, tuple[str, ...]] | None = None, **changes: Any
) -> GuestFacts:
    domain = DomainFacts(
        name="web", uuid=GuestUuid(UUID), arch="x86_64", machine="q35", disks=disks,
        uefi=False, nvram=None, has_tpm=False, tpm_is_persistent=False,
        is_nova=False, nova_image=changes.pop("nova_image", None), session_id=None,
        console_log=None,
    )  # fmt: skip
    guest = GuestFacts(
        domain=domain, xml=DomainXml("<domain/>"), run_state=RunState.RUNNING, persistent=True,
        managed_save=False, block_jobs=(), nvram=None,
        chains={Target(name): chain for name, chain in (chains or {}).items()}, relabels=True,
    )  # fmt: skip
    return replace(guest, **changes)


def make_plan(image: CachedImage, directory: Path, **changes: Any) -> RescuePlan:
    plan = RescuePlan(
        guest=make_guest(), image=image, directory=directory, session_id=UUID, since="now",
        layout=Layout.CLASSIC, attach=Attach.BOOT, why_late=None, device="disk", bus="virtio",
        target=Target("vda"), seed_target=Target("vdz"), seed_bus="virtio", originals=(),
        dropped=frozenset(), overlay_size=10 * MIB,
    )  # fmt: skip
    return replace(plan, **changes)


def test_a_preview_of_a_file_inspects_it_where_it_is_and_creates_nothing(
    store: ImageStore, options: Settings, file: Path
) -> None:
    properties = ImageProperties(min_disk=3)
    ref = ImageRef(location=str(file), properties=properties, image_id="x")
    assert store.preview(ref) == CachedImage(
        name=str(file), path=file, digest=None, size=len(CONTENT), virtual_size=MIB + 512,
        format=ImageFormat.RAW, properties=properties, origin=file, image_id="x",
    )  # fmt: skip
    assert not options.state_dir.exists()


def test_a_preview_refuses_what_a_fetch_would_refuse(
    options: Settings, file: Path, tmp_path: Path
) -> None:
    small = ImageStore(replace(options, max_image_size=1024))
    with pytest.raises(ImageError, match="larger than max_image_size_gb"):
        small.preview(ImageRef(location=str(file)))
    with pytest.raises(NotFound, match="does not exist"):
        small.preview(ImageRef(location=str(tmp_path / "none")))
    with pytest.raises(BadRequest):
        small.preview(ImageRef(location="http://host/image"))


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("a.qcow2", "qcow2"),
        ("a.img?x=.iso", "qcow2"),
        ("a", "qcow2"),
        ("a.RAW", "raw"),
        ("a.iso", "iso"),
    ],
)
def test_a_preview_of_a_url_guesses_from_its_name_and_asks_nobody(
    store: ImageStore, options: Settings, name: str, fmt: str
) -> None:
    image = store.preview(ImageRef(location=f"https://192.0.2.1/{name}"))
    assert (image.format.value, image.size, image.virtual_size) == (fmt, 0, 0)
    assert not image.path.exists()
    assert not options.state_dir.exists()


def test_a_preview_of_a_cached_url_is_what_the_fetch_was(
    store: ImageStore, url: str, tmp_path: Path
) -> None:
    digest = Digest(algorithm="sha256", hex=hashlib.sha256(CONTENT).hexdigest())
    ref = ImageRef(location=url, digests=(digest,))
    fetched = store.fetch(ref, tmp_path / "base.img")
    assert fetched.path == tmp_path / "base.img"
    assert fetched.digest == digest
    assert (fetched.name, fetched.origin) == (url, None)
    previewed = store.preview(ref)
    assert replace(previewed, path=fetched.path) == fetched
    assert previewed.path.samefile(fetched.path)


def test_a_fetched_file_remembers_where_it_came_from(
    store: ImageStore, file: Path, tmp_path: Path
) -> None:
    image = store.fetch(ImageRef(location=str(file)), tmp_path / "base.img")
    assert image.origin == file
    assert image.path.read_bytes() == CONTENT
    assert not image.path.samefile(file)


def test_disks_with_a_seed_label_are_seeds_and_others_are_not(
    store: ImageStore, file: Path, tmp_path: Path
) -> None:
    image = store.preview(ImageRef(location=str(file)))
    paths = {name: tmp_path / name for name in ("cidata", "config-2", "other")}
    for label, path in paths.items():
        iso = PyCdlib()
        iso.new(vol_ident=label)
        iso.write(str(path))
        iso.close()
    fat = tmp_path / "fat"
    subprocess.run(["truncate", "-s", "1M", str(fat)], check=True)
    subprocess.run(["/usr/sbin/mkfs.vfat", "-n", "CIDATA", str(fat)], check=True)
    guest = make_guest(
        make_disk("vda", file),
        make_disk("sda", paths["cidata"], device="cdrom", format=None),
        make_disk("vdb", paths["config-2"]),
        make_disk("fda", fat, device="floppy"),
        make_disk("vdc", paths["other"]),
        make_disk("vdd", paths["cidata"], format="qcow2"),
        make_disk("sdb", paths["cidata"], device="lun"),
        make_disk("vde"),
        make_disk("vdf", tmp_path / "missing"),
    )
    assert store.findings(guest, image).seeds == {"sda", "vdb", "fda"}


def test_a_guest_over_the_image_itself_is_a_duplicate(
    store: ImageStore, file: Path, tmp_path: Path
) -> None:
    guest = make_guest(make_disk("vda"), chains={"vda": ("/top.qcow2", str(file))})
    for image in (
        store.preview(ImageRef(location=str(file))),
        store.fetch(ImageRef(location=str(file)), tmp_path / "base.img"),
    ):
        assert store.findings(guest, image).duplicate == f"both are backed by {file}"


def test_a_base_under_another_name_is_the_same_file(
    store: ImageStore, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(file)
    os.link(file, tmp_path / "hard")
    image = store.preview(ImageRef(location=str(file)))
    for name in ("link", "hard"):
        guest = make_guest(chains={"vdb": ("rbd:pool/top", "/none", str(tmp_path / name))})
        assert "both are backed by" in str(store.findings(guest, image).duplicate)


def test_a_base_with_the_same_bytes_is_a_duplicate_and_a_top_is_not_looked_into(
    store: ImageStore, file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(CONTENT)
    base, top = (
        make_guest(chains={"vda": chain}) for chain in (("/top", str(copy)), (str(copy), "/base"))
    )
    for image in (
        store.preview(ImageRef(location=str(file))),
        store.fetch(ImageRef(location=str(file)), tmp_path / "base.img"),
    ):
        found = store.findings(base, image).duplicate
        assert found == f"{copy} holds the same bytes as the image"
        assert store.findings(top, image).duplicate is None


def test_a_base_of_the_same_size_with_other_bytes_is_no_duplicate(
    store: ImageStore, file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(CONTENT[:-1] + b"x")
    image = store.preview(ImageRef(location=str(file)))
    guest = make_guest(chains={"vda": ("/top", str(other), "rbd:pool/base", str(tmp_path))})
    assert store.findings(guest, image).duplicate is None


def test_an_image_that_is_gone_by_now_is_no_duplicate(
    store: ImageStore, file: Path, tmp_path: Path
) -> None:
    image = store.preview(ImageRef(location=str(file)))
    copy = tmp_path / "copy"
    file.rename(copy)
    guest = make_guest(chains={"vda": ("/top", str(copy))})
    assert store.findings(guest, image).duplicate is None


def test_a_guest_built_from_the_same_image_id_is_a_duplicate(store: ImageStore, file: Path) -> None:
    image = store.preview(ImageRef(location=str(file), image_id="i-1"))
    same, other, unknown = (make_guest(nova_image=i) for i in ("i-1", "i-2", None))
    assert store.findings(same, image).duplicate == "image id i-1 is the guest's own"
    assert store.findings(other, image).duplicate is None
    unnamed = store.preview(ImageRef(location=str(file)))
    assert store.findings(unknown, unnamed).duplicate is None


def test_a_disk_that_the_guest_writes_to_is_refused_as_its_rescue_image(
    store: ImageStore, file: Path
) -> None:
    guest = make_guest(make_disk("vda", file), chains={"vda": (str(file),), "vdb": ()})
    with pytest.raises(Refused, match=f"image {file} is disk vda of guest web itself"):
        store.check_source(guest, ImageRef(location=str(file)))
    store.check_source(guest, ImageRef(location="https://images.test/rescue.qcow2"))


def test_a_base_that_only_the_header_of_a_disk_names_is_found_too(
    store: ImageStore, file: Path, tmp_path: Path
) -> None:
    top = tmp_path / "top.qcow2"
    qemu_img.create_overlay(top, base=file, base_format="raw", size=MIB)
    guest = make_guest(make_disk("vda", top, format="qcow2"), chains={"vda": (str(top),)})
    image = store.preview(ImageRef(location=str(file)))
    assert store.findings(guest, image).duplicate == f"both are backed by {file}"


def test_a_cd_that_is_also_the_rescue_image_is_only_a_duplicate(
    store: ImageStore, file: Path
) -> None:
    cdrom = make_disk("sda", file, device="cdrom", readonly=True)
    guest = make_guest(cdrom, chains={"sda": (str(file),)})
    image = store.preview(ImageRef(location=str(file)))
    assert store.findings(guest, image).duplicate == f"both are backed by {file}"


def test_a_full_disk_is_refused_and_a_small_overlay_needs_little(
    store: ImageStore,
    options: Settings,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan(
        store.preview(ImageRef(location=str(file))), tmp_path / "not" / "there", overlay_size=GIB
    )
    store.check_space(plan)
    greedy = ImageStore(replace(options, overlay_space=1 << 60))
    greedy.check_space(plan)
    free = SimpleNamespace(f_bavail=1, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    message = rf"guest web needs 1\.0 GiB .*, 0\.0 GiB are free in {tmp_path}; make room there"
    with pytest.raises(Refused, match=message):
        store.check_space(plan)


@pytest.fixture
def plan(store: ImageStore, file: Path, tmp_path: Path) -> RescuePlan:
    directory = tmp_path / "session"
    directory.mkdir()
    image = store.fetch(ImageRef(location=str(file)), directory / "base.img")
    nvram = tmp_path / "VARS.fd"
    nvram.write_bytes(b"vars")
    return make_plan(image, directory, guest=make_guest(nvram=nvram))


def test_preparing_makes_the_files_of_a_rescue_for_our_eyes_only(
    store: ImageStore, plan: RescuePlan
) -> None:
    password = Secret("hunter2 hunter2")
    hashed = seed.password_hash(password)
    store.prepare(plan, Credentials(user="root", password=password), hashed)
    facts = qemu_img.info(plan.overlay, "qcow2")
    assert facts["virtual-size"] == 10 * MIB
    assert facts["backing-filename"] == str(plan.base)
    assert facts["backing-filename-format"] == "raw"
    assert plan.nvram.read_bytes() == b"vars"
    assert plan.console_log.read_bytes() == b""
    for path in (plan.overlay, plan.seed, plan.nvram, plan.console_log):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert password.reveal().encode() not in path.read_bytes()
    assert hashed.encode() in plan.seed.read_bytes()
    assert UUID.encode() in plan.seed.read_bytes()
    assert len(list(plan.directory.iterdir())) == 5


def test_preparing_changes_neither_the_image_nor_the_guests_nvram(
    store: ImageStore, plan: RescuePlan
) -> None:
    paths = [plan.base, plan.guest.nvram]
    before = [(p.read_bytes(), p.stat().st_mtime_ns) for p in paths if p]
    store.prepare(plan, Credentials(user="root", password=Secret("x")), "$6$a$" + "b" * 86)
    assert [(p.read_bytes(), p.stat().st_mtime_ns) for p in paths if p] == before


def test_a_guest_without_nvram_gets_none(store: ImageStore, plan: RescuePlan) -> None:
    plan = replace(plan, guest=make_guest())
    store.prepare(plan, Credentials(user="root", password=Secret("x")), "$6$a$" + "b" * 86)
    assert not plan.nvram.exists()


@pytest.mark.parametrize("name", ["overlay", "seed", "nvram", "console_log"])
def test_preparing_never_writes_to_a_file_that_is_there(
    store: ImageStore, plan: RescuePlan, name: str
) -> None:
    path: Path = getattr(plan, name)
    path.write_text("mine")
    with pytest.raises(RescueVirtError, match=r"guest web: .* cannot be made in .*: File exists"):
        store.prepare(plan, Credentials(user="root", password=Secret("x")), "$6$a$" + "b" * 86)
    assert path.read_text() == "mine"
