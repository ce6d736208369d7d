"""Unit tests do without Ray; the guard stands in tests/conftest.py."""

import importlib
import sys

import pytest


@pytest.mark.parametrize("module", ["ray", "ray.util"])
def test_a_unit_test_that_imports_ray_fails(module: str) -> None:
    with pytest.raises(ImportError, match="ray"):
        importlib.import_module(module)


def test_the_rules_need_no_store_and_no_ray() -> None:
    importlib.import_module("actors.partner")
    assert sys.modules["ray"] is None
