import hashlib
import hmac
import re

from control_plane import api_keys
from router.directory import parse_key

PEPPER = bytes(range(32))


def test_a_key_names_its_mode_and_partner_also_with_underscores() -> None:
    key = api_keys.make(PEPPER, "live", "acme_eu_1")
    assert re.fullmatch(r"sk_live_acme_eu_1_[A-Za-z0-9_-]{43}", key.text)
    assert parse_key(key.text) == ("live", "acme_eu_1")
    assert key.hint == key.text[-4:]


def test_what_is_kept_is_a_keyed_hash_of_the_whole_key() -> None:
    key = api_keys.make(PEPPER, "test", "acme")
    assert key.hash == hmac.new(PEPPER, key.text.encode(), hashlib.sha256).hexdigest()
    assert key.text not in repr(key)


def test_keys_and_ids_differ() -> None:
    made = [api_keys.make(PEPPER, "test", "acme") for _ in range(50)]
    assert len({key.text for key in made}) == len({key.id for key in made}) == 50
    assert re.fullmatch(r"partner_[0-9a-f]{8}", api_keys.make_partner_id())
