"""The theorems of the paper, put to the test.

Small problems on which every quantity of the theory can be computed: the gated objective and its
relaxation, Polyak–Łojasiewicz and smoothness constants, convergence of training with stochastic
gates, and the landscape compared with that of low-rank adapters. Each check measures what one
statement says and returns the evidence for or against it; ``theory/README.md`` has the results.
The theory uses the library's gates, gated layers and penalties; only ``theory.finetuned`` needs
the rest.
"""

from theory.evidence import Case, Check
from theory.problems import FAMILIES, Family, Problem, draw_problem
from theory.tables import judge_claims

__all__ = ["FAMILIES", "Case", "Check", "Family", "Problem", "draw_problem", "judge_claims"]
