"""The commands of the planner; see the package's docstring."""

import argparse
import sys
from collections.abc import Sequence

import planner
from analysis.table import aligned
from errors import UserError
from host import entry, paths
from planner import assignment, dry_run
from planner.hardware import Machine
from runtime import command_line
from speedrun import TRACKS, Options, chosen_track, entrants_of, make_parser
from tracking import tuned


def race_command(arguments: argparse.Namespace) -> None:
    """Print what a race would take."""
    machine = Machine(**command_line.given(arguments, Machine))
    options = Options(**command_line.given(arguments, Options))
    track, entrants = chosen_track(arguments), entrants_of(arguments)
    table, total = dry_run.race_table(track, entrants, options.loss_chunk, machine, arguments.seeds)
    if arguments.csv:
        dry_run.write(arguments.csv, table)
    print(aligned(table), total, sep="\n\n")


def assignment_command(arguments: argparse.Namespace) -> None:
    """Print what each parameter gets: rule, learning rate, weight decay, optimizer state."""
    track = chosen_track(arguments)
    for entrant in entrants_of(arguments):
        print(f"{entrant.label}: {entrant.origin}\n\n{assignment.table_of(track, entrant)}\n")


def tokens_command(arguments: argparse.Namespace) -> None:
    """Print the training tokens of the longest run on a track, of all recipes tuned there."""
    if arguments.track not in TRACKS:
        names = ", ".join(TRACKS)
        raise UserError(f"{arguments.track}: must be one of {names}; run: planner tokens gpt2")
    track = TRACKS[arguments.track]
    steps = [section.steps for section in tuned.read() if section.track == track.name]
    print(max([track.search_steps, *steps]) * track.batch_tokens)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    outer = entry.parser("planner", planner.__doc__)
    outer.add_argument("command", choices=("race", "assignment", "tokens"), help="see above")
    entry.prepare_streams()  # the help of the outer parser is printed before `run`
    name = outer.parse_args(words[:1]).command
    if name == "tokens":
        parser = entry.parser("planner tokens", tokens_command.__doc__)
        parser.add_argument("track", help=f"one of {', '.join(TRACKS)}")
        return entry.run(parser, words[1:], tokens_command)
    used = ("loss_chunk",) if name == "race" else ()
    parser = make_parser(planner.__doc__, f"planner {name}", only=used)
    chosen = assignment_command
    if name == "race":
        chosen = race_command
        parser.add_argument(
            "--csv", type=paths.typed, metavar="FILE", help="write the table there too"
        )
        command_line.add(parser, Machine, "the machine to plan for")
    return entry.run(parser, words[1:], chosen)


if __name__ == "__main__":
    sys.exit(main())
