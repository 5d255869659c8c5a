"""Shows what a rescue would be, without libvirt and without creating anything."""

from __future__ import annotations

from pathlib import Path

from rescue_virt import plan
from rescue_virt.images.store import ImageStore
from rescue_virt.libvirt import domain_xml
from rescue_virt.model import Draft, GuestFacts, RescueDomain, RescuePlan, RescueRequest


def preview(
    guest: GuestFacts, request: RescueRequest, *, images: ImageStore, directory: Path
) -> tuple[RescuePlan, RescueDomain]:
    """Decide and render as a rescue does, for a session in `directory` that is not made."""
    images.check_source(guest, request.image)
    image = images.preview(request.image)
    draft = Draft(directory=directory, session_id="preview", since="preview")
    findings = images.findings(guest, image)
    decided = plan.make_plan(guest, image, findings=findings, options=request.options, draft=draft)
    return decided, domain_xml.render(decided)
