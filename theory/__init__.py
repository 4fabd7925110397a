"""The theorems of the paper, put to the test.

Small problems on which every quantity of the theory can be computed: the gated objective and its
relaxation, Polyak–Łojasiewicz and smoothness constants, convergence of training with stochastic
gates, and the landscape beside that of low-rank adapters. Each check measures what one statement
says and returns the evidence for or against it; ``theory/README.md`` tells the results. Of the
library the gates, their layers and penalties are used; ``theory.finetuned`` alone needs the rest.
"""

from theory.evidence import Case, Check, judge_claims
from theory.problems import FAMILIES, Family, Problem, draw_problem

__all__ = ["FAMILIES", "Case", "Check", "Family", "Problem", "draw_problem", "judge_claims"]
