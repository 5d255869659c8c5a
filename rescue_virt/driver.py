"""The virt-driver face: Nova's ComputeDriver signatures, without Nova.

A host agent loads it through the entry point group `rescue_virt.drivers`.  An `instance` is any
object with `uuid` and `name`.  `image_meta` is any object, or mapping, with

    location             path or URL of the image
    os_hash_algo/_value  its digest (sha256 or sha512), needed for http://
    id, properties       its id, and its Glance properties, if there are any
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from rescue_virt.errors import BadRequest, NotFound
from rescue_virt.images import seed
from rescue_virt.images.store import ImageStore
from rescue_virt.libvirt.connection import connect
from rescue_virt.libvirt.host import Host
from rescue_virt.model import (
    Digest,
    GuestUuid,
    ImageProperties,
    ImageRef,
    Options,
    Owner,
    RescueRequest,
    RunState,
)
from rescue_virt.recovery import recover
from rescue_virt.rescue import LEAVE_TIMEOUT, Rescuer, silent
from rescue_virt.secret import Credentials
from rescue_virt.sessions import Sessions
from rescue_virt.settings import Settings, load

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceInfo:
    """As Nova's `hardware.InstanceInfo`."""

    state: RunState
    internal_id: GuestUuid


@contextmanager
def open_rescuer(
    settings: Settings, uri: str | None, report: Callable[[str], None] = silent
) -> Iterator[Rescuer]:
    """The engine, on a connection of its own."""
    with connect(uri) as connection:
        yield Rescuer(Host(connection), ImageStore(settings), Sessions(settings), report)


class RescueDriver:
    """Rescues instances of one libvirt connection; `uri` as in virsh."""

    def __init__(self, virtapi: object = None, *, uri: str | None = None) -> None:
        self._virtapi = virtapi
        self._uri = uri
        self._settings = load()

    def init_host(self, host: str) -> None:
        """Finish or undo what a crash of the agent left."""
        with self._rescuer() as rescuer:
            for mended in recover(rescuer, Owner.AGENT, self._settings.on_host_reboot):
                log.info("%s: %s: %s", host, mended.guest, mended.error or mended.done)

    def rescue(  # noqa: PLR0913, PLR0917 - Nova's signature
        self,
        context: object,  # noqa: ARG002
        instance: Any,
        network_info: object,  # noqa: ARG002
        image_meta: Any,
        rescue_password: str,
        block_device_info: object = None,  # noqa: ARG002
        share_info: object = None,  # noqa: ARG002
    ) -> None:
        """Boot the instance from the image, its own disks attached; returns when it is ready,
        or has had the time to be.

        :raises RescueVirtError: after everything has been undone; the instance is as before.
        """
        image = image_ref(image_meta)
        credentials = Credentials(
            user=seed.check_user(image.properties.os_admin_user or "root"),
            password=seed.check_password(rescue_password),
        )
        options = Options(
            owner=Owner.AGENT,
            shutdown_timeout=self._settings.shutdown_timeout,
            ready_timeout=self._settings.ready_timeout,
        )
        request = RescueRequest(
            guest=instance.uuid, image=image, credentials=credentials, options=options
        )
        with self._rescuer() as rescuer:
            outcome = rescuer.enter(request)
        if outcome.problem:
            log.warning("%s", outcome.problem)

    def unrescue(self, context: object, instance: Any) -> None:  # noqa: ARG002
        """Give the instance back.

        :raises NotInTime: if its rescue guest does not shut down.
        """
        with self._rescuer() as rescuer:
            rescuer.leave(instance.uuid, force_off=False, timeout=LEAVE_TIMEOUT)

    def list_instances(self) -> list[str]:
        with self._rescuer() as rescuer:
            return [name for _, name in rescuer.host.guests()]

    def list_instance_uuids(self) -> list[GuestUuid]:
        with self._rescuer() as rescuer:
            return [uuid for uuid, _ in rescuer.host.guests()]

    def get_info(self, instance: Any, use_cache: bool = True) -> InstanceInfo:  # noqa: ARG002
        """The instance's run state; libvirt is always asked, nothing is cached."""
        with self._rescuer() as rescuer:
            live = rescuer.host.look(instance.uuid)
            if live is None:
                raise NotFound(f"guest {instance.uuid} is not known to libvirt")
            return InstanceInfo(state=live.run_state, internal_id=instance.uuid)

    def power_off(self, instance: Any, timeout: float = 0, retry_interval: float = 0) -> None:  # noqa: ARG002
        """Shut the instance down within `timeout` seconds (0: at once), then force it off."""
        options = Options(force_off=timeout == 0, shutdown_timeout=timeout)
        with self._rescuer() as rescuer:
            uuid, _ = rescuer.host.find(instance.uuid)
            rescuer.host.stop(uuid, options)

    def power_on(
        self,
        context: object,  # noqa: ARG002
        instance: Any,
        network_info: object,  # noqa: ARG002
        block_device_info: object = None,  # noqa: ARG002
    ) -> None:
        """Start the instance; one in rescue starts as a rescue again, never from its own root."""
        with self._rescuer() as rescuer:
            live = rescuer.host.look(instance.uuid)
            if live is not None and live.is_up:
                return
            if rescuer.sessions.find(instance.uuid) is not None:
                rescuer.resume(instance.uuid, wait=False, timeout=0)
            else:
                rescuer.host.start(instance.uuid)

    @contextmanager
    def _rescuer(self) -> Iterator[Rescuer]:
        with open_rescuer(self._settings, self._uri) as rescuer:
            yield rescuer


def image_ref(image_meta: Any) -> ImageRef:
    """Read `image_meta` (see the module).

    :raises BadRequest: if it does not say where the image is.
    """

    def said(name: str) -> Any:
        if isinstance(image_meta, Mapping):
            return image_meta.get(name)
        return getattr(image_meta, name, None)

    location = said("location")
    if not location:
        raise BadRequest(f"image {said('id')} has no location: give a path or a URL")
    digests: tuple[Digest, ...] = ()
    if said("os_hash_value"):
        algorithm = said("os_hash_algo")
        if algorithm not in {"sha256", "sha512"}:
            raise BadRequest(f"image {said('id')} has a {algorithm} digest: give sha256 or sha512")
        digests = (Digest(algorithm=algorithm, hex=str(said("os_hash_value")).lower()),)
    return ImageRef(
        location=str(location),
        digests=digests,
        properties=_properties({"min_disk": said("min_disk")} | (said("properties") or {})),
        image_id=said("id"),
    )


def _properties(given: Mapping[str, Any]) -> ImageProperties:
    """Those of Glance's properties that matter here; the others are somebody else's."""
    known = {field.name for field in fields(ImageProperties)}
    values = {name: value for name, value in given.items() if name in known}
    try:
        said = values.get("min_disk")
        values["min_disk"] = 0 if said is None else int(said)
    except (TypeError, ValueError) as exc:
        raise BadRequest(f"image property min_disk is {given['min_disk']!r}, not a number") from exc
    return ImageProperties(**values)
