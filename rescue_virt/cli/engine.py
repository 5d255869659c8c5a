"""The engine as the commands see it; whoever imports this imports libvirt."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from rescue_virt import process, recovery, rescue, settings
from rescue_virt.cli import request
from rescue_virt.cli.options import ImageChoices, RescueChoices
from rescue_virt.driver import open_rescuer
from rescue_virt.errors import BadRequest, RescueVirtError
from rescue_virt.images.store import ImageStore
from rescue_virt.libvirt import domain_xml, facts
from rescue_virt.model import (
    DomainXml,
    GuestFacts,
    Owner,
    RescueDomain,
    RescuePlan,
    RescueRequest,
    RunState,
    Target,
)
from rescue_virt.preview import preview
from rescue_virt.rescue import Rescuer
from rescue_virt.settings import Settings

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """`connect` opens the libvirt that was asked for and yields the engine proper."""

    settings: Settings
    connect: Callable[[Report], AbstractContextManager[Rescuer]]

    @classmethod
    def load(cls, config: Path | None, uri: str | None) -> Engine:
        """:raises BadRequest: if the settings cannot be read."""
        loaded = settings.load(config)
        return cls(settings=loaded, connect=lambda report: open_rescuer(loaded, uri, report))

    @property
    def leave_timeout(self) -> float:
        return rescue.LEAVE_TIMEOUT

    def request(self, guest: str, given: RescueChoices) -> RescueRequest:
        return request.build(guest, given, self.settings)

    def request_for_preview(self, guest: str, given: ImageChoices) -> RescueRequest:
        return request.for_preview(guest, given)

    def preview_file(self, xml: str, request: RescueRequest) -> tuple[RescuePlan, RescueDomain]:
        """Preview the rescue of a guest that is off and defined by `xml`; libvirt is not asked.

        :raises BadRequest: if it is not a domain.
        """
        try:
            domain = facts.read(xml)
        except BadRequest as exc:
            raise BadRequest(f"{request.guest}: {exc}") from exc
        guest = GuestFacts(
            domain=domain,
            xml=DomainXml(xml),
            run_state=RunState.SHUTOFF,
            persistent=True,
            managed_save=False,
            block_jobs=(),
            nvram=None,
            chains={Target(target): chain for target, chain in facts.chains(xml).items()},
            relabels=os.geteuid() == 0,
        )
        directory = self.settings.sessions_dir / (domain.uuid or "preview")
        return preview(guest, request, images=ImageStore(self.settings), directory=directory)

    def shown(self, domain: RescueDomain) -> str:
        """The XML of a rescue domain as anybody may see it."""
        return domain_xml.without_secrets(domain.xml)

    def difference(self, plan: RescuePlan, domain: RescueDomain) -> str:
        """What the rescue changes in the guest's XML, as a unified diff."""
        before = domain_xml.without_secrets(plan.guest.xml)
        return domain_xml.difference(before, self.shown(domain), name=plan.guest.domain.name)

    def recover(self, rescuer: Rescuer) -> list[recovery.Recovered]:
        return recovery.recover(rescuer, Owner.CLI, self.settings.on_host_reboot)

    def open_console(self, uri: str, name: str) -> None:
        """Become virsh.

        :raises RescueVirtError: if it is not there.
        """
        virsh = shutil.which("virsh")
        if virsh is None:
            raise RescueVirtError("virsh is missing: install libvirt-clients")
        process.become([virsh, "-c", uri, "console", name])
