"""The command line: flags made from config, what every command does around its work, doctor.

The top layer: it may import everything; only the scripts and __main__ import it.
"""
