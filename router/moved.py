"""Partners that moved since the directory was published: what their old cells told, until a directory says so, too."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from cells.api.messages import MessageError
from cells.api.moves import decode_receipt


class Following(NamedTuple):
    """Where to go on, and the proof for that cell. `is_to_be_opened`: the cell has not seen the proof yet."""

    cell: str
    receipt: bytes
    is_to_be_opened: bool


class _Told(NamedTuple):
    home: str  # where the directory said that the partner was
    to: str
    epoch: int
    receipt: bytes
    directory_version: int


class MovedPartners:
    """At most one entry for each partner; one is of no use, and goes, once the directory names another cell."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    def whereabouts(self, partner_id: str, home: str) -> str:
        """Give the cell to ask: the directory's, or where the partner went from there."""
        told = self._told.get(partner_id)
        if told is None:
            return home
        if told.home != home:
            del self._told[partner_id]
            return home
        return told.to

    def version_needed(self, partner_id: str) -> int:
        """Give the directory version that has the cell to which the partner went; 0: it is not known."""
        told = self._told.get(partner_id)
        return 0 if told is None else told.directory_version

    def follow_directory(self, home_of: Callable[[str], str | None]) -> None:
        """Forget what a new directory says otherwise, also of partners that ask nothing now: it may change again."""
        self._told = {name: told for name, told in self._told.items() if told.home == home_of(name)}

    def follow(self, partner_id: str, home: str, at: str, context: Mapping[str, str | int]) -> Following | None:
        """Make of a cell's "not here" where to go next; None: nobody knows.

        Epochs rise from cell to cell, so of two receipts the one with the higher epoch is the newer. A cell that tells
        of an older one, or of none, is the one that the newer leads to and has not been opened yet.
        """
        told = self._told.get(partner_id)
        if told is not None and told.home != home:
            told = None
        try:
            receipt = bytes.fromhex(str(context.get("receipt", "")))
            decoded = decode_receipt(receipt) if receipt else None
        except (ValueError, MessageError):
            decoded = None
        if decoded is not None and (told is None or decoded.epoch > told.epoch):
            self._told[partner_id] = _Told(home, decoded.to, decoded.epoch, receipt, decoded.directory_version)
            return Following(decoded.to, receipt, is_to_be_opened=False)
        if told is None:
            return None
        # Another request learned it meanwhile, or the cell that it leads to does not know of it yet.
        return Following(told.to, told.receipt, is_to_be_opened=told.to == at)
