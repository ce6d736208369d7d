import asyncio
import copy
import io
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from control_plane import audit, audit_head, cli, client, command_line, screen
from control_plane.cell_rules import first_cells
from control_plane.data_folder import DataFolder
from control_plane.errors import DoorError, NotRunningError, RefusedError, SettingsError
from control_plane.registry_records import Partner
from control_plane.settings import Settings


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("partner", "list"),
        ("partner", "create", "--name", "Acme"),
        ("partner", "suspend", "acme"),
        ("partner", "rotate-key", "acme", "--grace", "0"),
        ("cell", "list"),
        ("unknown", "list"),
        ("status",),
        ("audit",),
    ],
)
def test_each_command_says_that_nothing_runs_and_how_to_start_it(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = run("--data-folder", str(tmp_path / "none"), *arguments)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "error: no " in result.stderr
    assert f"where: {tmp_path / 'none'}" in result.stderr
    assert "bulkhead up" in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_wrong_setting_ends_with_2_and_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "bulkhead.toml").write_text("cels = 3\n")
    result = run("partner", "list")
    assert result.exit_code == 2
    assert "error: cels: there is no such setting" in result.stderr
    assert "where: bulkhead.toml" in result.stderr
    assert "to do: known settings: acquirer_fees" in result.stderr


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("staying", [{}, {f"p{number}": "nobody can" for number in range(25)}])
def test_an_evacuation_names_who_stays_and_then_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, staying: dict[str, str], dry_run: bool
) -> None:
    told = {"cell": "cell-2", "partners": 3, "targets": {"a": "cell-0", "b": "cell-1", "c": "cell-0"}, "begun": 3}
    monkeypatch.setattr(client, "ask", lambda *_: {**told, "staying": staying, "dry_run": dry_run})
    result = run("--data-folder", str(tmp_path), "cell", "evacuate", "cell-2")
    verb = "would go" if dry_run else "are on their way"
    assert result.stdout == f"3 partners of cell-2 {verb} to 2 other cells\n"
    assert result.exit_code == (1 if staying else 0)
    assert result.stderr.count("stays: p") == min(len(staying), 20)
    assert ("and 5 more: --json names all" in result.stderr) is bool(staying)


def test_wrong_usage_ends_with_2() -> None:
    assert run("partner", "show").exit_code == 2
    assert run("nonsense").exit_code == 2
    assert run("unknown", "resolve", "op_1", "--partner", "acme").exit_code == 2


def test_up_explains_options_that_do_not_fit() -> None:
    result = run("up", "--http-port", "8101")
    assert result.exit_code == 2
    assert "want port 8101" in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), ("30m", 1_800), ("24h", 86_400), ("7d", 604_800)]
)
def test_times_are_read(text: str, seconds: int) -> None:
    assert cli.parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1.5h", "a day", "91d", "99999999d"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        cli.parse_duration_s(text)


CHANGED = {
    "partner": {"id": "acme", "cell": "cell-0"},
    "routers_behind": [],
    "door_behind": "",
    "key": {"id": "key_1", "hint": "wxyz", "api_key": "sk_test_acme_" + "k" * 43},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    requests: list[tuple[Any, ...]] = []

    def ask(_folder: object, *request: Any, dry_run: bool = False) -> dict[str, Any]:
        requests.append((*request, "dry run") if dry_run else request)
        return {"dry_run": True, "entries": []} if dry_run else CHANGED

    monkeypatch.setattr(client, "ask", ask)
    return requests


def test_create_sends_what_was_given_and_shows_the_key(asked: list[tuple[Any, ...]]) -> None:
    result = run("partner", "create", "--id", "acme", "--mode", "live", "--rate", "5", "--in-flight", "3")
    assert result.exit_code == 0
    body = {"id": "acme", "mode": "live", "rate_per_second": 5, "in_flight_max": 3}
    assert asked == [("POST", "/partners", body)]
    assert result.stdout.count(CHANGED["key"]["api_key"]) == 1  # type: ignore[index]
    assert "can't be shown again" in result.stdout


def test_json_is_whole_and_alone_on_standard_output(asked: list[tuple[Any, ...]]) -> None:
    assert json.loads(run("partner", "rotate-key", "acme", "--json").stdout) == CHANGED
    assert asked == [("POST", "/partners/acme/keys", {"grace_s": 86_400})]


def test_a_dry_run_is_asked_for_and_said(asked: list[tuple[Any, ...]]) -> None:
    result = run("partner", "suspend", "acme", "--dry-run")
    assert asked == [("POST", "/partners/acme/suspend", "dry run")]
    assert "nothing would change" in result.stdout


def test_watch_shows_it_again_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(3))

    def ask(*_: Any) -> dict[str, Any]:
        return {"partners": [], "time": next(times)}

    def sleep(_seconds: float) -> None:
        if len(list(copy.copy(times))) == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(client, "ask", ask)
    monkeypatch.setattr(command_line.time, "sleep", sleep)
    result = run("partner", "list", "--watch", "--json")
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if "time" in line] == [f'  "time": {n}' for n in range(3)]


KEY = "sk_test_good_" + "k" * 43
CREATED = {"line": 2, "partner": {"id": "good", "cell": "cell-0"}, "routers_behind": [], "door_behind": ""}
CREATED |= {"key": {"id": "key_1", "hint": "kkkk", "api_key": KEY}}


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    bodies: list[dict[str, Any]] = []

    def stream(_folder: object, method: str, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        assert (method, path) == ("POST", "/partners/import")
        bodies.append(body)
        return iter([] if body["dry_run"] else [CREATED])

    monkeypatch.setattr(client, "stream", stream)
    return bodies


def write(text: str) -> str:
    Path("shops.csv").write_text(text)
    return "shops.csv"


def test_import_prints_each_partner_with_its_key(imported: list[dict[str, Any]]) -> None:
    result = run("partner", "import", write("id\ngood\n"))
    assert result.exit_code == 0
    assert result.stdout == f"good  cell-0  {KEY}\n"
    assert imported[0]["rows"][0]["partner"]["id"] == "good"
    assert json.loads(run("partner", "import", "shops.csv", "--json").stdout) == CREATED


def test_import_writes_keys_to_a_file_of_this_user_alone(imported: list[dict[str, Any]]) -> None:
    result = run("partner", "import", write("id\ngood\n"), "--keys-to", "keys.jsonl")
    assert result.exit_code == 0
    assert KEY not in result.stdout
    assert Path("keys.jsonl").stat().st_mode & 0o777 == 0o600
    kept = json.loads(Path("keys.jsonl").read_text())
    assert (kept["partner"], kept["api_key"]) == ("good", KEY)
    again = run("partner", "import", "shops.csv", "--keys-to", "keys.jsonl")
    assert again.exit_code == 2
    assert "keys.jsonl" in again.stderr
    assert len(imported) == 1, "nobody is onboarded whose key has no place"


@pytest.mark.parametrize(("options", "code", "dry_run"), [((), 2, True), (("--partial",), 1, False)])
def test_import_with_a_wrong_row_does_nothing_or_the_rest(
    imported: list[dict[str, Any]], options: tuple[str, ...], code: int, dry_run: bool
) -> None:
    result = run("partner", "import", write("id\ngood\nBAD\n"), "--keys-to", "keys.jsonl", *options)
    assert result.exit_code == code
    assert "line 3: id" in result.stderr
    assert imported[0]["dry_run"] is dry_run
    assert Path("keys.jsonl").exists() is not dry_run


def test_names_are_quoted_into_paths(asked: list[tuple[Any, ...]]) -> None:
    run("partner", "revoke-key", "../x", "a/b?c")
    assert asked == [("DELETE", "/partners/..%2Fx/keys/a%2Fb%3Fc")]


@pytest.mark.parametrize(("error", "code"), [(RefusedError("no"), 2), (DoorError("away"), 1)])
def test_errors_end_with_their_code(monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(client, "ask", refuse)
    assert run("partner", "list").exit_code == code


def partner(partner_id: str, cell: str = "cell-0", status: str = "active") -> Partner:
    return Partner(partner_id, partner_id, status, "test", cell, 1, 1, 1, "2026-11-22", 1, "2026-11-22T00:00:00Z")


def books(*rows: dict[str, Any], extra: tuple[Any, ...] = ()) -> audit.CellAudit:
    return audit.CellAudit.model_validate({"partners": rows, "extra_at_acquirer": extra})


def test_an_audit_adds_up_over_cells() -> None:
    audits = {
        "cell-0": books({"partner": "b", "ok": True, "payments": 2, "operations": 3, "in_doubt": 1}),
        "cell-1": books({"partner": "a", "ok": True, "payments": 4, "operations": 4}),
    }
    report = audit.merge(audits, [partner("a", "cell-1"), partner("b"), partner("c", status="onboarding")])
    assert report["ok"] is True
    assert [row["partner"] for row in report["partners"]] == ["a", "b"]
    assert (report["payments"], report["operations"], report["in_doubt"]) == (6, 7, 1)


@pytest.mark.parametrize(
    ("audits", "registered", "difference"),
    [
        ({"cell-0": books()}, [partner("a")], "its book is missing in cell-0"),
        ({"cell-0": books({"partner": "a", "ok": True})}, [], "the registry knows no such partner"),
        (
            {"cell-0": books({"partner": "a", "ok": True}), "cell-1": books()},
            [partner("a", "cell-1")],
            "the registry says that its book is in cell-1",
        ),
        (
            {"cell-0": books({"partner": "a", "ok": False, "differences": ["captured 5, posted 4"]})},
            [partner("a")],
            "captured 5, posted 4",
        ),
    ],
)
def test_an_audit_finds_what_disagrees(
    audits: dict[str, audit.CellAudit], registered: list[Partner], difference: str
) -> None:
    report = audit.merge(audits, registered)
    assert report["ok"] is False
    assert difference in [line for row in report["partners"] for line in row["differences"]]


def test_a_charge_that_only_the_acquirer_knows_is_a_disagreement() -> None:
    report = audit.merge({"cell-0": books(extra=({"key": "k"},))}, [])
    assert report["ok"] is False


@pytest.mark.parametrize(
    ("exit_code", "output", "readable"),
    [
        (0, b'{"partners": [{"partner": "a", "ok": true}]}', True),
        (1, b'{"partners": [{"partner": "a", "ok": false}]}', True),
        (0, b'{"partners": [{"partner": "a", "ok": false}]}', False),
        (1, b'{"partners": [{"partner": "a", "ok": true}]}', False),
        (-9, b'{"partners": []}', False),
        (0, b'{"partners": [', False),
        (0, b"[]", False),
    ],
)
def test_a_report_counts_only_where_its_exit_code_agrees(exit_code: int, output: bytes, readable: bool) -> None:
    assert (audit._read_report(exit_code, output) is not None) is readable


async def test_a_cell_s_audit_tells_of_each_partner_and_why_it_could_not_be_made() -> None:
    errors = asyncio.StreamReader()
    errors.feed_data(b"audited a\nsomething\naudited b\nThe audit could not be made\n\naudited c\n")
    errors.feed_eof()
    told: list[None] = []
    assert await audit.read_errors(errors, lambda: told.append(None)) == "The audit could not be made"
    assert len(told) == 3


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_audit_ends_with_1_on_any_disagreement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ok: bool, code: int
) -> None:
    row = {"partner": "a", "ok": ok, "differences": [] if ok else ["captured 5, posted 4"]}

    async def merged(*_: object) -> dict[str, Any]:
        return audit.merge({"cell-0": books(row)}, [partner("a")])

    (tmp_path / "data/run").mkdir(parents=True)
    (tmp_path / "data/run/settings.json").write_text(Settings(data_folder=tmp_path / "data").model_dump_json())
    monkeypatch.setattr(audit, "run", merged)
    result = run("audit")
    assert result.exit_code == code
    assert ("captured 5, posted 4" in result.stdout) is not ok
    assert json.loads(run("audit", "--json").stdout)["ok"] is ok


ENTRY = {"sequence": 1, "at": "now", "who": "ann", "what": "noted", "partner_id": None, "detail": {}, "previous": ""}


@pytest.mark.parametrize("arguments", [("list",), ("verify",)])
def test_reading_the_audit_log_leaves_standard_output_to_programs(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(command_line.limits, "AUDIT_PROGRESS_ENTRIES", 1)
    monkeypatch.setattr(client, "stream", lambda *_: iter([{"entry": ENTRY, "hash": ""}, {"head": None}]))
    result = run("audit-log", *arguments, "--json")
    assert json.loads(result.stdout)
    assert result.stderr == ""


@pytest.mark.parametrize("is_elsewhere", [True, False])
def test_the_head_that_lies_here_is_held_against_this_installations_log_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_elsewhere: bool
) -> None:
    folder = DataFolder(tmp_path)
    audit_head.write(folder.audit_head_file, audit_head.parse(f"7:{'a' * 64}", "the test"))
    if is_elsewhere:
        monkeypatch.setenv(client.URL_VARIABLE, "http://other.example:8900")
    monkeypatch.setattr(client, "stream", lambda *_: iter([{"head": None}]))
    result = run("--data-folder", str(tmp_path), "audit-log", "verify", "--json")
    assert json.loads(result.stdout)["ok"] is is_elsewhere
    assert result.exit_code == (0 if is_elsewhere else 1)


def test_an_evacuation_is_watched_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    move = {"source": "cell-2", "way": "evacuate", "passed_over": []}
    again = {"source": "cell-3", "way": "evacuate", "passed_over": ["cell-2"]}  # to cell-2 it was on its way
    others = [{**move, "source": "cell-1"}, {**move, "way": "copy"}]
    looks: Iterator[Any] = iter([[move, again], NotRunningError("it ended"), [again, *others], others])
    asked: list[str] = []

    def ask(_folder: object, _method: str, path: str, *_: Any) -> dict[str, Any]:
        asked.append(path)
        if path != "/moves":
            targets = {"a": "cell-0", "b": "cell-1"}
            return {"cell": "cell-2", "partners": 2, "targets": targets, "staying": {}, "dry_run": False}
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return {"moves": found}

    monkeypatch.setattr(client, "ask", ask)
    monkeypatch.setattr("control_plane.cell_commands.time.sleep", lambda _: None)
    result = run("cell", "evacuate", "cell-2", "--watch")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "2 partners of cell-2 have gone to 2 other cells" in result.stdout
    assert asked.count("/moves") == 4
    assert json.loads(run("cell", "evacuate", "cell-2", "--json").stdout)["partners"] == 2


@pytest.mark.parametrize("is_there", [True, False])
def test_an_evacuation_that_does_not_go_on_is_not_watched_for_ever(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    to = {"partner": "acme", "target": "cell-0", "why": "cell-0's door gives no answer"}
    moves = [{"source": "cell-2", "way": "evacuate", "passed_over": [], **to}]

    def ask(_folder: object, _method: str, path: str, *_: Any) -> dict[str, Any]:
        if path != "/moves":
            return {"cell": "cell-2", "partners": 1, "targets": {"acme": "cell-0"}, "staying": {}, "dry_run": False}
        if not is_there:
            raise NotRunningError("it ended")
        return {"moves": moves}

    monkeypatch.setattr(client, "ask", ask)
    seconds = itertools.count(step=60.0)
    monkeypatch.setattr("control_plane.cell_commands.time", SimpleNamespace(monotonic=seconds.__next__, sleep=id))
    result = run("cell", "evacuate", "cell-2", "--watch")
    assert result.exit_code != 0
    assert "are on their way" in result.stdout, "they have not gone"
    for word in ("acme", "gives no answer", "bulkhead cell evacuate cell-0") if is_there else ("does not run",):
        assert word in result.stderr


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        screen, "make_console", lambda **_: Console(file=shown, force_terminal=is_terminal, width=100, highlight=False)
    )
    with screen.counting("auditing partners") as told:
        told(3, 8)
    assert ("auditing partners" in shown.getvalue() and "3/8" in shown.getvalue()) is is_terminal


def test_up_goes_on_where_nobody_reads_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    console = screen.console()
    console.tell("first")
    assert not isinstance(sys.stdout, Closed)
    console.tell("second")
    sys.stdout.close()


def test_the_summary_can_be_copied_line_by_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "somewhere")
    found = Settings(data_folder=folder.root, routers=2)
    screen.console().tell_ready(found, folder, 7, first_cells(found, "now"))
    shown = capsys.readouterr().out
    assert f"bulkhead --data-folder {folder.root} partner create --id acme\n" in shown
    assert "curl http://127.0.0.1:8080/v1/payments -H" in shown
    assert "http://127.0.0.1:8081" in shown
    assert shown.count("\\\n") == 1, "one line goes on, and with one backslash"
