"""The command line, on the top floor: only the scripts and __main__ import it."""
