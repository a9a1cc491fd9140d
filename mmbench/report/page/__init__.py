"""The report: stored runs as one HTML file that needs neither a network nor this package."""

from mmbench.report.page.page import report, unplaced, write_report

__all__ = ["report", "unplaced", "write_report"]
