"""A partner's book is damaged on a whole gateway: only that partner is refused, and served again once it is back."""

from pathlib import Path

import httpx
import pytest

from chaos.files import Damage, damage
from chaos.gateway import Gateway
from chaos.installation import wait_for

BODY = {"amount": 100, "currency": "EUR", "payment_method": "tok_approve", "capture_method": "automatic"}


@pytest.mark.timeout(400)
def test_a_damaged_book_is_its_partner_s_alone_and_put_back_it_is_served_without_an_operator(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "gateway", cells=1)
    try:
        gateway.start()
        gateway.wait_ready()
        keys = {name: gateway.create_partner(name) for name in ("acme", "bystander")}

        def pay(partner: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {keys[partner]}"}
            return httpx.post(
                f"{gateway.base_url}/v1/payments", json=BODY, headers=headers, trust_env=False, timeout=15
            )

        def state() -> str:
            return next(row["state"] for row in gateway.status()["partners"] if row["partner"] == "acme")

        (book,) = gateway.folder.root.rglob("partners/acme.sqlite")
        for number, kind in enumerate((Damage.PAGES, Damage.DELETED)):
            assert pay("acme").status_code == 201
            worker = gateway.worker_of("acme")
            damaged = damage(book, kind, seed=number, keep_in=tmp_path / f"kept{number}", owner=worker)
            wait_for(lambda: state() == "unavailable" or None, "the damage is found", 20_000)
            refused = pay("acme")
            assert (refused.status_code, refused.json()["code"]) == (503, "partner_unavailable")
            assert pay("bystander").status_code == 201
            assert not damaged.took_commits()
            damaged.put_back()
            wait_for(lambda: state() == "active" or None, "it is served again", 20_000)
            assert pay("acme").status_code == 201
        assert gateway.audit()["ok"]
    finally:
        gateway.kill_everything()
