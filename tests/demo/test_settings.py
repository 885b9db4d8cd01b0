from __future__ import annotations

import pytest

from hiergen.demo.settings import DemoSettings, is_loopback, read_accounts


def test_the_defaults_are_closed() -> None:
    settings = DemoSettings()
    assert is_loopback(settings.host)
    assert not settings.share
    assert settings.auth_file is None


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("localhost.example.org", False),
    ],
)
def test_who_can_reach_an_address(host, inside) -> None:
    assert is_loopback(host) is inside


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"host": "0.0.0.0"}, "host is '0.0.0.0', which others can reach"),
        ({"share": True}, "share is on, so anybody with the link can enter"),
        ({"port": 70_000}, "port is 70000, expected 0"),
        ({"max_upload_mb": 0}, "max_upload_mb is 0, expected at least 1"),
        ({"max_queue": 0}, "max_queue is 0"),
        ({"ready_seconds": -1.0}, "ready_seconds is -1.0, expected 0 or more"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0, expected a positive number"),
    ],
)
def test_what_is_refused(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        DemoSettings(**values)


def test_passwords_open_it_to_others(tmp_path) -> None:
    file = tmp_path / "people"
    file.write_text("ada:correct horse\n\nbob:with:colons:in it\n")
    assert read_accounts(file) == [("ada", "correct horse"), ("bob", "with:colons:in it")]
    DemoSettings(host="0.0.0.0", auth_file=str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no account"),
        ("ada\n", "line 1: expected name:password"),
        ("ada:long enough\n:secretsecret\n", "line 2: expected name:password"),
        ("ada:short\n", "line 1: the password has 5 characters, expected at least 8"),
    ],
)
def test_a_file_of_passwords_that_cannot_be_used(text, message, tmp_path) -> None:
    file = tmp_path / "people"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_accounts(file)
    assert "secretsecret" not in str(error.value)


def test_a_missing_file_of_passwords(tmp_path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_accounts(tmp_path / "none")
