"""Edits an XML tree so that what is printed stays indented the way libvirt indents it."""

from __future__ import annotations

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
