"""The door to libvirt: opens a connection, and turns the binding's errors into ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import libvirt

from rescue_virt.errors import NotFound, Refused, RescueVirtError, WrongState

DEFAULT_URI = "qemu:///system"

_CODES: dict[int, type[RescueVirtError]] = {
    libvirt.VIR_ERR_NO_DOMAIN: NotFound,
    libvirt.VIR_ERR_OPERATION_INVALID: WrongState,
}


@contextmanager
def connect(uri: str | None = None) -> Iterator[libvirt.virConnect]:
    """A connection to the QEMU driver of *this* host; `uri` as in virsh.

    :raises Refused: if it cannot be had, leads to another host, or is not QEMU's.
    """
    uri = uri or os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI
    _check_is_local(uri)
    # libvirt prints every error to stderr as well, unless somebody listens.
    libvirt.registerErrorHandler(hear_no_evil, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as exc:
        raise Refused(f"no connection to {uri}: {reason(exc)}: is libvirtd running?") from exc
    try:
        # What was given may have been an alias of libvirt.conf.
        _check_is_local(connection.getURI())
        _check_is_qemu(connection, uri)
        yield connection
    finally:
        connection.close()


def hear_no_evil(_context: object, _error: object) -> None:
    """libvirt's error listener: what it hears comes as an exception as well."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the binding leave as ours: `what` names the object and what was tried."""
    try:
        yield
    except libvirt.libvirtError as exc:
        error = _CODES.get(exc.get_error_code(), RescueVirtError)
        raise error(f"{what}: {reason(exc)}") from exc


def reason(exc: libvirt.libvirtError) -> str:
    """libvirt's own sentence, on one line."""
    return " ".join((exc.get_error_message() or str(exc)).split()).rstrip(".")


def _check_is_local(uri: str) -> None:
    parts = urlsplit(uri)
    transport = parts.scheme.partition("+")[2]
    if parts.netloc or transport not in {"", "unix"}:
        raise Refused(
            f"{uri} leads to another host, where the files of a rescue would be missing: "
            f"run rescue-virt on the host of the guest"
        )
    if parts.path == "/system" and os.geteuid() != 0:
        raise Refused(
            f"{uri} runs guests as another user, for whom only root can prepare files: "
            f"run this as root, or use -c qemu:///session"
        )


def _check_is_qemu(connection: libvirt.virConnect, uri: str) -> None:
    if connection.getType() != "QEMU":
        raise Refused(f"{uri} is not a QEMU connection: use qemu:///system or qemu:///session")
