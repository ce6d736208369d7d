"""A settlement file on its way to the actors, over stand-in doors: what is asked, asked again, and told of it."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acquirer_simulator import settlements
from cells.api.messages import Method, RefusalCode
from control_plane import cli, client, limits, reconciliation, settlement_file
from control_plane.errors import ControlPlaneError, NotRunningError
from control_plane.reconciliation import Differences, Job, PartnerResult, Wanted
from control_plane.reconciliation_routes import BeginReconciliation, EndReconciliation
from control_plane.registry_records import Partner
from control_plane.settings import AcquirerFees
from tests.stand_in_door import Installation, StandInDoor

DAY = date(2026, 11, 21)
START_MS = settlements.day_start_ms(DAY)
HOUR_MS = 3_600_000
PARTNERS = {"acme": "cell-0", "beta": "cell-1", "idle": "cell-0"}


def partner(name: str, cell: str) -> Partner:
    return Partner(name, name, "active", "test", cell, 1, 1, 1, "2026-11-22", 1, "2026-11-22T00:00:00Z")


def movement(number: int, of: str = "acme", **changes: Any) -> settlements.Row:
    row = settlements.Row(of, "purchase", f"op_{number}", "", f"acq_{number}", "EUR", 1_000, 40, START_MS)
    return row._replace(**changes)


class Actors:
    """What the partners' actors of all cells know: operations that are posted, extra, differing or in no file."""

    def __init__(self, doors: dict[str, StandInDoor]) -> None:
        self.batches: list[tuple[str, dict[str, Any]]] = []
        self.compared: list[str] = []
        self.windows: dict[str, tuple[int, int]] = {}
        self.posted: set[str] = set()
        self.findings: dict[str, dict[str, Any]] = {}
        self.unpaid: dict[str, list[str]] = {}
        self.refuse: list[RefusalCode] = []
        for door in doors.values():
            door.actors = {
                Method.RECONCILE_OPERATIONS: self.reconcile,
                Method.COMPARE_SETTLEMENT: self.compare,
                Method.LIST_UNRECONCILED: self.list_unreconciled,
            }

    def reconcile(self, of: str, arguments: dict[str, Any]) -> dict[str, Any] | RefusalCode:
        if self.refuse:
            return self.refuse.pop(0)
        self.batches.append((of, arguments))
        answer = self._look(arguments)
        self.posted |= {row[0] for row in arguments["rows"] if self.findings.get(row[0], {"posted": True})["posted"]}
        return answer

    def compare(self, of: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.compared.append(of)
        return self._look(arguments)

    def _look(self, arguments: dict[str, Any]) -> dict[str, Any]:
        keys = [row[0] for row in arguments["rows"]]
        found = [{"key": key, **self.findings[key]} for key in keys if key in self.findings]
        return {
            "matched": len(keys) - len(found),
            "repeated": sum(key in self.posted for key in keys),
            "findings": found,
        }

    def list_unreconciled(self, of: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.windows[of] = (arguments["from_ms"], arguments["before_ms"])
        keys = [key for key in self.unpaid.get(of, []) if key not in self.posted]
        after = arguments["after"] or 0
        shown = keys[after : after + 2]
        return {
            "operations": [
                {
                    "operation_id": key,
                    "payment_id": "pay_1",
                    "kind": "refund" if key.startswith("re_") else "purchase",
                    "amount": 700,
                    "currency": "EUR",
                    "succeeded_at": "2026-11-21T10:00:00.000Z",
                    "reference": None,
                }
                for key in shown
            ],
            "next": after + 2 if len(keys) > after + 2 else None,
        }


Run = Callable[..., Any]


@pytest.fixture
def actors(installation: Installation) -> Actors:
    return Actors(installation.doors)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: settlements.Row, of: str | None = None, until_ms: int | None = None) -> Path:
        writer = settlements.Writer(DAY, of, until_ms or START_MS + settlements.DAY_MS, final=until_ms is None)
        path = tmp_path / "day.csv"
        path.write_bytes(writer.begin() + writer.rows(rows) + writer.end())
        return path

    return write


async def reconcile(
    installation: Installation, path: Path, *, differences: Path | None = None, **options: Any
) -> tuple[dict[str, PartnerResult], Differences]:
    """Run one file through; give what came of each partner, and the differences."""
    _, _, doors, _ = await installation.control_plane()
    wanted = Wanted(path, **options)
    partners = {name: partner(name, cell) for name, cell in PARTNERS.items()}
    opening: AbstractContextManager[Differences] = Differences.opened(differences)
    with settlement_file.opened(path, frozenset(partners), lambda _: None) as found, opening as gathered:
        told: list[tuple[int, int]] = []
        fees = AcquirerFees().model_dump()
        job = Job(doors, fees, wanted, "ann", found, gathered, lambda done, of: told.append((done, of)))
        results = await job.run(partners)
        assert not told or told[-1][0] <= found.rows
    return {result.partner: result for result in results}, gathered


async def test_rows_go_to_their_partners_in_small_batches(
    installation: Installation, actors: Actors, file: Callable[..., Path]
) -> None:
    rows = [movement(number) for number in range(250)]
    rows.append(movement(900, "beta", kind="refund", gross=-5, fee=0, original_key="op_0"))
    results, differences = await reconcile(installation, file(*rows))
    assert [len(asked["rows"]) for of, asked in actors.batches if of == "acme"] == [100, 100, 50]
    (of_beta,) = [asked for of, asked in actors.batches if of == "beta"]
    assert of_beta["rows"] == [["op_900", "op_0", "refund", "acq_900", "EUR", -5, 0]]
    assert (of_beta["settled_on"], of_beta["operator"]) == ("2026-11-21", "ann")
    assert of_beta["fees"]["fixed"] == [25, 25, 25, 250, 2_500]
    assert results["acme"] == PartnerResult("acme", "cell-0", rows=250, matched=250)
    assert results["idle"] == PartnerResult("idle", "cell-0"), "asked too: what is missing has no row"
    assert set(actors.windows) == {"acme", "beta", "idle"}
    assert differences.found == 0


async def test_the_same_file_again_sends_the_same_commands(
    installation: Installation, actors: Actors, file: Callable[..., Path]
) -> None:
    path = file(*(movement(number) for number in range(150)))
    await reconcile(installation, path)
    results, _ = await reconcile(installation, path)
    assert (results["acme"].matched, results["acme"].repeated) == (150, 150)


async def test_differing_extra_and_missing_are_told_and_the_gravest_first(
    installation: Installation, actors: Actors, file: Callable[..., Path], tmp_path: Path
) -> None:
    actors.findings["op_1"] = {
        "verdict": "differing",
        "reasons": ["amount"],
        "posted": True,
        "payment_id": "pay_1",
        "owed": 1_100,
        "fee_agreed": 40,
    }
    actors.findings["op_2"] = {"verdict": "extra", "reasons": ["operation_open"], "posted": False}
    actors.findings["op_3"] = {"verdict": "differing", "reasons": ["currency"], "posted": False}
    actors.unpaid["acme"] = ["op_1", "op_3", "op_8", "re_9", "op_7"]
    sink = tmp_path / "differences.jsonl"
    results, differences = await reconcile(
        installation, file(*(movement(number) for number in range(1, 5)), movement(5, "nobody")), differences=sink
    )
    acme = results["acme"]
    assert (acme.rows, acme.matched, acme.differing, acme.extra, acme.missing) == (4, 1, 2, 1, 3)
    assert results["nobody"] == PartnerResult("nobody", None, rows=1, extra=1)
    shown = [(one["verdict"], one["key"], one["reasons"]) for one in differences.in_order()]
    assert shown == [
        ("extra", "op_2", ["operation_open"]),
        ("extra", "op_5", ["partner_unknown"]),
        ("missing", "op_8", ["in_no_file"]),
        ("missing", "re_9", ["in_no_file"]),
        ("missing", "op_7", ["in_no_file"]),
        ("differing", "op_1", ["amount"]),
        ("differing", "op_3", ["currency"]),  # in this file and held: not missing
    ]
    written = [json.loads(line) for line in sink.read_text().splitlines()]
    assert len(written) == differences.found == 7
    refund = next(one for one in written if one["key"] == "re_9")
    assert (refund["owed"], refund["posted"], refund["line"]) == (-700, False, None)
    short = next(one for one in written if one["key"] == "op_1")
    assert (short["owed"], short["gross"], short["posted"], short["line"]) == (1_100, 1_000, True, 3)


async def test_a_dry_run_posts_nothing_and_misses_nothing_that_the_file_names(
    installation: Installation, actors: Actors, file: Callable[..., Path]
) -> None:
    actors.findings["op_2"] = {"verdict": "differing", "reasons": ["fee"], "posted": True}
    actors.unpaid["acme"] = ["op_1", "op_2", "op_7"]
    results, differences = await reconcile(installation, file(movement(1), movement(2)), dry_run=True)
    assert actors.batches == []
    assert actors.compared == ["acme"]
    assert (results["acme"].missing, results["acme"].differing) == (1, 1)
    assert not any(one["posted"] for one in differences.in_order())


@pytest.mark.parametrize(
    ("until_ms", "margin_s", "window"),
    [
        (None, 0, (0, 24 * HOUR_MS)),
        (None, 300, (-300_000, 24 * HOUR_MS - 300_000)),
        (START_MS + 10 * HOUR_MS, 300, (-300_000, 10 * HOUR_MS - 300_000)),
    ],
)
async def test_what_is_missing_is_looked_for_in_the_day_shifted_by_the_margin(
    installation: Installation,
    actors: Actors,
    file: Callable[..., Path],
    until_ms: int | None,
    margin_s: int,
    window: tuple[int, int],
) -> None:
    await reconcile(installation, file(until_ms=until_ms), clock_margin_s=margin_s)
    assert actors.windows["idle"] == (START_MS + window[0], START_MS + window[1])


async def test_a_file_of_one_partner_says_nothing_of_the_others(
    installation: Installation, actors: Actors, file: Callable[..., Path]
) -> None:
    results, _ = await reconcile(installation, file(movement(1), of="acme"))
    assert set(results) == set(actors.windows) == {"acme"}


@pytest.mark.parametrize("code", sorted(reconciliation._PASSING))
async def test_what_may_pass_is_asked_again(
    installation: Installation,
    actors: Actors,
    file: Callable[..., Path],
    code: RefusalCode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "SETTLEMENT_RETRY_DELAY_MS_MIN", 1)
    actors.refuse = [code] * 3
    results, _ = await reconcile(installation, file(movement(1)))
    assert results["acme"].not_asked is None
    assert results["acme"].matched == 1


@pytest.mark.parametrize(
    "code", [RefusalCode.INTERNAL_ERROR, RefusalCode.PARTNER_MOVED, RefusalCode.COMMAND_QUARANTINED]
)
async def test_a_partner_that_cannot_be_asked_is_told_and_the_others_go_on(
    installation: Installation, actors: Actors, file: Callable[..., Path], code: RefusalCode
) -> None:
    actors.refuse = [code]
    results, differences = await reconcile(installation, file(movement(1)))
    assert code.value in (results["acme"].not_asked or "")
    assert results["beta"].not_asked is None
    assert differences.found == 0, "what was not looked at is not called different"


async def test_a_cell_that_is_away_is_waited_for_once(
    installation: Installation, actors: Actors, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SETTLEMENT_PATIENCE_MS", 50)
    monkeypatch.setattr(limits, "SETTLEMENT_RETRY_DELAY_MS_MIN", 5)
    monkeypatch.setattr(limits, "SETTLEMENT_PARTNERS_AT_ONCE_MAX", 1)
    monkeypatch.setattr(limits, "DOOR_CONNECT_TIMEOUT_MS", 1)
    monkeypatch.setattr(limits, "CELL_STATUS_TIMEOUT_MS", 100)
    await installation.servers[0].aclose()
    results, _ = await reconcile(installation, file(movement(1), movement(2, "beta")))
    assert "can't be reached" in (results["acme"].not_asked or "")
    assert "can't be reached" in (results["idle"].not_asked or "")
    assert results["beta"] == PartnerResult("beta", "cell-1", rows=1, matched=1)


async def test_differences_that_cannot_be_written_are_an_error_that_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(ControlPlaneError, match="differences can't be written"),
        Differences.opened(tmp_path / "none" / "d.jsonl"),
    ):
        pass


def test_what_is_shown_is_bounded_and_what_is_written_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLEMENT_DIFFERENCES_SHOWN_MAX", 3)
    path = tmp_path / "d.jsonl"
    with Differences.opened(path) as differences:
        for number in range(10):
            differences.add({"verdict": "missing", "grave": False, "line": None, "number": number})
    assert len(differences.in_order()) == 3
    assert len(path.read_text().splitlines()) == 10


# The command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Give what runs `bulkhead reconcile` on an installation without partners; notes are kept in `command.notes`."""
    folder = tmp_path / "data"
    (folder / "run").mkdir(parents=True)
    (folder / "run/settings.json").write_text(json.dumps({"data_folder": str(folder)}))
    results = {"acme": PartnerResult("acme", "cell-0", rows=2, matched=2)}
    found: list[dict[str, Any]] = []
    notes: list[tuple[str, dict[str, Any]]] = []

    async def run(*arguments: Any) -> list[PartnerResult]:
        differences: Differences = arguments[-1]
        for one in found:
            differences.add(one)
        return list(results.values())

    async def read_registered(*_: object) -> list[Partner]:
        return []

    def ask(_folder: object, _method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        notes.append((path, body))
        return {"entry": 7, "who": "local:0"}

    monkeypatch.setattr(reconciliation, "_run", run)
    monkeypatch.setattr(reconciliation, "read_registered", read_registered)
    monkeypatch.setattr(client, "ask", ask)

    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["--data-folder", str(folder), "reconcile", *arguments])

    invoke.results = results  # type: ignore[attr-defined]
    invoke.found = found  # type: ignore[attr-defined]
    invoke.notes = notes  # type: ignore[attr-defined]
    return invoke


def test_all_matched_ends_with_0_and_is_noted(command: Any, file: Callable[..., Path]) -> None:
    done = command(str(file(movement(1), movement(2))))
    assert done.exit_code == 0, done.output
    assert "all is matched: settlement of 2026-11-21, 2 rows: 2 matched" in done.stdout
    assert "EUR: gross 2000, fees 80, net 1920 in 2 rows" in done.stdout
    (_, said), (_, counts) = command.notes
    assert [path for path, _ in command.notes] == ["/reconciliations", "/reconciliations/7/end"]
    assert BeginReconciliation.model_validate(said).acquirer == "main"
    assert EndReconciliation.model_validate(counts).matched == 2


def test_a_difference_ends_with_1(command: Any, file: Callable[..., Path]) -> None:
    command.found.append(
        reconciliation._difference("acme", "extra", ["operation_open"], key="op_[7]", gross=5, fee=1, line=3)
    )
    done = command(str(file(movement(1))))
    assert done.exit_code == 1
    assert "CHARGED, OUTCOME UNKNOWN HERE" in done.stdout
    assert "op_[7]" in done.stdout, "what others wrote is no markup"
    whole = json.loads(command(str(file(movement(1))), "--json").stdout)
    assert whole["ok"] is False
    assert whole["differences"][0]["grave"] is True


def test_a_partner_that_could_not_be_asked_ends_with_1(command: Any, file: Callable[..., Path]) -> None:
    command.results["acme"].not_asked = "its door is away"
    done = command(str(file(movement(1))))
    assert done.exit_code == 1
    assert "acme could not be asked: its door is away" in done.stdout
    assert "ask again with the same file" in done.stdout


def test_a_bad_file_ends_with_2_and_nothing_is_begun(command: Any, tmp_path: Path, file: Callable[..., Path]) -> None:
    path = file(movement(1))
    path.write_bytes(path.read_bytes()[:-10])
    done = command(str(path))
    assert done.exit_code == 2
    assert "nothing of it was posted" in done.stderr
    assert f"where: {path}" in done.stderr
    assert command(str(tmp_path / "none.csv")).exit_code == 2
    assert command.notes == []


def test_a_dry_run_is_no_change_and_is_not_noted(command: Any, file: Callable[..., Path]) -> None:
    done = command(str(file(movement(1))), "--dry-run")
    assert done.exit_code == 0
    assert "compared only, nothing is posted" in done.stdout
    assert command.notes == []


@pytest.mark.parametrize("margin", ["x", "13h", "-1"])
def test_a_wrong_margin_ends_with_2(command: Any, file: Callable[..., Path], margin: str) -> None:
    done = command(str(file(movement(1))), f"--clock-margin={margin}")
    assert done.exit_code == 2
    assert "option --clock-margin" in done.stderr


def test_without_a_control_plane_nothing_is_begun(
    command: Any, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise NotRunningError("it does not run")

    monkeypatch.setattr(client, "ask", away)
    assert command(str(file(movement(1)))).exit_code == 3


def test_a_control_plane_that_ends_in_the_middle_loses_a_note_only(
    command: Any, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_folder: object, _method: str, path: str, _body: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("/end"):
            raise NotRunningError("it was killed")
        return {"entry": 7, "who": "local:0"}

    monkeypatch.setattr(client, "ask", end)
    done = command(str(file(movement(1))))
    assert done.exit_code == 0
    assert "it was killed" in done.stderr
    assert "all is matched" in done.stdout
