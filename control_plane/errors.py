"""What can go wrong in the control plane, as one tree. Each says what, where and what to do about it.

ControlPlaneError
 +-- SettingsError         a setting is missing, misspelt or out of range
 +-- FolderError           the data folder can't be used: locked, of another shape, damaged
 +-- InputFileError        a file that was handed in can't be read as what it should be; nothing of it was used
 +-- RefusedError          what was asked can't be done as things stand
 |    +-- NotFoundError    it names something that isn't there
 |    +-- PlanChangedError the plan that was seen is not the plan of now; nothing was begun
 |    +-- RegistryError    the registry's store can't serve now, or something came in between; nothing was changed
 +-- RegistryUnknownError  the registry's store lost sight of a change; it may have been made
 +-- RegistryLostError     another control plane took the registry over: this one must end
 +-- UnauthorizedError     no operator's key, or one that is not good
 |    +-- TooManyFailedKeysError  too many such keys wait for their answers
 +-- ForbiddenError        the operator's role does not allow it
 +-- WaitsForApprovalError it waits for a second person; nothing was changed, and nothing is wrong
 +-- DoorError             a cell's door did not answer; what was asked may have been done
 +-- NotRunningError       no control plane listens on this data folder
"""

from typing import Any, Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_RUNNING: Final = 3
EXIT_NOT_ALLOWED: Final = 4
EXIT_WAITS_FOR_APPROVAL: Final = 5


class ControlPlaneError(Exception):
    """Root of them all. `what` happened, `where`, and the `hint`: what to do."""

    code = "failed"
    http_status = 500
    exit_code = EXIT_FAILED

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def fields(self) -> dict[str, str]:
        """Give it as it is told over the admin API."""
        return {
            "kind": type(self).code,
            "code": self.code,  # a door's refusals keep their own
            "what": self.what,
            "where": self.where,
            "hint": self.hint,
        }


class SettingsError(ControlPlaneError):
    """A setting is missing, misspelt or out of range."""

    code = "settings_invalid"
    http_status = 400
    exit_code = EXIT_USAGE


class FolderError(ControlPlaneError):
    """The data folder can't be used."""

    code = "data_folder_unusable"
    exit_code = EXIT_USAGE


class InputFileError(ControlPlaneError):
    """A file that was handed in can't be read as what it should be."""

    code = "input_file_invalid"
    http_status = 400
    exit_code = EXIT_USAGE


class RefusedError(ControlPlaneError):
    """What was asked can't be done as things stand."""

    code = "refused"
    http_status = 409
    exit_code = EXIT_USAGE


class NotFoundError(RefusedError):
    """What was named isn't there."""

    code = "not_found"
    http_status = 404


class PlanChangedError(RefusedError):
    """The plan that was seen is not the plan of now; nothing was begun."""

    code = "plan_changed"


class RegistryError(RefusedError):
    """The registry's store can't serve now, or something came in between; nothing was changed."""

    code = "registry_unavailable"
    http_status = 503


class RegistryUnknownError(ControlPlaneError):
    """The registry's store lost sight of a change, which may have been made. Asking again does nothing twice."""

    code = "registry_unknown"
    http_status = 503


class RegistryLostError(ControlPlaneError):
    """Another control plane took the registry over; this one can't change anything any more and must end."""

    code = "registry_lost"
    http_status = 503


class UnauthorizedError(ControlPlaneError):
    """No operator's key, or one that is not good."""

    code = "unauthorized"
    http_status = 401
    exit_code = EXIT_NOT_ALLOWED


class TooManyFailedKeysError(UnauthorizedError):
    """Too many keys that are not good wait for their answers."""

    code = "too_many_failed_keys"
    http_status = 429


class ForbiddenError(ControlPlaneError):
    """The operator's role does not allow it."""

    code = "forbidden"
    http_status = 403
    exit_code = EXIT_NOT_ALLOWED


class WaitsForApprovalError(ControlPlaneError):
    """It waits for a second person. `told`: the approval, as the admin API tells it."""

    code = "waits_for_approval"
    http_status = 202
    exit_code = EXIT_WAITS_FOR_APPROVAL

    def __init__(self, told: dict[str, Any]) -> None:
        approval = told["approval"]
        super().__init__(f"it waits for a second person: approval {approval['id']}", where=approval["summary"])
        self.told = told


class DoorError(ControlPlaneError):
    """A cell's door did not answer, or not as it should."""

    code = "door_unavailable"
    http_status = 503


class NotRunningError(ControlPlaneError):
    """No control plane listens on this data folder."""

    code = "not_running"
    http_status = 503
    exit_code = EXIT_NOT_RUNNING


ERRORS_BY_CODE: Final[dict[str, type[ControlPlaneError]]] = {
    kind.code: kind
    for kind in (
        ControlPlaneError,
        SettingsError,
        FolderError,
        InputFileError,
        RefusedError,
        NotFoundError,
        PlanChangedError,
        RegistryError,
        RegistryUnknownError,
        RegistryLostError,
        UnauthorizedError,
        TooManyFailedKeysError,
        ForbiddenError,
        DoorError,
        NotRunningError,
    )
}
