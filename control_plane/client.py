"""The command line's way to a running control plane: the admin API, over its Unix socket or, elsewhere, its port.

On one machine nothing has to be said: the local operator's key lies in the data folder. `BULKHEAD_ADMIN_URL` and
`BULKHEAD_OPERATOR_KEY` name another installation's API and an operator's own key.
"""

import contextlib
import json
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Final

import httpx

from control_plane import limits
from control_plane.data_folder import DataFolder, short_socket_path
from control_plane.errors import (
    ERRORS_BY_CODE,
    ControlPlaneError,
    NotRunningError,
    SettingsError,
    WaitsForApprovalError,
)
from control_plane.gate import DRY_RUN_HEADER

URL_VARIABLE: Final = "BULKHEAD_ADMIN_URL"
KEY_VARIABLE: Final = "BULKHEAD_OPERATOR_KEY"
_HINT: Final = "start it: bulkhead up (with the same --settings or --data-folder)"


def ask(
    folder: DataFolder, method: str, path: str, body: dict[str, Any] | None = None, *, dry_run: bool = False
) -> dict[str, Any]:
    """Ask the control plane. Raises NotRunningError, WaitsForApprovalError, and whatever it refuses with."""
    with _client(folder) as client:
        answer = client.request(method, path, json=body, headers={DRY_RUN_HEADER: "true"} if dry_run else {})
    return _read(answer, folder)


def stream(folder: DataFolder, method: str, path: str, body: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Ask for what is told line by line, and give each as it comes. Raises as `ask`, also where its end is missing."""
    with (
        _client(folder) as client,
        client.stream(method, path, json=body) as answer,
    ):
        if not answer.is_success:
            answer.read()
            _read(answer, folder)
        for line in answer.iter_lines():
            fields = json.loads(line)
            if "failed" in fields:
                raise _error(fields["failed"])
            if "end" in fields:
                return
            yield fields
    raise ControlPlaneError(
        "the control plane ended in the middle of its answer; it goes on with what it had begun",
        where=str(folder.control_socket),
        hint="ask again once it runs: nothing is done twice",
    )


@contextlib.contextmanager
def _client(folder: DataFolder) -> Iterator[httpx.Client]:
    """Give a connection to the control plane, and explain what goes wrong on it."""
    url = os.environ.get(URL_VARIABLE, "")
    where = url or str(folder.control_socket)
    if not url and not folder.control_socket.exists():
        raise NotRunningError("no control plane runs on this data folder", where=where, hint=_HINT)
    timeout = limits.CONTROL_TIMEOUT_MS / 1000
    try:
        if url:
            with httpx.Client(base_url=url, timeout=timeout, headers=headers(folder), trust_env=False) as client:
                yield client
            return
        with short_socket_path(folder.control_socket) as short:
            with socket.socket(socket.AF_UNIX) as probe:  # httpcore leaks its own where nobody listens
                probe.connect(short)
            # Nothing is encrypted here; without a context all certificate authorities are read, each time.
            transport = httpx.HTTPTransport(uds=short, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
            with httpx.Client(
                base_url="http://control", transport=transport, timeout=timeout, headers=headers(folder)
            ) as client:
                yield client
    except (ConnectionRefusedError, FileNotFoundError, httpx.ConnectError) as error:
        raise NotRunningError(
            f"the control plane does not listen (any more): {error}", where=where, hint=_HINT
        ) from error
    except httpx.InvalidURL as error:
        raise SettingsError(f"{url!r} is no address: {error}", where=URL_VARIABLE, hint="http://HOST:PORT") from error
    except (httpx.HTTPError, OSError) as error:
        raise ControlPlaneError(
            f"the control plane gave no answer: {error or type(error).__name__}. It may have done what was asked",
            where=where,
            hint="see how it is with `bulkhead status`, then ask again: nothing is done twice",
        ) from error


def is_elsewhere() -> bool:
    """Whether another installation's API is meant, and not what lies in the data folder."""
    return bool(os.environ.get(URL_VARIABLE))


def headers(folder: DataFolder) -> dict[str, str]:
    """Return the key to ask with: an operator's own, or the local one's. Raises SettingsError."""
    own = os.environ.get(KEY_VARIABLE, "")
    if own or os.environ.get(URL_VARIABLE):
        return {"Authorization": f"Bearer {own}"}  # the local key is never sent elsewhere
    try:
        key = folder.operator_key_file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"the local operator's key can't be read: {error}",
            where=str(folder.operator_key_file),
            hint=f"`bulkhead up` makes it; or say your own key in {KEY_VARIABLE}",
        ) from error
    return {"Authorization": f"Bearer {key}"}


def _read(answer: httpx.Response, folder: DataFolder) -> dict[str, Any]:
    try:
        fields = answer.json()
    except json.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise ControlPlaneError(
            f"the control plane answered with status {answer.status_code} and no JSON object",
            where=str(folder.control_socket),
            hint=f"its words stand in {folder.log_file('control_plane')}",
        )
    if answer.status_code == WaitsForApprovalError.http_status:
        raise WaitsForApprovalError(fields)
    if answer.is_success:
        return fields
    raise _error(fields)


def _error(fields: dict[str, Any]) -> ControlPlaneError:
    kind = ERRORS_BY_CODE.get(str(fields.get("kind")), ControlPlaneError)
    error = kind(str(fields.get("what", "")), where=str(fields.get("where", "")), hint=str(fields.get("hint", "")))
    error.code = str(fields.get("code", kind.code))
    return error
