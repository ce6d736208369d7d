"""What a bad key costs is worked out beside a payment of the same run, less what the router uses idle."""

from bench.bad_keys import Phase, costs_of


def test_each_cost_is_less_what_is_used_idle() -> None:
    idle = Phase("idle", 10.0, {}, router_cpu_s=0.1, cells_cpu_s=0.5)
    paying = Phase("payments", 20.0, {"201 captured": 990, "429 rate_limited": 10}, router_cpu_s=0.7, cells_cpu_s=9.0)
    flooded = Phase("bad keys", 10.0, {"401 unauthorized": 100, "429 x": 900}, router_cpu_s=0.15, cells_cpu_s=0.6)
    costs = costs_of(idle, paying, flooded)
    assert (costs.payment_ms, costs.refusal_ms, costs.ratio) == (0.5, 0.05, 0.1)
    assert (costs.cells_idle_cores, costs.cells_flooded_cores) == (0.05, 0.06)
