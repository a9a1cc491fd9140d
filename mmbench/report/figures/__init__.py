"""Figures of a comparison, one idea a file; what each shows stands in docs/figures.md.

They are drawn on figure objects of their own, never on pyplot's, so that a caller's backend and
open figures are left alone. A function returns None where the stored runs hold nothing to draw.
"""

from mmbench.report.figures.budgets import budget_figure
from mmbench.report.figures.confidence import confidence_figure
from mmbench.report.figures.contributions import contribution_figure
from mmbench.report.figures.cost import cost_figure
from mmbench.report.figures.curves import Curves, Segment, row_curves
from mmbench.report.figures.learning_curves import learning_curve_figure
from mmbench.report.figures.outcomes import outcome_figure
from mmbench.report.figures.ranks import critical_difference_figure
from mmbench.report.figures.reliability import reliability_figure
from mmbench.report.figures.robustness import group_robustness_figure, robustness_figure
from mmbench.report.figures.style import palette
from mmbench.report.figures.writing import save, write_figures

__all__ = [
    "Curves",
    "Segment",
    "budget_figure",
    "confidence_figure",
    "contribution_figure",
    "cost_figure",
    "critical_difference_figure",
    "group_robustness_figure",
    "learning_curve_figure",
    "outcome_figure",
    "palette",
    "reliability_figure",
    "robustness_figure",
    "row_curves",
    "save",
    "write_figures",
]
