"""The command line: flags made from config, what every command does around its work, doctor.

The top floor: may import everything, nothing imports it but the scripts and __main__.
"""
