"""Options, from one file and the environment."""

from pathlib import Path

import pytest

from rescue_virt import settings
from rescue_virt.errors import BadRequest
from rescue_virt.model import GIB
from rescue_virt.settings import OnHostReboot, load


@pytest.fixture(autouse=True)
def nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CONFIG_FILE", tmp_path / "etc" / "rescue-virt.conf")
    monkeypatch.setattr("os.geteuid", lambda: 0)


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.conf"
    path.write_text(f"[rescue]\n{text}\n")
    return path


def test_nothing_needs_to_be_said() -> None:
    loaded = load()
    assert loaded.state_dir == Path("/var/lib/rescue-virt")
    assert loaded.sessions_dir == Path("/var/lib/rescue-virt/sessions")
    assert loaded.locks_dir == Path("/var/lib/rescue-virt/locks")
    assert loaded.images_dir == Path("/var/lib/rescue-virt/images")
    assert loaded.max_image_size == 50 * GIB
    assert loaded.overlay_space == 2 * GIB
    assert (loaded.shutdown_timeout, loaded.ready_timeout) == (30, 300)
    assert loaded.on_host_reboot is OnHostReboot.STAY


def test_a_file_says_otherwise_and_the_environment_has_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(
        tmp_path, "state_dir = /srv/r\nmax_image_size_gb = 1\non_host_reboot = end\n"
        "overlay_space_mb = 3"
    )  # fmt: skip
    monkeypatch.setenv("OS_RESCUE__MAX_IMAGE_SIZE_GB", "7")
    loaded = load(path)
    assert loaded.state_dir == Path("/srv/r")
    assert loaded.max_image_size == 7 * GIB
    assert loaded.overlay_space == 3 << 20
    assert loaded.on_host_reboot is OnHostReboot.END


def test_the_system_s_file_is_read_if_it_is_there() -> None:
    settings.CONFIG_FILE.parent.mkdir()
    settings.CONFIG_FILE.write_text("[rescue]\nstate_dir = /srv/system\n")
    assert load().state_dir == Path("/srv/system")


NOT_ALLOWED = [
    "max_image_size_gb = 0",
    "max_image_size_gb = x",
    "on_host_reboot = dance",
    "connect_timeout = 0",
    "nonsense",
]


@pytest.mark.parametrize("text", NOT_ALLOWED)
def test_a_value_that_is_not_allowed_is_a_bad_request(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadRequest, match=r"^configuration: "):
        load(config(tmp_path, text))


def test_a_file_that_is_not_there_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"none.conf"):
        load(tmp_path / "none.conf")


def test_a_relative_state_directory_is_a_bad_request(tmp_path: Path) -> None:
    """It would end up in domain XML, which libvirt reads from another directory."""
    with pytest.raises(BadRequest, match="state_dir"):
        load(config(tmp_path, "state_dir = rescue"))


def test_others_than_root_keep_their_state_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert load().state_dir == Path("/home/ann/.local/share/rescue-virt")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert load().state_dir == Path("/data/rescue-virt")
