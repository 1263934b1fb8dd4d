"""The `florilegium` command: one module for each subcommand, and the console they print to.

Nobody imports this package but the console script and tests.
"""
