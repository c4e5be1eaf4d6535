"""Tables and charts to one self-contained offline HTML page."""

from mechreg.report.page import report_html
from mechreg.report.run_report import run_report
from mechreg.report.sentences import answer, headline, result_table, same_weights

__all__ = ["answer", "headline", "report_html", "result_table", "run_report", "same_weights"]
