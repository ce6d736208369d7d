"""Files of partners: what is written is read again, and every wrong row is told by its line."""

from pathlib import Path

import pytest

from control_plane import limits, partner_file
from control_plane.errors import InputFileError
from control_plane.partner_fields import FIELDS, PartnerFields
from control_plane.partner_file import BadRow

PARTNERS = [
    PartnerFields(id="acme", name='Acme, "the" shop\u2028', mode="live", acquirers=["main", "second"]),
    PartnerFields(id="quiet", isolation="pooled", currencies=["EUR", "JPY"], rate_per_second=1, status="suspended"),
]


def write(folder: Path, text: str, name: str = "partners.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", partner_file.FORMATS)
def test_what_is_written_is_read_again(tmp_path: Path, kind: str) -> None:
    rows, bad = partner_file.read(write(tmp_path, partner_file.write(PARTNERS, kind), f"partners.{kind}"))
    assert bad == []
    assert [row.fields for row in rows] == PARTNERS
    assert len({row.line for row in rows}) == len(rows)


def test_every_wrong_row_of_a_csv_is_told_by_its_line(tmp_path: Path) -> None:
    text = "id,name,rate_per_second,currencies\ngood,,,\nBAD,,,\nslow,,0,\ngood,,,\nmoney,,,XXX\nshort\n\nlast,,7,\n"
    rows, bad = partner_file.read(write(tmp_path, text))
    assert [(row.line, row.fields.id) for row in rows] == [(2, "good"), (9, "last")]
    assert rows[1].fields.rate_per_second == 7
    assert [one.line for one in bad] == [3, 4, 5, 6, 7]
    for one, named in zip(bad, ("id", "rate_per_second", "line 2", "XXX", "1 columns"), strict=True):
        assert named in one.why


def test_every_wrong_row_of_json_lines_is_told_by_its_line(tmp_path: Path) -> None:
    text = '{"id": "good"}\n{"id": "x", "colour": 1}\n[]\n{\n\n{"id": "y", "rate_per_second": "many"}\n'
    rows, bad = partner_file.read(write(tmp_path, text, "partners.jsonl"))
    assert [row.fields.id for row in rows] == ["good"]
    assert [one.line for one in bad] == [2, 3, 4, 6]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("partners.txt", "id\nacme\n"),
        ("partners.csv", "id,colour\nacme,red\n"),
        ("partners.csv", "name\nAcme\n"),
        ("partners.csv", "id,id\nacme,acme\n"),
        ("partners.csv", ""),
        ("partners.csv", "id\n" + "\n".join(f"p{number}" for number in range(limits.IMPORT_PARTNERS_MAX + 1))),
        ("partners.csv", "id\n" + "x" * limits.IMPORT_FILE_BYTES_MAX),
    ],
)
def test_a_file_that_is_none_is_refused_as_a_whole(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InputFileError):
        partner_file.read(write(tmp_path, text, name))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "partners.csv"
    path.write_bytes(b"id\n\xff\xfe\n")
    with pytest.raises(InputFileError):
        partner_file.read(path)
    with pytest.raises(InputFileError):
        partner_file.read(tmp_path / "missing.csv")


def test_a_quote_that_never_ends_is_told_and_ends_the_file(tmp_path: Path) -> None:
    rows, bad = partner_file.read(write(tmp_path, 'id,name\ngood,x\nacme,"Acme\nother,y\n'))
    assert [row.fields.id for row in rows] == ["good"]
    assert [type(one) for one in bad] == [BadRow]
    assert bad[0].line == 3


def test_the_columns_are_the_fields(tmp_path: Path) -> None:
    header = partner_file.write([], "csv").strip().split(",")
    assert header == list(FIELDS)
    assert partner_file.read(write(tmp_path, partner_file.write([], "csv"))) == ([], [])
