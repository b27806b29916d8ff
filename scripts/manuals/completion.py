"""
Completion for bash, zsh and fish, made of the tables of the command line.

What is completed: options, with one dash or two, their values where there is a choice, files, and the
commands of ctl with the options that each of them has. No server is asked.

shtab, which makes such files of an argparse parser, was tried first. Its file for fish takes a long option
with one dash for a row of letters; those for bash and zsh offer ctl behind every option; and none has the
options of ctl itself behind a command. It would be one more program to have, too, and a parser that nothing
else reads.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from proxy import cli
from proxy.ctl import commands
from proxy.options import Option
from scripts.manuals.pages import ctl_commands

_MADE = "made by `make manuals` of proxy-server; a change belongs there"

_OF_ALL = [option for option in commands.OPTIONS if option.name not in commands.OF_COMMANDS]
_HELP = {command.name: command.help[0] for command in ctl_commands()}


def options_of(command: str) -> list[Option]:
    """List what can be said with a command of ctl."""
    return _OF_ALL + [each for each in commands.OPTIONS if each.name in commands.COMMANDS[command].options]


def _takes_value(options: Iterable[Option]) -> list[Option]:
    return [option for option in options if option.value]


def _names(options: Iterable[Option], dashes: Sequence[str] = ("-", "--")) -> list[str]:
    """List names with their dashes, one or two; a single letter has one."""
    return [
        f"{dash}{name}"
        for option in options
        for dash in dashes
        for name in option.names
        if dash == "-" or len(name) > 1
    ]


def _long(options: Iterable[Option]) -> str:
    return " ".join(option.name for option in options)


# -- bash

_BASH = """\
# bash completion for proxy-server: {made}

_proxy_server()
{{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} dash=- command= i names

    COMPREPLY=()
    # -mode=server is three words to bash, and two dashes are as good as one.
    if [[ $word == = ]]; then
        word=
    elif [[ $before == = ]]; then
        before=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    before=${{before/#--/-}}
    [[ $word != --* ]] || dash=--

    if [[ ${{COMP_WORDS[1]}} != ctl || $COMP_CWORD == 1 ]]; then
        case $before in
{main_values}
        esac
        names=({main_names})
        COMPREPLY=($(compgen -W "${{names[*]/#/$dash}}" -- "$word"))
        [[ $COMP_CWORD != 1 ]] || COMPREPLY+=($(compgen -W ctl -- "$word"))
        return
    fi

    case $before in
{ctl_values}
    esac
    # The command is the first word that is no option, nor the value of one.
    for ((i = 2; i < COMP_CWORD && ${{#command}} == 0; i++)); do
        case ${{COMP_WORDS[i]/#--/-}} in
            {ctl_takers})
                [[ ${{COMP_WORDS[i+1]}} != = ]] || ((i++))
                ((i++)) ;;
            -*) ;;
            *) command=${{COMP_WORDS[i]}} ;;
        esac
    done
    if [[ -z $command && $word != -* ]]; then
        COMPREPLY=($(compgen -W '{commands}' -- "$word"))
        return
    fi
    [[ $word == -* ]] || return
    case $command in
{ctl_names}
        *) names=({all_names}) ;;
    esac
    COMPREPLY=($(compgen -W "${{names[*]/#/$dash}}" -- "$word"))
}}

complete -F _proxy_server proxy-server
"""


def bash() -> str:
    """Write the completion for bash."""
    special = [each for each in commands.COMMANDS if commands.COMMANDS[each].options]
    return _BASH.format(
        made=_MADE,
        main_values="\n".join(_bash_values(cli.OPTIONS, " " * 12)),
        main_names=_long(cli.OPTIONS),
        ctl_values="\n".join(_bash_values(commands.OPTIONS, " " * 8)),
        ctl_takers="|".join(_names(_takes_value(commands.OPTIONS), "-")),
        commands=" ".join(commands.COMMANDS),
        ctl_names="\n".join(f"        {each}) names=({_long(options_of(each))}) ;;" for each in special),
        all_names=_long(_OF_ALL),
    )


def _bash_values(options: Iterable[Option], indent: str) -> Iterator[str]:
    """Write what is done behind an option that has a value: nothing, where anything may stand."""
    free = []
    for option in _takes_value(options):
        names = "|".join(_names([option], "-"))
        if option.value == "FILE":
            # The shell's own completion of files knows ~, blanks and quotes.
            yield f"{indent}{names}) compopt -o default; return ;;"
        elif option.choices:
            words = " ".join(option.choices)
            yield f"""{indent}{names}) COMPREPLY=($(compgen -W '{words}' -- "$word")); return ;;"""
        else:
            free.append(names)
    yield f"{indent}{'|'.join(free)}) return ;;"


# -- zsh

_ZSH = """\
#compdef proxy-server
# zsh completion for proxy-server: {made}

local curcontext=$curcontext state line ret=1
local -a of_ctl commands first

of_ctl=(
{of_all}
)
commands=(
{commands}
)

if [[ $words[2] == ctl ]] && (( CURRENT > 2 )); then
    # From here on it is as if ctl were the program.
    shift words
    (( CURRENT-- ))
    _arguments -C -A '-*' $of_ctl '1:command:->command' '*:: :->behind' && ret=0
    case $state in
        command)
            _describe -t commands 'command' commands && ret=0 ;;
        behind)
            case $line[1] in
{of_commands}
            esac
            _arguments $of_ctl '*:argument: ' && ret=0 ;;
    esac
    return ret
fi

(( CURRENT > 2 )) || first=('1: :((ctl\\:"talk to a server that runs"))')
_arguments $first \\
{main}
"""


def zsh() -> str:
    """Write the completion for zsh."""
    special = {each: command.options for each, command in commands.COMMANDS.items() if command.options}
    return _ZSH.format(
        made=_MADE,
        of_all="\n".join(f"    {each}" for each in _zsh_options(_OF_ALL)),
        commands="\n".join(f"    {shlex.quote(f'{name}:{told}')}" for name, told in _HELP.items()),
        of_commands="\n".join(
            f"                {each}) of_ctl+=({' '.join(_zsh_options(options_of(each)[len(_OF_ALL) :]))}) ;;"
            for each in special
        ),
        main=" \\\n".join(f"    {each}" for each in _zsh_options(cli.OPTIONS)),
    )


def _zsh_options(options: Iterable[Option]) -> Iterator[str]:
    """Write the specs of options, each of which may be given once, by one of its names."""
    for option in options:
        names = _names([option])
        told = re.sub(r"([][:\\])", r"\\\1", option.help)
        what = f":{option.value}:{_zsh_values(option)}" if option.value else ""
        # A second colon: the value can be left out.
        what = f":{what}" if option.default else what
        for name in names:
            yield shlex.quote(f"({' '.join(names)}){name}[{told}]{what}")


def _zsh_values(option: Option) -> str:
    if option.value == "FILE":
        return "_files"
    return f"({' '.join(option.choices)})" if option.choices else " "


# -- fish

_FISH = """\
# fish completion for proxy-server: {made}

# Tell whether what is typed is for one of these: main, ctl before its command, or a command of it.
function __proxy_server_at
    set -l place main
    set -l words (commandline -opc)
    if test "$words[2]" = ctl
        set place ctl
        set -e words[1..2]
        while set -q words[1]
            switch $words[1]
                case {takers}
                    set -e words[1]
                case '-*'
                case '*'
                    set place $words[1]
                    break
            end
            set -e words[1]
        end
    end
    contains -- $place $argv
end

complete -c proxy-server -f
complete -c proxy-server -n 'test (count (commandline -opc)) -eq 1' -a ctl -d 'talk to a server that runs'
{main}
{commands}
{of_all}
{of_commands}
"""


def fish() -> str:
    """Write the completion for fish."""
    everywhere = " ".join(["ctl", *commands.COMMANDS])
    of_commands = [each for each in commands.OPTIONS if each.name in commands.OF_COMMANDS]
    return _FISH.format(
        made=_MADE,
        takers=" ".join(_names(_takes_value(commands.OPTIONS))),
        main="\n".join(_fish_option(each, "main") for each in cli.OPTIONS),
        commands="\n".join(
            f"complete -c proxy-server -n '__proxy_server_at ctl' -a {name} -d {_fish_quote(told)}"
            for name, told in _HELP.items()
        ),
        of_all="\n".join(_fish_option(each, everywhere) for each in _OF_ALL),
        of_commands="\n".join(
            _fish_option(
                each, " ".join(name for name, one in commands.COMMANDS.items() if each.name in one.options)
            )
            for each in of_commands
        ),
    )


def _fish_option(option: Option, places: str) -> str:
    names = " ".join(f"-s {name}" if len(name) == 1 else f"-o {name} -l {name}" for name in option.names)
    value = ""
    if option.default:
        value = " -F"
    elif option.value == "FILE":
        value = " -r -F"
    elif option.value:
        value = f" -x -a '{' '.join(option.choices)}'" if option.choices else " -x"
    told = _fish_quote(option.help)
    return f"complete -c proxy-server -n '__proxy_server_at {places}' {names}{value} -d {told}"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
