"""Makes notify.1 and the bash completion from the command line's own parser: pages.py FOLDER."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from notify.cli.main import make_parser


def roff(text: str) -> str:
    """Text as roff shows it literally."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    return re.sub(r"(?m)^(?=\.)", "\\&", text)


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    (sub,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(sub.choices)


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options and arguments of a command, but for its help."""
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def manual(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The lines of notify.1."""
    yield '.TH NOTIFY 1 "" "notify" "User commands"'
    yield ".SH NAME"
    yield "notify \\- publish to, listen on and look after a notification server"
    yield ".SH SYNOPSIS"
    yield ".B notify\n.I COMMAND\n.RI [ options ]"
    yield ".SH DESCRIPTION"
    yield roff(parser.description or "")
    yield ".SH COMMANDS"
    for name, command in commands(parser).items():
        yield f".SS {roff(name)}"
        for paragraph in (command.description or "").split("\n\n"):
            yield roff(paragraph.strip()) + "\n.PP"
        for action in options(command):
            takes = "" if action.nargs == 0 else (action.metavar or action.dest.upper())
            names = ", ".join(f"\\fB{roff(option)}\\fP" for option in action.option_strings)
            yield ".TP"
            yield f"{names} \\fI{roff(str(takes))}\\fP".strip()
            yield roff((action.help or "") % {**vars(action), "prog": command.prog})
        examples = (command.epilog or "").partition("\n")[2]
        yield ".PP\nExamples:\n.PP\n.nf\n" + roff(examples.rstrip()) + "\n.fi"
    yield ".SH SEE ALSO\n.BR notify\\-server (8)"


def completion(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The lines of the bash completion of notify and of notify-server."""
    yield "# bash completion for notify and notify-server"
    yield "_notify() {"
    yield "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words="
    yield "    case $before in"
    files = sorted(
        {
            option
            for command in commands(parser).values()
            for action in options(command)
            if action.metavar == "FILE"
            for option in action.option_strings
        }
    )
    yield f'        {"|".join(files)}) mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;'
    yield "    esac"
    yield '    if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f"        words='{' '.join(commands(parser))} --help --version'"
    yield "    else"
    yield "        case ${COMP_WORDS[1]} in"
    for name, command in commands(parser).items():
        names = sorted(
            option for action in command._actions for option in action.option_strings if option[:2] == "--"
        )
        yield f"            {name}) words='{' '.join(names)}' ;;"
    yield "        esac"
    yield "    fi"
    yield '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")'
    yield "    case ${COMP_WORDS[1]}:$word in"
    yield '        check-config:[!-]*|check-config:) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;'
    yield "    esac"
    yield "}"
    yield "complete -o filenames -F _notify notify"
    yield "_notify_server() {"
    yield "    case ${COMP_WORDS[COMP_CWORD-1]} in"
    yield '        --config|-c) mapfile -t COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}") ;;'
    yield "        *) mapfile -t COMPREPLY < <(compgen -W '--config --dev --help --version' -- \"${COMP_WORDS[COMP_CWORD]}\") ;;"
    yield "    esac"
    yield "}"
    yield "complete -o filenames -F _notify_server notify-server"


def main(folder: Path) -> None:
    """Write both into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parser = make_parser()
    (folder / "notify.1").write_text("\n".join(manual(parser)) + "\n")
    (folder / "notify").write_text("\n".join(completion(parser)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
