"""The nouns, and the errors."""

import copy
import json
import pickle

import pytest

from rescue_virt import errors
from rescue_virt.model import Digest, ImageFormat
from rescue_virt.secret import Secret

TREE = {
    "RescueVirtError": (1, 500), "BadRequest": (2, 400), "NotFound": (3, 404),
    "WrongState": (4, 409), "Refused": (5, 400), "WayBackFailed": (6, 500),
    "ImageError": (7, 400), "NotInTime": (8, 504), "Interrupted": (130, 500),
}  # fmt: skip


def test_a_secret_shows_nowhere() -> None:
    secret = Secret("hunter2")
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r}", repr([secret])]
    assert not [text for text in shown if "hunter2" in text]
    assert secret.reveal() == "hunter2"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps, hash):
        with pytest.raises(TypeError):
            leak(secret)


def test_secrets_are_compared_by_what_they_hold() -> None:
    assert Secret("ä") == Secret("ä")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


def test_nouns_print_as_people_write_them() -> None:
    assert str(Digest(algorithm="sha256", hex="ab")) == "sha256:ab"
    assert ImageFormat.ISO.driver == "raw"
    assert ImageFormat.QCOW2.driver == "qcow2"


@pytest.mark.parametrize(("name", "codes"), TREE.items())
def test_every_error_carries_its_codes(name: str, codes: tuple[int, int]) -> None:
    error = getattr(errors, name)
    assert issubclass(error, errors.RescueVirtError)
    assert (error.exit_code, error.http_status) == codes


def test_a_failed_way_back_carries_what_to_type() -> None:
    assert errors.WayBackFailed("x").commands == ()
    assert errors.WayBackFailed("x", commands=("a",)).commands == ("a",)
