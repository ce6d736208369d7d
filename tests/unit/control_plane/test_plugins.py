import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from control_plane import cli, plugins


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, arguments)


def provide(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    def found(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == plugins.GROUP
        return [EntryPoint("extra", value, group)] if name in {None, "extra"} else []

    monkeypatch.setattr(plugins, "entry_points", found)


def test_a_group_that_cannot_be_loaded_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, "no_such_package.command:app")
    result = run("extra", "run", "--all")
    assert result.exit_code == 2
    assert "error: `extra` can't be loaded: ModuleNotFoundError: No module named 'no_such_package'" in result.stderr
    assert "where: no_such_package.command:app" in result.stderr


def test_a_group_is_loaded_when_it_is_called_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = typer.Typer()

    @extra.callback()
    def main() -> None:
        """Bring something."""

    @extra.command("say")
    def say(word: str) -> None:
        typer.echo(f"said {word}")

    loaded = []

    class Module:
        @property
        def app(self) -> typer.Typer:
            loaded.append(1)
            return extra

    monkeypatch.setitem(sys.modules, "extra_commands", Module())  # type: ignore[arg-type]
    provide(monkeypatch, "extra_commands:app")
    assert run("version").exit_code == 0
    assert not loaded
    assert run("extra", "say", "hello").stdout == "said hello\n"
    assert loaded


def test_what_nobody_brings_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, "extra_commands:app")
    assert run("nonsense").exit_code == 2
