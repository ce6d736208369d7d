"""What every experiment does: partners onboarded, a load run, everything brought to rest and judged. Sets no faults."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from chaos import limits
from chaos.checker import Judgement, judge_money
from chaos.history import Call
from chaos.installation import Installation
from chaos.workload import PartnerLoad, Plan, read_book, repeat_unanswered


async def onboard(gateway: Installation, partners: Sequence[str], **limits_: int) -> dict[str, str]:
    """Create partners, some at once; give their API keys."""
    slots = asyncio.Semaphore(limits.PARTNERS_CREATED_AT_ONCE_MAX)

    async def one(partner: str) -> str:
        async with slots:
            return await asyncio.to_thread(gateway.create_partner, partner, **limits_)

    keys = await asyncio.gather(*(one(partner) for partner in partners))
    return dict(zip(partners, keys, strict=True))


def plan_for(  # noqa: PLR0913 - one call, by name
    gateway: Installation,
    api_keys: dict[str, str],
    *,
    run: str,
    seed: int,
    requests_per_second: float,
    seconds: float,
    begin_s: float | None = None,
    first_amount: int = 1_000,
    mix: str = "mixed",
    series: str = "",
) -> Plan:
    """Plan a load that all these partners share alike. It begins now where no moment is given."""
    share = requests_per_second / len(api_keys)
    partners = tuple(PartnerLoad(partner, key, share) for partner, key in api_keys.items())
    begin_s = time.monotonic() if begin_s is None else begin_s
    return Plan(run, gateway.base_url, seed, begin_s, seconds, partners, mix, first_amount, series)


async def bring_to_rest(
    gateway: Installation, api_keys: dict[str, str], calls: list[Call], partners: Sequence[str] | None = None
) -> list[Call]:
    """Repeat what was not answered, under the same keys, and wait until nothing is open; give the repeats.

    What is still open after SETTLE_TIMEOUT_MS is left so: the checker then says "unknown". `partners`: only theirs is
    waited for.
    """
    repeats = await repeat_unanswered(calls, gateway.base_url, api_keys)
    await asyncio.to_thread(gateway.wait_settled, partners=partners)
    return repeats


async def judge_at_rest(
    gateway: Installation, api_keys: dict[str, str], calls: list[Call]
) -> tuple[Judgement, dict[str, Any]]:
    """Read books, acquirer and audit, and judge all calls, repeats included; give the judgement and the audit."""
    books = {partner: await read_book(gateway.base_url, key) for partner, key in api_keys.items()}
    record = await asyncio.to_thread(gateway.acquirer_record)
    audit = await asyncio.to_thread(gateway.audit)
    return judge_money(calls, books, record, audit), audit
