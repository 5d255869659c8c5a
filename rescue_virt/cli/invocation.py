"""What is said once for any command: which libvirt, which settings, how results are written."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rescue_virt.cli import messages

if TYPE_CHECKING:
    from rescue_virt.cli.engine import Engine


def _engine(invocation: Invocation) -> Engine:
    # Not earlier: `--help` and `--version` do not wait for libvirt.
    from rescue_virt.cli.engine import Engine  # noqa: PLC0415

    return Engine.load(invocation.config, invocation.uri)


@dataclass(slots=True, kw_only=True)
class Invocation:
    """Filled in as the options are parsed, before and after the command.  `make_engine` is what
    tests replace."""

    uri: str | None = None
    output: str = "table"
    config: Path | None = None
    verbosity: int = 0
    make_engine: Callable[[Invocation], Engine] = _engine

    @property
    def as_json(self) -> bool:
        return self.output == "json"

    def engine(self) -> Engine:
        """The way to everything that takes long to import."""
        messages.show_log(self.verbosity)
        return self.make_engine(self)

    def typed(self, command: str) -> str:
        """`command` as it has to be typed to mean the same libvirt and settings as this one."""
        program, _, rest = command.partition(" ")
        flags: list[str] = []
        if self.uri and program in {"rescue-virt", "virsh"}:
            flags += ["-c", self.uri]
        if self.config and program == "rescue-virt":
            flags += ["--config", str(self.config.absolute())]
        return " ".join([program, *(shlex.quote(flag) for flag in flags), rest])


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that are taken before the command as well as after it."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _note(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    invocation = context.ensure_object(Invocation)
    if value is not None and parameter.name:
        setattr(invocation, parameter.name, value)


def _count(context: click.Context, _parameter: click.Parameter, value: int) -> None:
    context.ensure_object(Invocation).verbosity += value


_OPTIONS = (
    click.option(
        "-c", "--connect", "uri", metavar="URI", expose_value=False, callback=_note,
        help="The libvirt to talk to, as in virsh (else LIBVIRT_DEFAULT_URI or qemu:///system).",
    ),
    click.option(
        "-o", "--output", type=click.Choice(["table", "json"]), expose_value=False, callback=_note,
        help="How results are written to stdout (else table).",
    ),
    click.option(
        "--config", metavar="FILE", type=click.Path(path_type=Path), expose_value=False,
        callback=_note, help="The settings (else /etc/rescue-virt/rescue-virt.conf).",
    ),
    click.option(
        "-v", "--verbose", count=True, expose_value=False, callback=_count,
        help="Log effects to stderr; -vv logs everything.",
    ),
)  # fmt: skip
