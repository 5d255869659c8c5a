"""Signals that end a command: each raises once in the main thread, so that the engine can undo."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rescue_virt.errors import Interrupted

# A lost terminal is no reason to leave a guest halfway.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SOON = 0.01


def listen() -> None:
    """From now on these signals raise `KeyboardInterrupt`, those ignored so far (nohup) do not."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise_once)
    signal.signal(signal.SIGALRM, _raise_once)


@contextmanager
def interrupted_as(message: str) -> Iterator[None]:
    """What it means if the work inside is interrupted, after the engine has dealt with it."""
    try:
        yield
    except KeyboardInterrupt as exc:
        raise Interrupted(f"interrupted; {message}") from exc


def stop_listening() -> None:
    """From now on these signals do nothing: what is done is done, and has to be told."""
    for number in (*_SIGNALS, signal.SIGALRM):
        if signal.getsignal(number) is _raise_once:
            signal.signal(number, signal.SIG_IGN)


def _raise_once(_number: int, frame: FrameType | None) -> None:
    if _would_be_lost(frame):
        signal.setitimer(signal.ITIMER_REAL, _SOON)
        return
    stop_listening()  # a second one would interrupt the undoing
    raise KeyboardInterrupt


def _would_be_lost(frame: FrameType | None) -> bool:
    """Python drops what is raised in `__del__`, and each of libvirt's objects has one."""
    while frame is not None:
        if frame.f_code.co_name in {"__del__", "hear_no_evil"}:
            return True
        frame = frame.f_back
    return False
