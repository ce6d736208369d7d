"""API keys: who may come in, and what those who may not are told."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from router import directory, keys
from router.directory import Directory, Payload
from router.problems import EdgeCode, ProblemError

PEPPER = b"p" * 32
NOW = datetime(2026, 11, 22, 17, tzinfo=UTC)


def key(partner: str = "acme", mode: str = "test", secret: str = "s") -> str:
    return f"sk_{mode}_{partner}_{secret * 43}"


def partner(*issued: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "Acme",
        "status": "active",
        "mode": "test",
        "api_version": "2026-11-22",
        "profile_version": 1,
        "rate_per_second": 50,
        "rate_burst": 100,
        "in_flight_max": 256,
        "created_at": NOW,
        "keys": list(issued),
        **changes,
    }


def record(token: str, **changes: Any) -> dict[str, Any]:
    hashed = directory.hash_key(PEPPER, token)
    return {"id": "key_1", "hash": hashed, "hint": token[-4:], "created_at": NOW, "expires_at": None, **changes}


def held(**partners: dict[str, Any]) -> Directory:
    return Directory(1, "", Payload.model_validate({"partners": partners}))


ACME = held(acme=partner(record(key(secret="r")), record(key())), a_b=partner(record(key("a_b"))))


def refused(header: list[bytes], directory_held: Directory = ACME) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        keys.authenticate(header, directory_held, PEPPER, NOW)
    return caught.value


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("partner_id", ["acme", "a_b"])
def test_a_key_lets_its_partner_in(scheme: str, partner_id: str) -> None:
    named, found = keys.authenticate([f"{scheme} {key(partner_id)}".encode()], ACME, PEPPER, NOW)
    assert named == partner_id
    assert found is ACME.partners[partner_id]


def test_without_a_key_a_challenge_comes_without_an_error() -> None:
    problem = refused([]).problem
    assert problem.code is EdgeCode.UNAUTHORIZED
    assert problem.headers["www-authenticate"] == 'Bearer realm="bulkhead"'


@pytest.mark.parametrize("header", [b"Basic YTpi", b"", b"sk_test_acme"])
def test_another_scheme_is_as_no_key(header: bytes) -> None:
    assert "error=" not in refused([header]).problem.headers["www-authenticate"]


def test_two_headers_are_a_bad_request() -> None:
    problem = refused([b"Bearer " + key().encode()] * 2).problem
    assert problem.code is EdgeCode.AUTHORIZATION_MALFORMED
    assert problem.kind.status == 400
    assert 'error="invalid_request"' in problem.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (key(secret="x"), "unknown_key"),
        (key("nobody"), "unknown_partner"),
        (key(mode="live"), "unknown_key"),
        (key()[:-1], "malformed_key"),
        (key() + "s", "malformed_key"),
        ("", "malformed_key"),
        ("sk_test_acme", "malformed_key"),
    ],
)
def test_a_wrong_key_is_told_no_more_than_that(token: str, reason: str) -> None:
    error = refused([b"Bearer " + token.encode()])
    assert isinstance(error, keys.UnauthorizedError)
    assert error.problem.detail == "The API key is not valid."
    assert 'error="invalid_token"' in error.problem.headers["www-authenticate"]
    assert error.reason == reason


def test_bytes_that_are_no_ascii_are_a_wrong_key() -> None:
    assert refused(["Bearer sk_tést".encode("latin-1")]).problem.code is EdgeCode.UNAUTHORIZED


@pytest.mark.parametrize(("left", "is_let_in"), [(1, True), (0, False), (-1, False)])
def test_a_key_ends_when_it_says(left: int, is_let_in: bool) -> None:
    expiring = held(acme=partner(record(key(), expires_at=NOW + timedelta(seconds=left))))
    header = [b"Bearer " + key().encode()]
    if is_let_in:
        assert keys.authenticate(header, expiring, PEPPER, NOW)[0] == "acme"
    else:
        error = refused(header, expiring)
        assert isinstance(error, keys.UnauthorizedError)
        assert error.reason == "expired_key"
        assert error.partner_id == "acme"


def test_a_revoked_key_is_unknown() -> None:
    assert refused([b"Bearer " + key().encode()], held(acme=partner())).problem.code is EdgeCode.UNAUTHORIZED


def test_a_key_of_the_other_mode_is_refused_even_where_its_hash_is_there() -> None:
    mixed = held(acme=partner(record(key(mode="live"))))
    error = refused([b"Bearer " + key(mode="live").encode()], mixed)
    assert isinstance(error, keys.UnauthorizedError)
    assert error.reason == "other_mode"


def test_another_pepper_opens_nothing() -> None:
    with pytest.raises(keys.UnauthorizedError):
        keys.authenticate([b"Bearer " + key().encode()], ACME, b"q" * 32, NOW)


def test_one_partner_s_key_does_not_open_another_s() -> None:
    # The hash of acme's key under the other's name.
    crossed = held(globex=partner(record(key("acme"))))
    assert refused([b"Bearer " + key("acme").encode()], crossed).problem.code is EdgeCode.UNAUTHORIZED


def test_a_key_that_was_let_in_before_ends_when_it_says() -> None:
    known = held(acme=partner(record(key(), expires_at=NOW + timedelta(seconds=1))))
    header = [b"Bearer " + key().encode()]
    for _ in range(2):
        assert keys.authenticate(header, known, PEPPER, NOW)[0] == "acme"
    with pytest.raises(keys.UnauthorizedError) as caught:
        keys.authenticate(header, known, PEPPER, NOW + timedelta(seconds=2))
    assert caught.value.reason == "expired_key"


def test_no_key_is_kept_in_what_is_remembered() -> None:
    known = held(acme=partner(record(key())))
    keys.authenticate([b"Bearer " + key().encode()], known, PEPPER, NOW)
    (remembered,) = known.authenticated
    assert len(remembered) == 16
    assert key() not in repr(known.authenticated)


def test_one_key_is_remembered_once_however_it_is_written() -> None:
    known = held(acme=partner(record(key())))
    for spaces in range(1, 20):
        for scheme in ("Bearer", "bearer", "bEARER"):
            keys.authenticate([f"{scheme}{' ' * spaces}{key()}{' ' * spaces}".encode()], known, PEPPER, NOW)
    assert len(known.authenticated) == 1


def test_a_wrong_key_is_not_remembered() -> None:
    known = held(acme=partner(record(key())))
    for number in range(10):
        refused([b"Bearer " + key(secret=chr(ord("A") + number)).encode()], known)
    assert not known.authenticated
