"""Settlement files: read as they were written, or refused with the line and the reason; never half believed."""

import re
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirer_simulator import settlements
from control_plane import limits, settlement_file
from control_plane.errors import ControlPlaneError, InputFileError
from control_plane.settlement_file import Row, SettlementFile

DAY = date(2026, 11, 21)
START_MS = settlements.day_start_ms(DAY)
KNOWN = frozenset({"acme", "beta"})
ROWS = (
    settlements.Row("acme", "purchase", "op_1", "", "acq_1", "EUR", 10_000, 175, START_MS),
    settlements.Row("beta", "capture", "op_2", "op_0", "acq_2", "JPY", 500, 33, START_MS + 5),
    settlements.Row("acme", "refund", "re_3", "op_1", "acq_3", "EUR", -3_000, 0, START_MS + 86_399_999),
)


def written(
    rows: Iterable[settlements.Row] = ROWS, *, partner: str | None = None, until_ms: int | None = None
) -> bytes:
    writer = settlements.Writer(DAY, partner, until_ms or START_MS + settlements.DAY_MS, final=until_ms is None)
    return writer.begin() + writer.rows(rows) + writer.end()


def read(tmp_path: Path, data: bytes, known: frozenset[str] = KNOWN) -> tuple[SettlementFile, dict[str, list[Row]]]:
    """Read a file; give it with all its rows."""
    path = tmp_path / "day.csv"
    path.write_bytes(data)
    with settlement_file.opened(path, known, lambda _: None) as found:
        assert found.groups is not None
        rows = {name: list(found.groups.rows(name)) for name in known}
        rows["?"] = list(found.groups.rows_of_unknown_partners())
        return found, rows


def refused(tmp_path: Path, data: bytes) -> str:
    """Have a file refused; give why."""
    with pytest.raises(InputFileError) as caught:
        read(tmp_path, data)
    assert caught.value.exit_code == 2
    assert "nothing of it was posted" in caught.value.what
    return caught.value.what


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    found, rows = read(tmp_path, written())
    assert (found.day, found.final, found.partner, found.rows) == ("2026-11-21", True, None, 3)
    assert (found.start_ms, found.until_ms) == (START_MS, START_MS + 86_400_000)
    assert rows["acme"] == [
        Row(3, "acme", "purchase", "op_1", None, "acq_1", "EUR", 10_000, 175, "2026-11-21T00:00:00.000Z"),
        Row(5, "acme", "refund", "re_3", "op_1", "acq_3", "EUR", -3_000, 0, "2026-11-21T23:59:59.999Z"),
    ]
    assert rows["beta"] == [
        Row(4, "beta", "capture", "op_2", "op_0", "acq_2", "JPY", 500, 33, "2026-11-21T00:00:00.005Z")
    ]
    assert found.describe()["totals"] == [
        {"currency": "EUR", "gross": 7_000, "fee": 175, "net": 6_825, "rows": 2},
        {"currency": "JPY", "gross": 500, "fee": 33, "net": 467, "rows": 1},
    ]


def test_an_empty_day_a_preliminary_file_and_one_of_a_partner(tmp_path: Path) -> None:
    found, rows = read(tmp_path, written(()))
    assert (found.rows, found.totals, rows["acme"]) == (0, {}, [])
    found, _ = read(tmp_path, written(until_ms=START_MS + 5))
    assert (found.final, found.until_ms) == (False, START_MS + 5)
    found, _ = read(tmp_path, written([ROWS[0]], partner="acme"))
    assert found.partner == "acme"


def test_plain_line_ends_and_quotes_are_csv_too(tmp_path: Path) -> None:
    plain = written().replace(b"\r\n", b"\n").replace(b"acq_1", b'"acq_1"')
    assert read(tmp_path, plain)[1] == read(tmp_path, written())[1]


def test_rows_of_unknown_partners_and_unknown_kinds_are_kept_apart(tmp_path: Path) -> None:
    strange = ROWS[0]._replace(partner="nobody", kind="dispute_reversal")
    _, rows = read(tmp_path, written([*ROWS, strange]))
    assert [row.partner for row in rows["?"]] == ["nobody"]
    assert len(rows["acme"]) == 2


def test_its_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    import hashlib  # noqa: PLC0415 - for this one comparison

    assert read(tmp_path, written())[0].sha256 == hashlib.sha256(written()).hexdigest()


def line(number: int, field: str, value: str) -> Callable[[bytes], bytes]:
    """Set one field of one line (from 1)."""

    def change(data: bytes) -> bytes:
        lines = data.decode().split("\r\n")
        fields = lines[number - 1].split(",")
        fields[settlements.HEADER.index(field)] = value
        lines[number - 1] = ",".join(fields)
        return "\r\n".join(lines).encode()

    return change


WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "line 1: the file is empty"),
    "another file": (lambda _: b"root:x:0:0\n", "line 1: the header must begin with settlement_v1"),
    "a later version": (line(1, "settlement_v1", "settlement_v2"), "line 1: the file is of version 2; this program"),
    "other columns": (line(1, "fee", "fees"), "line 1: the header of settlement_v1 must be"),
    "header only": (lambda data: data[: data.index(b"\n") + 1], "must be of the kind `file`"),
    "no file line": (line(2, "settlement_v1", "row"), "must be of the kind `file`"),
    "no such day": (line(2, "settlement_date", "2026-02-30"), "line 2: the `file` line needs"),
    "an odd kind of file": (line(2, "kind", "maybe"), "line 2: the `file` line needs"),
    "a final file that ends early": (
        line(2, "first_at", "2026-11-21T23:00:00.000Z"),
        "line 2: what the file covers (first_at) must end in its day",
    ),
    "an instant of another day": (line(2, "first_at", "2026-11-23T00:00:00.000Z"), "must end in its day"),
    "an odd line": (line(3, "settlement_v1", "raw"), "line 3: no line is of the kind 'raw'"),
    "a field too many": (line(3, "rows", ","), "line 3: 13 fields are wanted, there are 14"),
    "a blank line": (lambda data: data.replace(b"\r\nrow", b"\r\n\r\nrow", 1), "line 3: 13 fields are wanted"),
    "another day's row": (line(3, "settlement_date", "2026-11-20"), "line 3: settlement_date: the file is of 2026-11"),
    "no partner's id": (line(3, "partner", "../x"), "line 3: partner: '../x' is not a partner's id"),
    "no key": (line(3, "key", ""), "line 3: key: '' is not an operation's id"),
    "a long key": (line(3, "key", "k" * 65), "line 3: key: "),
    "no reference": (line(3, "reference", ""), "line 3: reference: "),
    "a long reference": (line(3, "reference", "r" * 256), "line 3: reference: "),
    "no currency": (line(3, "currency", "eur"), "line 3: currency: 'eur' is not a currency"),
    "a fraction": (line(3, "gross", "1.5"), "line 3: gross: '1.5' is not an amount"),
    "a thousands mark": (line(3, "gross", "1_0"), "line 3: gross: '1_0' is not an amount"),
    "a leading zero": (line(3, "gross", "010000"), "line 3: gross: "),
    "minus nothing": (line(3, "fee", "-0"), "line 3: fee: "),
    "a number of another script": (line(3, "gross", "\u0661"), "is no ASCII"),
    "a huge amount": (line(3, "gross", "1000000000000"), "line 3: gross and fee are at most 999999999999"),
    "an amount beyond that": (line(3, "gross", "9" * 40), "line 3: gross: "),
    "a net that is none": (line(3, "net", "9826"), "line 3: net: 10000 less 175 is 9825, not 9826"),
    "a purchase taken back": (
        lambda data: line(3, "gross", "-1")(line(3, "net", "-176")(data)),
        "line 3: gross: a purchase of -1 has the wrong sign",
    ),
    "a refund paid out": (
        lambda data: line(5, "gross", "1")(line(5, "net", "1")(data)),
        "line 5: gross: a refund of 1 has the wrong sign",
    ),
    "no instant": (line(3, "first_at", "2026-11-21T24:00:00.000Z"), "line 3: first_at: "),
    "no such instant": (line(3, "first_at", "2026-11-31T00:00:00.000Z"), "line 3: first_at: there is no such day"),
    "a control character": (line(3, "reference", "a\x1fb"), "line 3: reference: "),
    "a null byte": (line(3, "reference", "a\x00b"), "line 3: "),
    "an open quote": (line(3, "reference", '"acq_1'), "not CSV"),
    "a wrong total": (line(6, "gross", "7001"), "line 6: the total of EUR says gross 7001"),
    "a wrong count": (line(6, "rows", "3"), "line 6: the total of EUR says gross 7000, fee 175, net 6825 in 3 rows"),
    "a total of nothing": (line(7, "currency", "USD"), "line 7: the total of USD says"),
    "no sum": (line(6, "net", "much"), "line 6: a total has sums"),
    "a total with a key": (line(6, "key", "op_1"), "line 6: a total has currency"),
    "a second total": (line(7, "currency", "EUR"), "line 7: a second total of EUR"),
    "no total": (lambda data: re.sub(rb"total[^\n]*JPY[^\n]*\n", b"", data), "line 7: there is no total of JPY"),
    "a row behind the totals": (
        lambda data: data.replace(b"end,", data[data.index(b"row,") :].split(b"\r\n")[0] + b"\r\nend,"),
        "line 8: a row behind the totals",
    ),
    "a wrong end": (line(8, "rows", "4"), "line 8: the last line says 4 rows; there are 3"),
    "the end of another day": (line(8, "settlement_date", "2026-11-20"), "line 8: settlement_date: the file is of"),
    "an end with a key": (line(8, "key", "op_1"), "line 8: the last line (`end`) has"),
    "no end": (lambda data: data[: data.index(b"end,")], "line 7: the file ends without its last line"),
    "more behind the end": (lambda data: data + b"row\r\n", "something follows the last line"),
    "twice the file": (lambda data: data + data, "something follows the last line"),
    "a byte order mark": (lambda data: b"\xef\xbb\xbf" + data, "line 1: the file begins with a byte order mark"),
    "UTF-16": (lambda data: data.decode().encode("utf-16"), "line 1: the file begins with a byte order mark"),
    "UTF-16 without a mark": (lambda data: data.decode().encode("utf-16-le"), "line 1: "),
    "Latin-1": (lambda data: data.replace(b"acq_1", "acq_é".encode("latin-1")), "line 3: byte "),
    "one endless line": (lambda _: b"x" * 5_000, "line 1: the line is longer than 4096 bytes"),
    "a row twice": (
        lambda _: written([*ROWS, ROWS[0]]),
        "line 6: op_1 of acme stands in line 3 already",
    ),
    "an unknown partner's row twice": (
        lambda _: written([ROWS[0]._replace(partner="nobody")] * 2),
        "line 4: op_1 of nobody stands in line 3 already",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_by_line_and_reason(tmp_path: Path, name: str) -> None:
    change, expected = WRONG[name]
    assert expected in refused(tmp_path, change(written()))


def test_a_row_of_another_partner_in_a_partners_file(tmp_path: Path) -> None:
    assert "line 3: partner: the file is of beta only" in refused(tmp_path, written([ROWS[0]], partner="beta"))


def test_the_same_key_of_two_partners_is_for_their_actors_to_tell(tmp_path: Path) -> None:
    _, rows = read(tmp_path, written([ROWS[0], ROWS[0]._replace(partner="beta")]))
    assert len(rows["acme"]) == len(rows["beta"]) == 1


def test_all_wrong_lines_are_named_up_to_a_bound(tmp_path: Path) -> None:
    data = line(5, "gross", "x")(line(3, "gross", "x")(written()))
    said = refused(tmp_path, data)
    assert "line 3: gross" in said
    assert "line 5: gross" in said
    assert "total" not in said, "sums are of no use where rows are wrong"
    many = written([ROWS[0]._replace(currency="?")] * 50)
    said = refused(tmp_path, many)
    assert said.count("currency: '?'") == limits.SETTLEMENT_ERRORS_SHOWN_MAX
    assert "too many wrong lines" in said


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(InputFileError, match="there is no file"),
        settlement_file.opened(tmp_path / "none.csv", KNOWN, lambda _: None),
    ):
        pass
    with (
        pytest.raises(ControlPlaneError, match="can't be read or split"),
        settlement_file.opened(tmp_path, KNOWN, lambda _: None),
    ):
        pass


def test_temporary_files_are_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    read(tmp_path, written())
    refused(tmp_path, written()[:-30])
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_told_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(settlement_file.Groups, "flush", fail)
    with pytest.raises(ControlPlaneError, match="No space left") as caught:
        read(tmp_path, written())
    assert "TMPDIR" in caught.value.hint


def test_more_rows_than_memory_holds_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLEMENT_BUFFER_BYTES", 2_000)
    monkeypatch.setattr(limits, "SETTLEMENT_KEYS_AT_ONCE_MAX", 10)
    monkeypatch.setattr(limits, "SETTLEMENT_PROGRESS_LINES", 100)
    rows = [ROWS[0]._replace(key=f"op_{number}") for number in range(500)]
    told: list[int] = []
    path = tmp_path / "day.csv"
    path.write_bytes(written(rows))
    with settlement_file.opened(path, KNOWN, told.append) as found:
        assert found.groups is not None
        assert [row.key for row in found.groups.rows("acme")] == [row.key for row in rows]
    assert len(told) >= 5
    assert told[-1] == path.stat().st_size
    said = refused(tmp_path, written([*rows, rows[7], rows[400]]))
    assert "op_7 of acme stands in line 10 already" in said
    assert "op_400 of acme stands in line 403 already" in said


def test_too_many_currencies_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLEMENT_CURRENCIES_MAX", 1)
    assert "line 4: more than 1 currencies" in refused(tmp_path, written())
    monkeypatch.setattr(limits, "SETTLEMENT_FILE_ROWS_MAX", 1)
    assert "line 4: more than 1 rows" in refused(tmp_path, written())


KEYS = st.from_regex(r"[A-Za-z0-9._:~-]{1,64}", fullmatch=True)
REFERENCES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@st.composite
def some_rows(draw: st.DrawFn) -> list[settlements.Row]:
    """Rows of a day; their keys differ, references may hold quotes and commas."""
    rows = []
    for key in draw(st.lists(KEYS, unique=True, max_size=8)):
        kind = draw(st.sampled_from(["purchase", "capture", "refund"]))
        gross = draw(st.integers(0, 999_999_999_999))
        rows.append(
            settlements.Row(
                draw(st.sampled_from(["acme", "beta", "nobody"])),
                kind,
                key,
                draw(st.just("") | KEYS),
                draw(REFERENCES),
                draw(st.sampled_from(["EUR", "JPY", "KWD"])),
                -gross if kind == "refund" else gross,
                draw(st.integers(-999_999_999_999, 999_999_999_999)),
                START_MS + draw(st.integers(0, 86_399_999)),
            )
        )
    return rows


@given(some_rows())
def test_whatever_the_acquirer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[settlements.Row]
) -> None:
    found, read_rows = read(tmp_path_factory.mktemp("file"), written(rows))
    back = sorted((row for of in read_rows.values() for row in of), key=lambda row: row.line)
    assert [
        (r.partner, r.kind, r.key, r.original_key or "", r.reference, r.currency, r.gross, r.fee) for r in back
    ] == [row[:8] for row in rows]
    assert [row.first_at for row in back] == [settlements.timestamp(row.first_at_ms) for row in rows]
    assert found.rows == len(rows)


@given(some_rows(), st.data())
def test_a_file_that_was_cut_off_is_refused_wherever(
    tmp_path_factory: pytest.TempPathFactory, rows: list[settlements.Row], data: st.DataObject
) -> None:
    whole = written(rows)
    length = data.draw(st.integers(0, len(whole) - len("\r\n") - 1))
    folder = tmp_path_factory.mktemp("cut")
    if data.draw(st.booleans()):
        refused(folder, whole[:length])
    else:  # a piece out of the middle, at least a line long
        begin = data.draw(st.integers(0, len(whole) - 80))
        refused(folder, whole[:begin] + whole[begin + 80 :])


@given(some_rows(), st.data())
def test_a_damaged_file_is_refused_or_has_the_same_money_in_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[settlements.Row], data: st.DataObject
) -> None:
    """There is no checksum in the file: a changed reference can't be told. Changed money can."""
    whole = bytearray(written(rows))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found, _ = read(tmp_path_factory.mktemp("damaged"), bytes(whole))
    except InputFileError:
        return
    assert found.rows == len(rows)
    assert sum(total.gross for total in found.totals.values()) == sum(row.gross for row in rows)
    assert sum(total.fee for total in found.totals.values()) == sum(row.fee for row in rows)


@given(st.binary(max_size=400))
def test_rubbish_is_refused(tmp_path_factory: pytest.TempPathFactory, rubbish: bytes) -> None:
    refused(tmp_path_factory.mktemp("rubbish"), rubbish)
    refused(tmp_path_factory.mktemp("rubbish"), written()[:200] + rubbish)
