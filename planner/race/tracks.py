"""The commands of the planner that count on the trainer's own model and rules.

python -m planner race adamw muon --track gpt2        # what a race would take
python -m planner assignment muon --track gpt2        # the rule of every parameter
python -m planner tokens gpt2                         # training tokens of the longest run
"""

import argparse
from collections.abc import Sequence

from analysis.table import aligned
from errors import UserError
from host import entry
from planner.cluster.hardware import Machine
from planner.race import assignment, dry_run
from planner.tables import add_csv, write_csv
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
        write_csv(arguments.csv, table)
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


def race(argv: Sequence[str]) -> int:
    """The subcommand `race`; its exit code."""
    parser = make_parser(dry_run.__doc__, "planner race", only=("loss_chunk",))
    add_csv(parser)
    command_line.add(parser, Machine, "the machine to plan for")
    return entry.run(parser, argv, race_command)


def assign(argv: Sequence[str]) -> int:
    """The subcommand `assignment`; its exit code."""
    parser = make_parser(assignment.__doc__, "planner assignment", only=())
    return entry.run(parser, argv, assignment_command)


def tokens(argv: Sequence[str]) -> int:
    """The subcommand `tokens`; its exit code."""
    parser = entry.parser("planner tokens", tokens_command.__doc__)
    parser.add_argument("track", help=f"one of {', '.join(TRACKS)}")
    return entry.run(parser, argv, tokens_command)
