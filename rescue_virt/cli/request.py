"""Builds a rescue request from what was typed."""

from __future__ import annotations

import sys
from pathlib import Path

from rescue_virt.cli.options import ImageChoices, RescueChoices
from rescue_virt.errors import BadRequest
from rescue_virt.images import seed
from rescue_virt.model import ImageRef, Options, RescueRequest
from rescue_virt.secret import Credentials, Secret
from rescue_virt.settings import Settings


def build(guest: str, given: RescueChoices, settings: Settings) -> RescueRequest:
    """:raises BadRequest: if the password, user or a key cannot be used."""
    shutdown, ready = given["shutdown_timeout"], given["timeout"]
    return RescueRequest(
        guest=guest,
        image=_image(given),
        credentials=_credentials(given),
        options=Options(
            layout=given["layout"],
            force_off=given["force_off"],
            shutdown_timeout=settings.shutdown_timeout if shutdown is None else shutdown,
            take_from_nova=given["take_from_nova"],
            wait=given["wait"],
            ready_timeout=settings.ready_timeout if ready is None else ready,
        ),
    )


def for_preview(guest: str, given: ImageChoices) -> RescueRequest:
    """A request that is looked at and never carried out: nobody will log in."""
    return RescueRequest(
        guest=guest,
        image=_image(given),
        credentials=Credentials(user="root", password=Secret("")),
        options=Options(layout=given["layout"]),
    )


def _image(given: ImageChoices) -> ImageRef:
    digests = (given["sha256"], given["sha512"])
    return ImageRef(
        location=given["image"],
        digests=tuple(digest for digest in digests if digest),
        properties=given["properties"],
    )


def _credentials(given: RescueChoices) -> Credentials:
    text = _password(given)
    user = given["user"] or given["properties"].os_admin_user or "root"
    return Credentials(
        user=seed.check_user(user),
        password=seed.generate_password() if text is None else seed.check_password(text),
        ssh_keys=tuple(key for path in given["ssh_keys"] for key in _ssh_keys(path)),
    )


def _password(given: RescueChoices) -> str | None:
    if given["password_stdin"]:
        return _one_line(sys.stdin.buffer.read())
    if given["password_file"]:
        return _one_line(given["password_file"].read_bytes())
    return given["password"]


def _one_line(content: bytes) -> str:
    return content.decode(errors="surrogateescape").removesuffix("\n")


def _ssh_keys(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise BadRequest(f"{path} has no SSH key in it: give a .pub file")
    try:
        return [seed.check_ssh_key(key) for key in keys]
    except BadRequest as exc:
        raise BadRequest(f"{path}: {exc}") from exc
