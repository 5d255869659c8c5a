"""What a dry run and `xml GUEST` show of a rescue that is not carried out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import (
    SESSION,
    UUID,
    FakeRescuer,
    Run,
    fields,
    request_of,
    rescuer,
    run,
)

from rescue_virt.cli.engine import Engine
from rescue_virt.model import (
    Attach,
    Digest,
    ImageProperties,
    RescueDomain,
    RescuePlan,
)
from rescue_virt.settings import Settings

__all__ = ["rescuer", "run"]

# --- dry run, xml ------------------------------------------------------------------------------


@pytest.fixture
def previewed(rescuer: FakeRescuer, tmp_path: Path) -> tuple[RescuePlan, Any]:
    """What a real preview says; the fake engine repeats it."""
    image = tmp_path / "rescue.img"
    image.write_bytes(bytes(1 << 20))
    settings = Settings(state_dir=tmp_path / "state")
    engine = Engine(settings=settings, connect=lambda _: pytest.fail("no libvirt here"))
    nothing: Any = dict.fromkeys(("sha256", "sha512", "layout"))
    request = engine.request_for_preview(
        "x", nothing | {"image": str(image), "properties": ImageProperties()}
    )
    xml = (Path(__file__).parent / "data/q35.xml").read_text()
    rescuer.previewed = engine.preview_file(xml, request)
    return rescuer.previewed


@pytest.mark.usefixtures("previewed")
def test_a_dry_run_shows_what_would_happen_and_the_diff(run: Run, rescuer: FakeRescuer) -> None:
    result = run("rescue", "web1", "--image", "x", "--dry-run", "--layout", "classic")
    assert (result.exit_code, result.stderr) == (0, "")
    said = fields(result.stdout)
    assert (said["guest"], said["state"], said["layout"]) == ("web1", "off", "classic")
    assert said["rescue disk"] == "vda (disk on the virtio bus)"
    assert (said["original disks"], said["why pending"]) == ("attached", "-")
    diff = result.stdout.partition("\n\n")[2]
    assert diff.startswith("--- web1 (original)\n+++ web1 (rescue)\n")
    assert "hunter22" not in diff
    assert request_of(rescuer).credentials.password.reveal() not in result.stdout


@pytest.mark.usefixtures("previewed")
def test_a_dry_run_as_json_is_the_plan_and_the_diff(run: Run) -> None:
    told = json.loads(run("rescue", "web1", "--image", "x", "--dry-run", "-o", "json").stdout)
    assert told["schema"] == "rescue-virt/v1"
    assert (told["uuid"], told["left_out"], told["attached_late"]) == (UUID, [], 0)
    assert told["diff"].startswith("--- web1 (original)\n")


def test_xml_of_a_guest_is_what_the_engine_previews(
    run: Run, rescuer: FakeRescuer, previewed: tuple[RescuePlan, RescueDomain]
) -> None:
    result = run("xml", "web1", "--image", "x", "--property", "hw_disk_bus=scsi")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == previewed[1].xml.replace(" passwd='hunter22'", "")
    assert request_of(rescuer).image.properties.hw_disk_bus == "scsi"


@pytest.mark.usefixtures("previewed")
def test_xml_of_a_guest_as_a_diff_in_json(run: Run) -> None:
    told = json.loads(run("xml", "web1", "--image", "x", "--diff", "-o", "json").stdout)
    assert told["diff"].startswith("--- web1 (original)\n")
    assert "xml" not in told


def test_late_disks_and_a_verified_image_are_told(
    run: Run, rescuer: FakeRescuer, previewed: tuple[RescuePlan, RescueDomain]
) -> None:
    plan, domain = previewed
    image = dataclasses.replace(plan.image, digest=Digest(algorithm="sha256", hex="ab" * 32))
    late = dataclasses.replace(plan, image=image, attach=Attach.LATE, why_late="same image id")
    rescuer.previewed = late, dataclasses.replace(domain, late=("<disk/>",))
    said = fields(run("rescue", "web1", "--image", "x", "--dry-run").stdout)
    assert said["digest"] == SESSION.digest
    assert (said["original disks"], said["why pending"]) == ("pending", "same image id")
    assert said["attached late"] == "1"
    assert "same image id" in run("xml", "web1", "--image", "x").stderr
