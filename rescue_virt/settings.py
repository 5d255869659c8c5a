"""Options, read once into one frozen value.

One INI file, overridden by `OS_<GROUP>__<OPTION>` in the environment, as oslo.config does it
everywhere in OpenStack.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from oslo_config import cfg

from rescue_virt.errors import BadRequest
from rescue_virt.model import GIB

CONFIG_FILE = Path("/etc/rescue-virt/rescue-virt.conf")


class OnHostReboot(StrEnum):
    """What `recover` does with a rescue that the host's reboot ended."""

    STAY = "stay"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes are in bytes, timeouts in seconds.

    `state_dir` holds images *and* sessions: a session holds its image by a hard link, and links do
    not cross file systems.
    """

    state_dir: Path
    max_image_size: int = 50 * GIB
    max_virtual_size: int = 1024 * GIB
    overlay_space: int = 2 * GIB
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    shutdown_timeout: float = 30.0
    ready_timeout: float = 300.0
    on_host_reboot: OnHostReboot = OnHostReboot.STAY

    @property
    def images_dir(self) -> Path:
        return self.state_dir / "images"

    @property
    def sessions_dir(self) -> Path:
        return self.state_dir / "sessions"

    @property
    def locks_dir(self) -> Path:
        return self.state_dir / "locks"


OPTIONS = [
    cfg.StrOpt("state_dir", help="Directory of sessions and cached images."),
    cfg.IntOpt("max_image_size_gb", default=50, min=1, help="Largest image file, in GiB."),
    cfg.IntOpt("max_virtual_size_gb", default=1024, min=1, help="Largest virtual size, in GiB."),
    cfg.IntOpt(
        "overlay_space_mb",
        default=2048,
        min=1,
        help="Free space in MiB that a rescue needs for what its guest will write "
        "(the image's virtual size, if that is smaller).",
    ),
    cfg.FloatOpt("connect_timeout", default=10.0, min=0.1, help="Seconds to connect to a server."),
    cfg.FloatOpt("read_timeout", default=60.0, min=0.1, help="Seconds without a byte."),
    cfg.FloatOpt(
        "shutdown_timeout", default=30.0, min=0.0, help="Seconds a guest gets to shut down."
    ),
    cfg.FloatOpt(
        "ready_timeout", default=300.0, min=0.0, help="Seconds a rescue guest gets to boot."
    ),
    cfg.StrOpt(
        "on_host_reboot",
        default="stay",
        choices=[policy.value for policy in OnHostReboot],
        help="What `recover` does with a rescue that the host's reboot ended: start it again, "
        "or give the guest back.",
    ),
]


def load(config_file: Path | None = None) -> Settings:
    """Read the settings.

    :raises BadRequest: if a file cannot be read or a value is not allowed.
    """
    conf = cfg.ConfigOpts()
    conf.register_opts(OPTIONS, group="rescue")
    file = config_file or CONFIG_FILE
    drop_ins = file.with_name(f"{file.name}.d")
    try:
        conf(
            args=[],
            project="rescue-virt",
            default_config_files=[str(file)] if config_file or file.exists() else [],
            # Named even if there are none: else oslo looks for some in the home directory.
            default_config_dirs=[str(drop_ins)] if drop_ins.is_dir() else [],
        )
        settings = _settings(conf.rescue)
    except cfg.Error as exc:
        raise BadRequest(f"configuration: {exc}".rstrip(".")) from exc
    except ValueError as exc:
        raise BadRequest(f"configuration: {exc}") from exc
    if not settings.state_dir.is_absolute():
        raise BadRequest(f"configuration: state_dir {settings.state_dir} is not an absolute path")
    return settings


def _settings(group: cfg.ConfigOpts.GroupAttr) -> Settings:
    return Settings(
        state_dir=Path(group.state_dir) if group.state_dir else _default_state_dir(),
        max_image_size=group.max_image_size_gb * GIB,
        max_virtual_size=group.max_virtual_size_gb * GIB,
        overlay_space=group.overlay_space_mb << 20,
        connect_timeout=group.connect_timeout,
        read_timeout=group.read_timeout,
        shutdown_timeout=group.shutdown_timeout,
        ready_timeout=group.ready_timeout,
        on_host_reboot=OnHostReboot(group.on_host_reboot),
    )


def _default_state_dir() -> Path:
    """The system's for root; for anyone else the one XDG names, as libvirt does for sessions."""
    if os.geteuid() == 0:
        return Path("/var/lib/rescue-virt")
    data_home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    return Path(data_home) / "rescue-virt"
