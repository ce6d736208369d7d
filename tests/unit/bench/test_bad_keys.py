"""What a bad key costs is worked out beside a payment of the same run, less what the router uses idle."""

from bench.bad_keys import Phase, costs_of


def test_each_cost_is_less_what_is_used_idle() -> None:
    idle = Phase("idle", 10.0, {}, router_cpu_s=0.1, cells_cpu_s=0.5)
    paying = Phase("payments", 20.0, {"201 captured": 990, "429 rate_limited": 10}, router_cpu_s=0.7, cells_cpu_s=9.0)
    refused = Phase("bad keys", 10.0, {"401 unauthorized": 100, "429 x": 900}, router_cpu_s=0.15, cells_cpu_s=0.6)
    flooded = Phase("flood", 10.0, {"429 x": 9_900, "no answer": 100}, router_cpu_s=0.35, cells_cpu_s=0.4)
    costs = costs_of(idle, paying, refused, flooded)
    assert (costs.payment_ms, costs.refusal_ms, costs.ratio) == (0.5, 0.05, 0.1)
    assert (costs.flood_refusal_ms, costs.flood_ratio) == (0.025, 0.05)
    assert (costs.cells_idle_cores, costs.cells_flooded_cores) == (0.05, 0.04)
