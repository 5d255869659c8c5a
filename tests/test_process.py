"""Programs are started in one place, with limits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rescue_virt import process
from rescue_virt.errors import RescueVirtError
from rescue_virt.process import Limits, ProgramFailed


def test_what_a_program_writes_is_returned() -> None:
    assert process.run(["/bin/echo", "a b", "$HOME;"]) == "a b $HOME;\n"


def test_a_program_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy")
    assert sorted(process.run(["/usr/bin/env"]).splitlines()) == [
        "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    ]  # fmt: skip


def test_a_program_that_fails_is_told_by_its_last_line() -> None:
    with pytest.raises(ProgramFailed, match=r"^sh failed: two$") as caught:
        process.run(["/bin/sh", "-c", "echo one >&2; echo two >&2; exit 3"])
    assert (caught.value.code, caught.value.stderr) == (3, "one\ntwo\n")
    with pytest.raises(ProgramFailed, match=r"^false failed: exit code 1$"):
        process.run(["/bin/false"])
    assert isinstance(caught.value, RescueVirtError)


def test_an_exit_code_may_be_an_answer() -> None:
    assert process.run(["/bin/sh", "-c", "echo x; exit 3"], accept=(0, 3)) == "x\n"


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ProgramFailed, match="No such file"):
        process.run(["/no/such/program"])


@pytest.mark.parametrize(
    ("script", "limits"),
    [
        ("sleep 30", Limits(wall=1)),
        ("dd if=/dev/zero of=big bs=1M count=4", Limits(file_size=1 << 20)),
        ("dd if=/dev/zero of=/dev/null bs=512M count=1", Limits(address_space=128 << 20)),
    ],
    ids=["time", "file", "memory"],
)
def test_a_program_that_takes_too_much_is_ended(
    script: str, limits: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProgramFailed):
        process.run(["/bin/sh", "-c", f"exec {script}"], limits=limits)
    assert not (tmp_path / "big").exists() or (tmp_path / "big").stat().st_size <= 1 << 20


def test_a_process_becomes_another() -> None:
    script = "from rescue_virt import process; process.become(['/bin/echo', 'became'])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.stdout == "became\n"
    with pytest.raises(ProgramFailed, match="No such file or directory: /no/such"):
        process.become(["/no/such"])


def test_a_running_program_is_found_by_its_name_and_a_script_too() -> None:
    with subprocess.Popen(
        ["/bin/sh", "-c", "read x", "sh"], stdin=subprocess.PIPE, executable="/bin/sh"
    ) as shell:
        assert process.is_running("sh")
        assert shell.stdin is not None
        shell.stdin.close()
    assert not process.is_running("no-such-program-anywhere")


def test_a_process_that_ends_while_it_is_looked_at_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(_path: Path) -> bytes:
        raise ProcessLookupError(3, os.strerror(3))

    monkeypatch.setattr(Path, "read_bytes", gone)
    assert not process.is_running("sh")
