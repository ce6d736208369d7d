"""Every key of the registry's book, as tuples. Written down here first; nothing else builds keys.

    ("origin",)                            Origin: written last when the book is made; without it the book is not whole
    ("owner",)                             Owner: the control plane that took the book over last
    ("directory",)                         the newest version that was taken for a directory
    ("partner", partner_id)                Partner
    ("cell", name)                         Cell: the removed ones, too
    ("rebalance",)                         Rebalance: the newest run of moves, and how far it is
    ("rebalance_step", partner_id)         RebalanceStep: one move of it
    ("key", partner_id, key_id)            Key: what is kept of an API key
    ("key_hash", hash)                     [partner_id, key_id]: no two keys have one hash
    ("operator", operator_id)              Operator: who may use the admin API
    ("approval", approval_id)              Approval: a change that waits for a second person, or did
    ("move", partner_id)                   Move: a partner on its way to another cell
    ("burial", cell, partner_id)           Burial: a cell that is to be told that a partner is in another one
    ("notice", partner_id, sequence)       Notice: a change that the partner is still to be told
    ("deletion", partner_id)               Deletion: a partner that is being deleted, or was; it stays for ever
    ("change", sequence)                   Change: who did what, and when; only ever appended
    ("head",)                              the newest change's number and hash
    ("change_of", partner_id, sequence)    index of changes by partner

The store keeps its epoch in rows of its own, outside of these. What the values' bytes are is in registry_codec.py.
"""

from typing import Final

from stores.contract import Key, Range

# The book's name on its shelf. (`registry.sqlite` was the SQL file of before.)
BOOK: Final = ("control",)

ORIGIN: Final[Key] = ("origin",)
OWNER: Final[Key] = ("owner",)
DIRECTORY: Final[Key] = ("directory",)
REBALANCE: Final[Key] = ("rebalance",)
HEAD: Final[Key] = ("head",)
# Sorts behind every id; numbers have their own end.
_LAST: Final = "\U0010ffff"
_LAST_NUMBER: Final = (1 << 63) - 1


def partner(partner_id: str) -> Key:
    """Where a partner is."""
    return ("partner", partner_id)


def cell(name: str) -> Key:
    """Where a cell is."""
    return ("cell", name)


def rebalance_step(partner_id: str) -> Key:
    """Where a partner's move in the newest run is."""
    return ("rebalance_step", partner_id)


def key(partner_id: str, key_id: str) -> Key:
    """Where what is kept of an API key is."""
    return ("key", partner_id, key_id)


def key_hash(hashed: str) -> Key:
    """Where the one key with this hash is named."""
    return ("key_hash", hashed)


def operator(operator_id: str) -> Key:
    """Where an operator is."""
    return ("operator", operator_id)


def operators(after: Key | None, rows: int) -> Range:
    """Give the range of the next operators after a key, by id."""
    return Range(_after(after, "operator"), ("operator", _LAST), rows)


def approval(approval_id: str) -> Key:
    """Where a change is that waits for a second person, or did."""
    return ("approval", approval_id)


def approvals(after: Key | None, rows: int) -> Range:
    """Give the range of the next approvals after a key, by id, which rises with time."""
    return Range(_after(after, "approval"), ("approval", _LAST), rows)


def move(partner_id: str) -> Key:
    """Where a partner's move is, while it has not ended."""
    return ("move", partner_id)


def moves(after: Key | None, rows: int) -> Range:
    """Give the range of the next moves after a key, by partner."""
    return Range(_after(after, "move"), ("move", _LAST), rows)


def burial(cell_name: str, partner_id: str) -> Key:
    """Where it stands that a cell is to be told that a partner was taken over."""
    return ("burial", cell_name, partner_id)


def burials(after: Key | None, rows: int) -> Range:
    """Give the range of the next burials after a key, by cell and partner."""
    return Range(_after(after, "burial"), ("burial", _LAST), rows)


def notice(partner_id: str, sequence: int) -> Key:
    """Where it stands that a partner is to be told of a change."""
    return ("notice", partner_id, sequence)


def notices(after: Key | None, rows: int) -> Range:
    """Give the range of the next notices after a key, by partner and in their order."""
    return Range(_after(after, "notice"), ("notice", _LAST), rows)


def deletion(partner_id: str) -> Key:
    """Where it stands that a partner is being deleted, or was."""
    return ("deletion", partner_id)


def deletions(after: Key | None, rows: int) -> Range:
    """Give the range of the next deletions after a key, by partner."""
    return Range(_after(after, "deletion"), ("deletion", _LAST), rows)


def change(sequence: int) -> Key:
    """Where a change is."""
    return ("change", sequence)


def change_of(partner_id: str, sequence: int) -> Key:
    """Where the index of a partner's changes names one."""
    return ("change_of", partner_id, sequence)


def partners(after: Key | None, rows: int) -> Range:
    """Give the range of the next partners after a key, by id."""
    return Range(_after(after, "partner"), ("partner", _LAST), rows)


def cells(after: Key | None, rows: int) -> Range:
    """Give the range of the next cells after a key, by name."""
    return Range(_after(after, "cell"), ("cell", _LAST), rows)


def rebalance_steps(after: Key | None, rows: int) -> Range:
    """Give the range of the next moves of the newest run after a key, by partner."""
    return Range(_after(after, "rebalance_step"), ("rebalance_step", _LAST), rows)


def keys(after: Key | None, rows: int) -> Range:
    """Give the range of the next API keys after a key, by partner."""
    return Range(_after(after, "key"), ("key", _LAST), rows)


def changes(after: int, rows: int) -> Range:
    """Give the range of the next changes after a number, oldest first."""
    return Range(change(after + 1), change(_LAST_NUMBER), rows)


def newest_change() -> Range:
    """Give the range of the one newest change."""
    return Range(change(0), change(_LAST_NUMBER), 1, reverse=True)


def newest_changes_of(partner_id: str, rows: int) -> Range:
    """Give the range of the index's newest rows of a partner, newest first."""
    return Range(change_of(partner_id, 0), change_of(partner_id, _LAST_NUMBER), rows, reverse=True)


def _after(after: Key | None, kind: str) -> Key:
    # A longer key stands right behind the one that it goes on from.
    return (kind,) if after is None else (*after, b"")
