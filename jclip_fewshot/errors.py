"""A mistake that the user can mend: one line, no traceback, exit status 2."""


class UserError(Exception):
    """Says in one line what is wrong, where, and what to do.

    The scripts print it and leave with status 2; library users may catch it.
    """
