"""Options: each has a help text and says its default."""

from __future__ import annotations

import pytest

from gradina.apps.cli.main import VERBS, app


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help_and_a_default(verb: str) -> None:
    import typer

    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    for parameter in command.params:
        if parameter.param_type_name == "option" and "--help" not in parameter.opts:
            assert parameter.help, f"{verb} {parameter.name}: no help"
            assert parameter.show_default, f"{verb} {parameter.name}: no default"
