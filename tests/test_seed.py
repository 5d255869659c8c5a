"""The seed says exactly what cloud-init needs, and no secret."""

import base64
import json
import os
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from pycdlib import PyCdlib

from rescue_virt.errors import BadRequest
from rescue_virt.images import seed
from rescue_virt.images.label import volume_label
from rescue_virt.secret import Secret

UUID = "6f1f4f5e-9a0c-4f0a-8d0f-3f3e2b1c0d9e"
HASH = "$6$sdVBgcgDUgQLvIAF$" + "a" * 86
BODY = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + b"k" * 32).decode()
KEY = f'ssh-ed25519 {BODY} "Zoë": #1'


def read_iso(image: bytes) -> dict[str, str]:
    """Every file by its Joliet path, which must have the same content by its Rock Ridge path."""
    iso = PyCdlib()
    iso.open_fp(BytesIO(image))
    found = {}
    for directory, _, names in iso.walk(joliet_path="/"):
        for name in names:
            path = f"{directory.rstrip('/')}/{name}"
            joliet, rock_ridge = BytesIO(), BytesIO()
            iso.get_file_from_iso_fp(joliet, joliet_path=path)
            iso.get_file_from_iso_fp(rock_ridge, rr_path=path)
            assert joliet.getvalue() == rock_ridge.getvalue()
            found[path] = joliet.getvalue().decode()
    iso.close()
    return found


def build(user: str = "root", keys: tuple[str, ...] = (KEY,), guest: str = "web 1") -> bytes:
    return seed.build(uuid=UUID, guest=guest, user=user, hashed=HASH, ssh_keys=keys)


def user_data(user: str = "root", keys: tuple[str, ...] = (KEY,)) -> Any:
    return yaml.safe_load(read_iso(build(user, keys))["/openstack/latest/user_data"])


def test_the_drive_has_the_label_that_cloud_init_looks_for(tmp_path: Path) -> None:
    (tmp_path / "seed.iso").write_bytes(build())
    assert volume_label(tmp_path / "seed.iso") == "config-2"
    blkid = ["/usr/sbin/blkid", "-p", "-o", "value", "-s", "LABEL", str(tmp_path / "seed.iso")]
    assert subprocess.check_output(blkid, text=True).strip() == "config-2"


def test_both_versions_hold_the_same_files() -> None:
    files = read_iso(build())
    latest = {p.rpartition("/")[2]: c for p, c in files.items() if "/latest/" in p}
    dated = {p.rpartition("/")[2]: c for p, c in files.items() if "/2018-08-27/" in p}
    assert latest == dated
    assert set(latest) == {"meta_data.json", "user_data", "vendor_data.json"}
    assert json.loads(latest["vendor_data.json"]) == {}


def test_the_meta_data_names_this_session_and_the_guest() -> None:
    meta_data = json.loads(read_iso(build())["/openstack/latest/meta_data.json"])
    assert meta_data == {
        "uuid": UUID,
        "hostname": "web-1",
        "name": "web 1",
        "public_keys": {"key-0": KEY},
    }


@pytest.mark.parametrize(
    ("guest", "hostname"),
    [("Web_01.lan", "web-01-lan"), ("ж", "rescue"), ("-a-", "a"), ("x" * 80, "x" * 63)],
)
def test_the_host_name_is_one_that_a_host_can_have(guest: str, hostname: str) -> None:
    meta_data = json.loads(read_iso(build(guest=guest))["/openstack/latest/meta_data.json"])
    assert (meta_data["hostname"], meta_data["name"]) == (hostname, guest)


def test_the_user_data_sets_the_hash_and_opens_ssh_for_root() -> None:
    assert read_iso(build())["/openstack/latest/user_data"].startswith("#cloud-config\n")
    assert user_data() == {
        "disable_root": False,
        "ssh_pwauth": True,
        "chpasswd": {"expire": False, "list": f"root:{HASH}\n"},
        "ssh_authorized_keys": [KEY],
        "write_files": [
            {
                "path": "/etc/ssh/sshd_config.d/00-rescue-virt.conf",
                "content": "PermitRootLogin yes\n",
            }
        ],
    }


def test_another_account_gets_password_and_keys_and_the_default_account_stays() -> None:
    found = user_data("rescue")
    assert found["chpasswd"]["list"] == f"rescue:{HASH}\n"
    sudo = "ALL=(ALL) NOPASSWD:ALL"
    account = {"name": "rescue", "sudo": sudo, "ssh_authorized_keys": [KEY]}
    assert found["users"] == ["default", account]


def test_no_keys_are_an_empty_list() -> None:
    assert user_data(keys=())["ssh_authorized_keys"] == []


def test_what_is_no_hash_never_gets_onto_the_drive() -> None:
    for text in ("hunter2", "$y$j9T$x$y", f"{HASH}\nroot:x"):
        with pytest.raises(ValueError, match="not a"):
            seed.build(uuid=UUID, guest="g", user="root", hashed=text)


def test_the_hash_is_the_one_that_openssl_makes() -> None:
    hashed = seed.password_hash(Secret("hünter 2"))
    assert hashed.startswith("$6$")
    salt = hashed.split("$")[-2]
    argv = ["openssl", "passwd", "-6", "-salt", salt, "-stdin"]
    expected = subprocess.check_output(argv, input="hünter 2\n", text=True).strip()
    assert hashed.replace("rounds=5000$", "") == expected


def test_a_real_hash_and_no_plaintext_is_on_the_drive() -> None:
    password = seed.generate_password()
    hashed = seed.password_hash(password)
    image = seed.build(uuid=UUID, guest="g", user="root", hashed=hashed)
    assert hashed.encode() in image
    assert password.reveal().encode() not in image


def test_two_hashes_of_one_password_differ() -> None:
    assert seed.password_hash(Secret("x")) != seed.password_hash(Secret("x"))


def test_generated_passwords_are_long_typable_and_different() -> None:
    made = {seed.generate_password().reveal() for _ in range(200)}
    assert len(made) == 200
    assert all(len(text) == 20 and text.isalnum() and text.isascii() for text in made)
    assert not set("".join(made)) & set("IlO01")


@pytest.mark.parametrize("text", ["", "a\nroot:x", "a\rb", "a\0b", "\udc80", "x" * 513, "ü" * 257])
def test_an_impossible_password_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(BadRequest, match="the password ") as caught:
        seed.check_password(text)
    assert not text or text not in str(caught.value)


@given(st.text(st.sampled_from("aZ0 ü🔑$:'{}#"), min_size=1, max_size=99))
def test_any_other_password_is_taken_as_it_is(text: str) -> None:
    assert seed.check_password(text).reveal() == text


@pytest.mark.parametrize("name", ["root", "_x", "A.b-c_9", "a" * 32])
def test_a_possible_user_is_taken(name: str) -> None:
    assert seed.check_user(name) == name


@pytest.mark.parametrize("name", ["", "9a", "-a", "a:b", "a b", "root\n", "ü", "a" * 33, "$x"])
def test_an_impossible_user_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="not the name of an account"):
        seed.check_user(name)


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_what_ssh_keygen_makes_is_a_key(tmp_path: Path, kind: str) -> None:
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "me@host", "-f", str(tmp_path / "k")]
    subprocess.run(argv, check=True)
    line = (tmp_path / "k.pub").read_text()
    assert seed.check_ssh_key(line) == line.strip()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 ????",
        "ssh-ed25519 AAAA",
        "ssh-dss " + BODY,
        "ssh-rsa " + BODY,
        f"{KEY}\n{KEY}",
        f"{KEY}\x1b[31m",
        'command="x" ' + KEY,
        "ssh-ed25519 ü",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)
def test_what_is_no_key_is_refused_and_not_shown(line: str) -> None:
    with pytest.raises(BadRequest, match="an SSH key ") as caught:
        seed.check_ssh_key(line)
    assert BODY not in str(caught.value)


def test_a_key_with_any_comment_survives_yaml_and_json() -> None:
    keys = tuple(seed.check_ssh_key(f"ssh-ed25519 {BODY} {c}") for c in ("$user", "'\"\\", "🔑: x"))
    assert user_data(keys=keys)["ssh_authorized_keys"] == list(keys)


def test_nothing_is_written_to_disk_to_make_a_drive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build()
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - a listing, of anything at all
