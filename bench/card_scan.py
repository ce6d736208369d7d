"""Measures the scan for card data: false refusals, cards missed, CPU at the worst input: `python -m bench.card_scan`.

Honest values are made at random, a million of each kind, from a seed. CPU is that of this process' thread, the least of
several tries; growth is the CPU of twice the text over that of the text.
"""

import argparse
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from stdnum import ean, iban, luhn

from cells.api import card_data
from cells.api.issuers import ISSUERS
from router import limits

VALUES: Final = 1_000_000
TRIES: Final = 5
SEED: Final = 14

_ORDER_DIGITS: Final = 8
_HONEST_YEARS_S: Final = (1_500_000_000, 1_900_000_000)


def _digits(rng: random.Random, count: int) -> str:
    return str(rng.randrange(10 ** (count - 1), 10**count))


def _instant(rng: random.Random) -> datetime:
    return datetime.fromtimestamp(rng.uniform(*_HONEST_YEARS_S), UTC)


def _ean(rng: random.Random) -> str:
    digits = _digits(rng, 12)
    return digits + ean.calc_check_digit(digits)


def _iban(rng: random.Random, separator: str) -> str:
    account = _digits(rng, 18)
    text = f"DE{iban.calc_check_digits(f'DE00{account}')}{account}"
    return separator.join(text[begin : begin + 4] for begin in range(0, len(text), 4))


HONEST: Final[dict[str, Callable[[random.Random], Any]]] = {
    "order number, 8 digits": lambda rng: f"order-{_digits(rng, _ORDER_DIGITS)}",
    "order number, date and 6 digits": lambda rng: f"{_instant(rng):%Y%m%d}-{_digits(rng, 6)}",
    "order number, 3-7-7 digits": lambda rng: f"{_digits(rng, 3)}-{_digits(rng, 7)}-{_digits(rng, 7)}",
    "random number, 12 digits": lambda rng: _digits(rng, 12),
    "random number, 16 digits": lambda rng: _digits(rng, 16),
    "random number, 19 digits": lambda rng: _digits(rng, 19),
    "time, RFC 3339": lambda rng: _instant(rng).isoformat(),
    "time, digits only": lambda rng: f"{_instant(rng):%Y%m%d%H%M%S}",
    "Unix time, ms": lambda rng: int(_instant(rng).timestamp() * 1e3),
    "Unix time, us": lambda rng: int(_instant(rng).timestamp() * 1e6),
    "Unix time, ns": lambda rng: int(_instant(rng).timestamp() * 1e9),
    "UUID": lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    "UUID in other text": lambda rng: f"order {uuid.UUID(int=rng.getrandbits(128), version=4)}",
    "SHA-256, hexadecimal": lambda rng: f"{rng.getrandbits(256):064x}",
    "float, 0 to 1": lambda rng: rng.random(),
    "float as text": lambda rng: str(rng.uniform(0, 1e4)),
    "telephone, with +": lambda rng: f"+{rng.choice(('1', '44', '49', '91'))} {_digits(rng, 3)} {_digits(rng, 7)}",
    "telephone, without": lambda rng: f"0{_digits(rng, 3)} {_digits(rng, 7)}",
    "EAN-13": _ean,
    "IBAN, in groups": lambda rng: _iban(rng, " "),
    "IBAN in other text": lambda rng: f"paid from {_iban(rng, ' ')}",
}

# What makes the scan work hardest for its bytes, of those tried.
WORST: Final = {
    "4 4 4 …": "4 ",
    "44 44 44 …": "44 ",
    "4444 4444 …": "4444 ",
    "4000 4000 …": "4000 ",
    "44444 44444 …": "44444 ",
    "444…": "4",
    "eleven single digits": "4 4 4 4 4 4 4 4 4 4 4 a",
    "with three blanks": "4   4   4   4   4   4   4   4   4   4   4   a",
    "numbers without a check digit": "4242424242424241 a",
    "no issuer's": "1111111111111 a",
    "9999 9999 9999 …": "9999 9999 9999 ",
    "1.1.1 …": "1.1",
    "letters": "a",
    "Arabic digits": "\u0664",
    "full-width digits": "\uff14",
    "zero-width blanks": "\u200b",
    "a ligature of 18 letters": "\ufdfa",
}


def main() -> None:
    """Measure and print three tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.card_scan", description=__doc__)
    parser.add_argument("--values", type=int, default=VALUES, help="values of each kind")
    options = parser.parse_args()
    out = Console()
    out.print(_false_refusals(options.values))
    out.print(_found(options.values))
    out.print(_worst())


def _false_refusals(values: int) -> Table:
    table = Table("honest values", "refused of a million", "µs each", title="False refusals")
    for kind, make in HONEST.items():
        rng = random.Random(f"{SEED} {kind}")
        made = [{"metadata": {"value": make(rng)}} for _ in range(values)]
        begun = time.thread_time()
        refused = sum(card_data.find(value) is not None for value in made)
        took_s = time.thread_time() - begun
        table.add_row(kind, f"{refused * 1e6 / values:,.0f}", f"{took_s * 1e6 / values:.1f}")
    return table


def _found(values: int) -> Table:
    """Count what is missed of each issuer's numbers: those of 12 and 13 digits that are an article's number as well."""
    table = Table("issuer", "missed of a million", title="Card numbers")
    for issuer, (ranges, lengths) in ISSUERS.items():
        rng = random.Random(f"{SEED} {issuer}")
        missed = 0
        for _ in range(values // 10):
            low, high = rng.choice(ranges)
            prefix = str(rng.randint(int(low), int(high)))
            body = prefix + _digits(rng, 19)
            body = body[: rng.choice(sorted(lengths)) - 1]
            missed += not card_data.holds_card_number(body + luhn.calc_check_digit(body))
        table.add_row(issuer, f"{missed * 1e6 / (values // 10):,.0f}")
    return table


def _worst() -> Table:
    count = limits.BODY_BYTES_MAX
    table = Table("a body of 64 KiB of", "ms", "growth", title="CPU at the worst input")
    for name, unit in WORST.items():
        half, whole = ({"text": unit * (size // len(unit.encode()))} for size in (count // 2, count))
        table.add_row(name, f"{_cpu_ms(whole):.2f}", f"{_cpu_ms(whole) / _cpu_ms(half):.1f}")
    return table


def _cpu_ms(value: Any) -> float:
    took_ms = []
    for _ in range(TRIES):
        begun = time.thread_time()
        card_data.find(value)
        took_ms.append((time.thread_time() - begun) * 1e3)
    return min(took_ms)


if __name__ == "__main__":
    main()
