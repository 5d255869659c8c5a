"""What `rescue` asks of the engine, and what it says afterwards."""

import dataclasses
import json
from pathlib import Path

import pytest
from test_cli import (
    KEY,
    SESSION,
    STATUS,
    UUID,
    FakeRescuer,
    Run,
    fields,
    request_of,
    rescuer,
    run,
)

from rescue_virt.errors import (
    RescueVirtError,
)
from rescue_virt.model import (
    Access,
    ImageProperties,
    Layout,
    Originals,
    Outcome,
    Ready,
)

__all__ = ["rescuer", "run"]

# --- rescue ------------------------------------------------------------------------------------


def test_rescue_says_how_the_guest_stands_and_what_was_seen(run: Run) -> None:
    result = run("rescue", "web1", "--image", "/srv/rescue.qcow2")
    assert result.exit_code == 0
    said = fields(result.stdout)
    assert said["guest"] == "web1"
    assert said["image"] == "/srv/rescue.qcow2"
    assert said["digest"] == SESSION.digest
    assert said["phase"] == "active"
    assert said["password"] == "confirmed"
    assert said["original disks"] == "attached"
    assert said["ready"] == "guest agent"
    assert said["addresses"] == "192.168.122.5, 10.0.2.15"


def test_the_last_lines_of_rescue_are_the_commands_to_log_in_and_to_end_it(run: Run) -> None:
    result = run("rescue", "web1", "--image", "x")
    assert result.stdout.splitlines()[-6:] == [
        "to log in:",
        "  rescue-virt console web1",
        "  ssh root@192.168.122.5",
        "  ssh root@10.0.2.15",
        "to end it:",
        "  rescue-virt unrescue web1",
    ]


def test_the_commands_to_type_name_the_connection_and_settings_that_were_given(
    run: Run, tmp_path: Path
) -> None:
    result = run(
        "-c", "qemu:///session", "rescue", "web1", "--image", "x", "--config", f"{tmp_path}/a b"
    )
    flags = f"-c qemu:///session --config '{tmp_path}/a b'"
    assert f"  rescue-virt {flags} console web1\n" in result.stdout
    assert result.stdout.endswith(f"  rescue-virt {flags} unrescue web1\n")


def test_what_a_guest_reports_as_its_address_is_neither_a_command_nor_a_control_code(
    run: Run, rescuer: FakeRescuer
) -> None:
    access = Access(console=None, addresses=("1.2.3.4;reboot", "\x1b[2J"))
    rescuer.statuses = [dataclasses.replace(STATUS, access=access)]
    result = run("rescue", "web1", "--image", "x", "--no-wait")
    assert "ssh 'root@1.2.3.4;reboot'\n" in result.stdout
    assert "\x1b" not in result.stdout


def test_steps_go_to_stderr_with_their_seconds(run: Run) -> None:
    result = run("rescue", "web1", "--image", "x")
    assert result.stderr == "[  0.0 s] stopping the guest\n"


def test_a_generated_password_is_printed_exactly_once(run: Run, rescuer: FakeRescuer) -> None:
    result = run("rescue", "web1", "--image", "x")
    password = request_of(rescuer).credentials.password.reveal()
    assert len(password) == 20
    assert result.output.count(password) == 1
    assert fields(result.stdout)["generated password"] == password


@pytest.mark.parametrize("how", ["argument", "stdin", "file"])
@pytest.mark.parametrize("format_", ["table", "json"])
def test_a_given_password_is_never_printed(
    run: Run, rescuer: FakeRescuer, tmp_path: Path, how: str, format_: str
) -> None:
    path = tmp_path / "password"
    path.write_text(" s3cret! \n")
    options = {
        "argument": ["--password", " s3cret! "],
        "stdin": ["--password-stdin"],
        "file": ["--password-file", str(path)],
    }
    result = run(
        "-o", format_, "rescue", "web1", "--image", "x", *options[how], stdin=" s3cret! \n"
    )
    assert result.exit_code == 0
    assert request_of(rescuer).credentials.password.reveal() == " s3cret! "
    assert "s3cret" not in result.output
    assert "generated" not in result.output


@pytest.mark.parametrize("stdin", [b"", b"\n", b"a\nb\n", b"a\r\n", b"\xff\n"])
def test_a_password_that_no_account_can_have_is_refused_before_anything(
    run: Run, rescuer: FakeRescuer, stdin: bytes
) -> None:
    result = run("rescue", "web1", "--image", "x", "--password-stdin", stdin=stdin)
    assert result.exit_code == 2
    assert result.stderr.startswith("rescue-virt: the password ")
    assert rescuer.calls == []


def test_an_empty_password_is_not_the_same_as_none(run: Run) -> None:
    result = run("rescue", "web1", "--image", "x", "--password", "")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the password is empty" in result.stderr


def test_two_ways_to_give_the_password_are_one_too_many(run: Run) -> None:
    result = run("rescue", "web1", "--image", "x", "--password", "a", "--password-stdin")
    assert result.exit_code == 2
    assert "give one of --password, --password-file and --password-stdin" in result.stderr


def test_the_image_is_described_to_the_engine_as_it_was_typed(
    run: Run, rescuer: FakeRescuer
) -> None:
    run(
        "rescue", "web1", "--rescue_image_ref", "http://host/x.img", "--layout", "stable",
        "--sha256", "AB" * 32, "--sha512", "cd" * 64,
        "--property", "hw_rescue_bus=scsi", "--property", "min_disk=20",
    )  # fmt: skip
    image = request_of(rescuer).image
    assert image.location == "http://host/x.img"
    assert [str(digest) for digest in image.digests] == [
        "sha256:" + "ab" * 32,
        "sha512:" + "cd" * 64,
    ]
    assert image.properties == ImageProperties(hw_rescue_bus="scsi", min_disk=20)
    assert request_of(rescuer).options.layout is Layout.STABLE


def test_timeouts_come_from_the_settings_unless_given(run: Run, rescuer: FakeRescuer) -> None:
    run("rescue", "web1", "--image", "x")
    options = request_of(rescuer).options
    assert (options.shutdown_timeout, options.ready_timeout, options.wait) == (11, 22, True)
    assert (options.force_off, options.take_from_nova, options.layout) == (False, False, None)
    run(
        "rescue", "web1", "--image", "x", "--shutdown-timeout", "0", "--timeout", "1.5",
        "--no-wait", "--force-off", "--take-from-nova",
    )  # fmt: skip
    options = request_of(rescuer).options
    assert (options.shutdown_timeout, options.ready_timeout, options.wait) == (0, 1.5, False)
    assert (options.force_off, options.take_from_nova) == (True, True)


@pytest.mark.parametrize(
    ("argv", "user"),
    [
        ([], "root"),
        (["--property", "os_admin_user=debian"], "debian"),
        (["--property", "os_admin_user=debian", "--user", "me"], "me"),
    ],
)
def test_the_user_is_the_one_given_else_the_images_else_root(
    run: Run, rescuer: FakeRescuer, argv: list[str], user: str
) -> None:
    run("rescue", "web1", "--image", "x", *argv)
    assert request_of(rescuer).credentials.user == user


def test_ssh_keys_are_read_from_files_without_their_comments(
    run: Run, rescuer: FakeRescuer, tmp_path: Path
) -> None:
    one, two = tmp_path / "one.pub", tmp_path / "two.pub"
    one.write_text(f"# mine\n\n{KEY}\n  {KEY}-2\n")
    two.write_text(f"{KEY}-3")
    result = run("rescue", "web1", "--image", "x", "--ssh-key", str(one), "--ssh-key", str(two))
    assert result.exit_code == 0
    assert request_of(rescuer).credentials.ssh_keys == (KEY, f"{KEY}-2", f"{KEY}-3")


@pytest.mark.parametrize("content", ["", "# nothing\n", "-----BEGIN OPENSSH PRIVATE KEY-----\n"])
def test_a_file_without_a_public_key_is_named(run: Run, tmp_path: Path, content: str) -> None:
    path = tmp_path / "id"
    path.write_text(content)
    result = run("rescue", "web1", "--image", "x", "--ssh-key", str(path))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"rescue-virt: {path}")
    assert "give a .pub file" in result.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--property", "hw_rescue_buss=ide"], "hw_rescue_device, hw_rescue_bus, hw_disk_bus"),
        (["--property", "hw_rescue_bus="], "write hw_rescue_bus=VALUE"),
        (["--property", "min_disk=2.5"], "not a whole number"),
        (["--sha256", "abc"], "64 hexadecimal digits"),
        (["--sha512", "g" * 128], "128 hexadecimal digits"),
        (["--timeout", "soon"], "not a number of seconds"),
        (["--timeout", "nan"], "not a number of seconds"),
        (["--shutdown-timeout", "-1"], "not a number of seconds"),
        (["--layout", "odd"], "'classic', 'stable'"),
        (["--ssh-key", "/nonexistent"], "does not exist"),
    ],
)
def test_an_option_that_makes_no_sense_is_a_usage_error(
    run: Run, rescuer: FakeRescuer, argv: list[str], message: str
) -> None:
    result = run("rescue", "web1", "--image", "x", *argv)
    assert (result.exit_code, result.stdout, rescuer.calls) == (2, "", [])
    assert message in " ".join(result.stderr.split())


def test_an_image_must_be_named(run: Run) -> None:
    result = run("rescue", "web1")
    assert result.exit_code == 2
    assert "--image" in result.stderr


def test_a_rescue_that_is_not_ready_in_time_is_told_like_any_other_and_exits_8(
    run: Run, rescuer: FakeRescuer
) -> None:
    rescuer.outcome = Outcome(session=SESSION, problem="guest web1 was not ready within 22 s")
    result = run("rescue", "web1", "--image", "x")
    assert result.exit_code == 8
    assert result.stdout.endswith("  rescue-virt unrescue web1\n")
    assert fields(result.stdout)["ready"] == "-"
    assert result.stderr.endswith("rescue-virt: guest web1 was not ready within 22 s\n")


def test_disks_that_could_not_be_attached_exit_8_too(run: Run, rescuer: FakeRescuer) -> None:
    pending = dataclasses.replace(SESSION, originals=Originals.PENDING)
    rescuer.outcome = Outcome(session=pending, ready=Ready.LOGIN, problem="no slot is free")
    rescuer.statuses = [dataclasses.replace(STATUS, session=pending, note="attach them")]
    result = run("rescue", "web1", "--image", "x")
    assert result.exit_code == 8
    assert fields(result.stdout)["original disks"] == "pending"
    assert fields(result.stdout)["note"] == "attach them"


def test_a_rescue_that_was_not_waited_for_is_fine(run: Run, rescuer: FakeRescuer) -> None:
    rescuer.outcome = Outcome(session=SESSION)
    assert run("rescue", "web1", "--image", "x", "--no-wait").exit_code == 0


def test_the_password_is_printed_even_if_the_guest_cannot_be_looked_at_afterwards(
    run: Run, rescuer: FakeRescuer
) -> None:
    rescuer.status_error = RescueVirtError("libvirtd has gone")
    result = run("rescue", "web1", "--image", "x")
    assert result.exit_code == 0
    assert request_of(rescuer).credentials.password.reveal() in result.stdout
    assert fields(result.stdout)["note"] == "libvirtd has gone"
    assert result.stdout.endswith("  rescue-virt unrescue web1\n")


def test_rescue_as_json_is_one_object_with_stable_keys(run: Run, rescuer: FakeRescuer) -> None:
    result = run("rescue", "web1", "--image", "x", "-o", "json")
    told = json.loads(result.stdout)
    assert told.pop("generated_password") == request_of(rescuer).credentials.password.reveal()
    assert told == {
        "schema": "rescue-virt/v1",
        "guest": "web1",
        "uuid": UUID,
        "phase": "active",
        "owner": "cli",
        "image": "/srv/rescue.qcow2",
        "digest": SESSION.digest,
        "since": SESSION.since,
        "user": "root",
        "password": "confirmed",
        "original_disks": "attached",
        "state": "running",
        "agent": True,
        "console": "/dev/pts/7",
        "addresses": ["192.168.122.5", "10.0.2.15"],
        "note": "in rescue",
        "ready": "guest agent",
        "problem": None,
        "commands": {
            "log_in": ["rescue-virt console web1", "ssh root@192.168.122.5", "ssh root@10.0.2.15"],
            "end": "rescue-virt unrescue web1",
        },
    }
