"""The one exception that means "the user can fix this".

Every entry point turns it into a single line on stderr and exit code 2, never a traceback.
Write the message as: the value, the rule, the next command.
"""


class UserError(Exception):
    """Bad input: an argument, a file or a machine that cannot do what was asked."""
