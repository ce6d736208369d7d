"""The OpenAPI document: made from the table of endpoints and the models, so that it can't tell anything else."""

from collections import defaultdict
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from router import models, problems
from router.directory import API_VERSION
from router.endpoints import ENDPOINTS, Endpoint, codes
from router.limits import actor_limits

_REFERENCE: Final = "#/components/schemas/{model}"
_RETENTION_HOURS: Final = actor_limits.IDEMPOTENCY_RETENTION_MS // 3_600_000

_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "Request-Id": {
        "description": "Names this request in every log. On every answer.",
        "schema": {"type": "string", "pattern": f"^req_{models.ULID}$"},
    },
    "Bulkhead-Version": {
        "description": "The API version that is pinned for the partner.",
        "schema": {"type": "string", "format": "date"},
    },
    "RateLimit-Policy": {
        "description": "draft-ietf-httpapi-ratelimit-headers: the quota `q` and its window `w` in seconds.",
        "schema": {"type": "string", "examples": ['"default";q=100;w=2']},
    },
    "RateLimit": {
        "description": "draft-ietf-httpapi-ratelimit-headers: what remains (`r`), and when it is whole again (`t`, s).",
        "schema": {"type": "string", "examples": ['"default";r=99;t=1']},
    },
    "Idempotent-Replayed": {
        "description": "`true` where this is the first answer to the same request, again.",
        "schema": {"type": "string", "const": "true"},
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "RFC 6750.", "schema": {"type": "string"}},
}
_ON_SUCCESS: Final = ("Request-Id", "Bulkhead-Version", "RateLimit-Policy", "RateLimit")

_IDEMPOTENCY_KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "Makes it safe to send the request again: the first answer comes again, byte for byte. Another body under the "
        f"same key is refused. Kept for {_RETENTION_HOURS} hours. 1 to {actor_limits.IDEMPOTENCY_KEY_CHARACTERS_MAX} "
        "visible ASCII characters, bare or as a quoted string."
    ),
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": actor_limits.IDEMPOTENCY_KEY_CHARACTERS_MAX,
        "pattern": "^[!-~]+$",
    },
}


def responses(endpoint: Endpoint) -> dict[int | str, dict[str, Any]]:
    """Describe the endpoint's answers, for FastAPI's `responses`."""
    described: dict[int | str, dict[str, Any]] = {}
    names = (*_ON_SUCCESS, "Idempotent-Replayed") if endpoint.writes else _ON_SUCCESS
    for status, (model, description) in endpoint.answers.items():
        described[status] = {"model": model, "description": description, "headers": _references(names)}
    by_status: dict[int, list[str]] = defaultdict(list)
    for code in dict.fromkeys(codes(endpoint)):
        by_status[problems.KINDS[code].status].append(code.value)
    for status, names_of_codes in sorted(by_status.items()):
        headers = ["Request-Id"]
        if status in (429, 503):
            headers.append("Retry-After")
        if status == 401:
            headers.append("WWW-Authenticate")
        described[status] = {
            "description": f"Codes: {', '.join(f'`{name}`' for name in names_of_codes)}.",
            "headers": _references(headers),
            "content": {problems.MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="ProblemDetails")}}},
        }
    return described


def takes(endpoint: Endpoint) -> dict[str, Any]:
    """Describe what the endpoint takes, for FastAPI's `openapi_extra`."""
    parameters: list[dict[str, Any]] = []
    if endpoint.path_id is not None:
        schema = {"type": "string", "pattern": endpoint.path_id.pattern}
        parameters.append({"name": "id", "in": "path", "required": True, "schema": schema})
    for name, schema in endpoint.query.model_json_schema().get("properties", {}).items():
        parameters.append({"name": name, "in": "query", "required": False, "schema": _inlined(endpoint, schema)})
    if endpoint.writes:
        parameters.append(_IDEMPOTENCY_KEY)
    described: dict[str, Any] = {"security": [{"apiKey": []}]}
    if parameters:
        described["parameters"] = parameters
    if endpoint.body is not None:
        described["requestBody"] = {
            "required": not endpoint.body_optional,
            "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model=endpoint.body.__name__)}}},
        }
    return described


def document(app: FastAPI) -> dict[str, Any]:
    """Make the whole document."""
    made = get_openapi(
        title="Bulkhead",
        version=API_VERSION,
        summary="A payment gateway in which no partner can sink another.",
        description="Amounts are whole numbers of a currency's minor unit. Problems are those of RFC 9457.",
        routes=app.routes,
    )
    bodies: list[Any] = [(endpoint.body, "validation") for endpoint in ENDPOINTS if endpoint.body is not None]
    _, definitions = models_json_schema([*bodies, (models.ProblemDetails, "serialization")], ref_template=_REFERENCE)
    components = made.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["headers"] = _HEADERS
    components["securitySchemes"] = {
        "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key: `sk_test_...` or `sk_live_...`."}
    }
    return made


def _references(names: tuple[str, ...] | list[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _inlined(endpoint: Endpoint, schema: dict[str, Any]) -> dict[str, Any]:
    """Put definitions that a query parameter refers to in their places."""
    definitions = endpoint.query.model_json_schema().get("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolve(definitions[value["$ref"].rsplit("/", 1)[1]])
            return {key: resolve(entry) for key, entry in value.items()}
        return [resolve(entry) for entry in value] if isinstance(value, list) else value

    resolved: dict[str, Any] = resolve(schema)
    # A parameter is left out; it is never null.
    for alternative in resolved.pop("anyOf", ()):
        if alternative != {"type": "null"}:
            resolved = alternative | resolved
    return resolved
