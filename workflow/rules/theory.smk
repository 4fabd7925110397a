# Tests of the paper's theorems on random least-squares problems and on the tier's encoder.

THEORY = f"{RESULTS}/theory"
LOOK_TASK = TIER.theory.network.task if TIER.theory.network.task in TIER.tasks else TIER.tasks[0]

# Tables behind the figures, by figure. A separate rule measures the encoder's.
TOY_TABLES = {
    "descent": ["descent_columns", "descent_rows", "descent_box", "schur", "schur_singular"],
    "saddle": ["saddle_path", "local_region"],
    "relaxation": ["lipschitz", "bias"],
    "convergence": ["sgd_linear", "noise_ball", "sgd_decaying", "stationarity"],
    "conditioning": ["conditioning", "speed", "reach", "scale"],
    "penalties": ["endpoints"],
    "flatness": ["flat_width", "flat_kinds"],
    "minima": ["two_minima", "minima"],
    "beyond": ["escape", "reach_dense"],
}
THEORY_FIGURES = [*TOY_TABLES, "network"]


# Needs neither data nor model, and runs during pretraining.
rule solve_toys:
    output:
        checks=f"{THEORY}/toys.json",
        cases=f"{THEORY}/toy_cases.csv",
        tables=expand(
            f"{THEORY}/{{table}}.csv", table=[t for tables in TOY_TABLES.values() for t in tables]
        ),
    log:
        f"{RESULTS}/logs/solve_toys.log",
    benchmark:
        f"{RESULTS}/benchmarks/solve_toys.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1500,
        runtime=60,
    params:
        settings=toy_settings(TIER),
        code=code_digest("workflow/scripts/solve_toys.py"),
    script:
        "../scripts/solve_toys.py"


rule probe_network:
    input:
        tables=[path for path in DATA_FILES if Path(path).parent.name == LOOK_TASK],
        encoder=ENCODER,
    output:
        points=f"{THEORY}/network.csv",
        closing=f"{THEORY}/closing.csv",
    log:
        f"{RESULTS}/logs/probe_network.log",
    benchmark:
        f"{RESULTS}/benchmarks/probe_network.tsv"
    conda:
        "../../environment.yml"
    threads: TIER.threads
    resources:
        mem_mb=6000,
        runtime=120,
    params:
        task=LOOK_TASK,
        settings=probe_settings(TIER, LOOK_TASK),
        code=code_digest("workflow/scripts/probe_network.py"),
    script:
        "../scripts/probe_network.py"


rule check_theory:
    input:
        toys=rules.solve_toys.output.checks,
        cases=rules.solve_toys.output.cases,
        compared=expand(f"{THEORY}/{{table}}.csv", table=TOY_TABLES["conditioning"]),
        points=rules.probe_network.output.points,
        closing=rules.probe_network.output.closing,
    output:
        report(
            multiext(f"{THEORY}/checks", ".csv", ".md"),
            caption="../report/check_theory.rst",
            category="Theory",
        ),
        json=f"{THEORY}/checks.json",
        cases=f"{THEORY}/cases.csv",
    log:
        f"{RESULTS}/logs/check_theory.log",
    benchmark:
        f"{RESULTS}/benchmarks/check_theory.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=500,
        runtime=10,
    params:
        tier=TIER.tier,
        model=TIER.model.name,
        task=LOOK_TASK,
        settings={"problems": TIER.theory.problems, "trials": TIER.theory.trials},
        code=code_digest("workflow/scripts/check_theory.py"),
    script:
        "../scripts/check_theory.py"


rule draw_theory:
    input:
        tables=rules.solve_toys.output.tables,
        network=rules.probe_network.output,
    output:
        report(
            expand(
                f"{THEORY}/figures/{{figure}}.{{suffix}}",
                figure=THEORY_FIGURES,
                suffix=["svg", "png", "pdf"],
            ),
            caption="../report/draw_theory.rst",
            category="Theory",
        ),
    log:
        f"{RESULTS}/logs/draw_theory.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_theory.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        tier=TIER.tier,
        model=TIER.model.name,
        task=LOOK_TASK,
        figures=THEORY_FIGURES,
        code=code_digest("workflow/scripts/draw_theory.py"),
    script:
        "../scripts/draw_theory.py"


THEORY_RESULTS = [
    *rules.solve_toys.output,
    *rules.probe_network.output,
    *rules.check_theory.output,
    *rules.draw_theory.output,
]
