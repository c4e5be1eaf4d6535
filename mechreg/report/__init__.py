"""Tables and charts to one self-contained offline HTML page."""

from mechreg.report.page import report_html
from mechreg.report.run_report import run_report
from mechreg.report.sentences import counted_once, headline, legend, result_table, same_weights, side_by_side

__all__ = [
    "counted_once",
    "headline",
    "legend",
    "report_html",
    "result_table",
    "run_report",
    "same_weights",
    "side_by_side",
]
