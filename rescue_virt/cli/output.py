"""Results on stdout: aligned text, a table on terminals, or JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence

from rescue_virt.cli.messages import printable
from rescue_virt.cli.present import View

SCHEMA = "rescue-virt/v1"


def write(text: str) -> None:
    """Write text and a line end; that the reader has gone changes nothing of what was done."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(view: View) -> None:
    write(json.dumps({"schema": SCHEMA} | view, indent=2))


def fields(view: View) -> str:
    """One `key  value` per line."""
    width = max(map(len, view))
    return "\n".join(f"{_label(key):<{width}}  {_text(value)}" for key, value in view.items())


def table(views: Sequence[View], columns: Sequence[str]) -> str:
    """A heading, and one line per view."""
    heading = [column.replace("_", " ").upper() for column in columns]
    rows = [[_text(view[column]) for column in columns] for view in views]
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return _drawn(heading, rows)
    return _aligned([heading, *rows])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _drawn(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - only terminals wait for it
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(box=SIMPLE_HEAD)
    for name in heading:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console()
    with console.capture() as capture:
        console.print(drawn)
    return capture.get().rstrip("\n")


def _label(key: str) -> str:
    return key.replace("_", " ")


def _text(value: object) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
