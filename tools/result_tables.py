"""Write the tables of docs/results.md again, from the records in docs/records.

    python tools/result_tables.py            # write
    python tools/result_tables.py --check    # exit code 1 when a table is not what its records give

A table stands between `<!-- compare ARGUMENTS -->` and `<!-- end -->`. The arguments are those of `florilegium
compare`; runs are named from docs/. Only the table itself is written by this tool, the text around it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import shlex
import sys
from pathlib import Path

from florilegium.cli import compare as command
from florilegium.report.comparison import compare

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "results.md"
BLOCK = re.compile(r"(<!-- compare (?P<arguments>[^\n]*) -->\n)(?P<table>.*?)(<!-- end -->)", re.DOTALL)


def table(arguments: str, docs: Path = DOCS) -> str:
    """The Markdown that `florilegium compare ARGUMENTS` prints; with one seed, without differences."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.add_arguments(parser)
    options = parser.parse_args(shlex.split(arguments))
    with contextlib.chdir(docs):  # so that warnings name the runs from there
        found = compare(
            options.runs,
            at=options.at,
            force=options.force,
            against=options.against,
            level=options.level,
            metrics=options.metric,
        )
    several = any(row.difference and row.difference.interval for row in found.compared())
    return (found if several else dataclasses.replace(found, against=None)).markdown()


def written(text: str, docs: Path = DOCS) -> str:
    """A page with each of its tables made again."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{table(block['arguments'], docs).strip()}\n\n{block[4]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    made = written(text)
    if args.check:
        sys.exit(made != text)
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
