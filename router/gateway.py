"""One request of a partner, from its key to its answer: authenticate, admit, read, ask the cell, answer.

The order is a promise: no body is read for a caller who is not known, and no cell is asked for what has no form.
"""

import re
import time
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from cells.api.bulkheads import ALL_ON, Bulkhead
from cells.api.log_budget import LogBudget
from cells.api.messages import Answer, Command, Method, RateState, RefusalCode, Refused
from listeners.protocol import CONNECTION
from listeners.shares import Shares
from router import keys, limits, models, problems, reading
from router.admission import Admission
from router.budgets import Budgets, OverBudgetError
from router.cells_client import CellsClient
from router.directory import Directory, Partner
from router.directory_file import DirectoryWatcher
from router.edge import KEY, Exchange, respond
from router.endpoints import Endpoint
from router.guard import Guard
from router.idempotency import IdempotencyKeys
from router.metrics import Metrics
from router.problems import EdgeCode, ProblemError
from router.reading import Head
from router.remembered import RememberedRefusals
from router.spreading import Spreading
from router.turns import Turns

_JSON: Final = "application/json"


class Gateway:
    """What the handlers of all endpoints share."""

    def __init__(
        self,
        watcher: DirectoryWatcher,
        cells: CellsClient,
        pepper: bytes,
        metrics: Metrics,
        budget: LogBudget,
        bulkheads_off: AbstractSet[Bulkhead] = ALL_ON,
    ) -> None:
        self._watcher = watcher
        self._cells = cells
        self._pepper = pepper
        self._idempotency_keys = IdempotencyKeys(pepper)
        self._awaited = Shares(limits.BODIES_AWAITED_MAX, limits.PARTNER_BODIES_AWAITED_MAX)
        self._metrics = metrics
        self._budget = budget
        self.admission = Admission(bulkheads_off)
        self.budgets = Budgets(bulkheads_off)
        self.turns = Turns(bulkheads_off)
        self.remembered = RememberedRefusals()
        self.guard = Guard(watcher, pepper, metrics, budget)
        self.spreading: Spreading | None = None

    async def serve(self, endpoint: Endpoint, request: Request) -> Response:
        """Answer one request."""
        exchange: Exchange = request.scope[KEY]
        try:
            return await self._serve(endpoint, request, exchange)
        except ProblemError as error:
            if isinstance(error, keys.UnauthorizedError):
                address = (request.scope.get("client") or ("unknown",))[0]
                limited = self.guard.note(error, exchange.request_id, address)
                if limited is not None:
                    return respond(limited, exchange)
            elif isinstance(error, OverBudgetError):
                self._metrics.over_budget.inc()
                if CONNECTION in request.scope:  # it is so where the server is our own
                    request.scope[CONNECTION].hold(error.wait_ms)
            return respond(error.problem, exchange)

    async def _serve(self, endpoint: Endpoint, request: Request, exchange: Exchange) -> Response:
        held = self._watcher.current
        if held is None:
            raise problems.fail(EdgeCode.NOT_READY, "The partners are not known here yet. Try again.")
        partner_id, partner = keys.authenticate(
            exchange.head.values(b"authorization"), held, self._pepper, datetime.now(UTC)
        )
        exchange.partner_id = partner_id
        exchange.api_version = partner.api_version
        announced_bytes = exchange.head.expected_bytes
        account = self.budgets.admit(partner_id, partner, announced_bytes)
        reads = None if endpoint.writes else self.budgets.admit_read(account)
        if endpoint.writes and partner.status != "active":
            raise problems.fail(RefusalCode.PARTNER_SUSPENDED, "The partner is suspended: it can read, not write.")
        if endpoint.command == Method.CREATE_PAYMENT:
            remembered = self.remembered.recall(partner_id, partner.profile_version)
            if remembered is not None:
                self._metrics.answered_from_memory.inc()
                raise ProblemError(problems.of_refused(remembered))
        with self.admission.partner(partner_id):
            turn = self.turns.enter(partner_id, announced_bytes)
            if turn is not None:
                await turn
            body = await self._receive(endpoint, request, exchange.head, partner_id)
            began_s = time.thread_time()
            try:
                command = self._read(endpoint, request, exchange, partner_id, body)
            finally:  # whatever came of it
                account.charge((time.thread_time() - began_s) * 1_000_000)
            if endpoint.command is None:
                return Response(_account(partner_id, partner), 200, _headers(None, reads), _JSON)
            outcome = await self._ask(endpoint, partner_id, command, held, exchange)
        if isinstance(outcome, Refused):
            if endpoint.command == Method.CREATE_PAYMENT:
                self.remembered.remember(partner_id, partner.profile_version, outcome)
                if self.spreading is not None:
                    self.spreading.tell(partner_id, partner.profile_version, outcome)
            raise ProblemError(problems.of_refused(outcome))
        account.charge(len(outcome.body) * limits.BYTES_CPU_US_PER_KIB / 1_024)
        return _answer(outcome, reads)

    async def _receive(self, endpoint: Endpoint, request: Request, head: Head, partner_id: str) -> bytes:
        """Receive the body that the endpoint takes, if any comes. Raises ProblemError."""
        if not endpoint.writes or not head.announces_body:
            return b""
        reading.check_content_type(head)
        return await reading.read_body(head, request.receive, self._awaited, partner_id)

    def _read(self, endpoint: Endpoint, request: Request, exchange: Exchange, partner_id: str, body: bytes) -> Command:
        """Read the request as the command that it is. Raises ProblemError."""
        arguments: dict[str, Any] = {}
        if endpoint.path_id is not None:
            given = request.path_params["id"]
            if re.fullmatch(endpoint.path_id.pattern, given) is None:
                raise problems.fail(endpoint.path_id.not_found, "The id in the path has not the form of one.")
            arguments[endpoint.path_id.argument] = given
        query_string = request.scope["query_string"]
        if query_string or endpoint.query is not models.NoQuery:
            arguments.update(reading.read_query(endpoint.query, query_string).model_dump())
        if not endpoint.writes:
            return Command(exchange.command_id, exchange.request_id, arguments)
        assert endpoint.body is not None
        key = self._idempotency_keys.read(exchange.head, partner_id)
        canonical = b"{}"
        fields: dict[str, Any] = {}
        if body or not endpoint.body_optional:
            fields, canonical = reading.parse_json(body)
        arguments.update(reading.validate_body(endpoint.body, fields).model_dump())
        fingerprint = reading.fingerprint(endpoint.method, request.scope["path"], canonical)
        return Command(exchange.command_id, exchange.request_id, arguments, key, fingerprint)

    async def _ask(
        self, endpoint: Endpoint, partner_id: str, command: Command, held: Directory, exchange: Exchange
    ) -> Answer | Refused:
        assert endpoint.command is not None
        cell = held.cell_of(partner_id)
        if cell is None:
            raise problems.fail(RefusalCode.PARTNER_UNAVAILABLE, "The partner has no cell now. Nothing was changed.")
        exchange.cell = cell.name
        with self.admission.cell(cell.name, len(held.cells)):
            return await self._cells.ask(cell.name, partner_id, endpoint.command, command, writes=endpoint.writes)


def _answer(answer: Answer, reads: RateState | None) -> Response:
    assert 200 <= answer.status <= 299, "a cell answers with a success or refuses"
    headers = _headers(answer.rate, reads)
    if answer.replayed:
        headers["idempotent-replayed"] = "true"
    return Response(answer.body, answer.status, headers, _JSON)


def _headers(payments: RateState | None, reads: RateState | None) -> dict[str, str]:
    """Encode the limit of payments, and that of reads where the request was one, as lists of policies."""
    found = {} if payments is None else problems.rate_headers(payments)
    if reads is not None:
        for name, value in problems.rate_headers(reads, "reads").items():
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _account(partner_id: str, partner: Partner) -> bytes:
    return orjson.dumps(
        {
            "id": partner_id,
            "object": "partner",
            "name": partner.name,
            "status": partner.status,
            "mode": partner.mode,
            "api_version": partner.api_version,
            "limits": {
                "rate_per_second": partner.rate_per_second,
                "rate_burst": partner.rate_burst,
                "in_flight_max": partner.in_flight_max,
            },
            "created_at": partner.created_at,
            "keys": [
                {"id": key.id, "hint": key.hint, "created_at": key.created_at, "expires_at": key.expires_at}
                for key in partner.keys
            ],
        },
        option=orjson.OPT_UTC_Z,
    )
