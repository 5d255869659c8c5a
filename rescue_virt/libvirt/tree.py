"""Edits and prints an XML tree so that what was not touched stays as libvirt wrote it."""

from __future__ import annotations

import re

from lxml import etree

_STEP = "  "


def append(parent: etree._Element, child: etree._Element) -> None:
    insert(parent, len(parent), child)


def insert(parent: etree._Element, index: int, child: etree._Element) -> None:
    """Insert `child` on lines of its own; the text around it does not change."""
    depth = sum(1 for _ in parent.iterancestors())
    inner = "\n" + _STEP * (depth + 1)
    outer = "\n" + _STEP * depth
    etree.indent(child, _STEP, level=depth + 1)
    if not len(parent):
        parent.text = inner
    child.tail = inner if index < len(parent) else outer
    if 0 < len(parent) == index:
        parent[-1].tail = inner
    parent.insert(index, child)


def remove(parent: etree._Element, *children: str | etree._Element) -> None:
    """Remove children, or all those of a tag, with the line they stood on."""
    for child in children:
        for element in parent.findall(child) if isinstance(child, str) else [child]:
            previous = element.getprevious()
            if element.getnext() is None:
                _end_before(parent, previous, element.tail)
            parent.remove(element)


def _end_before(parent: etree._Element, previous: etree._Element | None, tail: str | None) -> None:
    """What now comes last is followed by what followed the removed element: the closing tag."""
    if previous is not None:
        previous.tail = tail
    else:
        parent.text = None


def serialize(element: etree._Element) -> str:
    """Print as libvirt does, so that what was not touched stays byte for byte.

    libvirt puts attributes in single quotes, escapes both kinds of quotes in text, and puts
    namespaces last; lxml does none of it.  What is in `<metadata>` libvirt prints as libxml2 does,
    which is how lxml prints.
    """
    text: str = etree.tostring(element, encoding="unicode", with_tail=False)
    before, opening, rest = text.partition("<metadata>")
    inside, closing, after = rest.partition("</metadata>")
    return f"{_requote(before)}{opening}{inside}{closing}{_requote(after)}\n"


def _requote(text: str) -> str:
    return re.sub(r"<[^<>]*>|[^<>]+", _requote_part, text)


def _requote_part(part: re.Match[str]) -> str:
    text = part.group()
    if not text.startswith("<"):
        return text.replace("'", "&apos;").replace('"', "&quot;")
    text = re.sub(r'="([^"]*)"', lambda m: "='" + m[1].replace("'", "&apos;") + "'", text)
    if text.startswith("<domain "):
        text = re.sub(r"^(<domain)((?: xmlns:\w+='[^']*')+)([^>]*)>$", r"\1\3\2>", text)
    return text
