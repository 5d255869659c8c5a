"""What pip installs is what runs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--no-build-isolation", "--target", str(directory / "site"), str(source)],
        check=True,
    )  # fmt: skip
    return directory / "site"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Callable[..., str]:
    def run(*argv: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        done = subprocess.run(
            argv, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    return run


def test_the_command_is_installed(installed: Path, run: Callable[..., str]) -> None:
    assert run(str(installed / "bin/rescue-virt"), "--version") == "rescue-virt 0.1.0"
    assert run(sys.executable, "-m", "rescue_virt", "--version") == "rescue-virt 0.1.0"
    assert (installed / "share/man/man1/rescue-virt.1").is_file()


def test_a_host_agent_finds_the_driver_by_its_entry_point(run: Callable[..., str]) -> None:
    assert run(sys.executable, "-c", LOAD) == "rescue_virt RescueDriver True"
