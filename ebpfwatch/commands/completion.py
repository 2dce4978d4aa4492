"""``ebpfwatch completion bash|zsh|fish``: what the shell needs to complete this command line.

Made from the parser, so that a new command or option is completed without further work. Whether a
value is a file is told by its metavar: FILE, VMCORE and DIR stand for paths.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from ebpfwatch.commands import parser
from ebpfwatch.errors import Exit

__all__ = ["Argument", "Command", "commands", "configure", "run"]


@dataclass(frozen=True)
class Argument:
    """An option with its names, or (without names) what stands after the options."""

    names: tuple[str, ...]
    text: str
    metavar: str  #: "" for an option without a value
    choices: tuple[str, ...]
    optional: bool  #: the value may be left out
    repeated: bool

    @property
    def paths(self) -> str:
        """``files``, ``directories``, or "": the value is no path."""
        words = re.split(r"\W+", self.metavar)
        if {"FILE", "VMCORE"} & set(words):
            return "files"
        return "directories" if "DIR" in words else ""


@dataclass(frozen=True)
class Command:
    """``name`` is "" for the options before any command."""

    name: str
    text: str
    options: tuple[Argument, ...]
    positionals: tuple[Argument, ...]


def configure(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    parser.add_argument("shell", choices=tuple(_SCRIPTS), help="the shell to write it for")


def run(arguments: argparse.Namespace) -> int:
    """Print it on stdout."""
    print("\n".join(_SCRIPTS[arguments.shell](commands())))
    return Exit.OK


def commands() -> list[Command]:
    """The whole command line; first what stands before any command."""
    whole = parser()
    found = [_command("", "", whole)]
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {each.dest: each.help or "" for each in action._choices_actions}
            found += [_command(name, told[name], sub) for name, sub in action.choices.items()]
    return found


def _command(name: str, text: str, known: argparse.ArgumentParser) -> Command:
    formatter = known._get_formatter()
    arguments = []
    for action in known._actions:
        if isinstance(action, argparse._SubParsersAction):
            if name:
                raise NotImplementedError(f"{name} has commands of its own")
            continue
        metavar = action.metavar or (action.dest if action.nargs != 0 else "")
        arguments.append(
            Argument(
                tuple(action.option_strings),
                formatter._expand_help(action) if action.help else "",
                " ".join(metavar) if isinstance(metavar, tuple) else metavar,
                tuple(map(str, action.choices or ())),
                action.nargs == "?",
                isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+"),
            )
        )
    options = tuple(a for a in arguments if a.names)
    return Command(name, text, options, tuple(a for a in arguments if not a.names))


def _bash(known: list[Command]) -> Iterator[str]:
    yield "# bash completion for ebpfwatch, made by `ebpfwatch completion bash`"
    yield from _BASH_BEGIN.splitlines()
    for command in known:
        for option in command.options:
            if option.metavar and not option.optional:
                cases = " | ".join(shlex.quote(f"{command.name} {name}") for name in option.names)
                yield f"    {cases}) {_bash_offer(option)} ;;"
    for command in known:
        names = " ".join(name for option in command.options for name in option.names)
        yield f"    {shlex.quote(command.name + ' ')}*)"
        offer = next((_bash_offer(argument) for argument in command.positionals), ":")
        if not command.name:
            offer = f"words={shlex.quote(' '.join(c.name for c in known if c.name))}"
        yield f"        if [[ $cur == -* ]]; then words={shlex.quote(names)}; else {offer}; fi ;;"
    yield from _BASH_END.splitlines()


def _bash_offer(argument: Argument) -> str:
    if argument.choices:
        return f"words={shlex.quote(' '.join(argument.choices))}"
    if argument.paths:
        return f"compopt -o {'default' if argument.paths == 'files' else 'dirnames'}"
    return ":"


# `--option=value` is three words for bash.
_BASH_BEGIN = """\
_ebpfwatch() {
    local cur=${COMP_WORDS[COMP_CWORD]} before=$((COMP_CWORD - 1)) command='' words='' word
    if [[ $cur == = ]]; then
        cur=''
    elif [[ ${COMP_WORDS[before]} == = ]]; then
        before=$((before - 1))
    fi
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD - 1}"; do
        if [[ $word != -* ]]; then
            command=$word
            break
        fi
    done
    case "$command ${COMP_WORDS[before]}" in"""

_BASH_END = """\
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _ebpfwatch ebpfwatch"""


def _zsh(known: list[Command]) -> Iterator[str]:
    yield "#compdef ebpfwatch"
    yield "# zsh completion for ebpfwatch, made by `ebpfwatch completion zsh`"
    yield "_ebpfwatch() {"
    yield '    local curcontext="$curcontext" state line'
    yield "    local -a commands"
    yield "    commands=("
    for command in known:
        if command.name:
            yield "        " + shlex.quote(f"{command.name}:{command.text}")
    yield "    )"
    yield "    _arguments -C \\"
    for specification in _zsh_arguments(known[0]):
        yield f"        {specification} \\"
    yield "        '1: :->command' '*:: :->rest'"
    yield '    case "$state" in'
    yield "    command) _describe -t commands command commands ;;"
    yield "    rest)"
    yield '        case "$words[1]" in'
    for command in known:
        if command.name:
            yield f"        {command.name})"
            yield " \\\n".join(
                [
                    "            _arguments",
                    *(f"                {s}" for s in _zsh_arguments(command)),
                ]
            )
            yield "            ;;"
    yield "        esac ;;"
    yield "    esac"
    yield "}"
    # The file itself is the function when zsh loads it by its name; else it is read by `source`.
    yield 'if [ "$funcstack[1]" = _ebpfwatch ]; then'
    yield '    _ebpfwatch "$@"'
    yield "else"
    yield "    compdef _ebpfwatch ebpfwatch"
    yield "fi"


def _zsh_arguments(command: Command) -> Iterator[str]:
    """The words for _arguments."""
    for option in command.options:
        told = re.sub(r"([\[\]:\\])", r"\\\1", option.text)
        again = "*" if option.repeated else ""
        others = "" if option.repeated else f"({' '.join(option.names)})"
        for name in option.names:
            yield shlex.quote(f"{again}{others}{name}[{told}]{_zsh_value(option)}")
    for place, argument in enumerate(command.positionals, 1):
        if argument.choices or argument.paths:  # zsh would rather say "ID" than complete an option
            yield shlex.quote(("*" if argument.repeated else str(place)) + _zsh_value(argument))


def _zsh_value(argument: Argument) -> str:
    if not argument.metavar:
        return ""
    what = {"files": "_files", "directories": "_files -/"}.get(argument.paths, " ")
    if argument.choices:
        what = f"({' '.join(argument.choices)})"
    return f"{'::' if argument.optional else ':'}{argument.metavar}:{what}"


def _fish(known: list[Command]) -> Iterator[str]:
    yield "# fish completion for ebpfwatch, made by `ebpfwatch completion fish`"
    yield "complete -c ebpfwatch -f"
    for command in known:
        when = "__fish_use_subcommand"
        if command.name:
            told = _fish_quote(command.text)
            yield f"complete -c ebpfwatch -n {when} -a {command.name} -d {told}"
            when = f"__fish_seen_subcommand_from {command.name}"
        for option in command.options:
            names = [f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names]
            # An option whose value may be left out takes none here: fish has no word for that.
            if option.metavar and not option.optional:
                names.append("-r -F" if option.paths == "files" else f"-x{_fish_offer(option)}")
            told = _fish_quote(option.text)
            yield f"complete -c ebpfwatch -n '{when}' {' '.join(names)} -d {told}"
        for argument in command.positionals:
            value = " -F" if argument.paths == "files" else _fish_offer(argument)
            if value:
                yield f"complete -c ebpfwatch -n '{when}'{value}"


def _fish_offer(argument: Argument) -> str:
    if argument.choices:
        return f" -a {_fish_quote(' '.join(argument.choices))}"
    return " -a '(__fish_complete_directories)'" if argument.paths else ""


def _fish_quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
