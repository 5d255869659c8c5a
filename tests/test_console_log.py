"""What a serial log tells of a boot."""

from pathlib import Path

import pytest

from rescue_virt import console_log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "console.log"


PROMPTS = [
    b"\r\nrescue login: ",
    b"rescue login:",
    b"rescue login: \x1b[0m\x1b[?25h ",
    b"rescue login: \r\n",
    b"Debian GNU/Linux 12 rescue ttyS0\r\n\r\nrescue login: ",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_getty_s_prompt_shows_that_the_guest_is_up(log: Path, prompt: bytes) -> None:
    log.write_bytes(b"booting\r\n" + prompt)
    assert console_log.shows_login(log, 0)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Last login: Mon Jan  5 10:00:00 UTC 2026 on ttyS0\r\n",
        b"login: this is no prompt\r\n",
        b"[ OK ] Started systemd-logind.service - User Login Management.\r\n",
    ],
)
def test_other_lines_do_not(log: Path, line: bytes) -> None:
    log.write_bytes(line)
    assert not console_log.shows_login(log, 0)


@pytest.mark.parametrize(
    "more",
    [
        b"[   33.1] random: crng init done\r\n",
        b"root\r\nPassword: ",
        b"root\r\n\r\nroot@rescue:~# ",
    ],
    ids=["kernel message", "name typed", "logged in"],
)
def test_a_prompt_that_was_written_over_or_answered_was_a_prompt(log: Path, more: bytes) -> None:
    """`attach` comes after a person has logged in on the console, or cloud-init has reported."""
    log.write_bytes(b"\r\nrescue login: " + more)
    assert console_log.shows_login(log, 0)


def test_a_prompt_before_the_offset_or_before_this_boot_does_not_count(log: Path) -> None:
    log.write_bytes(b"web1 login: ")
    offset = console_log.size(log)
    assert not console_log.shows_login(log, offset)
    with log.open("ab") as file:
        file.write(b"\r\nrescue login: \r\n[ 0.0] Linux version 6.1.0\r\n")
    assert not console_log.shows_login(log, offset)
    with log.open("ab") as file:
        file.write(b"rescue login: ")
    assert console_log.shows_login(log, offset)


def test_a_log_that_is_not_there_yet_is_empty(log: Path) -> None:
    assert console_log.size(log) == 0
    assert console_log.read(log, 0) == b""
    assert not console_log.shows_login(log, 0)


def test_a_log_that_was_begun_anew_is_read_from_its_start(log: Path) -> None:
    log.write_bytes(b"new")
    assert console_log.read(log, 1000) == b"new"
    assert console_log.read(log, 1) == b"ew"


def test_only_the_end_of_a_long_log_is_read(log: Path) -> None:
    log.write_bytes(b"x" * 1000 + b"end")
    assert console_log.read(log, 0, limit=3) == b"end"
