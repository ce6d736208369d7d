"""The chain of the audit log: whole it says nothing; changed, short, mixed up, cut off or forged it says so."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from control_plane import audit_chain, audit_head
from control_plane.audit_chain import SEALED, Head, Verdict
from control_plane.errors import InputFileError
from control_plane.registry_records import Change

KEY = b"k" * 32
ANOTHER = b"a" * 32


def chain(count: int, *, unchained: int = 0, sealed_at: int = 1, key: bytes = KEY) -> list[Change]:
    """Return a log: `unchained` entries of before there was a chain, from `sealed_at` on keyed (0: never)."""
    made: list[Change] = []
    for number in range(1, count + 1):
        previous = audit_chain.digest(made[-1], key) if made else audit_chain.NOTHING
        detail = {"rate_burst": [number, number + 1], "name": "Acmé\u2028"}
        what = "limits"
        if number == sealed_at:
            what, detail = SEALED, {"key": audit_chain.key_id(key), "old_head": f"{number - 1}:{previous}"}
        keyed = 0 < sealed_at <= number
        previous = "" if number <= unchained else previous
        origin = "192.0.2.1" if number == 2 else ""
        made.append(Change(number, "now", "ann", what, "acme", detail, previous, keyed=keyed, origin=origin))
    return made


def made_again(log: list[Change], first: int, key: bytes, *, keyed: bool) -> list[Change]:
    """Return the log as somebody makes it again from an entry on, with what key they have."""
    other = log[: first - 1]
    for one in log[first - 1 :]:
        previous = audit_chain.digest(other[-1], key) if other else audit_chain.NOTHING
        other.append(replace(one, who="eve", previous=previous, keyed=keyed))
    return other


def head_of(changes: list[Change], key: bytes = KEY) -> Head:
    return Head(changes[-1].sequence, audit_chain.digest(changes[-1], key)) if changes else Head(0, audit_chain.NOTHING)


def verify(
    log: Iterable[Change], heads: Iterable[tuple[str, Head]] = (), key: bytes | None = KEY, told_by: bytes = KEY
) -> Verdict:
    return audit_chain.verify(((one, audit_chain.digest(one, told_by)) for one in log), heads, key)


@pytest.mark.parametrize(("unchained", "sealed_at"), [(0, 1), (0, 2), (1, 2), (4, 5), (4, 7), (9, 10)])
@pytest.mark.parametrize("key", [KEY, None])
def test_a_whole_log_is_whole(unchained: int, sealed_at: int, key: bytes | None) -> None:
    log = chain(10, unchained=unchained, sealed_at=sealed_at)
    heads = [("now", head_of(log)), ("before", head_of(log[:7])), ("at first", Head(0, audit_chain.NOTHING))]
    verdict = verify(log, heads, key)
    assert verdict.problems == []
    assert (verdict.entries, verdict.unchained, verdict.head) == (10, unchained, head_of(log))
    assert verdict.sealed_at == sealed_at
    assert verdict.unproven == (0 if key else 11 - sealed_at)


def test_nothing_is_whole() -> None:
    assert verify([]).problems == []


DAMAGES: dict[str, Callable[[list[Change]], list[Change]]] = {
    "changed": lambda log: [*log[:4], replace(log[4], who="eve"), *log[5:]],
    "origin changed": lambda log: [*log[:4], replace(log[4], origin="uid 0"), *log[5:]],
    "origin taken away": lambda log: [log[0], replace(log[1], origin=""), *log[2:]],
    "detail changed": lambda log: [*log[:4], replace(log[4], detail={"rate_burst": [1, 999]}), *log[5:]],
    "the last one changed": lambda log: [*log[:-1], replace(log[-1], who="eve")],
    "the first one missing": lambda log: log[1:],
    "missing": lambda log: [*log[:4], *log[5:]],
    "missing and numbered anew": lambda log: [*log[:4], *(replace(one, sequence=one.sequence - 1) for one in log[5:])],
    "in another order": lambda log: [*log[:4], log[5], log[4], *log[6:]],
    "twice": lambda log: [*log[:5], *log[4:]],
    "cut off": lambda log: log[:-2],
    "all gone": lambda _: [],
    "unchained again": lambda log: [*log[:5], replace(log[5], previous=""), *log[6:]],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
@pytest.mark.parametrize("sealed_at", [0, 1, 5])
def test_a_damaged_log_is_not_whole(damage: Callable[[list[Change]], list[Change]], sealed_at: int) -> None:
    log = chain(10, sealed_at=sealed_at)
    assert verify(damage(log), [("elsewhere", head_of(log))]).problems


# What somebody makes of a log who can write the store and every head, but lacks the key. The heads are made to fit.
FORGERIES: dict[str, Callable[[list[Change]], list[Change]]] = {
    "made again under another key": lambda log: made_again(log, 6, ANOTHER, keyed=True),
    "made again without a key": lambda log: made_again(log, 6, ANOTHER, keyed=False),
    "the whole log without a key": lambda log: made_again(log, 1, ANOTHER, keyed=False),
    "before the seal": lambda log: [*made_again(log[:3], 2, ANOTHER, keyed=False), *log[3:]],
    "before the seal and on": lambda log: made_again(log, 2, ANOTHER, keyed=False),
    "an entry added": lambda log: [*log, replace(log[-1], sequence=11, previous=head_of(log).hash, keyed=False)],
    "an entry added under another key": lambda log: [*log, replace(log[-1], sequence=11, previous="1" * 64)],
    "sealed anew under another key": lambda log: (
        log[:3] + made_again(chain(10, sealed_at=4, key=ANOTHER), 5, ANOTHER, keyed=True)[3:]
    ),
    "the seal taken out": lambda log: made_again(
        [replace(one, sequence=number) for number, one in enumerate([*log[:3], *log[4:]], 1)], 4, ANOTHER, keyed=True
    ),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=list(FORGERIES))
def test_who_lacks_the_key_makes_no_log_that_is_whole(forge: Callable[[list[Change]], list[Change]]) -> None:
    forged = forge(chain(10, sealed_at=4))
    heads = [("both heads, made to fit", head_of(forged, ANOTHER))]
    verdict = verify(forged, heads)
    # The head alone would give it away, too: so it is left out of account.
    assert [problem for problem in verdict.problems if "made to fit" not in problem]


def test_a_log_that_is_cut_off_with_both_heads_is_found_out_by_a_copy_elsewhere_alone() -> None:
    log = chain(10)
    assert verify(log[:7], [("both heads", head_of(log[:7]))]).problems == []
    assert verify(log[:7], [("both heads", head_of(log[:7])), ("the copy", head_of(log[:9]))]).problems


def test_without_the_key_the_order_is_checked_and_what_entries_say_is_not() -> None:
    log = chain(10)
    changed = [*log[:4], replace(log[4], who="eve"), *log[5:]]
    told = [audit_chain.digest(one, KEY) for one in log]
    verdict = audit_chain.verify(zip(changed, told, strict=True), [("elsewhere", head_of(log))])
    assert (verdict.problems, verdict.unproven) == ([], 10)
    assert audit_chain.verify(zip(changed, told, strict=True), [], KEY).problems
    short = [one for one in zip(log, told, strict=True) if one[0].sequence != 5]
    assert audit_chain.verify(short, [("elsewhere", head_of(log))]).problems


def test_another_key_is_told_apart_from_a_forged_log() -> None:
    log = chain(10)
    assert any("another key" in problem for problem in verify(log, key=ANOTHER).problems)


@pytest.mark.parametrize("text", ["", "7", f"x:{'0' * 64}", f"7:{'0' * 63}", f"7:{'g' * 64}", f"-7:{'0' * 64}"])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(InputFileError):
        audit_head.parse(text, "here")
