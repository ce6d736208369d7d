"""The OpenAPI document: whole, and of one mind with the table of endpoints and with the cell's own answers."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cells.api.messages import NOTIFICATIONS, READS, WRITES, Method
from router import problems
from router.app import create_app
from router.endpoints import ENDPOINTS, codes
from router.settings import Settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("router")
    (folder / "pepper").write_bytes(b"p" * 32)
    (folder / "directory.pub").write_bytes(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    return Settings(
        name="router-0",
        host="127.0.0.1",
        port=0,
        directory_file=folder / "directory.json",
        data_folder=Path(folder / "own"),
        directory_key_file=folder / "directory.pub",
        metrics_port=8181,
        pepper_file=folder / "pepper",
        cell_keys_folder=folder,
    )


@pytest.fixture
async def document(settings: Settings) -> dict[str, Any]:
    transport = httpx.ASGITransport(create_app(settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return found.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in references(document):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


async def test_every_endpoint_is_described(document: dict[str, Any]) -> None:
    described = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert set(described) == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}
    for endpoint in ENDPOINTS:
        operation = described[endpoint.method, endpoint.path]
        assert operation["operationId"] == endpoint.name
        assert operation["security"] == [{"apiKey": []}]
        statuses = {str(problems.KINDS[code].status) for code in codes(endpoint)} | set(map(str, endpoint.answers))
        assert set(operation["responses"]) == statuses
        for status, answer in operation["responses"].items():
            media = "application/json" if status < "300" else "application/problem+json"
            assert set(answer["content"]) == {media}
            assert "Request-Id" in answer["headers"]
            assert ("Retry-After" in answer["headers"]) is (status in ("429", "503"))
        parameters = {parameter["name"] for parameter in operation.get("parameters", [])}
        assert ("Idempotency-Key" in parameters) is endpoint.writes
        assert ("id" in parameters) is ("{id}" in endpoint.path)
        assert ("requestBody" in operation) is endpoint.writes
        for code in codes(endpoint):
            assert f"`{code.value}`" in operation["responses"][str(problems.KINDS[code].status)]["description"]


async def test_query_parameters_are_described(document: dict[str, Any]) -> None:
    parameters = {entry["name"]: entry for entry in document["paths"]["/v1/payments"]["get"]["parameters"]}
    assert set(parameters) == {"limit", "starting_after", "status", "reference", "created_from", "created_before"}
    assert "captured" in json.dumps(parameters["status"])
    assert "date-time" in json.dumps(parameters["created_from"])


async def test_a_payment_s_fields_are_described(document: dict[str, Any]) -> None:
    request = document["components"]["schemas"]["PaymentRequest"]
    assert set(request["required"]) == {"amount", "currency", "payment_method"}
    assert request["additionalProperties"] is False


def test_every_command_of_a_partner_has_its_endpoint() -> None:
    of_operators = {
        Method.RESOLVE_OPERATION,
        Method.LIST_UNKNOWN,
        Method.COUNT_OPEN,
        Method.RECONCILE_OPERATIONS,
        Method.RECORD_CHANGE,
        Method.COMPARE_SETTLEMENT,
        Method.LIST_UNRECONCILED,
    }
    of_others = of_operators | NOTIFICATIONS  # what acquirers notify, no partner's request becomes
    assert {endpoint.command for endpoint in ENDPOINTS if endpoint.command} == (WRITES | READS) - of_others
    for endpoint in ENDPOINTS:
        assert (endpoint.command in WRITES) is endpoint.writes
