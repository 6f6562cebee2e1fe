"""The one exception that means "the user can fix this".

Every entry point turns it into a single line on stderr and exit code 2, never a traceback.
Write the message as: the value, the rule, the next command.
"""

LONGEST = 1500  # characters that are shown of a message


class UserError(Exception):
    """Bad input: an argument, a file or a machine that cannot do what was asked."""

    def __str__(self) -> str:
        """The message in one line: the value in it can be a whole file, or no text at all."""
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """A text that a person can read in one line: printable, and not longer than LONGEST."""
    line = " ".join(text.splitlines())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} [...] {line[-half:]}"
