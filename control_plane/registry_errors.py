"""What errors of the registry's store mean for an operator, and the registry's own."""

from typing import Final

from control_plane.errors import (
    ControlPlaneError,
    FolderError,
    RefusedError,
    RegistryError,
    RegistryLostError,
    RegistryUnknownError,
)
from control_plane.registry_records import Owner
from stores.contract import (
    CommitUnknownError,
    FencedError,
    StoreClientError,
    StoreCorruptError,
    StoreError,
    StoreLimitError,
    StoreMissingError,
    StoreUnavailableError,
)

AGAIN: Final = "ask again: what is done already is not done twice"
_MEND: Final = "is the disk full or read-only, or the FoundationDB cluster away? Ask again once that is mended"


def explain(error: StoreError, where: str) -> ControlPlaneError:
    """Give what a store's error means for an operator; of all but CommitUnknownError nothing was changed."""
    match error:
        case StoreMissingError() | StoreCorruptError():
            return FolderError(
                f"the registry of partners can't be opened: {error}",
                where=where,
                hint="restore it from a backup; it is never made anew, for routers would then turn all partners away",
            )
        case StoreClientError():
            return FolderError(f"the registry of partners can't be reached: {error}", where=where, hint="mend that")
        case FencedError():
            return RegistryLostError(
                "another control plane took the registry over at this moment",
                where=where,
                hint="of two that use the same data one must end",
            )
        case StoreLimitError():
            return RefusedError(f"it is too large to be written down: {error}", where=where, hint="say less")
        case CommitUnknownError():
            return RegistryUnknownError(f"whether it was written down is not known: {error}", where=where, hint=AGAIN)
        case StoreUnavailableError():
            return RegistryError(f"the registry can't be used: {error}", where=where, hint=_MEND)
        case _:
            return RegistryError(f"nothing was changed: {error}", where=where, hint=AGAIN)


def not_whole(where: str) -> FolderError:
    """Give the error for a book whose making was interrupted and can't go on here."""
    return FolderError(
        "the registry of partners is not whole: it was being imported when that was interrupted",
        where=where,
        hint="`bulkhead up` imports it from registry.sqlite; if that file is gone, restore it from a backup",
    )


def lost(to: Owner | None, where: str) -> RegistryLostError:
    """Give the error of one that another control plane took the registry from."""
    who = "somebody" if to is None else f"{to.name} since {to.since}"
    return RegistryLostError(
        f"another control plane took the registry over ({who}), so this one ends; its processes go on without it",
        where=where,
        hint="two data folders must not hold the same data: stop one, and start the other again with `bulkhead up`",
    )
