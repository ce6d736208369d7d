"""Changes that may need a second person, each as one action: how it is made, what it is about, how it reads.

The admin API's routes call them through approving.py, which decides whether they are made now or wait. Each can be
tried without being done (dry_run.py), and those that change something outside the registry can be made again.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from cells.api.ids import new_ulid
from control_plane import dry_run
from control_plane.approvals import Kind, Person
from control_plane.doors import Doors, UnknownOperation
from control_plane.errors import RefusedError
from control_plane.operators import OperatorKey, Operators
from control_plane.partners import Changed, Partners
from control_plane.registry import Registry
from control_plane.registry_records import Operator, Partner
from control_plane.roles import ROLES

# How a key is handed out that two persons made: its first characters to the one, its last to the other.
SECOND_PART_CHARACTERS: Final = 22
Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class By:
    """Who has an action made. `approval`: the one that two persons agreed on; `first_part`: of the key's secret."""

    who: str
    approval: str = ""
    first_part: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """One kind of change. `key_prefix`: how a key begins that it makes; then each person is given a part of it.

    `needs_two`: whether this one needs two persons, where its kind does.
    """

    kind: Kind
    method: str
    route: str
    run: Callable[[Arguments, By], Awaitable[dict[str, Any]]]
    target: Callable[[Arguments], Awaitable[dict[str, Any]]]
    summary: Callable[[Arguments, dict[str, Any]], str]
    needs_two: Callable[[Arguments, Person], bool] = lambda _arguments, _person: True
    key_prefix: Callable[[Arguments], str] | None = None
    is_outside: bool = False


def all_actions(registry: Registry, partners: Partners, operators: Operators, doors: Doors) -> dict[str, Action]:
    """Return them by name."""
    return (
        _partner_actions(registry, partners)
        | _unknown_actions(registry, doors)
        | _operator_actions(registry, operators)
    )


def _partner_actions(registry: Registry, partners: Partners) -> dict[str, Action]:
    async def target(arguments: Arguments) -> dict[str, Any]:
        partner_id = str(arguments["partner_id"])
        found = asdict(registry.partner(partner_id))
        keys = [[key.id, key.expires_at, key.revoked_at] for key in registry.keys(partner_id)]
        return {
            "partner": {**found, "acquirers": list(found["acquirers"]), "currencies": list(found["currencies"])},
            "keys": keys,
        }

    def is_live(arguments: Arguments, _person: Person) -> bool:
        found = registry.find(str(arguments["partner_id"]))
        return found is None or found.mode == "live"

    async def rotate(arguments: Arguments, by: By) -> dict[str, Any]:
        return changed_fields(
            await partners.rotate_key(arguments["partner_id"], arguments["grace_s"], by.who, first_part=by.first_part)
        )

    async def revoke(arguments: Arguments, by: By) -> dict[str, Any]:
        return changed_fields(await partners.revoke_key(arguments["partner_id"], arguments["key_id"], by.who))

    async def delete(arguments: Arguments, by: By) -> dict[str, Any]:
        changed = changed_fields(await partners.delete(arguments["partner_id"], arguments["grace_s"], by.who))
        return {**changed, "deletion": deletion_fields(registry, partners, arguments["partner_id"])}

    return {
        "rotate_key": Action(
            "live_keys",
            "POST",
            "/partners/{partner_id}/keys",
            rotate,
            target,
            lambda given, _: f"give {given['partner_id']} a new key; its older ones end after {given['grace_s']} s",
            is_live,
            lambda given: f"sk_{registry.partner(given['partner_id']).mode}_{given['partner_id']}_",
        ),
        "revoke_key": Action(
            "live_keys",
            "DELETE",
            "/partners/{partner_id}/keys/{key_id}",
            revoke,
            target,
            lambda given, _: f"end {given['partner_id']}'s key {given['key_id']} at once",
            is_live,
        ),
        "delete_partner": Action(
            "deletion",
            "POST",
            "/partners/{partner_id}/delete",
            delete,
            target,
            lambda given, _: f"delete {given['partner_id']}: its book is erased after {given['grace_s']} s",
        ),
    }


def _unknown_actions(registry: Registry, doors: Doors) -> dict[str, Action]:
    async def find(arguments: Arguments) -> UnknownOperation:
        partner = registry.partner(str(arguments["partner"]))
        return await _find_for_person(doors, partner, str(arguments["operation_id"]))

    async def target(arguments: Arguments) -> dict[str, Any]:
        found = await find(arguments)
        named = ("operation_id", "payment_id", "kind", "amount", "currency", "acquirer")
        return {name: getattr(found, name) for name in named}

    async def resolve(arguments: Arguments, by: By) -> dict[str, Any]:
        partner, operation_id = registry.partner(arguments["partner"]), arguments["operation_id"]
        outcome, note = arguments["outcome"], arguments["note"]
        detail = {"operation": operation_id, "outcome": outcome, "note": note}
        if dry_run.ASKED.get():
            await find(arguments)
            await registry.note(by.who, "operation_resolved", partner.id, detail)
        answer = await doors.resolve_operation(
            partner.cell,
            partner.id,
            operation_id,
            outcome=outcome,
            operator=by.who,
            note=note,
            # Told once more, after a crash, the partner's actor says what it said.
            command_id=f"resolve_{by.approval or new_ulid()}",
        )
        await registry.note(by.who, "operation_resolved", partner.id, detail)
        return {"operation_id": operation_id, "partner": partner.id, "outcome": outcome, "answer": answer}

    return {
        "resolve_operation": Action(
            "unknown_resolve",
            "POST",
            "/unknown/{operation_id}/resolve",
            resolve,
            target,
            lambda given, about: (
                f"write down that {given['operation_id']} of {given['partner']}, a {about['kind']} of "
                f"{about['amount']} {about['currency']}, {given['outcome']}: {given['note']}"
            ),
            is_outside=True,
        )
    }


def _operator_actions(registry: Registry, operators: Operators) -> dict[str, Action]:
    async def target(arguments: Arguments) -> dict[str, Any]:
        found = registry.find_operator(str(arguments["operator_id"]))
        return {"operator": None if found is None else operator_fields(found)}

    async def add(arguments: Arguments, by: By) -> dict[str, Any]:
        role = ROLES[arguments["role"]]
        return _with_key(await operators.add(arguments["operator_id"], role, by.who, first_part=by.first_part))

    async def enable(arguments: Arguments, by: By) -> dict[str, Any]:
        return {"operator": operator_fields(await operators.set_status(arguments["operator_id"], "active", by.who))}

    async def rotate(arguments: Arguments, by: By) -> dict[str, Any]:
        return _with_key(await operators.rotate_key(arguments["operator_id"], by.who, first_part=by.first_part))

    def prefix(arguments: Arguments) -> str:
        return f"ok_{arguments['operator_id']}_"

    return {
        "add_operator": Action(
            "roles",
            "POST",
            "/operators",
            add,
            target,
            lambda given, _: f"let the operator {given['operator_id']} in as {given['role']}",
            key_prefix=prefix,
        ),
        "enable_operator": Action(
            "roles",
            "POST",
            "/operators/{operator_id}/enable",
            enable,
            target,
            lambda given, about: f"let {given['operator_id']} in again as {_role_in(about)}",
        ),
        "rotate_operator_key": Action(
            "roles",
            "POST",
            "/operators/{operator_id}/key",
            rotate,
            target,
            lambda given, about: f"give the operator {given['operator_id']} ({_role_in(about)}) a new key",
            # Who renews the own key becomes nobody else.
            lambda given, person: given["operator_id"] != person.operator,
            prefix,
        ),
    }


async def _find_for_person(doors: Doors, partner: Partner, operation_id: str) -> UnknownOperation:
    """Refuse what the partner's actor would refuse: an operation that is not there, or that the gateway still asks."""
    found = await doors.list_unknown(partner.cell, partner.id)
    for one in found:
        if one.operation_id == operation_id and one.needs_person:
            return one
    raise RefusedError(
        f"{operation_id} is none of {partner.id}'s operations that need a person",
        where=f"{partner.cell}'s door",
        hint="see them: bulkhead unknown list",
    )


def changed_fields(changed: Changed) -> dict[str, Any]:
    """Return a change of a partner as the admin API tells it."""
    fields: dict[str, Any] = {
        "partner": asdict(changed.partner),
        "routers_behind": list(changed.routers_behind),
        "door_behind": changed.door_behind,
    }
    if changed.key is not None:
        fields["key"] = {"id": changed.key.id, "hint": changed.key.hint, "api_key": changed.key.text}
    return fields


def deletion_fields(registry: Registry, partners: Partners, partner_id: str) -> dict[str, Any] | None:
    """Return how a partner's deletion is, None where there is none. `waits_for`: why its end is not taken yet."""
    deletion = registry.deletion(partner_id)
    return None if deletion is None else {**asdict(deletion), "waits_for": partners.deletions.waits_for(partner_id)}


def operator_fields(operator: Operator) -> dict[str, Any]:
    """Return an operator without its key's hash."""
    return {name: value for name, value in asdict(operator).items() if name != "hash"}


def _with_key(made: OperatorKey) -> dict[str, Any]:
    return {"operator": operator_fields(made.operator), "key": made.text}


def _role_in(about: dict[str, Any]) -> str:
    return str((about["operator"] or {}).get("role", "nobody"))
