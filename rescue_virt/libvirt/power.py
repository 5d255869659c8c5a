"""Stops a guest: asks first, and forces only if it was told to."""

from __future__ import annotations

import logging
import time

import libvirt

from rescue_virt.libvirt import facts

log = logging.getLogger(__name__)

# Seconds between two looks, between two presses of the power button (a guest that is still
# booting misses the first), and for the guest agent's answer.
_LOOK = 0.2
_PRESS = 10.0
AGENT_ANSWER = 5


def shut_down(domain: libvirt.virDomain, timeout: float) -> bool:
    """Ask a guest to shut down and wait up to `timeout` seconds; whether it is off."""
    deadline = time.monotonic() + timeout
    name = domain.name()
    while timeout > 0 and is_active(domain):
        log.info("%s: asked to shut down", name)
        _ask(domain)
        if _is_off_by(domain, min(deadline, time.monotonic() + _PRESS)):
            break
        if time.monotonic() >= deadline:
            break
    return not is_active(domain)


def force_off(domain: libvirt.virDomain) -> None:
    """Pull the plug; a guest that is already off is fine."""
    try:
        domain.destroy()
        log.info("%s: forced off", domain.name())
    except libvirt.libvirtError:
        if is_active(domain):
            raise


def is_active(domain: libvirt.virDomain) -> bool:
    """Whether the guest runs; a transient one that has gone does not."""
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise


def _ask(domain: libvirt.virDomain) -> None:
    """Through the agent if it answers, else by the power button."""
    try:
        if facts.agent_is_connected(domain.XMLDesc()):
            domain.agentSetResponseTimeout(AGENT_ANSWER)
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
            return
    except libvirt.libvirtError as exc:
        log.info("%s: the guest agent does not answer: %s", domain.name(), exc)
    try:
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError:
        if is_active(domain):
            raise


def _is_off_by(domain: libvirt.virDomain, deadline: float) -> bool:
    while is_active(domain):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK)
    return True
