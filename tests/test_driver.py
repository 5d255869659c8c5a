"""The face that a compute agent sees."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_rescuer import ORIGINAL, UUID, Lab, lab, transient

from rescue_virt import driver
from rescue_virt.driver import RescueDriver, image_ref
from rescue_virt.errors import BadRequest, NotFound, NotInTime
from rescue_virt.libvirt import facts
from rescue_virt.model import Digest, Owner, Phase, RunState
from rescue_virt.rescue import Rescuer
from rescue_virt.sessions import Sessions
from rescue_virt.settings import Settings

__all__ = ["lab", "transient"]

INSTANCE = SimpleNamespace(uuid=UUID, name="web1")
IMAGE = {"id": "c0ffee", "location": "/images/rescue.qcow2"}


@pytest.fixture
def nova(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> RescueDriver:
    monkeypatch.setenv("OS_RESCUE__STATE_DIR", str(lab.directory.parents[1]))

    @contextmanager
    def opened(*_: object) -> Iterator[Rescuer]:
        yield lab.rescuer

    monkeypatch.setattr(driver, "open_rescuer", opened)
    lab.host.agent = True
    return RescueDriver(uri="qemu:///session")


def test_an_instance_is_rescued_and_given_back(nova: RescueDriver, lab: Lab) -> None:
    nova.rescue(None, INSTANCE, None, IMAGE, "secret")
    assert lab.session.owner is Owner.AGENT
    assert lab.session.user == "root"
    assert facts.read(lab.host.live[UUID]).session_id == lab.session.id
    nova.unrescue(None, INSTANCE)
    lab.assert_as_before()


def test_the_image_names_the_user(nova: RescueDriver, lab: Lab) -> None:
    image = SimpleNamespace(location="/x", properties={"os_admin_user": "ann"})
    nova.rescue(None, INSTANCE, None, image, "secret")
    assert lab.session.user == "ann"


def test_an_instance_that_does_not_shut_down_stays_in_rescue(nova: RescueDriver, lab: Lab) -> None:
    nova.rescue(None, INSTANCE, None, IMAGE, "secret")
    lab.host.obeys = False
    with pytest.raises(NotInTime):
        nova.unrescue(None, INSTANCE)


def test_a_bad_password_costs_nothing(nova: RescueDriver, lab: Lab) -> None:
    with pytest.raises(BadRequest):
        nova.rescue(None, INSTANCE, None, IMAGE, "two\nlines")
    assert lab.effects == []


def test_instances_are_listed_and_told_apart(nova: RescueDriver, lab: Lab) -> None:
    assert nova.list_instances() == ["web1"]
    assert nova.list_instance_uuids() == [UUID]
    assert nova.get_info(INSTANCE).state is RunState.RUNNING
    lab.host.put("live", UUID, None)
    assert nova.get_info(INSTANCE).state is RunState.SHUTOFF
    with pytest.raises(NotFound, match="not known to libvirt"):
        nova.get_info(SimpleNamespace(uuid="none", name="none"))


@pytest.mark.parametrize(("timeout", "effect"), [(0, "force off"), (5, "stop")])
def test_an_instance_is_powered_off_and_on(
    nova: RescueDriver, lab: Lab, timeout: float, effect: str
) -> None:
    nova.power_off(INSTANCE, timeout)
    assert lab.effects == [effect]
    nova.power_on(None, INSTANCE, None)
    assert lab.host.live == {UUID: ORIGINAL}


def test_an_instance_in_rescue_is_never_powered_on_from_its_own_root(
    nova: RescueDriver, lab: Lab
) -> None:
    nova.rescue(None, INSTANCE, None, IMAGE, "secret")
    nova.power_off(INSTANCE)
    nova.power_on(None, INSTANCE, None)
    assert facts.read(lab.host.live[UUID]).session_id == lab.session.id
    lab.effects.clear()
    nova.power_on(None, INSTANCE, None)
    assert lab.effects == []


def test_the_agent_s_start_mends_what_its_crash_left(nova: RescueDriver, lab: Lab) -> None:
    session = lab.enter(owner=Owner.AGENT).session
    lab.sessions.mark(session, phase=Phase.BOOTING)
    nova.init_host("here")
    lab.assert_as_before()


def test_an_engine_is_opened_on_a_connection_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str | None] = []

    @contextmanager
    def connect(uri: str | None) -> Iterator[object]:
        opened.append(uri)
        yield object()

    monkeypatch.setattr(driver, "connect", connect)
    with driver.open_rescuer(Settings(state_dir=tmp_path), "qemu:///session") as rescuer:
        assert isinstance(rescuer.sessions, Sessions)
        rescuer.report("silently")
    assert opened == ["qemu:///session"]


# --- images ----------------------------------------------------------------------------------


def test_an_image_is_read_from_a_mapping_or_an_object() -> None:
    said: dict[str, Any] = {
        "id": "c0ffee", "location": "https://x/y", "os_hash_algo": "sha512", "os_hash_value": "ab",
        "properties": {"hw_rescue_bus": "scsi", "min_disk": "3", "other": "x"},
    }  # fmt: skip
    for meta in (said, SimpleNamespace(**said)):
        ref = image_ref(meta)
        assert ref.location == "https://x/y"
        assert ref.image_id == "c0ffee"
        assert ref.digests == (Digest(algorithm="sha512", hex="ab"),)
        assert ref.properties.hw_rescue_bus == "scsi"
        assert ref.properties.min_disk == 3
    assert image_ref({"location": "/x"}).digests == ()


def test_an_image_without_a_location_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="image c0ffee has no location"):
        image_ref({"id": "c0ffee"})


@pytest.mark.parametrize("value", ["many", []])
def test_a_property_that_makes_no_sense_is_a_bad_request(value: object) -> None:
    with pytest.raises(BadRequest, match="min_disk"):
        image_ref({"location": "/x", "properties": {"min_disk": value}})


def test_glance_says_the_least_disk_beside_the_properties() -> None:
    assert image_ref({"location": "/x", "min_disk": 5}).properties.min_disk == 5
