"""The man page and the samples tell what the program does."""

import configparser
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from rescue_virt import rescue, settings
from rescue_virt.cli.main import _EXIT_CODES, cli

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/rescue-virt.1"
SAMPLE = ROOT / "templates/rescue-virt.conf"
UNIT = ROOT / "templates/rescue-virt-recover.service"


@pytest.fixture(scope="module")
def page() -> str:
    groff = shutil.which("groff")
    assert groff, "groff is missing: scripts/setup installs it"
    done = subprocess.run(
        [groff, "-mdoc", "-Tascii", "-P-cbou", "-ww", "-rLL=500n", str(PAGE)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("name", cli.commands)
def test_the_man_page_tells_every_command_and_option(page: str, name: str) -> None:
    section = page.partition(" COMMANDS ")[2].partition(" PENDING DISKS ")[0]
    assert f" {name} " in f" {section}"
    for option in cli.commands[name].params:
        for spelling in [*option.opts, *option.secondary_opts]:
            if isinstance(option, click.Option):
                assert spelling in section, spelling


def test_the_man_page_tells_every_exit_code_in_the_words_of_the_help(page: str) -> None:
    section = page.partition(" EXIT STATUS ")[2].partition(" EXAMPLES ")[0]
    codes = _EXIT_CODES.partition("Exit codes:\n")[2]
    assert section == " ".join(codes.split())


def test_the_man_page_names_every_setting(page: str) -> None:
    assert [option.name for option in settings.OPTIONS if option.name not in page] == []


def test_the_sample_names_every_setting_with_its_default(tmp_path: Path) -> None:
    text = SAMPLE.read_text()
    lines = [line.removeprefix("#") for line in text.splitlines() if not line.startswith("# ")]
    active = configparser.ConfigParser()
    active.read_string("\n".join(lines))
    shown = dict(active["rescue"])
    assert shown.pop("state_dir") == "/var/lib/rescue-virt"
    assert shown == {
        option.name: str(option.default)
        for option in settings.OPTIONS
        if option.name != "state_dir"
    }
    path = tmp_path / "all.conf"
    path.write_text("\n".join(lines))
    assert settings.load(path).state_dir == Path("/var/lib/rescue-virt")


def test_help_names_the_timeouts_that_hold_unless_one_is_given() -> None:
    helps = {
        (name, option.name): option.help or ""
        for name in cli.commands
        for option in cli.commands[name].params
        if isinstance(option, click.Option)
    }
    loaded = settings.Settings(state_dir=Path("/"))
    assert f"(else {rescue.LEAVE_TIMEOUT:.0f})" in helps["unrescue", "timeout"]
    assert f"(else {loaded.shutdown_timeout:.0f})" in helps["rescue", "shutdown_timeout"]
    for name in ("rescue", "attach", "resume"):
        assert f"(else {loaded.ready_timeout:.0f})" in helps[name, "timeout"]


def test_the_unit_runs_recover_once_after_libvirt_and_before_its_guests() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    assert unit["Service"]["Type"] == "oneshot"
    assert unit["Service"]["ExecStart"] == "/opt/rescue-virt/bin/rescue-virt recover"
    assert unit["Unit"]["Before"] == "libvirt-guests.service"
    assert "After=libvirtd.service" in UNIT.read_text()
