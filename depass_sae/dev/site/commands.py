"""The reference of the command line, out of the program itself."""

from __future__ import annotations

import html
from typing import Any


def reference() -> str:
    """Every command with its arguments and options, as the program has them."""
    from typer.main import get_command

    from ...cli import app

    group: Any = get_command(app)
    commands = dict(group.commands)
    listed = "".join(f"| [`{name}`](#{name}) | {_cell(_about(command))} |\n" for name, command in commands.items())
    head = (
        "# Reference of the command line\n\n"
        "Made of the program when this site was built; `depass-sae COMMAND --help` says the same. A guide with "
        "examples is [On the command line](shell.md).\n\n"
        "| command | what it answers |\n|---|---|\n" + listed
    )
    return head + "".join(_command(name, command) for name, command in commands.items())


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not getattr(p, "hidden", False)]
    usage = " ".join([f"depass-sae {name}", *(_usage(argument) for argument in arguments), "[OPTIONS]"])
    text = f"\n## {name}\n\n{_prose(command)}\n\n```text\n{usage}\n```\n"
    if arguments:
        rows = "".join(f"| `{_usage(p)}` | {_cell(getattr(p, 'help', '') or '')} |\n" for p in arguments)
        text += f"\n| argument | |\n|---|---|\n{rows}"
    rows = "".join(f"| {_names(p)} | {_cell(p.help or '')}{_default(p)} |\n" for p in options)
    return text + f"\n| option | |\n|---|---|\n{rows}"


def _prose(command: Any) -> str:
    return html.escape((command.help or "").strip(), quote=False).replace("\f", "")


def _about(command: Any) -> str:
    first: str = (command.help or "").strip().split("\n\n")[0]
    return " ".join(first.split())


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    names = [*option.opts, *option.secondary_opts]
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return ", ".join(f"`{name}`" for name in names) + (f" <small>{html.escape(value)}</small>" if value else "")


def _default(option: Any) -> str:
    shown = option.show_default
    if not isinstance(shown, str):
        plain = option.default is not None and not callable(option.default) and not option.is_flag
        shown = str(option.default) if plain and shown and option.default not in ((), []) else ""
    return f" Default: `{shown}`." if shown else ""


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
