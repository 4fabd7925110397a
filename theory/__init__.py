"""The theorems of the paper, put to the test.

Small problems on which every quantity of the theory can be computed: the gated objective and its
relaxation, Polyak–Łojasiewicz and smoothness constants, convergence of training with stochastic
gates, and the landscape beside that of low-rank adapters. Each check measures what one claim says
and returns the evidence for or against it. Of the library only ``finegates.gates`` is used.
"""
