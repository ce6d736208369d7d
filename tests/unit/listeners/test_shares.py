"""Places that strangers take are shared by the address that they come from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listeners.shares import Shares, network_of


def test_one_holder_has_its_share_and_others_have_theirs() -> None:
    shares = Shares(4, 2)
    places = [shares.place("a"), shares.place("a")]
    assert None not in places
    assert shares.place("a") is None
    assert shares.place("b") is not None
    assert shares.place("c") is not None
    assert shares.place("d") is None, "all are taken"
    place = places[0]
    assert place is not None
    place.give_back()
    place.give_back()
    assert shares.taken == 3, "given back once"
    assert shares.place("a") is not None


def test_a_proxy_may_have_all_but_no_more() -> None:
    shares = Shares(3, 1, ["127.0.0.1", "::ffff:192.0.2.1"])
    assert all(shares.place("127.0.0.1") is not None for _ in range(2))
    assert shares.place("192.0.2.1") is not None
    assert shares.place("127.0.0.1") is None


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_what_is_given_back_can_be_taken_again(holders: list[str]) -> None:
    shares = Shares(9, 3)
    places = [place for holder in holders if (place := shares.place(holder)) is not None]
    assert shares.taken == len(places) == sum(min(3, holders.count(holder)) for holder in "abc")
    for place in places:
        with place:
            pass
    assert shares.taken == 0
    assert not shares._held


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
        ("testclient", "testclient"),
    ],
)
def test_a_host_counts_once_whatever_address_it_chooses(address: str, counts_as: str) -> None:
    assert network_of(address) == counts_as
