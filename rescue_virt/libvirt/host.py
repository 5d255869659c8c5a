"""This host's guests: looked at, judged, replaced by their rescue, and given back."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import libvirt
from lxml import etree

from rescue_virt.errors import NotFound, Refused, RescueVirtError, WrongState
from rescue_virt.libvirt import facts, power
from rescue_virt.libvirt.connection import reason, translated
from rescue_virt.model import (
    Access,
    DomainFacts,
    DomainXml,
    GuestFacts,
    GuestUuid,
    LiveState,
    Options,
    RunState,
    Target,
)

log = logging.getLogger(__name__)

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: RunState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: RunState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: RunState.PAUSED,
}
_DEFINITION = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
_ADDRESS_SOURCES = (
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
)


class Host:
    """The guests of one libvirt connection.  Every error leaves as one of ours."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self._connection = connection

    # --- looking ---------------------------------------------------------------------------

    def find(self, guest: str) -> tuple[GuestUuid, str]:
        """The UUID and name of a guest, by either.

        :raises NotFound: if there is none.
        """
        domain = self._lookup(guest)
        return GuestUuid(domain.UUIDString()), domain.name()

    def guests(self) -> list[tuple[GuestUuid, str]]:
        """The UUID and name of every guest."""
        with translated("the guests cannot be listed"):
            domains = self._connection.listAllDomains()
            return [(GuestUuid(domain.UUIDString()), domain.name()) for domain in domains]

    def inspect(self, guest: str) -> GuestFacts:
        """What libvirt says of a guest before its rescue; changes nothing."""
        domain = self._lookup(guest)
        with translated(f"guest {domain.name()} cannot be read"):
            xml = DomainXml(domain.XMLDesc(_DEFINITION))
            now = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
            # Only what runs now names a rescue session.
            parsed = replace(facts.read(xml), session_id=facts.read(now).session_id)
            return GuestFacts(
                domain=parsed,
                xml=xml,
                run_state=_run_state(domain),
                persistent=bool(domain.isPersistent()),
                managed_save=_has_managed_save(domain),
                block_jobs=tuple(Target(target) for target in _block_jobs(domain, now)),
                nvram=self._nvram(parsed, xml, now),
                chains={Target(t): chain for t, chain in facts.chains(now).items()},
                relabels=self.relabels(),
                snapshots=tuple(snapshot.getName() for snapshot in domain.listAllSnapshots()),
                autostart=bool(domain.isPersistent() and domain.autostart()),
                uri=self.uri(),
            )

    def look(self, uuid: GuestUuid) -> LiveState | None:
        """What runs under this UUID now; None if libvirt knows nothing of it."""
        domain = self._lookup_or_none(uuid)
        if domain is None:
            return None
        with translated(f"guest {domain.name()} cannot be read"):
            saved = _has_managed_save(domain)
            xml = domain.managedSaveGetXMLDesc() if saved else domain.XMLDesc()
            return LiveState(
                run_state=_run_state(domain),
                persistent=bool(domain.isPersistent()),
                session_id=facts.read(xml).session_id,
                managed_save=saved,
                chains=facts.chains(xml),
                block_jobs=_block_jobs(domain, xml),
                agent=facts.agent_is_connected(xml),
                snapshots={
                    snapshot.getName(): facts.snapshot_files(snapshot.getXMLDesc())
                    for snapshot in domain.listAllSnapshots()
                },
                run=_run(domain),
            )

    def definition(self, uuid: GuestUuid) -> DomainXml | None:
        """The persistent definition, with its secrets; None if there is none."""
        domain = self._lookup_or_none(uuid)
        if domain is None or not domain.isPersistent():
            return None
        with translated(f"guest {domain.name()} cannot be read"):
            return DomainXml(domain.XMLDesc(_DEFINITION))

    def access(self, uuid: GuestUuid) -> Access:
        """How to reach a running guest."""
        domain = self._lookup(uuid)
        with translated(f"guest {domain.name()} cannot be read"):
            return Access(
                console=facts.console_path(domain.XMLDesc()), addresses=_addresses(domain)
            )

    def relabels(self) -> bool:
        """Whether this libvirt gives the files of a guest to QEMU's user."""
        root = etree.fromstring(self._connection.getCapabilities().encode())
        return "dac" in {model.text for model in root.iterfind("host/secmodel/model")}

    def uri(self) -> str:
        return str(self._connection.getURI())

    # --- judging ---------------------------------------------------------------------------

    def validate(self, name: str, xml: str) -> None:
        """Have libvirt build the QEMU command line, which needs no file and starts nothing.

        :raises Refused: with libvirt's reason.
        """
        try:
            self._connection.domainXMLToNative("qemu-argv", xml)
        except libvirt.libvirtError as exc:
            raise Refused(
                f"guest {name} cannot be rescued this way: libvirt says: {reason(exc)}"
            ) from exc

    # --- doing -----------------------------------------------------------------------------

    def stop(self, uuid: GuestUuid, options: Options) -> None:
        """Shut a guest down within the time it has, then force it off: it is broken already."""
        domain = self._lookup_or_none(uuid)
        if domain is None or not power.is_active(domain):
            return
        with translated(f"guest {domain.name()} cannot be stopped"):
            if options.force_off or not power.shut_down(domain, options.shutdown_timeout):
                power.force_off(domain)

    def ask_to_stop(self, uuid: GuestUuid, timeout: float) -> bool:
        """Ask a guest to shut down; whether it is off.  It is never killed."""
        domain = self._lookup_or_none(uuid)
        if domain is None:
            return True
        with translated(f"guest {domain.name()} cannot be asked to shut down"):
            return power.shut_down(domain, timeout)

    def force_off(self, uuid: GuestUuid) -> None:
        domain = self._lookup_or_none(uuid)
        if domain is not None:
            with translated(f"guest {domain.name()} cannot be forced off"):
                power.force_off(domain)

    def run(self, name: str, xml: str) -> None:
        """Start a live domain from `xml`; the persistent definition of that UUID stays as it is.

        :raises WrongState: if somebody saved or started the guest in the meantime.
        """
        domain = self._lookup_or_none(facts.read(xml).uuid)
        with translated(f"guest {name} cannot be started"):
            if domain is not None and _has_managed_save(domain):
                raise WrongState(
                    f"guest {name} was saved meanwhile, and would resume onto changed disks: "
                    f"drop that image (virsh managedsave-remove {shlex.quote(name)})"
                )
            self._connection.createXML(xml)
        log.info("%s: started with another definition", name)

    def start(self, uuid: GuestUuid) -> None:
        """Start a guest from its persistent definition; one that runs is fine."""
        domain = self._lookup(uuid)
        with translated(f"guest {domain.name()} cannot be started"):
            if not domain.isActive():
                domain.create()
                log.info("%s: started", domain.name())

    def define(self, name: str, xml: str, *, autostart: bool = False) -> None:
        """Define a guest (again); what runs under its UUID goes on running."""
        with translated(f"guest {name} cannot be defined"):
            domain = self._connection.defineXML(xml)
            domain.setAutostart(int(autostart))
        log.info("%s: defined", name)

    def drop_managed_save(self, uuid: GuestUuid) -> None:
        domain = self._lookup(uuid)
        with translated(f"the managed-save image of guest {domain.name()} cannot be removed"):
            domain.managedSaveRemove()

    def plug(self, uuid: GuestUuid, disk: str) -> None:
        """Plug a disk into the running guest; its persistent definition stays as it is."""
        domain = self._lookup(uuid)
        with translated(f"guest {domain.name()}: a disk cannot be attached"):
            domain.attachDeviceFlags(disk, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def end_at_reboot(self, uuid: GuestUuid) -> None:
        """From now on a reboot (or crash) of the running guest powers it off."""
        domain = self._lookup(uuid)
        power_off = libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY
        with translated(f"guest {domain.name()}: its reboot cannot be turned into a power-off"):
            for event in (libvirt.VIR_DOMAIN_LIFECYCLE_REBOOT, libvirt.VIR_DOMAIN_LIFECYCLE_CRASH):
                domain.setLifecycleAction(event, power_off, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def set_access(self, uuid: GuestUuid, user: str, hashed: str, keys: tuple[str, ...]) -> None:
        """Have the guest agent set a password (by its hash) and add SSH keys.

        :raises RescueVirtError: if the agent does not do it.
        """
        domain = self._lookup(uuid)
        with translated(f"guest {domain.name()}: the guest agent did not set the password"):
            domain.agentSetResponseTimeout(power.AGENT_ANSWER)
            domain.setUserPassword(user, hashed, libvirt.VIR_DOMAIN_PASSWORD_ENCRYPTED)
        if keys:
            try:
                flags = libvirt.VIR_DOMAIN_AUTHORIZED_SSH_KEYS_SET_APPEND
                domain.authorizedSSHKeysSet(user, list(keys), flags)
            except libvirt.libvirtError as exc:
                # The seed has them as well; the password is confirmed all the same.
                log.warning("%s: the agent did not add the SSH keys: %s", domain.name(), exc)

    # --- helpers ---------------------------------------------------------------------------

    def _lookup(self, guest: str) -> libvirt.virDomain:
        lookups = (self._connection.lookupByUUIDString, self._connection.lookupByName)
        for lookup in lookups:
            try:
                return lookup(guest)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() not in _NOT_THERE:
                    raise RescueVirtError(f"guest {guest}: {reason(exc)}") from exc
        raise NotFound(f"no guest {guest} on {self.uri()}: virsh list --all shows those there are")

    def _lookup_or_none(self, uuid: str) -> libvirt.virDomain | None:
        try:
            return self._lookup(uuid)
        except NotFound:
            return None

    def _nvram(self, parsed: DomainFacts, xml: str, now: str) -> Path | None:
        """The guest's NVRAM file, if it has one by now.

        With `<os firmware='efi'>` only a live domain's XML names it; for a guest that is off, the
        command line that libvirt would use does.
        """
        if not parsed.uefi:
            return None
        path = parsed.nvram or facts.read(now).nvram or self._nvram_on_command_line(xml)
        return path if path is not None and path.exists() else None

    def _nvram_on_command_line(self, xml: str) -> Path | None:
        for word in shlex.split(self._connection.domainXMLToNative("qemu-argv", xml)):
            if "libvirt-pflash1-storage" in word and word.startswith("{"):
                node = json.loads(word)
                if node.get("node-name") == "libvirt-pflash1-storage":
                    return Path(node["filename"])
        return None


# libvirt calls a name that is no UUID an invalid argument.
_NOT_THERE = frozenset({libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG})


def _run(domain: libvirt.virDomain) -> int | None:
    number = domain.ID()
    return number if number >= 0 else None


def _run_state(domain: libvirt.virDomain) -> RunState:
    # A guest that crashed may have been kept, QEMU and all: the state alone does not tell.
    if not power.is_active(domain):
        return RunState.SHUTOFF
    return _STATES.get(domain.state()[0], RunState.OTHER)


def _has_managed_save(domain: libvirt.virDomain) -> bool:
    # libvirt refuses to answer for transient domains, which cannot have one.
    return bool(domain.isPersistent()) and bool(domain.hasManagedSaveImage())


def _block_jobs(domain: libvirt.virDomain, xml: str) -> tuple[str, ...]:
    if not power.is_active(domain):
        return ()
    targets = [disk.target for disk in facts.read(xml).disks if disk.source]
    return tuple(target for target in targets if domain.blockJobInfo(target))


def _addresses(domain: libvirt.virDomain) -> tuple[str, ...]:
    if not facts.has_reachable_nic(domain.XMLDesc()):
        return ()
    domain.agentSetResponseTimeout(power.AGENT_ANSWER)
    for source in _ADDRESS_SOURCES:
        try:
            interfaces = domain.interfaceAddresses(source)
        except libvirt.libvirtError:
            continue  # no agent, no libvirt network: the next source may know
        found = [
            address["addr"]
            for interface in interfaces.values()
            for address in interface["addrs"] or []
            if _is_reachable(address["addr"])
        ]
        if found:
            return tuple(found)
    return ()


def _is_reachable(text: str) -> bool:
    """Whether it is an address at all (a guest may say anything), and not of the guest only."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local)
