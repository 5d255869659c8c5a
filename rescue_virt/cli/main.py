"""The program `rescue-virt`."""

from __future__ import annotations

from typing import Any

import click

from rescue_virt import __version__
from rescue_virt.cli import entering, failures, interrupts, looking, recovering, staying
from rescue_virt.cli.invocation import Invocation, shared_options

_EXIT_CODES = """\b
Exit codes:
    0  done
    1  failed and rolled back, the guest is as before
    2  usage
    3  no such guest or image
    4  wrong state
    5  refused before anything was touched
    6  failed, and the way back failed too: what to do by hand is printed
    7  image could not be had, did not verify, or is unsafe
    8  not ready or not stopped in time (it is left in rescue)
  130  interrupted, rolled back
"""


class _Commands(click.Group):
    """Lists its commands in the order in which a person needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        with failures.reported(ctx.ensure_object(Invocation)):
            return super().invoke(ctx)


@click.group(
    cls=_Commands,
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@shared_options
@click.version_option(__version__, prog_name="rescue-virt", message="%(prog)s %(version)s")
def cli() -> None:
    """Boot a broken libvirt guest once from another image, repair it, and give it back."""


for _command in (
    entering.rescue,
    staying.unrescue,
    looking.status,
    looking.list_all,
    looking.console,
    staying.attach,
    staying.resume,
    entering.xml,
    recovering.recover,
):
    cli.add_command(_command)


def main() -> None:
    interrupts.listen()
    cli(prog_name="rescue-virt")
