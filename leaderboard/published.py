"""What others published, recomputed: the claims of track 3, the "35%", the "25%", the records.

    python -m leaderboard published              # the answer to "is it 35%?", and what came out
    python -m leaderboard published claims       # one table: claims, ratios, xl or records

All numbers come from the CSVs of results/published, whose source is the public repository
modded-nanogpt. docs/published.md shows the same tables, and charts made by `make figures`.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from analysis import claims, evidence, histories
from analysis.published import FOLDER, Data, load
from errors import UserError
from host import entry, paths


def headline(data: Data) -> str:
    """The answer to "is it 35%?"."""
    return evidence.headline(data)


def claims_part(data: Data) -> str:
    """What came out of the claims, and all of them as a table."""
    return f"{claims.summary(data)}\n\n{claims.markdown(claims.verdicts(data))}"


def ratios_part(data: Data) -> str:
    """The evidence for the 35% at 124M parameters."""
    found = [r for r in evidence.ratios(data) if r.group != evidence.GROUP_XL]
    return evidence.markdown(found)


def xl_part(data: Data) -> str:
    """The evidence for the 25% at 1.5B parameters."""
    return evidence.markdown([r for r in evidence.ratios(data) if r.group == evidence.GROUP_XL])


def records_part(data: Data) -> str:
    """The history of the records in short."""
    return histories.summary(histories.all_of(data))


PARTS: dict[str, Callable[[Data], str]] = {
    "headline": headline,
    "claims": claims_part,
    "ratios": ratios_part,
    "xl": xl_part,
    "records": records_part,
}


@cache
def _data(folder: Path) -> Data:
    return load(folder)


def part(argument: str, repository: Path) -> str:
    """A generated part of docs/published.md, `<!-- begin:published PART -->`, as Markdown.

    Raises UserError for an unknown part, and for data that cannot be read.
    """
    if argument not in PARTS:
        raise UserError(
            f"published {argument!r}: must be one of {', '.join(PARTS)}; mend the marker"
        )
    return PARTS[argument](_data(repository / "results" / "published"))


def command(options: argparse.Namespace) -> int:
    """Print the parts; the exit code. Raises UserError for data that cannot be read."""
    data = load(options.root)
    if options.part == "records":
        print(histories.markdown(histories.all_of(data)))
    elif options.part:
        print(PARTS[options.part](data))
    else:
        print(headline(data), claims.summary(data), records_part(data), sep="\n\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, or 2 for data that cannot be read."""
    parser = entry.parser("leaderboard published", __doc__)
    parser.add_argument("part", nargs="?", choices=PARTS, help="one part; default: the short ones")
    parser.add_argument(
        "--root",
        type=paths.typed,
        default=FOLDER,
        help="folder of the CSVs; default: results/published",
    )
    return entry.run(parser, argv, command)
