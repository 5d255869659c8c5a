"""The config drive that gives a rescue guest its password and keys."""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from importlib import resources
from io import BytesIO
from string import Template

from passlib.hash import sha512_crypt
from pycdlib import PyCdlib

from rescue_virt.errors import BadRequest
from rescue_virt.secret import Secret

# Neither I, l, O, 0, 1 nor anything that a shell, YAML or a foreign keyboard treats specially.
_ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
_GENERATED_LENGTH = 20
_MAX_PASSWORD = 512
# passlib's own default (656000) keeps a guest without KVM busy for seconds at each login.
_ROUNDS = 5000

_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
# The hash that cloud-init takes for one; anything else it would set as a plaintext password.
_HASH = re.compile(r"\$6\$(rounds=[0-9]+\$)?[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{86}")
_KEY_TYPES = frozenset({
    "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
})  # fmt: skip

_LABEL = "config-2"
_VERSIONS = ("latest", "2018-08-27")
_DIRECTORY_MODE, _FILE_MODE = 0o040500, 0o100400


def check_password(text: str) -> Secret:
    """:raises BadRequest: if no account can have this password."""
    if not text:
        raise BadRequest("the password is empty; give one, or none to have one made")
    if any(character in text for character in "\0\r\n"):
        raise BadRequest("the password has a NUL or a line break in it; choose another")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise BadRequest("the password is not valid UTF-8; choose another") from exc
    if size > _MAX_PASSWORD:
        raise BadRequest(f"the password is longer than {_MAX_PASSWORD} bytes; choose another")
    return Secret(text)


def check_user(name: str) -> str:
    """:raises BadRequest: if no account can have this name."""
    if not _USER.fullmatch(name):
        raise BadRequest(f"user {name!r}: not the name of an account; use letters and digits")
    return name


def check_ssh_key(line: str) -> str:
    """:raises BadRequest: if this is not one line as in an OpenSSH .pub file."""
    line = line.strip()
    kind, _, rest = line.partition(" ")
    if not line.isprintable() or kind not in _KEY_TYPES:
        raise BadRequest("an SSH key is not one line that begins with its type; give a .pub file")
    body = rest.split(" ", 1)[0]
    try:
        blob = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    if not blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()):
        raise BadRequest(f"an SSH key ({kind}) is cut short or damaged; give a .pub file")
    return line


def generate_password() -> Secret:
    """20 characters that can be told apart and typed anywhere: 116 bits."""
    return Secret("".join(secrets.choice(_ALPHABET) for _ in range(_GENERATED_LENGTH)))


def password_hash(password: Secret) -> str:
    """The crypt(3) hash `$6$…`, which every libc, chpasswd and cloud-init takes."""
    return str(sha512_crypt.using(rounds=_ROUNDS).hash(password.reveal()))


def build(
    *, uuid: str, guest: str, user: str, hashed: str, ssh_keys: tuple[str, ...] = ()
) -> bytes:
    """The ISO image of a config drive (OpenStack's `config-2`), which holds no plaintext.

    `uuid` must be new for each rescue: cloud-init does its work once per instance.  cloud-init
    gives the keys to the image's default user and root, and to `user`.
    """
    files = {
        "meta_data.json": _meta_data(uuid, guest, ssh_keys),
        "user_data": _user_data(user, hashed, ssh_keys),
        "vendor_data.json": "{}\n",
    }
    return _iso({name: text.encode() for name, text in files.items()})


def _meta_data(uuid: str, guest: str, ssh_keys: tuple[str, ...]) -> str:
    hostname = re.sub(r"[^a-z0-9]+", "-", guest.lower()).strip("-")[:63].rstrip("-")
    return _template("meta-data").substitute(
        uuid=_json(uuid),
        hostname=_json(hostname or "rescue"),
        name=_json(guest),
        ssh_keys=_json({f"key-{number}": key for number, key in enumerate(ssh_keys)}),
    )


def _user_data(user: str, hashed: str, ssh_keys: tuple[str, ...]) -> str:
    if not _HASH.fullmatch(hashed):
        raise ValueError("not a $6$ hash: cloud-init would take it for the password itself")
    # Who cannot become root repairs nothing.
    may = "ALL=(ALL) NOPASSWD:ALL"
    account = {"name": user, "sudo": may, "ssh_authorized_keys": list(ssh_keys)}
    # An entry of its own creates the account if need be, and is the only way to give keys to one
    # that is neither root nor the image's default user; `default` keeps that one as it is.
    users = "" if user == "root" else f"users: {_json(['default', account])}"
    return _template("user-data").substitute(
        user=user, hash=hashed, users=users, ssh_keys=_json(ssh_keys)
    )


def _template(name: str) -> Template:
    return Template((resources.files("rescue_virt") / "templates" / name).read_text())


def _json(value: object) -> str:
    """JSON, which is YAML too as long as no character beyond the first 65536 is escaped."""
    return json.dumps(value, ensure_ascii=False)


def _iso(files: dict[str, bytes]) -> bytes:
    iso = PyCdlib()
    iso.new(interchange_level=3, vol_ident=_LABEL, joliet=3, rock_ridge="1.09")
    _add_directory(iso, "/OPENSTACK", "/openstack")
    for number, version in enumerate(_VERSIONS):
        short = f"/OPENSTACK/V{number}"
        _add_directory(iso, short, f"/openstack/{version}")
        for index, (name, content) in enumerate(files.items()):
            iso.add_fp(
                BytesIO(content), len(content), f"{short}/F{index}.;1", rr_name=name,
                joliet_path=f"/openstack/{version}/{name}", file_mode=_FILE_MODE,
            )  # fmt: skip
    image = BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue()


def _add_directory(iso: PyCdlib, short: str, path: str) -> None:
    name = path.rpartition("/")[2]
    iso.add_directory(short, rr_name=name, joliet_path=path, file_mode=_DIRECTORY_MODE)
