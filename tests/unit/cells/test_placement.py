"""Which worker a partner belongs to."""

from cells import limits, placement
from cells.placement import Host

FULL = limits.POOL_PARTNERS_MAX


def test_the_pool_with_the_fewest_partners_that_has_room() -> None:
    hosts = [Host("a", 5, is_pool=True), Host("b", 3, is_pool=True), Host("c", 1, is_pool=False)]
    assert placement.choose_pool(hosts) == "b"
    assert placement.choose_pool(hosts, but="b") == "a"
    assert placement.choose_pool([Host("a", FULL, is_pool=True), Host("b", 1, is_pool=False)]) is None
    assert placement.choose_pool([Host("a", FULL - 1, is_pool=True)]) == "a"


def test_alone_in_its_worker_a_partner_needs_no_move() -> None:
    alone, shared, own = Host("a", 1, is_pool=True), Host("a", 2, is_pool=True), Host("a", 1, is_pool=False)
    assert not placement.is_misplaced(alone, [alone], pooled=False)
    assert placement.is_misplaced(shared, [shared], pooled=False)
    assert not placement.is_misplaced(own, [own], pooled=True)
    assert placement.is_misplaced(own, [own, Host("b", 2, is_pool=True)], pooled=True)
    assert not placement.is_misplaced(own, [own, Host("b", FULL, is_pool=True)], pooled=True)
    assert not placement.is_misplaced(shared, [shared], pooled=True)


def test_as_few_pools_as_hold_them() -> None:
    names = [f"p{number}" for number in range(2 * FULL + 1)]
    found = placement.groups(names)
    assert len(found) == 3
    assert sorted(name for group in found for name in group) == sorted(names)
    assert max(map(len, found)) <= FULL
    assert placement.groups([]) == []
