"""Scripts by which shells complete the commands, made from the table of subcommands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmm.remote.commands import SUBCOMMANDS

PROGRAM = "vmm-remote"
OPTIONS = ("--api-socket", "--json", "--version", "--help")

_BASH = """\
# {program} for bash: source this file, or put it into /etc/bash_completion.d.
_vmm_remote() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command= each words=
    COMPREPLY=()
    [[ ${{COMP_WORDS[COMP_CWORD-1]}} == --api-socket ]] && return
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $each in
            {alternatives}) command=$each; break ;;
        esac
    done
    case $command in
        "") words="{options} {commands}" ;;
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
    return 0
}}
complete -o default -F _vmm_remote {program}
"""

_ZSH = """\
#compdef {program}
# {program} for zsh: put this file, as _{program}, into a directory of $fpath.
local -a commands
commands=(
{commands}
)
_arguments -C \\
    '--api-socket[The socket of the VMM]:path:_files' \\
    '--json[Say everything as JSON]' \\
    '--version[Print the version]' \\
    '--help[Print the help]' \\
    '1:command:{{_describe command commands}}' \\
    '*::argument:->argument'
[[ $state == argument ]] || return 0
case $words[1] in
{cases}
    *) _files ;;
esac
"""


def script(shell: str) -> str:
    """Write the script of a shell, one of SHELLS."""
    return _SCRIPTS[shell]()


def _words() -> dict[str, tuple[tuple[str, str], ...]]:
    """Of each subcommand, what may follow it, each with what it means."""
    own = {
        each.name: tuple(
            (word, argument.caption)
            for argument in each.arguments
            for word in ((argument.name,) if argument.name.startswith("--") else argument.keys)
        )
        for each in SUBCOMMANDS
    }
    return own | {
        "completion": tuple((shell, "") for shell in SHELLS),
        "top": (("--interval", "Seconds from view to view"), ("--count", "Views to show")),
    }


def _captions() -> dict[str, str]:
    captions = {each.name: each.caption for each in SUBCOMMANDS}
    return captions | {
        "completion": "Print a script that completes these commands",
        "top": "Show the counters and their rates, live",
    }


def _bash() -> str:
    words = _words()
    cases = "\n".join(
        f'        {name}) words="{" ".join(word for word, _ in follow)}" ;;'
        for name, follow in words.items()
        if follow
    )
    return _BASH.format(
        program=PROGRAM,
        alternatives="|".join(words),
        options=" ".join(OPTIONS),
        commands=" ".join(words),
        cases=cases,
    )


def _zsh() -> str:
    cases = "\n".join(
        f"    {name}) compadd -S '' -- {' '.join(word for word, _ in follow)}; _files ;;"
        for name, follow in _words().items()
        if follow
    )
    commands = "\n".join(f"    {_quoted(f'{name}:{text}')}" for name, text in _captions().items())
    return _ZSH.format(program=PROGRAM, commands=commands, cases=cases)


def _fish() -> str:
    start = f"complete --command {PROGRAM}"
    lines = [
        f"# {PROGRAM} for fish: put this file into ~/.config/fish/completions.",
        f"{start} --condition __fish_use_subcommand --long-option api-socket --require-parameter",
        *(
            f"{start} --condition __fish_use_subcommand --long-option {option.removeprefix('--')}"
            for option in OPTIONS[1:]
        ),
    ]
    for name, caption in _captions().items():
        lines.append(
            f"{start} --condition __fish_use_subcommand --arguments {name}"
            f" --description {_quoted(caption)}"
        )
    for name, follow in _words().items():
        for word, caption in follow:
            kind = "--long-option" if word.startswith("--") else "--arguments"
            lines.append(
                f"{start} --condition '__fish_seen_subcommand_from {name}'"
                f" {kind} {word.removeprefix('--')} --description {_quoted(caption)}"
            )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # Shells differ in how a quote stands inside quotes; no caption needs one.
    return "'" + text.replace("'", "’") + "'"


_SCRIPTS: Mapping[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
SHELLS = tuple(_SCRIPTS)
