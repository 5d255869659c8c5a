"""Guests as libvirt has them: its test driver where that can serve, specced mocks elsewhere."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import libvirt
import pytest
from fakes import domain

from rescue_virt.errors import NotFound, Refused, RescueVirtError, WrongState
from rescue_virt.libvirt import connection as door
from rescue_virt.libvirt import power
from rescue_virt.libvirt.host import Host
from rescue_virt.model import GuestUuid, Options, RunState

UUID = GuestUuid("6f1f4f5e-9a0c-4f0a-8d0f-3f3e2b1c0d99")
XML = f"""<domain type='test'><name>my guest</name><uuid>{UUID}</uuid>
<memory unit='KiB'>8192</memory><os><type>hvm</type></os><devices/></domain>"""


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[libvirt.virConnect]:
    """A host of its own: `test:///default` is shared by the whole process."""
    node = tmp_path / "node.xml"
    node.write_text("<node><cpu><nodes>1</nodes></cpu></node>")
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    opened = libvirt.open(f"test://{node}")
    yield opened
    opened.close()


@pytest.fixture
def host(connection: libvirt.virConnect) -> Host:
    connection.defineXML(XML)
    return Host(connection)


def error(code: int, message: str = "it\n did not work.") -> libvirt.libvirtError:
    raised = libvirt.libvirtError("x")
    raised.err = (code, 10, message, 2, None, None, None, 0, 0)
    return raised


# --- looking ---------------------------------------------------------------------------------


def test_guests_are_found_by_name_and_uuid(host: Host) -> None:
    assert host.find("my guest") == host.find(UUID) == (UUID, "my guest")
    assert host.guests() == [(UUID, "my guest")]
    with pytest.raises(NotFound, match=r"no guest other on test://.*virsh list --all"):
        host.find("other")
    with pytest.raises(NotFound):
        host.find("00000000-0000-4000-8000-000000000000")


def test_a_guest_that_is_off_is_inspected(host: Host) -> None:
    guest = host.inspect("my guest")
    assert (guest.domain.name, guest.run_state, guest.persistent) == (
        "my guest", RunState.SHUTOFF, True,
    )  # fmt: skip
    assert (guest.managed_save, guest.block_jobs, guest.nvram) == (False, (), None)
    assert guest.label == "guest my guest"
    assert guest.xml == host.definition(UUID)
    assert not guest.relabels


def test_a_guest_is_looked_at_as_it_runs(host: Host) -> None:
    host.start(UUID)
    live = host.look(UUID)
    assert live is not None
    assert (live.run_state, live.session_id, live.agent) == (RunState.RUNNING, None, False)
    assert host.inspect(UUID).run_state is RunState.RUNNING
    host.start(UUID)
    assert host.access(UUID).console is None


def test_what_libvirt_does_not_know_is_none(host: Host) -> None:
    other = GuestUuid("00000000-0000-4000-8000-000000000000")
    assert host.look(other) is None
    assert host.definition(other) is None
    assert host.ask_to_stop(other, 1)
    host.stop(other, Options())
    host.force_off(other)
    with pytest.raises(NotFound):
        host.start(other)


def test_a_paused_guest_is_paused(host: Host, connection: libvirt.virConnect) -> None:
    host.start(UUID)
    connection.lookupByName("my guest").suspend()
    assert host.inspect(UUID).run_state is RunState.PAUSED


# --- doing -----------------------------------------------------------------------------------


def test_a_guest_is_stopped_and_started(host: Host) -> None:
    host.start(UUID)
    host.stop(UUID, Options(shutdown_timeout=0))
    live = host.look(UUID)
    assert live is not None
    assert live.run_state is RunState.SHUTOFF
    host.stop(UUID, Options())
    host.start(UUID)
    host.stop(UUID, Options(force_off=True))
    host.force_off(UUID)
    live = host.look(UUID)
    assert live is not None
    assert live.run_state is RunState.SHUTOFF


def test_a_transient_guest_has_no_definition_and_goes_when_it_stops(host: Host) -> None:
    other = GuestUuid("6f1f4f5e-9a0c-4f0a-8d0f-3f3e2b1c0d98")
    host.run("other", XML.replace(UUID, other).replace("my guest", "other"))
    live = host.look(other)
    assert live is not None
    assert (live.persistent, live.managed_save) == (False, False)
    assert host.definition(other) is None
    host.force_off(other)
    assert host.look(other) is None


def test_a_guest_that_runs_is_not_started_with_another_definition(host: Host) -> None:
    host.start(UUID)
    with pytest.raises(RescueVirtError, match="guest my guest cannot be started: "):
        host.run("my guest", XML)


def test_a_guest_that_was_saved_is_not_started_with_another_definition(
    host: Host, connection: libvirt.virConnect
) -> None:
    host.start(UUID)
    connection.lookupByName("my guest").managedSave()
    assert host.inspect(UUID).managed_save
    with pytest.raises(WrongState, match="virsh managedsave-remove 'my guest'"):
        host.run("my guest", XML)
    host.drop_managed_save(UUID)
    host.run("my guest", XML)


def test_a_definition_comes_back(host: Host, connection: libvirt.virConnect) -> None:
    host.start(UUID)
    definition = host.definition(UUID)
    assert definition is not None
    connection.lookupByName("my guest").undefine()
    assert host.definition(UUID) is None
    host.define("my guest", definition)
    assert host.definition(UUID) == definition


# --- what the test driver cannot do ----------------------------------------------------------


class Mocked:
    """A host with one running guest, whose domain is a specced mock."""

    def __init__(self, xml: str) -> None:
        self.domain: Any = create_autospec(libvirt.virDomain, instance=True)
        self.connection: Any = create_autospec(libvirt.virConnect, instance=True)
        self.host = Host(self.connection)
        self.connection.lookupByUUIDString.return_value = self.domain
        self.connection.getURI.return_value = "qemu:///system"
        self.connection.getCapabilities.return_value = (
            "<c><host><secmodel><model>dac</model></secmodel></host></c>"
        )
        self.domain.name.return_value = "web1"
        self.domain.XMLDesc.return_value = xml
        self.domain.state.return_value = [libvirt.VIR_DOMAIN_RUNNING, 1]
        self.domain.isActive.return_value = 1
        self.domain.ID.return_value = 7
        self.domain.autostart.return_value = 0
        self.domain.isPersistent.return_value = 1
        self.domain.hasManagedSaveImage.return_value = 0
        self.domain.blockJobInfo.return_value = {}


@pytest.fixture
def web1() -> Mocked:
    return Mocked(domain("pc"))


def test_block_jobs_and_relabelling_are_seen(web1: Mocked) -> None:
    web1.domain.blockJobInfo.side_effect = lambda target: {"type": 4} if target == "vdb" else {}
    guest = web1.host.inspect(UUID)
    assert guest.block_jobs == ("vdb",)
    assert guest.relabels
    live = web1.host.look(UUID)
    assert live is not None
    assert live.block_jobs == ("vdb",)


def test_of_a_saved_guest_the_saved_domain_is_looked_at(web1: Mocked) -> None:
    web1.domain.isActive.return_value = 0
    web1.domain.state.return_value = [libvirt.VIR_DOMAIN_SHUTOFF, 1]
    web1.domain.hasManagedSaveImage.return_value = 1
    web1.domain.managedSaveGetXMLDesc.return_value = domain("pc").replace(
        "<memory", "<metadata><s:session xmlns:s='urn:rescue-virt:session:1' id='5'/></metadata>"
        "<memory", 1,
    )  # fmt: skip
    live = web1.host.look(UUID)
    assert live is not None
    assert (live.session_id, live.managed_save, live.block_jobs) == ("5", True, ())


def test_a_guest_that_crashed_and_was_kept_is_not_off(web1: Mocked) -> None:
    """With <on_crash>preserve</on_crash> QEMU stays, and holds the disks."""
    web1.domain.state.return_value = [libvirt.VIR_DOMAIN_CRASHED, 1]
    live = web1.host.look(UUID)
    assert live is not None
    assert live.run_state is not RunState.SHUTOFF


def test_snapshots_are_seen_with_the_files_that_they_write_to(web1: Mocked) -> None:
    snapshot: Any = create_autospec(libvirt.virDomainSnapshot, instance=True)
    snapshot.getName.return_value = "during"
    snapshot.getXMLDesc.return_value = """<domainsnapshot><disks>
        <disk name='vda' snapshot='external'><source file='/srv/during'/></disk>
        <disk name='vdb' snapshot='external'><source dev='/dev/x'/></disk>
        <disk name='vdc' snapshot='internal'/></disks></domainsnapshot>"""
    web1.domain.listAllSnapshots.return_value = [snapshot]
    live = web1.host.look(UUID)
    assert live is not None
    assert live.snapshots == {"during": ("/srv/during",)}


def test_disks_are_plugged_into_the_running_guest_only(web1: Mocked) -> None:
    web1.host.plug(UUID, "<disk/>")
    web1.domain.attachDeviceFlags.assert_called_once_with("<disk/>", libvirt.VIR_DOMAIN_AFFECT_LIVE)
    web1.domain.attachDeviceFlags.side_effect = error(libvirt.VIR_ERR_INTERNAL_ERROR)
    with pytest.raises(RescueVirtError, match=r"web1: a disk cannot be attached: it did not work$"):
        web1.host.plug(UUID, "<disk/>")


def test_a_reboot_or_crash_becomes_a_power_off(web1: Mocked) -> None:
    web1.host.end_at_reboot(UUID)
    off = libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY
    assert [call.args for call in web1.domain.setLifecycleAction.call_args_list] == [
        (libvirt.VIR_DOMAIN_LIFECYCLE_REBOOT, off, libvirt.VIR_DOMAIN_AFFECT_LIVE),
        (libvirt.VIR_DOMAIN_LIFECYCLE_CRASH, off, libvirt.VIR_DOMAIN_AFFECT_LIVE),
    ]


def test_the_agent_gets_the_hash_and_the_keys(web1: Mocked) -> None:
    web1.host.set_access(UUID, "root", "$6$x", ("k1",))
    web1.domain.setUserPassword.assert_called_once_with(
        "root", "$6$x", libvirt.VIR_DOMAIN_PASSWORD_ENCRYPTED
    )
    web1.domain.authorizedSSHKeysSet.assert_called_once_with(
        "root", ["k1"], libvirt.VIR_DOMAIN_AUTHORIZED_SSH_KEYS_SET_APPEND
    )
    web1.domain.authorizedSSHKeysSet.reset_mock()
    web1.host.set_access(UUID, "root", "$6$x", ())
    web1.domain.authorizedSSHKeysSet.assert_not_called()


def test_addresses_come_from_the_first_source_that_knows_any(web1: Mocked) -> None:
    def answer(source: int, _flags: int = 0) -> dict[str, Any]:
        if source == libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT:
            raise error(libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
        if source == libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE:
            return {"vnet0": {"addrs": None}, "lo": {"addrs": [{"addr": "127.0.0.1"}]}}
        addresses = ["192.0.2.9", "fe80::1", "2001:db8::9", "$(reboot)"]
        return {"eth0": {"addrs": [{"addr": address} for address in addresses]}}

    web1.domain.interfaceAddresses.side_effect = answer
    web1.domain.XMLDesc.return_value = domain("pc").replace("type='user'", "type='bridge'")
    assert web1.host.access(UUID).addresses == ("192.0.2.9", "2001:db8::9")
    web1.domain.interfaceAddresses.side_effect = error(libvirt.VIR_ERR_NO_SUPPORT)
    assert web1.host.access(UUID).addresses == ()


def test_libvirt_judges_a_domain_without_starting_it(web1: Mocked) -> None:
    web1.host.validate("web1", "<domain/>")
    web1.connection.domainXMLToNative.assert_called_once_with("qemu-argv", "<domain/>")
    web1.connection.domainXMLToNative.side_effect = error(libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
    with pytest.raises(
        Refused, match=r"cannot be rescued this way: libvirt says: it did not work$"
    ):
        web1.host.validate("web1", "<domain/>")


def test_a_libvirt_that_does_not_answer_is_not_a_guest_that_does_not_exist(web1: Mocked) -> None:
    web1.connection.lookupByUUIDString.side_effect = error(libvirt.VIR_ERR_RPC)
    with pytest.raises(RescueVirtError, match="guest web1: it did not work") as caught:
        web1.host.find("web1")
    assert not isinstance(caught.value, NotFound)


def test_the_variables_of_a_uefi_guest_are_found(tmp_path: Path) -> None:
    nvram = tmp_path / "VARS.fd"
    named = Mocked(domain("q35-nvram").replace("/var/lib/libvirt/qemu/nvram/app1_VARS.fd", str(nvram)))  # fmt: skip  # noqa: E501
    assert named.host.inspect(UUID).nvram is None
    nvram.touch()
    assert named.host.inspect(UUID).nvram == nvram


@pytest.mark.parametrize("node", ["libvirt-pflash1-storage", "libvirt-pflash0-storage"])
def test_of_a_firmware_that_libvirt_picks_the_command_line_names_the_variables(
    tmp_path: Path, node: str
) -> None:
    nvram = tmp_path / "my VARS.fd"
    nvram.touch()
    efi = Mocked(domain("q35-efi"))
    efi.connection.domainXMLToNative.return_value = (
        "LC_ALL=C /usr/bin/qemu -blockdev "
        f'\'{{"driver":"file","filename":"{nvram}","node-name":"{node}"}}\' '
        '-blockdev \'{"node-name":"x","file":"libvirt-pflash1-storage"}\''
    )
    assert efi.host.inspect(UUID).nvram == (nvram if "1" in node else None)


# --- power -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_LOOK", 0.01)
    monkeypatch.setattr(power, "_PRESS", 0.02)


def connected(web1: Mocked) -> None:
    web1.domain.XMLDesc.return_value = domain("q35-efi").replace(
        "guest_agent.0'", "guest_agent.0' state='connected'"
    )


def flags(web1: Mocked) -> list[int]:
    return [call.args[0] for call in web1.domain.shutdownFlags.call_args_list]


AGENT = libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT
BUTTON = libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN


def test_a_guest_is_asked_through_its_agent_if_that_answers(web1: Mocked) -> None:
    connected(web1)
    web1.domain.shutdownFlags.side_effect = lambda _: web1.domain.isActive.configure_mock(
        return_value=0
    )
    assert power.shut_down(web1.domain, 5)
    assert flags(web1) == [AGENT]


def test_a_guest_whose_agent_does_not_answer_has_its_button_pressed(web1: Mocked) -> None:
    connected(web1)
    web1.domain.agentSetResponseTimeout.side_effect = error(libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
    assert not power.shut_down(web1.domain, 0.01)
    assert flags(web1) == [BUTTON]


def test_a_guest_that_misses_the_button_gets_it_pressed_again(web1: Mocked) -> None:
    assert not power.shut_down(web1.domain, 0.1)
    assert len(flags(web1)) > 1
    assert not web1.domain.destroy.called


def test_a_guest_that_is_given_no_time_is_not_asked(web1: Mocked) -> None:
    assert not power.shut_down(web1.domain, 0)
    assert flags(web1) == []


def test_a_guest_that_does_not_obey_is_forced_off_when_its_time_is_over(web1: Mocked) -> None:
    web1.host.stop(UUID, Options(shutdown_timeout=0.01))
    assert flags(web1) == [BUTTON]
    web1.domain.destroy.assert_called_once_with()


def test_a_guest_that_went_by_itself_while_it_was_stopped_is_fine(web1: Mocked) -> None:
    for call in (web1.domain.shutdownFlags, web1.domain.destroy):
        call.side_effect = error(libvirt.VIR_ERR_OPERATION_INVALID)
    web1.domain.isActive.side_effect = [1, 0, 0, 0]
    assert power.shut_down(web1.domain, 1)
    web1.domain.isActive.side_effect = error(libvirt.VIR_ERR_NO_DOMAIN)
    power.force_off(web1.domain)


def test_a_guest_that_cannot_be_stopped_is_an_error(web1: Mocked) -> None:
    for call in (web1.domain.shutdownFlags, web1.domain.destroy):
        call.side_effect = error(libvirt.VIR_ERR_INTERNAL_ERROR)
    with pytest.raises(RescueVirtError, match="web1 cannot be asked to shut down"):
        web1.host.ask_to_stop(UUID, 1)
    with pytest.raises(RescueVirtError, match="web1 cannot be forced off"):
        web1.host.force_off(UUID)
    web1.domain.isActive.side_effect = error(libvirt.VIR_ERR_RPC)
    with pytest.raises(libvirt.libvirtError):
        power.is_active(web1.domain)


# --- the door --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("qemu+ssh://root@far/system", "leads to another host"),
        ("qemu://far/system", "leads to another host"),
        ("qemu+tls:///system", "leads to another host"),
        ("test:///default", "is not a QEMU connection"),
        ("qemu:///nothing", "no connection to qemu:///nothing"),
    ],
)
def test_only_qemu_on_this_host_will_do(uri: str, message: str) -> None:
    with pytest.raises(Refused, match=message), door.connect(uri):
        pass


def test_the_system_s_guests_are_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with (
        pytest.raises(Refused, match="run this as root, or use -c qemu:///session"),
        door.connect(),
    ):
        pass


def test_the_uri_is_the_one_that_was_given_then_virsh_s(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_(uri: str) -> Any:
        opened.append(uri)
        return SimpleNamespace(
            getURI=lambda: uri, getType=lambda: "QEMU", close=lambda: opened.append("closed")
        )

    monkeypatch.setattr(libvirt, "open", open_)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    with door.connect():
        pass
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///session")
    with door.connect():
        pass
    with pytest.raises(ValueError, match="x"), door.connect("qemu+unix:///session"):
        raise ValueError("x")
    assert opened == [
        "qemu:///system", "closed", "qemu:///session", "closed", "qemu+unix:///session", "closed",
    ]  # fmt: skip


def test_errors_of_the_binding_leave_as_ours() -> None:
    codes = {
        libvirt.VIR_ERR_NO_DOMAIN: NotFound,
        libvirt.VIR_ERR_OPERATION_INVALID: WrongState,
        libvirt.VIR_ERR_INTERNAL_ERROR: RescueVirtError,
    }
    for code, ours in codes.items():
        with pytest.raises(ours, match=r"^it: it did not work$"), door.translated("it"):
            raise error(code)
    bare = libvirt.libvirtError("no details")
    bare.err = None  # libvirt itself said nothing
    bare.args = ("no details",)
    assert door.reason(bare) == "no details"


def test_options_are_values() -> None:
    assert replace(Options(), force_off=True).force_off
