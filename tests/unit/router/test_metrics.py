"""Metrics: what is counted, and that no histogram has a partner."""

from router.metrics import Metrics


async def test_requests_are_counted() -> None:
    metrics = Metrics()
    for status in (201, 201, 429, 503):
        metrics.observe("POST", "/v1/payments", status, 0.004, "acme")
    metrics.observe("GET", "unmatched", 404, 0.001, None)
    text = (await metrics.render()).decode()
    for line in (
        'bulkhead_router_requests_total{method="POST",route="/v1/payments",status="201"} 2.0',
        'bulkhead_router_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'bulkhead_router_partner_requests_total{outcome="2xx",partner="acme"} 2.0',
        'bulkhead_router_partner_requests_total{outcome="429",partner="acme"} 1.0',
        'bulkhead_router_partner_requests_total{outcome="5xx",partner="acme"} 1.0',
        'bulkhead_router_request_seconds_count{route="/v1/payments"} 4.0',
    ):
        assert line in text
    with_partner = {line.split("{")[0] for line in text.splitlines() if 'partner="' in line}
    assert with_partner == {
        "bulkhead_router_partner_requests_total",
        "bulkhead_router_partner_requests_created",
    }
