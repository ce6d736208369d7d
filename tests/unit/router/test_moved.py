"""Where a router looks for partners that moved since its directory was published."""

from typing import Any

from cells.api import moves
from cells.api.moves import Receipt
from router.moved import Following, MovedPartners


def told(to: str, epoch: int) -> tuple[dict[str, Any], bytes]:
    receipt = moves.encode_receipt(Receipt("move_1", to, "t" * 64, epoch, 7, 3, moves.NO_STREAM))
    return {"to": to, "epoch": epoch, "receipt": receipt.hex(), "tried": 0}, receipt


def test_what_was_told_once_is_known_until_the_directory_names_another_cell() -> None:
    moved = MovedPartners()
    assert moved.whereabouts("acme", "a") == "a"
    context, receipt = told("b", 4)
    assert moved.follow("acme", "a", "a", context) == Following("b", receipt, is_to_be_opened=False)
    assert moved.whereabouts("acme", "a") == "b"
    assert moved.whereabouts("other", "a") == "a"
    assert moved.whereabouts("acme", "b") == "b"
    assert moved.whereabouts("acme", "a") == "a", "it is forgotten"


def test_a_new_cell_that_knows_nothing_yet_is_shown_the_proof() -> None:
    moved = MovedPartners()
    context, receipt = told("b", 4)
    moved.follow("acme", "a", "a", context)
    assert moved.follow("acme", "a", "b", {}) == Following("b", receipt, is_to_be_opened=True)


def test_there_and_back_the_higher_epoch_is_the_newer() -> None:
    moved = MovedPartners()
    there, _ = told("b", 4)
    back, proof = told("a", 9)
    moved.follow("acme", "a", "a", there)
    assert moved.follow("acme", "a", "b", back) == Following("a", proof, is_to_be_opened=False)
    # The old tombstone of the first move is older than the proof that led here.
    assert moved.follow("acme", "a", "a", there) == Following("a", proof, is_to_be_opened=True)


def test_nobody_knows_of_it_or_what_is_told_is_no_proof() -> None:
    moved = MovedPartners()
    assert moved.follow("acme", "a", "a", {}) is None
    assert moved.follow("acme", "a", "a", {"receipt": "zz"}) is None
    assert moved.follow("acme", "a", "a", {"receipt": "00"}) is None
    assert moved.whereabouts("acme", "a") == "a"


def test_the_directory_that_a_router_needs_is_that_of_the_newest_proof() -> None:
    moved = MovedPartners()
    assert moved.version_needed("acme") == 0
    for to, epoch, version in (("b", 4, 11), ("c", 9, 12), ("b", 4, 11)):
        receipt = moves.encode_receipt(Receipt("move_1", to, "t" * 64, epoch, 7, 3, moves.NO_STREAM, version))
        moved.follow("acme", "a", "a", {"receipt": receipt.hex()})
    assert moved.version_needed("acme") == 12


def test_of_two_requests_that_are_told_at_once_the_second_goes_there_too() -> None:
    moved = MovedPartners()
    context, receipt = told("b", 4)
    moved.follow("acme", "a", "a", context)
    assert moved.follow("acme", "a", "a", context) == Following("b", receipt, is_to_be_opened=False)


def test_a_directory_that_nobody_asked_under_counts_too() -> None:
    moved = MovedPartners()
    context, _ = told("b", 4)
    moved.follow("acme", "a", "a", context)
    moved.follow("other", "a", "a", context)
    moved.follow_directory({"acme": "b", "other": "a"}.get)
    # It is back where it was, and the cell that it came from may be gone.
    assert moved.whereabouts("acme", "a") == "a"
    assert moved.whereabouts("other", "a") == "b"
