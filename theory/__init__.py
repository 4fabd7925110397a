"""Tests the theorems of the paper on problems that can be computed exactly.

On these small problems every quantity of the theory is known: the gated objective and its
relaxation, Polyak–Łojasiewicz (PL) and smoothness constants, convergence with stochastic gates, and
the landscape of low-rank adapters on the same data. Each check measures one statement and returns
the evidence for or against it. ``theory/README.md`` has the results. The theory uses the library's
gates, gated layers and penalties. Only ``theory.finetuned`` needs the rest of the library.
"""

from theory.cases import Case
from theory.evidence import Check
from theory.problems import FAMILIES, Family, Problem, draw_problem
from theory.verdicts import judge_claims

__all__ = ["FAMILIES", "Case", "Check", "Family", "Problem", "draw_problem", "judge_claims"]
