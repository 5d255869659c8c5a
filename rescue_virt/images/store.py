"""The images side of a rescue, as the engine sees it."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from rescue_virt import durable
from rescue_virt.errors import Refused, RescueVirtError
from rescue_virt.images import compare, download, qemu_img, seed
from rescue_virt.images.cache import Blob, Cache
from rescue_virt.images.inspect import inspect
from rescue_virt.images.local import LocalSource
from rescue_virt.images.source import SourceFacts
from rescue_virt.model import (
    GIB,
    CachedImage,
    Digest,
    Findings,
    GuestFacts,
    ImageFormat,
    ImageRef,
    RescuePlan,
)
from rescue_virt.secret import Credentials
from rescue_virt.settings import Settings

_SUFFIXES = {".iso": ImageFormat.ISO, ".raw": ImageFormat.RAW}


class ImageStore:
    """Gets images, compares them with guests, and makes the files of a rescue."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cache = Cache(settings)

    def preview(self, ref: ImageRef) -> CachedImage:
        """What `fetch` would return, as far as can be told without fetching or creating anything.

        A local file is inspected where it is, its digest is not computed.  Of a URL that is not
        cached only the format is guessed, from its name; its sizes are 0 and its path is none.

        :raises NotFound: if a local file does not exist.
        :raises ImageError: if a local file is unsafe.
        """
        source = download.source_for(ref, self._settings)
        facts = source.stat()
        blob = self._cache.look_up(source, ref.digests)
        if blob:
            return _cached(ref, facts, blob, blob.path)
        if facts.origin:
            return self._inspected_in_place(ref, facts, facts.origin)
        suffix = PurePosixPath(urlsplit(ref.location).path).suffix.lower()
        return CachedImage(
            name=facts.name,
            path=self._settings.images_dir / "not-fetched",
            digest=None,
            size=0,
            virtual_size=0,
            format=_SUFFIXES.get(suffix, ImageFormat.QCOW2),
            properties=ref.properties,
            image_id=ref.image_id,
        )

    def fetch(self, ref: ImageRef, into: Path) -> CachedImage:
        """Put the verified, inspected image at the new path `into`.

        :raises NotFound: if there is no such image.
        :raises ImageError: if it cannot be had, does not verify, or is unsafe.
        :raises BadRequest: if the reference makes no sense.
        """
        source = download.source_for(ref, self._settings)
        facts = source.stat()
        return _cached(ref, facts, self._cache.fetch(source, into, digests=ref.digests), into)

    def check_source(self, guest: GuestFacts, ref: ImageRef) -> None:
        """:raises Refused: if the image is a disk that the guest writes to."""
        source = download.source_for(ref, self._settings)
        if isinstance(source, LocalSource):
            compare.refuse_own_disk(guest, source.path)

    def findings(self, guest: GuestFacts, image: CachedImage) -> Findings:
        """What the guest's disks say about seeds, and about sharing content with the image."""
        return Findings(seeds=compare.seeds(guest), duplicate=compare.duplicate(guest, image))

    def check_space(self, plan: RescuePlan) -> None:
        """:raises Refused: if the rescue guest might fill the disk soon after its start."""
        directory = next(p for p in (plan.directory, *plan.directory.parents) if p.is_dir())
        stat = os.statvfs(directory)
        free = stat.f_bavail * stat.f_frsize
        needed = min(self._settings.overlay_space, plan.overlay_size)
        if free < needed:
            raise Refused(
                f"{plan.guest.label} needs {needed / GIB:.1f} GiB for what its rescue writes, "
                f"{free / GIB:.1f} GiB are free in {directory}; make room there"
            )

    def prepare(self, plan: RescuePlan, credentials: Credentials, hashed: str) -> None:
        """Make the overlay, the seed, the NVRAM copy and the console log: new files only.

        :raises RescueVirtError: if one of them cannot be made.
        """
        iso = seed.build(
            uuid=plan.session_id,
            guest=plan.guest.domain.name,
            user=credentials.user,
            hashed=hashed,
            ssh_keys=credentials.ssh_keys,
        )
        try:
            _write_files(plan, iso)
        except OSError as exc:
            raise RescueVirtError(
                f"{plan.guest.label}: the files of its rescue cannot be made in "
                f"{plan.directory}: {exc.strerror}"
            ) from exc

    def _inspected_in_place(self, ref: ImageRef, facts: SourceFacts, path: Path) -> CachedImage:
        download.check_size(facts.name, facts.size, self._settings.max_image_size)
        found = inspect(path, settings=self._settings, name=facts.name)
        return CachedImage(
            name=facts.name,
            path=path,
            digest=None,
            size=facts.size or 0,
            virtual_size=found.virtual_size,
            format=found.format,
            properties=ref.properties,
            origin=path,
            image_id=ref.image_id,
        )


def _cached(ref: ImageRef, facts: SourceFacts, blob: Blob, path: Path) -> CachedImage:
    return CachedImage(
        name=facts.name,
        path=path,
        digest=Digest(algorithm="sha256", hex=blob.sha256),
        size=blob.size,
        virtual_size=blob.virtual_size,
        format=blob.format,
        properties=ref.properties,
        origin=facts.origin,
        image_id=ref.image_id,
    )


def _write_files(plan: RescuePlan, iso: bytes) -> None:
    _new_file(plan.seed, iso)
    _new_file(plan.console_log, b"")
    if plan.guest.nvram is not None:
        _new_file(plan.nvram, plan.guest.nvram.read_bytes())
    # qemu-img truncates whatever is there; after this, what is there is new, and ours alone.
    _new_file(plan.overlay, b"")
    driver = plan.image.format.driver
    qemu_img.create_overlay(
        plan.overlay, base=plan.base, base_format=driver, size=plan.overlay_size
    )
    with plan.overlay.open("rb") as file:
        os.fsync(file.fileno())
    durable.sync_directory(plan.directory)


def _new_file(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
