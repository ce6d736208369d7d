"""Operators: who may use the admin API, and with which key. What each role may do stands in roles.py.

A key is `ok_<operator>_<43 characters>`; as of partners' keys, only HMAC-SHA-256(pepper, key) is kept. The operator
`local` is the installation's own: its key lies in the data folder, for the `bulkhead` command of the same user.
"""

import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from control_plane.api_keys import HINT_CHARACTERS, make_secret
from control_plane.data_folder import timestamp
from control_plane.errors import FolderError, RefusedError
from control_plane.registry import Registry
from control_plane.registry_records import Operator
from control_plane.roles import Role
from router.directory import KEY_SECRET_CHARACTERS, hash_key
from router.directory_file import write_atomically

LOCAL: Final = "local"
OPERATOR_ID: Final = "[a-z][a-z0-9_.-]{0,39}"
# Under these names the control plane writes to the audit log itself.
RESERVED: Final = frozenset({"control_plane", "evacuation", "nobody", "rebalancer", "reconciler", "up"})
_KEY: Final = re.compile(f"ok_({OPERATOR_ID})_[A-Za-z0-9_-]{{{KEY_SECRET_CHARACTERS}}}")


@dataclass(frozen=True, slots=True, repr=False)
class OperatorKey:
    """An operator with a key just made. `text` is shown once and never stored; so this has no repr."""

    operator: Operator
    text: str


class Operators:
    """All changes to operators, and who a key belongs to."""

    def __init__(self, registry: Registry, pepper: bytes) -> None:
        self._registry = registry
        self._pepper = pepper

    def authenticate(self, key: str) -> Operator | None:
        """Give the operator whose key it is; None where it is nobody's, an old one's or a disabled one's."""
        match = _KEY.fullmatch(key)
        found = None if match is None else self._registry.find_operator(match[1])
        hashed = hash_key(self._pepper, key)
        # Compared also where there is nobody: how long it takes tells nothing.
        is_right = secrets.compare_digest(hashed, "" if found is None else found.hash)
        return found if found is not None and is_right and found.status == "active" else None

    def named_by(self, key: str) -> str | None:
        """Return the operator that a key names, whether it is good or not; None where there is none of that name."""
        match = _KEY.fullmatch(key)
        found = None if match is None else self._registry.find_operator(match[1])
        return None if found is None else found.id

    async def add(self, operator_id: str, role: Role, who: str, *, first_part: str = "") -> OperatorKey:
        """Make an operator and its key. Raises RefusedError where the name is taken."""
        if operator_id in RESERVED:
            raise RefusedError(
                f"the audit log calls the control plane's own work {operator_id!r}", hint="choose another name"
            )
        made = self._make(operator_id, role, first_part)
        await self._registry.add_operator(made.operator, who)
        return made

    async def set_status(self, operator_id: str, status: str, who: str) -> Operator:
        """Disable an operator, or enable it again. Raises NotFoundError, RefusedError."""
        found = self._registry.operator(operator_id)
        if status == "disabled":
            self._require_another_admin(found)
        return await self._registry.put_operator(replace(found, status=status), f"operator_{status}", who)

    async def rotate_key(self, operator_id: str, who: str, *, first_part: str = "") -> OperatorKey:
        """Give an operator a new key; the old one ends now. Raises NotFoundError, RefusedError."""
        found = self._registry.operator(operator_id)
        if operator_id == LOCAL:
            raise RefusedError(
                "the key of the operator `local` lies in the data folder",
                hint="to have a new one: remove secrets/operator.key and start again: bulkhead up",
            )
        made = self._make(operator_id, Role[found.role.upper()], first_part)
        renewed = replace(found, hash=made.operator.hash, hint=made.operator.hint)
        await self._registry.put_operator(renewed, "operator_key_rotated", who)
        return OperatorKey(renewed, made.text)

    async def ensure_local(self, file: Path) -> None:
        """See to it that the key in the data folder is the local operator's. One that was disabled stays so.

        Raises ControlPlaneError.
        """
        found = self._registry.find_operator(LOCAL)
        text = _read_key(file)
        if found is not None and secrets.compare_digest(hash_key(self._pepper, text), found.hash):
            return
        made = self._make(LOCAL, Role.ADMIN)
        # The file first: a crash before the registry knows of the key makes another one at the next start.
        _write_key(file, made.text)
        if found is None:
            await self._registry.add_operator(made.operator, "control_plane")
        else:
            renewed = replace(found, hash=made.operator.hash, hint=made.operator.hint)
            await self._registry.put_operator(renewed, "operator_key_rotated", "control_plane")

    def _make(self, operator_id: str, role: Role, first_part: str = "") -> OperatorKey:
        text = f"ok_{operator_id}_{make_secret(first_part)}"
        hashed, hint = hash_key(self._pepper, text), text[-HINT_CHARACTERS:]
        return OperatorKey(Operator(operator_id, role.word, "active", hashed, hint, timestamp()), text)

    def _require_another_admin(self, leaving: Operator) -> None:
        others = (one for one in self._registry.operators() if one.id != leaving.id and one.status == "active")
        if leaving.role == Role.ADMIN.word and not any(one.role == Role.ADMIN.word for one in others):
            raise RefusedError(
                f"{leaving.id!r} is the last admin: nobody could let anybody in any more",
                hint="add another one first: bulkhead operator add NAME --role admin",
            )


def _read_key(file: Path) -> str:
    """Read the local operator's key, and keep it to this user; empty where there is none. Raises FolderError."""
    try:
        if not file.exists():
            return ""
        file.chmod(0o600)
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise _unkept(file, error) from error


def _write_key(file: Path, text: str) -> None:
    try:
        write_atomically(file, text.encode())
        file.chmod(0o600)
    except OSError as error:
        raise _unkept(file, error) from error


def _unkept(file: Path, error: Exception) -> FolderError:
    return FolderError(
        f"the local operator's key can't be kept: {error}", where=str(file), hint="mend that, or remove the file"
    )
