"""The protocol of the benchmarks: sweep, intervals, reduction at equal quality, contenders, Pareto
fronts, report, figures, page."""

from selfspec.arena.contenders import CONTENDERS as CONTENDERS
from selfspec.arena.contenders import PREPARED as PREPARED
from selfspec.arena.contenders import contenders as contenders
from selfspec.arena.contest import contest_figure as contest_figure
from selfspec.arena.contest import save_page as save_page
from selfspec.arena.contest import write_contest as write_contest
from selfspec.arena.intervals import Interval as Interval
from selfspec.arena.intervals import bootstrap_means as bootstrap_means
from selfspec.arena.intervals import mean_interval as mean_interval
from selfspec.arena.profile import kept_profile as kept_profile
from selfspec.arena.reduction import Baseline as Baseline
from selfspec.arena.reduction import Frontier as Frontier
from selfspec.arena.reduction import Point as Point
from selfspec.arena.reduction import Reduction as Reduction
from selfspec.arena.reduction import frontier as frontier
from selfspec.arena.reference import ProteinReference as ProteinReference
from selfspec.arena.reference import Reference as Reference
from selfspec.arena.reference import corpus_reference as corpus_reference
from selfspec.arena.report import accounts as accounts
from selfspec.arena.report import reduction_table as reduction_table
from selfspec.arena.report import reductions as reductions
from selfspec.arena.report import row_table as row_table
from selfspec.arena.report import write_report as write_report
from selfspec.arena.results import Result as Result
from selfspec.arena.results import Row as Row
from selfspec.arena.sweep import BATCHES as BATCHES
from selfspec.arena.sweep import Setting as Setting
from selfspec.arena.sweep import Sweep as Sweep
