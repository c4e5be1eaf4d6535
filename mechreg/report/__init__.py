"""Tables and charts to one self-contained offline HTML page."""

from mechreg.report.page import report_html as report_html
from mechreg.report.run_report import run_report as run_report
from mechreg.report.sentences import counted_once as counted_once
from mechreg.report.sentences import headline as headline
from mechreg.report.sentences import legend as legend
from mechreg.report.sentences import result_table as result_table
from mechreg.report.sentences import same_weights as same_weights
from mechreg.report.sentences import side_by_side as side_by_side
