"""What pip installs is what runs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[1]
LOAD = """
from importlib.metadata import entry_points
from importlib.resources import files
(found,) = entry_points(group="rescue_virt.drivers")
print(found.name, found.load().__name__, (files("rescue_virt") / "templates/user-data").is_file())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("installed")
    source = directory / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "rescue_virt", "templates", "docs"):
        # As a clone has them: rescue_virt/templates is a link.
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy2(path, source / name)
    # Nothing but what the package itself asks for.
    subprocess.run([sys.executable, "-m", "venv", str(directory / "venv")], check=True)
    pip = [str(directory / "venv/bin/pip"), "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, str(source)], check=True)
    return directory / "venv"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [str(installed / "bin" / program), *arguments]
        return subprocess.run(
            argv, env=environment, cwd=tmp_path, check=False, capture_output=True, text=True
        )

    return run


def test_the_command_is_installed(
    installed: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert run("rescue-virt", "--version").stdout == "rescue-virt 0.1.0\n"
    assert run("python", "-m", "rescue_virt", "--version").stdout == "rescue-virt 0.1.0\n"
    assert (installed / "share/man/man1/rescue-virt.1").is_file()


def test_all_that_the_command_needs_is_installed_with_it(
    tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    image = tmp_path / "rescue.raw"
    image.write_bytes(bytes(1 << 20))
    guest = str(ROOT / "tests/data/domains/pc.xml")
    shown = run("rescue-virt", "xml", guest, "--image", str(image))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "<serial>RESCUE</serial>" in shown.stdout


def test_a_host_agent_finds_the_driver_by_its_entry_point(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert run("python", "-c", LOAD).stdout == "rescue_virt RescueDriver True\n"
