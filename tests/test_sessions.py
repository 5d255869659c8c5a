"""One directory per rescued guest, which says how far its rescue has come."""

import gc
import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rescue_virt import durable
from rescue_virt.errors import RescueVirtError, WrongState
from rescue_virt.model import (
    Attach,
    DomainXml,
    Draft,
    Evidence,
    GuestUuid,
    Originals,
    Owner,
    Phase,
    RescueDomain,
    RescueSession,
)
from rescue_virt.sessions import Sessions, boot_id
from rescue_virt.settings import Settings

UUID = GuestUuid("6f1f4f5e-9a0c-4f0a-8d0f-3f3e2b1c0d01")
DOMAIN = RescueDomain(xml=DomainXml("<domain/>"), late=("<disk/>", "<disk>é</disk>"))


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(Settings(state_dir=tmp_path / "state"))


def record(draft: Draft, guest: GuestUuid = UUID) -> RescueSession:
    return RescueSession(
        id=draft.session_id, guest=guest, name="web1", directory=draft.directory,
        phase=Phase.SWAPPING, owner=Owner.CLI, since=draft.since, image="i", digest=None,
        user="root", password_hash="$6$x", ssh_keys=("a", "b"), password=Evidence.INJECTED,
        was_running=True, persistent=True, attach=Attach.LATE, why_late="both are X",
        originals=Originals.PENDING, boot_id="b", console_log=draft.directory / "console.log",
        console_offset=7, chains={"vda": ("/a", "/b")}, bases={"/b": 12},
    )  # fmt: skip


def keep(sessions: Sessions, guest: GuestUuid = UUID) -> RescueSession:
    with sessions.draft(guest) as draft:
        (draft.directory / "seed.iso").touch()
        return sessions.keep(record(draft, guest), original="<domäne/>", rescue=DOMAIN)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_draft_vanishes_unless_it_is_kept(sessions: Sessions) -> None:
    with sessions.draft(UUID) as draft:
        (draft.directory / "base.img").touch()
        assert sessions.find(UUID) is None
        assert sessions.abandoned_drafts() == [UUID]
    assert not draft.directory.exists()
    with pytest.raises(ValueError, match="x"), sessions.draft(UUID) as draft:
        raise ValueError("x")
    assert not draft.directory.exists()


def test_a_kept_session_is_read_as_it_was_written(sessions: Sessions) -> None:
    session = keep(sessions)
    assert sessions.find(UUID) == session
    assert sessions.all() == [session]
    assert sessions.find_by_name("web1") == sessions.find_by_name(UUID) == session
    assert sessions.original(session) == "<domäne/>"
    assert sessions.rescue_domain(session) == DOMAIN
    assert sessions.abandoned_drafts() == []


def test_what_others_left_of_a_draft_is_not_in_the_next(sessions: Sessions) -> None:
    directory = sessions.directory(UUID)
    directory.mkdir(parents=True)
    (directory / "rescue.qcow2").touch()
    with sessions.draft(UUID) as draft:
        assert list(draft.directory.iterdir()) == []


def test_marking_changes_the_record_on_the_disk(sessions: Sessions) -> None:
    session = sessions.mark(keep(sessions), phase=Phase.ACTIVE, originals=Originals.ATTACHED)
    assert session.phase is Phase.ACTIVE
    assert sessions.find(UUID) == session


def test_qemu_s_user_passes_but_nobody_lists_or_reads(sessions: Sessions) -> None:
    os.umask(old := os.umask(0o077))
    for mask in (0o077, 0o000):
        os.umask(mask)
        try:
            session = keep(sessions)
        finally:
            os.umask(old)
        directory = session.directory
        assert [mode(d) for d in (directory, directory.parent, directory.parents[1])] == [0o711] * 3
        secrets = ["session.json", "original.xml", "rescue.json"]
        assert [mode(directory / name) for name in secrets] == [0o600] * 3
        sessions.forget(session)


def test_forgetting_removes_everything(sessions: Sessions) -> None:
    session = keep(sessions)
    sessions.forget(session)
    assert not session.directory.exists()
    assert sessions.find(UUID) is None
    assert sessions.all() == []


def test_the_record_goes_last(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    session = keep(sessions)
    names = [p.name for p in session.directory.iterdir() if p.name != "session.json"]
    for name in sorted(names, key=lambda name: name == "original.xml"):
        monkeypatch.setattr(Path, "unlink", failing_for(name))
        with pytest.raises(RescueVirtError, match="cannot be removed: busy"):
            sessions.forget(session)
        assert sessions.find(UUID) == session
        monkeypatch.undo()
    sessions.forget(session)


def failing_for(name: str) -> object:
    unlink = Path.unlink

    def fail(path: Path, missing_ok: bool = False) -> None:
        if path.name == name:
            raise OSError("busy")
        unlink(path, missing_ok)

    return fail


def test_there_are_no_sessions_before_the_first(sessions: Sessions) -> None:
    assert sessions.all() == []
    assert sessions.abandoned_drafts() == []
    assert sessions.find(UUID) is None
    assert sessions.find_by_name("web1") is None


def test_a_draft_is_dropped_and_a_session_is_not(sessions: Sessions) -> None:
    session = keep(sessions)
    sessions.drop_draft(UUID)
    assert sessions.find(UUID) == session
    (session.directory / "session.json").unlink()
    sessions.drop_draft(UUID)
    assert not session.directory.exists()
    sessions.drop_draft(UUID)


def test_a_file_among_the_sessions_is_not_one(sessions: Sessions) -> None:
    keep(sessions)
    (sessions.directory(UUID).parent / "README").touch()
    assert len(sessions.all()) == 1
    assert sessions.abandoned_drafts() == []


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"id": "x"}', "[]", '{"phase": "dancing"}', "\xff"],
    ids=["empty", "cut", "incomplete", "list", "unknown", "bytes"],
)
def test_a_record_that_cannot_be_read_says_what_to_do(sessions: Sessions, content: str) -> None:
    session = keep(sessions)
    path = session.directory / "session.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(RescueVirtError, match=r"unreadable record.*original.xml") as caught:
        sessions.find(UUID)
    assert "definition in libvirt is untouched" in str(caught.value)


def test_a_record_of_a_later_version_says_what_to_do(sessions: Sessions) -> None:
    path = keep(sessions).directory / "session.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new": 1}))
    with pytest.raises(RescueVirtError, match="unreadable record"):
        sessions.find(UUID)


def test_one_broken_record_does_not_keep_other_guests_in_rescue(sessions: Sessions) -> None:
    broken = GuestUuid("00000000-0000-4000-8000-000000000000")
    (keep(sessions, broken).directory / "session.json").write_text("{")
    session = keep(sessions)
    assert sessions.find_by_name(UUID) == session


def test_a_lock_is_free_again_afterwards(sessions: Sessions) -> None:
    for _ in range(2):
        with sessions.lock(UUID, "web1"):
            pass
    with pytest.raises(ValueError, match="x"), sessions.lock(UUID, "web1"):
        raise ValueError("x")
    with sessions.lock(UUID, "web1"), sessions.lock(GuestUuid("other"), "other"):
        pass


PROGRAM = """
import sys, time
from pathlib import Path
from rescue_virt.sessions import Sessions
from rescue_virt.settings import Settings
with Sessions(Settings(state_dir=Path(sys.argv[1]))).lock(sys.argv[2], "web1"):
    print("locked", flush=True)
    time.sleep(60)
"""


# oslo.concurrency leaves the lock file that it could not lock to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_commands_do_not_work_on_one_guest_and_a_killed_one_s_lock_is_free(
    sessions: Sessions, tmp_path: Path
) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "state"), UUID]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        started = time.monotonic()
        with (
            pytest.raises(WrongState, match="web1 is being worked on by another rescue-virt"),
            sessions.lock(UUID, "web1"),
        ):
            pass
        gc.collect()
        assert time.monotonic() - started < 5
        other.kill()
        other.wait()
    with sessions.lock(UUID, "web1"):
        pass


def test_a_record_is_the_old_one_or_the_new_one_whenever_the_writer_is_killed(
    sessions: Sessions,
) -> None:
    """Killed before every system call that changes a name or flushes, and after the last."""
    session = keep(sessions)
    seen = set()
    for number in range(6):
        child = os.fork()
        if child == 0:
            die_at(number)
            sessions.mark(session, phase=Phase.ACTIVE)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = sessions.find(UUID)
        assert found is not None
        seen.add((os.WIFSIGNALED(status), found.phase))
        assert found == replace(session, phase=found.phase)
        sessions.mark(session, phase=Phase.SWAPPING)
    assert seen == {(True, Phase.SWAPPING), (True, Phase.ACTIVE), (False, Phase.ACTIVE)}


def test_a_keep_that_is_killed_leaves_a_draft_or_a_whole_session(sessions: Sessions) -> None:
    seen = set()
    for number in range(12):
        with sessions.draft(UUID) as draft:
            child = os.fork()
            if child == 0:
                die_at(number)
                sessions.keep(record(draft), original="<o/>", rescue=DOMAIN)
                os._exit(0)
            os.waitpid(child, 0)
            found = sessions.find(UUID)
            seen.add(found is not None)
            if found:
                assert sessions.original(found) == "<o/>"
                assert sessions.rescue_domain(found) == DOMAIN
                sessions.forget(found)
    assert seen == {True, False}


def die_at(number: int) -> None:
    """Kill this process before its `number`th flush or rename."""
    count = -1

    def counted(function: object) -> object:
        def call(*args: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)  # type: ignore[operator]

        return call

    os.fsync = counted(os.fsync)  # type: ignore[assignment]
    os.rename = counted(os.rename)  # type: ignore[assignment]


def test_a_boot_of_the_host_has_a_name() -> None:
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36


# --- durable ---------------------------------------------------------------------------------


def test_a_file_is_written_with_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.with_name("file.new").write_text("left by a crash")
    durable.write(path, "é", mode=0o644)
    assert path.read_bytes() == "é".encode()
    assert mode(path) == 0o644
    durable.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    durable.write(path, "old")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.write(path, "new")
    assert path.read_text() == "old"


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(0o750)
    durable.make_directory(there / "a" / "b")
    assert [mode(there), mode(there / "a"), mode(there / "a" / "b")] == [0o750, 0o711, 0o711]


def test_a_modification_time_is_known_only_of_what_exists(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert durable.modified(str(path)) is None
    path.touch()
    os.utime(path, ns=(1, 5_000_000_001))
    assert durable.modified(str(path)) == 5_000_000_001
