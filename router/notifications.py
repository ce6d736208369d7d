"""One notification of an acquirer, from its signature to its answer. Not for partners: no API key opens this.

Signed as Standard Webhooks says (https://www.standardwebhooks.com): HMAC-SHA256 over id, timestamp and body, five
minutes of tolerance. It is answered with 2xx only when it is committed; anything else makes the acquirer try again.
What it changes is decided in the partner's book, not here.
"""

import hashlib
import re
import time
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.requests import Request
from starlette.responses import Response

from cells.api.log_budget import LogBudget
from cells.api.messages import Command, Method, RefusalCode, Refused
from listeners.shares import Shares, network_of
from router import limits, problems, reading
from router.cells_client import CellsClient
from router.directory_file import DirectoryWatcher
from router.edge import KEY, Exchange, respond
from router.limits import actor_limits as bounds
from router.problems import EdgeCode, ProblemError

_ID: Final = re.compile(rf"[!-~]{{1,{bounds.NOTIFICATION_ID_CHARACTERS_MAX}}}", re.ASCII)
_SECONDS: Final = re.compile("[0-9]{1,12}", re.ASCII)
_HEADERS: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")
_CHALLENGE: Final = 'StandardWebhooks realm="bulkhead"'
_IGNORED: Final = b'{"object":"acknowledgement","taken":false}'

_Key = Annotated[str, Field(pattern="^(op|re)_[0-9A-Z]{26}$")]
_OpeningKey = Annotated[str, Field(pattern="^op_[0-9A-Z]{26}$")]
_Name = Annotated[str, Field(min_length=1, max_length=bounds.ACQUIRER_NAME_CHARACTERS_MAX)]
_Time = Annotated[int, Field(gt=0, lt=bounds.ACQUIRER_TIME_MS_MAX)]


class _Told(BaseModel):
    # Fields that are not asked for are passed over, so that an acquirer can add some.
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Subject(_Told):
    """What it is about: `original_key` names the authorization or purchase, unless `key` itself does."""

    partner: Annotated[str, Field(max_length=40)]
    key: _Key
    original_key: _OpeningKey | None


class _Approved(_Subject):
    result: Literal["approved"]
    reference: _Name
    expires_at_ms: _Time | None


class _Declined(_Subject):
    result: Literal["declined"]
    code: _Name
    retryable: bool


class _Dispute(_Told):
    id: Annotated[str, Field(min_length=1, max_length=bounds.DISPUTE_ID_CHARACTERS_MAX)]
    amount: Annotated[int, Field(ge=1, le=bounds.AMOUNT_MINOR_UNITS_MAX)]
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    reason: Annotated[str, Field(max_length=bounds.REASON_CHARACTERS_MAX, min_length=1)]
    opened_at_ms: _Time


class _OpenDispute(_Dispute):
    status: Literal["open"]
    closed_at_ms: None = None


class _ClosedDispute(_Dispute):
    status: Literal["won", "lost"]
    closed_at_ms: _Time


class _DisputeData(_Subject):
    dispute: Annotated[_OpenDispute | _ClosedDispute, Field(discriminator="status")]


class _ResultNotification(_Told):
    type: Literal["operation.result"]
    data: Annotated[_Approved | _Declined, Field(discriminator="result")]


class _DisputeNotification(_Told):
    type: Literal["dispute.opened", "dispute.won", "dispute.lost"]
    data: _DisputeData


_Notification = _ResultNotification | _DisputeNotification
_ADAPTER: Final[TypeAdapter[_Notification]] = TypeAdapter(Annotated[_Notification, Field(discriminator="type")])
TYPES: Final = frozenset({"operation.result", "dispute.opened", "dispute.won", "dispute.lost"})


class Notifications:
    """The endpoint `POST /v1/acquirers/{acquirer}/notifications`. `keys`: with which each acquirer signs."""

    def __init__(
        self,
        watcher: DirectoryWatcher,
        cells: CellsClient,
        keys: Mapping[str, bytes],
        budget: LogBudget,
        proxies: Collection[str] = (),
    ) -> None:
        self._watcher = watcher
        self._cells = cells
        self._webhooks = {name: Webhook(key) for name, key in keys.items()}
        self._budget = budget
        self._awaited = Shares(limits.UNPROVEN_BODIES_AWAITED_MAX, limits.ADDRESS_BODIES_AWAITED_MAX, proxies)
        self._running = 0

    async def serve(self, request: Request) -> Response:
        """Answer one notification."""
        exchange: Exchange = request.scope[KEY]
        try:
            return await self._serve(request, exchange)
        except ProblemError as error:
            self._budget.warning(
                "notification_refused",
                code=error.problem.code.value,
                acquirer_known=request.path_params["acquirer"] in self._webhooks,
                request_id=exchange.request_id,
                client=(request.scope.get("client") or ("unknown",))[0],
            )
            return respond(error.problem, exchange)

    async def _serve(self, request: Request, exchange: Exchange) -> Response:
        webhook = self._webhooks.get(request.path_params["acquirer"])
        if webhook is None:
            raise problems.fail(EdgeCode.NOT_FOUND, "There is no such acquirer.")
        notification_id = _read_id(request)
        _check_time(request)
        address = network_of((request.scope.get("client") or ("unknown",))[0])
        body = await reading.read_body(exchange.head, request.receive, self._awaited, address)
        _check_signature(webhook, request, body)
        # From here on it is the acquirer's: what takes a place of all notifications was signed.
        if self._running >= limits.NOTIFICATIONS_MAX:
            raise problems.fail(
                EdgeCode.OVERLOADED,
                "As many notifications are under way as this gateway lets in. Try again.",
                retry_after_ms=limits.RETRY_AFTER_DEFAULT_MS,
            )
        self._running += 1
        try:
            return await self._take(request, exchange, notification_id, body)
        finally:
            self._running -= 1

    async def _take(self, request: Request, exchange: Exchange, notification_id: str, body: bytes) -> Response:
        fields, canonical = reading.parse_json(body)
        if isinstance(fields.get("type"), str) and fields["type"] not in TYPES:
            # News of a kind that is not known here, and would not be at the next attempt either.
            self._budget.warning("notification_ignored", request_id=exchange.request_id)
            return Response(_IGNORED, media_type="application/json")
        try:
            told = _ADAPTER.validate_python(fields)
        except ValidationError as error:
            raise _invalid(error) from None
        exchange.partner_id = told.data.partner
        fingerprint = hashlib.sha256(canonical).digest()
        return await self._forward(request.path_params["acquirer"], notification_id, told, fingerprint, exchange)

    async def _forward(
        self, acquirer: str, notification_id: str, told: _Notification, fingerprint: bytes, exchange: Exchange
    ) -> Response:
        held = self._watcher.current
        if held is None:
            raise problems.fail(EdgeCode.NOT_READY, "The partners are not known here yet. Try again.")
        partner_id = told.data.partner
        cell = held.cell_of(partner_id) if partner_id in held.partners else None
        if cell is None:
            raise problems.fail(RefusalCode.PAYMENT_NOT_FOUND, "There is no such payment. Try again later.")
        exchange.cell = cell.name
        method, arguments = _arguments(notification_id, told)
        # Who signed is who speaks: the partner's book takes its word on its own operations only.
        arguments["acquirer"] = acquirer
        command = Command(exchange.command_id, exchange.request_id, arguments, None, fingerprint)
        outcome = await self._cells.ask(cell.name, partner_id, method, command, writes=True)
        if isinstance(outcome, Refused):
            # Without the rate limit, which is between the partner and the gateway.
            raise ProblemError(problems.of_refused(Refused(outcome.refusal)))
        return Response(outcome.body, outcome.status, media_type="application/json")


def _read_id(request: Request) -> str:
    notification_id = request.headers.get("webhook-id", "")
    if _ID.fullmatch(notification_id) is None:
        raise _unsigned("Its webhook-id is missing or no id.")
    reading.refuse_card_data({"webhook-id": notification_id}, "header")
    return notification_id


def _check_time(request: Request) -> None:
    """Refuse what was not signed a moment ago, before its body is waited for. Raises ProblemError (401)."""
    told = request.headers.get("webhook-timestamp", "")
    if _SECONDS.fullmatch(told) is None or abs(time.time() - int(told)) > limits.NOTIFICATION_AGE_S_MAX:
        raise _unsigned("Its webhook-timestamp is missing, or not of these five minutes.")


def _check_signature(webhook: Webhook, request: Request, body: bytes) -> None:
    """Let pass what the acquirer signed, a moment ago. Raises ProblemError (401)."""
    headers = {name: request.headers.get(name, "") for name in _HEADERS}
    try:
        webhook.verify(body, headers, json_parse=False)
    except (WebhookVerificationError, ValueError) as error:
        # ValueError: a body that is no UTF-8, or a signature that is no base64.
        raise _unsigned("Its signature is missing, wrong, or not of these five minutes.") from error


def _arguments(notification_id: str, told: _Notification) -> tuple[str, dict[str, Any]]:
    """Give the command that the notification becomes."""
    data = told.data
    subject = {"notification_id": notification_id, "operation_id": data.key, "original_id": data.original_key}
    match data:
        case _Approved():
            word = {"result": "approved", "reference": data.reference, "expires_ms": data.expires_at_ms}
            return Method.NOTIFY_RESULT, subject | word
        case _Declined():
            return Method.NOTIFY_RESULT, subject | {
                "result": "declined",
                "code": data.code,
                "retryable": data.retryable,
            }
        case _DisputeData():
            dispute = data.dispute
            return Method.NOTIFY_DISPUTE, subject | {
                "dispute_id": dispute.id,
                "amount": dispute.amount,
                "currency": dispute.currency,
                "reason": dispute.reason,
                "status": dispute.status,
                "opened_ms": dispute.opened_at_ms,
                "closed_ms": dispute.closed_at_ms,
            }


def _invalid(error: ValidationError) -> ProblemError:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    errors = tuple({"detail": entry["msg"]} for entry in found[: limits.PROBLEM_ERRORS_MAX])
    return problems.fail(EdgeCode.VALIDATION_FAILED, f"{len(found)} of its parts are wrong.", errors=errors)


def _unsigned(detail: str) -> ProblemError:
    return problems.fail(EdgeCode.SIGNATURE_INVALID, detail, headers={"www-authenticate": _CHALLENGE})
