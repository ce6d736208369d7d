"""The acquirer's port over HTTP: one call out, an outcome or AcquirerUnknownError back. No retries and no rules go in.

Whatever is not exactly a documented outcome is unknown, never a decline: only the acquirer's own word is final. The
connections belong to the process and are shared by its partners; each partner's slots bound its share of them.
"""

import re
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from actors.acquirer import Accepted, Approved, Challenged, Declined, Instruction, NeverPerformed, Word
from actors.errors import AcquirerUnknownError
from cells.api import limits
from cells.http_client import Address, HttpClient

# What a partner may send its customer to: visible ASCII, and nothing that JSON would have to escape.
_CHALLENGE_URL: Final = re.compile(r"https?://[!#-\[\]-~]+", re.ASCII)
_JSON_HEADERS: Final = b"Content-Type: application/json\r\nAccept: application/json\r\n"


class HttpAcquirer:
    """One partner's way to its acquirer, over a client that it shares with its process's other partners."""

    def __init__(self, client: HttpClient, base_url: str, partner_id: str) -> None:
        """Take an http(s) address; anything else raises ValueError."""
        base = urlsplit(base_url)
        if base.scheme not in {"http", "https"} or not base.hostname:
            raise ValueError(f"not an address of an acquirer: {base_url}")
        is_tls = base.scheme == "https"
        self._client = client
        self._partner_id = partner_id
        self._address = Address(base.hostname, base.port or (443 if is_tls else 80), is_tls)
        self._operations = f"{base.path.rstrip('/')}/operations"

    async def perform(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | Challenged | Accepted:
        """Perform the operation, or learn what it became. Raises AcquirerUnknownError where nothing is told.

        A key that was closed is final: nothing was and nothing will be charged under it, so it counts as declined.
        """
        return _undone(await self._ask(self._operations, instruction, timeout_ms))

    async def confirm(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | Challenged | Accepted:
        """Go on with a challenged operation, under its own key. Raises AcquirerUnknownError where nothing is told."""
        return _undone(await self._ask(f"{self._operations}/{instruction.key}/confirm", instruction, timeout_ms))

    async def close_key(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | NeverPerformed:
        """Close the key durably and say what it did. Raises AcquirerUnknownError without a final answer."""
        outcome = await self._ask(f"{self._operations}/{instruction.key}/close", instruction, timeout_ms)
        if isinstance(outcome, Challenged | Accepted):
            raise AcquirerUnknownError("malformed", "a closed key waits for nothing")
        return outcome

    async def aclose(self) -> None:
        """Give back nothing: the connections belong to the client, which outlives its partners."""

    async def _ask(self, path: str, instruction: Instruction, timeout_ms: int) -> Word:
        assert instruction.partner_id == self._partner_id, "a partner's connection carries its operations only"
        request = orjson.dumps(
            {
                "partner": instruction.partner_id,
                "kind": instruction.kind,
                "amount": instruction.amount,
                "currency": instruction.currency,
                "payment_method": instruction.payment_method,
                "original_key": instruction.original_key,
            }
        )
        headers = b"%bIdempotency-Key: %b\r\n" % (_JSON_HEADERS, instruction.key.encode("ascii"))
        status, body = await self._client.post(self._address, path.encode("ascii"), headers, request, timeout_ms)
        if status >= 500:
            raise AcquirerUnknownError("server_error", f"HTTP {status}")
        if status != 200:
            raise AcquirerUnknownError("malformed", f"HTTP {status}")
        return read_outcome(instruction.key, body)


def _undone(outcome: Word) -> Approved | Declined | Challenged | Accepted:
    return Declined("operation_closed", retryable=True) if isinstance(outcome, NeverPerformed) else outcome


def read_outcome(key: str, body: bytes) -> Word:
    """Return the word that an answer holds. Raises AcquirerUnknownError("malformed") for any other shape.

    Fields that are not asked for are passed over, so that an acquirer can add some.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise AcquirerUnknownError("malformed", "not JSON") from error
    if not isinstance(answer, dict) or answer.get("key") != key:
        raise AcquirerUnknownError("malformed", "not about this key")
    outcome = _outcome(answer)
    if outcome is None:
        raise AcquirerUnknownError("malformed", "not an outcome")
    return outcome


def _outcome(answer: dict[str, Any]) -> Word | None:
    match answer:
        case {"result": "approved", "reference": str(reference), "expires_at_ms": None} if _is_name(reference):
            return Approved(reference)
        case {"result": "approved", "reference": str(reference), "expires_at_ms": int(expires_ms)} if (
            _is_name(reference) and type(expires_ms) is int and 0 < expires_ms < limits.ACQUIRER_TIME_MS_MAX
        ):
            return Approved(reference, expires_ms)
        case {"result": "declined", "code": str(code), "retryable": bool(retryable)} if _is_name(code):
            return Declined(code, retryable)
        case {"result": "closed"}:
            return NeverPerformed()
        case {"result": "challenge", "challenge": {"url": str(url), "expires_at_ms": int(expires_ms)}} if (
            len(url) <= limits.CHALLENGE_URL_CHARACTERS_MAX
            and _CHALLENGE_URL.fullmatch(url)
            and type(expires_ms) is int
            and 0 < expires_ms < limits.ACQUIRER_TIME_MS_MAX
        ):
            return Challenged(url, expires_ms)
        case {"result": "pending"}:
            return Accepted()
    return None


def _is_name(text: str) -> bool:
    return 0 < len(text) <= limits.ACQUIRER_NAME_CHARACTERS_MAX
