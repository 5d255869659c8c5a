"""What a person sees who types rescue-virt, with an engine that only remembers what it was told."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from pytest_mock import MockerFixture

from rescue_virt.cli import interrupts, main, output
from rescue_virt.cli.engine import Engine
from rescue_virt.cli.invocation import Invocation
from rescue_virt.errors import (
    BadRequest,
    NotFound,
    Refused,
    RescueVirtError,
    WayBackFailed,
    WrongState,
)
from rescue_virt.model import (
    Access,
    Attach,
    Evidence,
    GuestUuid,
    LiveState,
    Originals,
    Outcome,
    Owner,
    Phase,
    Ready,
    RescueDomain,
    RescuePlan,
    RescueRequest,
    RescueSession,
    RescueStatus,
    RunState,
)
from rescue_virt.rescue import Rescuer
from rescue_virt.settings import Settings

UUID = GuestUuid("4dea22b3-1d52-d8f3-2516-782e98ab3fa0")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2qWlWqvGyFw0Nv1BJnlqPqoIhdnKhDqJ8MRdhEfBVz me@laptop"
SESSION = RescueSession(
    id="5e551011",
    guest=UUID,
    name="web1",
    directory=Path("/var/lib/rescue-virt/sessions") / UUID,
    phase=Phase.ACTIVE,
    owner=Owner.CLI,
    since="2026-11-22T10:00:00+00:00",
    image="/srv/rescue.qcow2",
    digest="sha256:" + "ab" * 32,
    user="root",
    password_hash="$6$…",
    ssh_keys=(),
    password=Evidence.CONFIRMED,
    was_running=True,
    persistent=True,
    why_late=None,
    attach=Attach.BOOT,
    originals=Originals.ATTACHED,
    boot_id="b007",
    console_log=Path("/var/lib/rescue-virt/sessions/console.log"),
    console_offset=0,
)
LIVE = LiveState(
    run_state=RunState.RUNNING,
    persistent=True,
    session_id=SESSION.id,
    managed_save=False,
    chains={},
    block_jobs=(),
    agent=True,
)
STATUS = RescueStatus(
    session=SESSION,
    live=LIVE,
    access=Access(console="/dev/pts/7", addresses=("192.168.122.5", "10.0.2.15")),
    note="in rescue",
)


class FakeHost:
    found: LiveState | None = None

    def find(self, guest: str) -> tuple[GuestUuid, str]:
        if guest not in {"web1", "idle", UUID}:
            raise NotFound(f"no guest {guest} on {self.uri()}")
        return UUID, "idle" if guest == "idle" else "web1"

    def uri(self) -> str:
        return "qemu:///system"

    def look(self, _uuid: GuestUuid) -> LiveState | None:
        return self.found


@dataclasses.dataclass
class FakeRescuer:
    """Does nothing; `error` is what the next command meets."""

    report: Callable[[str], None] = print
    host: FakeHost = dataclasses.field(default_factory=FakeHost)
    calls: list[Any] = dataclasses.field(default_factory=list)
    outcome: Outcome = dataclasses.field(
        default_factory=lambda: Outcome(session=SESSION, ready=Ready.AGENT)
    )
    statuses: list[RescueStatus] = dataclasses.field(default_factory=lambda: [STATUS])
    error: BaseException | None = None
    status_error: RescueVirtError | None = None
    previewed: tuple[RescuePlan, RescueDomain] | None = None

    def enter(self, request: RescueRequest) -> Outcome:
        self._called(request)
        self.report("stopping the guest")
        return self.outcome

    def preview(self, request: RescueRequest) -> tuple[RescuePlan, RescueDomain]:
        self._called(request)
        assert self.previewed
        return self.previewed

    def attach(self, guest: str, timeout: float) -> Outcome:
        self._called((guest, timeout))
        return self.outcome

    def resume(self, guest: str, *, wait: bool, timeout: float) -> Outcome:
        self._called((guest, wait, timeout))
        return self.outcome

    def leave(self, guest: str, *, force_off: bool, timeout: float) -> RescueSession:
        self._called((guest, force_off, timeout))
        return self.outcome.session

    def status(self, guest: str) -> RescueStatus:
        if self.status_error:
            raise self.status_error
        for status in self.statuses:
            if guest in {status.session.name, status.session.guest}:
                return status
        _, name = self.host.find(guest)
        raise WrongState(f"guest {name} is not in rescue: see rescue-virt list")

    def status_of_all(self) -> list[RescueStatus]:
        self._called(None)
        return self.statuses

    def _called(self, call: Any) -> None:
        self.calls.append(call)
        if self.error:
            raise self.error


Run = Callable[..., Result]


@contextmanager
def typing_to(rescuer: FakeRescuer, directory: Path) -> Iterator[Run]:
    """The program as a function of its arguments, with `rescuer` behind it."""

    @contextmanager
    def connect(report: Callable[[str], None]) -> Iterator[Rescuer]:
        rescuer.report = report
        yield cast(Rescuer, rescuer)

    def run(*argv: str, stdin: str | bytes | None = None) -> Result:
        settings = Settings(state_dir=directory, shutdown_timeout=11, ready_timeout=22)
        invocation = Invocation(make_engine=lambda _: Engine(settings=settings, connect=connect))
        return CliRunner().invoke(
            main.cli, argv, obj=invocation, input=stdin, prog_name="rescue-virt"
        )

    logger = logging.getLogger("rescue_virt")
    before, level = list(logger.handlers), logger.level
    yield run
    logger.handlers, logger.level = before, level


def request_of(rescuer: FakeRescuer) -> RescueRequest:
    request = rescuer.calls[-1]
    assert isinstance(request, RescueRequest)
    return request


def fields(text: str) -> dict[str, str]:
    """What an aligned `key  value` block says."""
    pairs = (line.split("  ", 1) for line in text.split("\n\n", maxsplit=1)[0].splitlines())
    return {key.strip(): value.strip() for key, value in pairs}


@pytest.fixture
def rescuer() -> FakeRescuer:
    return FakeRescuer()


@pytest.fixture
def run(rescuer: FakeRescuer, tmp_path: Path) -> Iterator[Run]:
    with typing_to(rescuer, tmp_path / "state") as run:
        yield run


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RescueVirtError("guest web1: no"), 1),
        (BadRequest("guest web1: no"), 2),
        (NotFound("guest web1: no"), 3),
        (WrongState("guest web1: no"), 4),
        (Refused("guest web1: no"), 5),
    ],
)
def test_an_error_is_one_sentence_on_stderr_and_its_own_exit_code(
    run: Run, rescuer: FakeRescuer, error: RescueVirtError, code: int
) -> None:
    rescuer.error = error
    result = run("rescue", "web1", "--image", "x")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "rescue-virt: guest web1: no\n"


def test_a_failed_way_back_prints_what_to_type_ready_to_paste(
    run: Run, rescuer: FakeRescuer
) -> None:
    rescuer.error = WayBackFailed(
        "guest web1 has a block job",
        commands=("virsh blockjob web1 vda", "cp a b", "rescue-virt unrescue web1"),
    )
    result = run("unrescue", "web1", "-c", "qemu:///session", "--config", "/etc/x.conf")
    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr == (
        "rescue-virt: guest web1 has a block job\n"
        "    virsh -c qemu:///session blockjob web1 vda\n"
        "    cp a b\n"
        "    rescue-virt -c qemu:///session --config /etc/x.conf unrescue web1\n"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("rescue", "web1", "--image", "x"), "interrupted; guest web1 is as it was"),
        (
            ("unrescue", "web1"),
            "interrupted; to go on where it ended: rescue-virt unrescue web1",
        ),
        (("attach", "web1"), "interrupted; guest web1 stays in rescue"),
        (("resume", "web1"), "interrupted; guest web1 stays in rescue"),
        (("list",), "interrupted"),
    ],
)
def test_an_interrupted_command_says_what_that_means_and_exits_130(
    run: Run, rescuer: FakeRescuer, argv: tuple[str, ...], message: str
) -> None:
    rescuer.error = KeyboardInterrupt()
    result = run(*argv)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == f"rescue-virt: {message}\n"


def test_an_unexpected_error_is_one_line_that_says_it_is_a_bug(
    run: Run, rescuer: FakeRescuer
) -> None:
    rescuer.error = KeyError("two\nlines")
    result = run("list")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("rescue-virt: KeyError: ")
    assert result.stderr.endswith("this is a bug; run again with -vv\n")


@pytest.mark.parametrize("argv", [("-vv", "list"), ("-v", "list", "-v"), ("list", "-vv")])
def test_only_with_vv_an_error_shows_where_it_came_from(
    run: Run, rescuer: FakeRescuer, argv: tuple[str, ...]
) -> None:
    rescuer.error = KeyError("x")
    assert "Traceback (most recent call last)" in run(*argv).stderr


def test_an_error_of_the_operating_system_names_the_file(run: Run, rescuer: FakeRescuer) -> None:
    rescuer.error = PermissionError(13, "Permission denied", "/var/lib/rescue-virt")
    result = run("list")
    assert result.stderr == "rescue-virt: /var/lib/rescue-virt: Permission denied\n"
    rescuer.error = OSError("odd")
    assert run("list").stderr == "rescue-virt: odd\n"


def test_control_codes_in_an_error_do_not_reach_the_terminal(
    run: Run, rescuer: FakeRescuer
) -> None:
    rescuer.error = RescueVirtError("the guest agent says \x1b]0;hi\x07")
    assert run("list").stderr == "rescue-virt: the guest agent says ?]0;hi?\n"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [((), {"warned"}), (("-v",), {"warned", "did"}), (("-vv",), {"warned", "did", "looked"})],
)
def test_the_log_goes_to_stderr_as_far_as_it_was_asked_for(
    run: Run, rescuer: FakeRescuer, mocker: MockerFixture, flags: tuple[str, ...], shown: set[str]
) -> None:
    def leave(*_: object, **__: object) -> RescueSession:
        log = logging.getLogger("rescue_virt.rescue")
        log.debug("looked")
        log.info("did")
        log.warning("warned")
        return SESSION

    mocker.patch.object(rescuer, "leave", leave)
    result = run("unrescue", "web1", *flags)
    assert {line.split(": ")[-1] for line in result.stderr.splitlines()} == shown


# --- before and after the command --------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["-c", "test:///x", "-o", "json", "--config", "f", "list"],
        ["list", "--connect", "test:///x", "--output", "json", "--config", "f"],
        [
            "-c",
            "test:///y",
            "-o",
            "table",
            "list",
            "-c",
            "test:///x",
            "-o",
            "json",
            "--config",
            "f",
        ],
    ],
)
def test_shared_options_are_taken_before_and_after_the_command(argv: list[str]) -> None:
    seen = []

    def make_engine(invocation: Invocation) -> Engine:
        seen.append((invocation.uri, invocation.output, invocation.config))
        raise BadRequest("enough")

    CliRunner().invoke(main.cli, argv, obj=Invocation(make_engine=make_engine))
    assert seen == [("test:///x", "json", Path("f"))]


def test_an_engine_is_made_from_the_settings_and_connects_where_it_was_told(
    tmp_path: Path,
) -> None:
    config = tmp_path / "x.conf"
    config.write_text(f"[rescue]\nstate_dir = {tmp_path}/state\n")
    engine = Engine.load(config, "qemu+ssh://elsewhere/system")
    assert engine.settings.state_dir == tmp_path / "state"
    with pytest.raises(Refused, match="another host"), engine.connect(print):
        pass


@pytest.fixture
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_once_and_the_next_ones_do_nothing(first: signal.Signals) -> None:
    interrupts.listen()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(first)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("_handlers")
def test_a_signal_is_not_lost_where_python_drops_what_is_raised() -> None:
    class Domain:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    interrupts.listen()
    domain = Domain()
    del domain
    with pytest.raises(KeyboardInterrupt):
        time.sleep(10)


@pytest.mark.usefixtures("_handlers")
def test_a_signal_that_was_ignored_from_the_start_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.listen()
    signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_reader_that_has_gone_changes_nothing(mocker: MockerFixture) -> None:
    program = "from rescue_virt.cli.output import write; write('x' * 100000)"
    ends = os.pipe()
    os.close(ends[0])
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=ends[1], stderr=subprocess.PIPE, check=False
    )
    os.close(ends[1])
    assert (done.returncode, done.stderr) == (0, b"")
    mocker.patch("builtins.print", side_effect=BrokenPipeError)
    duplicate = mocker.patch("os.dup2")
    mocker.patch.object(sys, "stdout", mocker.Mock(fileno=lambda: 1))
    output.write("x")
    assert duplicate.call_args.args[1] == 1
