"""Messages: they come back as they went, and what has not their types is a MessageError, never half a message."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cells.api import messages, moves
from cells.api.limits import COMMAND_ID_BYTES_MAX, PROFILE_TEXT_CHARACTERS_MAX
from cells.api.messages import (
    Answer,
    Command,
    MessageError,
    Method,
    Profile,
    RateState,
    Refusal,
    RefusalCode,
    Refused,
)

numbers = st.integers(0, 2**53)
rates = st.none() | st.builds(RateState, numbers, numbers, numbers, numbers)
commands = st.builds(
    Command,
    st.text(min_size=1, max_size=16),
    st.text(),
    st.dictionaries(st.text(), st.none() | st.integers(-(2**63), 2**63) | st.text() | st.booleans()),
    st.none() | st.text(),
    st.binary(),
)
answers = st.builds(Answer, st.integers(200, 599), st.binary(), st.booleans(), rates)
refusals = st.builds(
    Refused,
    st.builds(
        Refusal,
        st.sampled_from(RefusalCode),
        st.text(),
        st.none() | st.text(),
        st.none() | numbers,
        st.dictionaries(st.text(), st.text() | numbers),
    ),
    rates,
)


@given(commands)
def test_a_command_comes_back(command: Command) -> None:
    assert messages.decode_command(messages.encode_command(command)) == command


@given(answers | refusals)
def test_an_answer_comes_back(answer: Answer | Refused) -> None:
    assert messages.decode_answer(messages.encode_answer(answer)) == answer


def test_a_profile_comes_back_and_fields_of_a_newer_version_are_left_out() -> None:
    profile = Profile(
        "alpha",
        7,
        status="suspended",
        mode="live",
        acquirer_url="http://127.0.0.1:1",
        acquirers=("main",),
        currencies=("EUR", "JPY"),
        rate_per_second=5,
    )
    fields = msgpack.unpackb(msgpack.packb(messages.encode_profile(profile)))
    assert messages.decode_profile(fields | {"colour": "green"}) == profile


def test_a_profile_that_names_only_partner_and_version_has_the_defaults() -> None:
    assert messages.decode_profile({"partner_id": "alpha", "version": 1}) == Profile("alpha", 1)


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {},
        {"partner_id": "alpha"},
        {"partner_id": 5, "version": 1},
        {"partner_id": "alpha", "version": "1"},
        {"partner_id": "alpha", "version": 1, "rate_per_second": "many"},
        {"partner_id": "alpha", "version": 1, "status": None},
        {"partner_id": "alpha", "version": 1, "status": "retired"},
        {"partner_id": "alpha", "version": 1, "mode": ""},
        {"partner_id": "alpha", "version": 1, "isolation": "none"},
        {"partner_id": "alpha", "version": -1},
        {"partner_id": "alpha", "version": True},
        {"partner_id": "alpha", "version": 2**63},
        {"partner_id": "alpha", "version": 1, "acquirer_url": "x" * (PROFILE_TEXT_CHARACTERS_MAX + 1)},
        *(
            {"partner_id": "alpha", "version": 1, name: number}
            for name in ("rate_per_second", "rate_burst", "in_flight_max", "authorization_validity_ms")
            for number in (0, -1, 10**15, 1.5, True, None)
        ),
    ],
)
def test_what_is_no_profile(fields: Any) -> None:
    with pytest.raises(MessageError):
        messages.decode_profile(fields)


def command_bytes(**changes: Any) -> bytes:
    fields = {"version": 1, "command": "c1", "request": "r1", "arguments": {}, "key": None, "fingerprint": b""}
    return bytes(msgpack.packb(list((fields | changes).values())))


def test_the_command_that_the_wrong_ones_are_made_of_is_right() -> None:
    assert messages.decode_command(command_bytes()) == Command("c1", "r1", {})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb("create_payment"),
        msgpack.packb([1, "c1"]),
        command_bytes(version=2),
        command_bytes(command=7),
        command_bytes(command=""),
        # A worker's mark must name it whole, or it could never be found out.
        command_bytes(command="c" * (COMMAND_ID_BYTES_MAX + 1)),
        command_bytes(command="é" * (COMMAND_ID_BYTES_MAX // 2 + 1)),
        command_bytes(request=None),
        command_bytes(arguments=[]),
        command_bytes(key=b"key"),
        command_bytes(fingerprint="f"),
        command_bytes(more=1),
    ],
)
def test_what_is_no_command(body: bytes) -> None:
    with pytest.raises(MessageError):
        messages.decode_command(body)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [1],
        [2, 201, b"{}", False, None],
        [1, 201, "{}", False, None],
        [1, "201", b"{}", False, None],
        [1, 201, b"{}", "no", None],
        [1, 201, b"{}", False, [1, 2]],
        [1, 201, b"{}", False, 5],
        [1, 201, b"{}", False],
        [1, 0, "no_such_code", "", None, None, {}, None],
        [1, 0, "rate_limited", None, None, None, {}, None],
        [1, 0, "rate_limited", "", 1, None, {}, None],
        [1, 0, "rate_limited", "", None, "soon", {}, None],
        [1, 0, "rate_limited", "", None, None, [], None],
        {"status": 201},
    ],
)
def test_what_is_no_answer(fields: Any) -> None:
    with pytest.raises(MessageError):
        messages.decode_answer(msgpack.packb(fields))


@given(st.binary(max_size=60))
def test_garbage_is_a_message_error(garbage: bytes) -> None:
    for decode in (
        messages.decode_command,
        messages.decode_answer,
        moves.decode_batch,
        moves.decode_receipt,
        moves.decode_arrival,
    ):
        try:
            decode(garbage)
        except MessageError:
            continue


receipts = st.builds(
    moves.Receipt, st.text(), st.text(), st.text(), numbers, numbers, numbers, st.binary(), directory_version=numbers
)


@given(receipts)
def test_a_receipt_comes_back(receipt: moves.Receipt) -> None:
    assert moves.decode_receipt(moves.encode_receipt(receipt)) == receipt


def test_a_receipt_from_before_directories_were_told_is_read_and_keeps_its_bytes() -> None:
    before = msgpack.packb([1, "move_1", "cell-1", "t" * 64, 4, 7, 3, moves.NO_STREAM])
    receipt = moves.decode_receipt(before)
    assert receipt == moves.Receipt("move_1", "cell-1", "t" * 64, 4, 7, 3, moves.NO_STREAM, directory_version=0)
    assert moves.encode_receipt(receipt) == before, "a cell that takes a sealed book over compares them"


@pytest.mark.parametrize("version", [0, 3, True, "1", None])
@pytest.mark.parametrize("more", [[], [11], [11, 12]])
def test_a_receipt_of_another_version_is_not_read(version: Any, more: list[int]) -> None:
    with pytest.raises(MessageError):
        moves.decode_receipt(msgpack.packb([version, "move_1", "cell-1", "t", 4, 7, 3, b"", *more]))


@pytest.mark.parametrize("more", [[-1], [True], ["9"], [None], []])
def test_a_receipt_whose_directory_is_no_count_is_not_read(more: list[Any]) -> None:
    with pytest.raises(MessageError):
        moves.decode_receipt(msgpack.packb([2, "move_1", "cell-1", "t", 4, 7, 3, b"", *more]))


def test_not_mine_is_no_answer() -> None:
    with pytest.raises(MessageError):
        messages.decode_answer(messages.NOT_MINE)


def test_every_method_of_a_partner_either_reads_or_writes() -> None:
    methods = {value for name, value in vars(Method).items() if name.isupper()}
    of_doors_and_workers = methods - messages.READS - messages.WRITES
    assert not messages.READS & messages.WRITES
    assert of_doors_and_workers == {
        "onboard",
        "configure",
        "cell_status",
        "begin_leaving",
        "copy_rows",
        "quiesce",
        "seal",
        "end_leaving",
        "begin_arrival",
        "hold_place",
        "take_rows",
        "arrival_status",
        "open_arrival",
        "end_arrival",
        "sum_rows",
        "erase_moved",
        "bury_moved",
        "erase_partner",
        "assign",
        "release",
        "release_partner",
        "worker_status",
        "metrics",
    }
