"""The first sign is the first line since the blow that fits, in the log that is meant; metrics are summed by labels."""

from pathlib import Path

import orjson

from chaos.catalogue import Sign
from chaos.signs import Seen, first_in_logs, first_sign, metric_sum

SIGN = Sign("log", "process_ended", "control_*", (("child", "cell-0.door"),))


def line(at: str, event: str = "process_ended", **fields: str) -> bytes:
    return orjson.dumps({"timestamp": f"1970-01-01T00:00:{at}Z", "event": event, **fields}) + b"\n"


def test_the_first_line_that_fits(tmp_path: Path) -> None:
    own, other = tmp_path / "control_plane" / "control_plane.log", tmp_path / "router-0" / "router-0.log"
    own.parent.mkdir()
    other.parent.mkdir()
    own.write_bytes(
        line("10.0", child="cell-0.door")
        + line("20.5", child="cell-1.door")
        + line("21.0", event="process_started", child="cell-0.door")
        + b"no JSON\n"
        + line("22.25", child="cell-0.door")
        + line("23.0", child="cell-0.door")
        + b'{"half'
    )
    other.write_bytes(line("20.6", child="cell-0.door"))
    # The wall clock is 5 s before the monotonic one.
    found = first_in_logs(tmp_path, [SIGN], since_s=25.0, wall_offset_s=-5.0)
    assert found == Seen(27.25, "log control_plane.log: process_ended")


def test_the_earliest_of_all_signs_counts_and_none_is_none(tmp_path: Path) -> None:
    early, late = Seen(3.0, "status"), Seen(4.0, "metric")
    assert first_sign(tmp_path, [SIGN], [late, early], 1.0) == early
    assert first_sign(tmp_path, [SIGN], [], 1.0) is None


def test_a_metric_is_summed_over_the_labels_that_are_not_named() -> None:
    text = (
        "# TYPE bulkhead_router_requests counter\n"
        'bulkhead_router_requests_total{method="GET",status="401"} 2.0\n'
        'bulkhead_router_requests_total{method="POST",status="401"} 3.0\n'
        'bulkhead_router_requests_total{method="POST",status="201"} 9.0\n'
    )
    sign = Sign("metric", "bulkhead_router_requests_total", where=(("status", "401"),))
    assert metric_sum(text, sign) == 5
    assert metric_sum("", sign) == 0
