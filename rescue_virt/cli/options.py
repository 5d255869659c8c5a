"""The options of the commands, each parsed to what it means."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import click

from rescue_virt.model import Digest, ImageProperties, Layout

_DIGITS = {"sha256": 64, "sha512": 128}
_PROPERTIES = tuple(field.name for field in dataclasses.fields(ImageProperties))

Command = Callable[..., Any]


class ImageChoices(TypedDict):
    """The image, and how it is put in front of the guest's own disks."""

    image: str
    sha256: Digest | None
    sha512: Digest | None
    properties: ImageProperties
    layout: Layout | None


class RescueChoices(ImageChoices):
    """Everything `rescue` takes besides the guest; None: nothing was said."""

    password: str | None
    password_file: Path | None
    password_stdin: bool
    user: str | None
    ssh_keys: tuple[Path, ...]
    force_off: bool
    shutdown_timeout: float | None
    wait: bool
    timeout: float | None
    take_from_nova: bool
    dry_run: bool


def image_options(command: Command) -> Command:
    return _with(_IMAGE_OPTIONS, command)


def rescue_options(command: Command) -> Command:
    return _with(_IMAGE_OPTIONS + _ACCESS_OPTIONS + _RESCUE_OPTIONS, command)


def guest_argument(command: Command) -> Command:
    return click.argument("guest")(command)


def timeout_option(text: str) -> Callable[[Command], Command]:
    return click.option("--timeout", metavar="S", callback=_seconds, help=text)


def wait_option(command: Command) -> Command:
    return click.option(
        "--wait/--no-wait", default=True, help="Wait until the rescue guest is ready (default)."
    )(command)


def force_off_option(text: str) -> Callable[[Command], Command]:
    return click.option("--force-off", is_flag=True, help=text)


def _with(options: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise click.BadParameter(f"{value!r} is not a number of seconds")
    return seconds


def _digest(_: click.Context, parameter: click.Parameter, value: str | None) -> Digest | None:
    if value is None:
        return None
    algorithm = str(parameter.name)
    digits = _DIGITS[algorithm]
    if not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", value):
        raise click.BadParameter(f"a {algorithm} digest has {digits} hexadecimal digits")
    return Digest(algorithm=algorithm, hex=value.lower())


def _layout(_: click.Context, __: click.Parameter, value: str | None) -> Layout | None:
    return Layout(value) if value else None


def _properties(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> ImageProperties:
    given: dict[str, Any] = {}
    for text in values:
        key, _equals, value = text.partition("=")
        if key not in _PROPERTIES:
            raise click.BadParameter(f"{key!r} is not one of {', '.join(_PROPERTIES)}")
        if not value:
            raise click.BadParameter(f"{text!r} has no value: write {key}=VALUE")
        given[key] = _gibibytes(value) if key == "min_disk" else value
    return ImageProperties(**given)


def _gibibytes(value: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", value):
        raise click.BadParameter(f"min_disk={value} is not a whole number (of GiB)")
    return int(value)


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

_IMAGE_OPTIONS = (
    click.option(
        "--image", "--rescue_image_ref", "image", metavar="REF", required=True,
        help="The image to boot from: a path, or an http(s):// URL.",
    ),
    click.option("--sha256", metavar="HEX", callback=_digest, help="What the image must be."),
    click.option("--sha512", metavar="HEX", callback=_digest, help="What the image must be."),
    click.option(
        "--property", "properties", metavar="K=V", multiple=True, callback=_properties,
        help=f"What holds for the image, by Glance's names: {', '.join(_PROPERTIES)} (in GiB). "
        "May be repeated.",
    ),
    click.option(
        "--layout", type=click.Choice([layout.value for layout in Layout]), callback=_layout,
        help="classic: the rescue disk takes the place of the root, which follows as the second "
        "disk; stable: the disks keep their names, the rescue disk is added.  Else as the image "
        "says.",
    ),
)  # fmt: skip

_ACCESS_OPTIONS = (
    click.option("--password-stdin", is_flag=True, help="Read the password from stdin."),
    click.option(
        "--password-file", metavar="F", type=_FILE, help="Read the password from a file."
    ),
    click.option(
        "--password", metavar="PW",
        help="The password; others may see it in the list of processes. Without any, one is made "
        "and printed once.",
    ),
    click.option(
        "--user", metavar="NAME", help="Who gets it (else the image's os_admin_user, else root)."
    ),
    click.option(
        "--ssh-key", "ssh_keys", metavar="F", type=_FILE, multiple=True,
        help="A file of SSH public keys that may log in. May be repeated.",
    ),
)  # fmt: skip

_RESCUE_OPTIONS = (
    force_off_option("Do not ask the guest to shut down first."),
    click.option(
        "--shutdown-timeout", metavar="S", callback=_seconds,
        help="Seconds the guest gets to shut down before it is forced off (else 30).",
    ),
    wait_option,
    timeout_option("Seconds to wait until the rescue guest is ready (else 300)."),
    click.option(
        "--take-from-nova", is_flag=True,
        help="Rescue a guest even if it belongs to the nova-compute on this host.",
    ),
    click.option(
        "--dry-run", is_flag=True, help="Show what would happen; touch and create nothing."
    ),
)  # fmt: skip
