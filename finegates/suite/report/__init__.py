"""One page with everything a reviewer opens: verdicts, numbers, figures, runs, environment.

The page holds its styles, scripts and figures itself and asks the network for nothing. It is made
from a tier's result files alone.
"""

from finegates.suite.report.page import ReportError, build_report

__all__ = ["ReportError", "build_report"]
