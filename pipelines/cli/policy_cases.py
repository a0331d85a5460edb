"""The command `policy test`: run the cases beside policies, and show what is not as expected.

Owns the output; `reputation/cases.py` defines the file of cases, `reputation/case_results.py` runs it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.text import amount, escape_text
from pipelines.cli.explain import print_contributions
from pipelines.cli.output import print_check, print_line, print_warning
from pipelines.errors import KarmalakeError

if TYPE_CHECKING:
    from pipelines.reputation.case_results import CaseResult

_SHOWN_ROWS = 20
"""Rows of a failed case's contributions; the newest ones."""


def check_cases(
    path: Annotated[
        str,
        typer.Argument(
            help="A folder, a file of cases, a policy file, or a shipped policy; the current folder by default."
        ),
    ] = ".",
) -> None:
    """Run the cases of policies: NAME.test.toml beside NAME.toml, events in and scores out. Needs no lake.

    Of a case that fails it shows what was expected, what the policy gives, and the contributions. Exits 1 then.
    """
    from pipelines.reputation.case_results import run_cases  # noqa: PLC0415
    from pipelines.reputation.cases import case_files  # noqa: PLC0415

    files = case_files(path)
    results = [result for file in files for result in _shown(file, run_cases(file))]
    failed = sum(not result.passed for result in results)
    print_line(f"\n{amount(len(results), 'case')} in {amount(len(files), 'file')}: {len(results) - failed:,} passed")
    if failed:
        raise KarmalakeError(f"{failed:,} of {amount(len(results), 'case')} failed")


def _shown(file: Path, results: "list[CaseResult]") -> "list[CaseResult]":
    """Print the results of a file, and return them."""
    for result in results:
        print_check(result.name, f"{file}:{result.line}", passed=result.passed)
        for sentence in result.uncounted:
            print_warning(f"{file}:{result.line}: {sentence}")
        if not result.passed:
            _print_failure(result)
    return results


def _print_failure(result: "CaseResult") -> None:
    for each in result.differences:
        print_line(f"  {escape_text(each.user_id)}: {escape_text(each.name)}: expected {each.expected}, got {each.got}")
    for user, ledger in result.contributions.items():
        rows = ledger.rows(named=True)
        older = f", the last {_SHOWN_ROWS} of {len(rows):,}" if len(rows) > _SHOWN_ROWS else ""
        print_line(f"\n  contributions of {escape_text(user)} as of {result.as_of:%Y-%m-%d %H:%M:%SZ}{older}")
        print_contributions(rows[-_SHOWN_ROWS:])
        print_line("")
