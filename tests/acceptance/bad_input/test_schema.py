"""schemathesis against a whole gateway: what the OpenAPI document tells and what the router does are the same.

It makes requests from the document, good ones and bad ones, for every operation, and holds each answer against it.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.bad_input.conftest import Site

EXAMPLES: Final = 60
# A schema can't tell which currencies there are, what stands under a key, or what is left of a payment.
SETTINGS: Final = """\
[[operations]]
include-method = "POST"
checks.positive_data_acceptance.enabled = false
"""


@pytest.mark.timeout(180)
def test_the_router_does_what_its_document_says(site: Site, tmp_path: Path) -> None:
    seed = os.environ.get("BULKHEAD_TEST_SEED", "1")
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    command = [Path(sys.executable).with_name("schemathesis"), "--no-color", "run"]
    command += [f"{site.gateway.base_url}/openapi.json", "--header", f"Authorization: Bearer {site.keys['alpha']}"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)]
    command += ["--seed", seed, "--warnings", "off"]
    with site.unharmed():
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False)
    print(f"seed {seed}\n{done.stdout[-6_000:]}")  # noqa: T201 - what it found, and how to repeat it
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
