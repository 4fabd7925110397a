"""The report of a tier on one page: verdicts, tables, figures, runs.

The page embeds its styles, scripts and figures and does not use the network. It is made only from a
tier's result files.
"""

from finegates.suite.report.page import ReportError, build_report

__all__ = ["ReportError", "build_report"]
