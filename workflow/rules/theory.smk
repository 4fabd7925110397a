# Tests of the paper's theorems on random least-squares problems and on the tier's encoder.

THEORY = f"{RESULTS}/theory"
LOOK_TASK = TIER.theory.network.task if TIER.theory.network.task in TIER.tasks else TIER.tasks[0]

# Tables behind the figures, by item of theory/study.py. A separate rule measures the encoder's.
TOY_TABLES = {
    1: ["descent_columns", "schur", "schur_singular"],
    2: ["descent_rows"],
    3: ["saddle_path", "local_region", "two_minima", "minima", "minima_share"],
    4: ["descent_box"],
    5: ["lipschitz", "bias", "relaxed_share"],
    6: ["sgd_linear", "noise_ball", "sgd_decaying", "stationarity"],
    7: [],
    8: ["conditioning", "speed", "reach", "scale"],
    9: ["endpoints"],
    11: ["flat_width", "flat_kinds", "flat_models"],
    12: ["escape", "reach_dense", "escape_saddle", "escape_plateau"],
    13: [],
}
THEORY_FIGURES = [
    "descent",
    "saddle",
    "relaxation",
    "convergence",
    "conditioning",
    "penalties",
    "flatness",
    "minima",
    "beyond",
    "network",
]


# One job for each item. They need neither data nor model, and run during pretraining.
for item, tables in TOY_TABLES.items():

    rule:
        name:
            f"solve_toys_{item}"
        output:
            checks=f"{THEORY}/toys/{item}.json",
            cases=f"{THEORY}/toys/{item}.csv",
            tables=expand(f"{THEORY}/{{table}}.csv", table=tables),
        log:
            f"{RESULTS}/logs/solve_toys_{item}.log",
        benchmark:
            f"{RESULTS}/benchmarks/solve_toys_{item}.tsv"
        conda:
            "../../environment.yml"
        resources:
            mem_mb=1500,
            runtime=60,
        params:
            item=item,
            settings=toy_settings(TIER),
            code=code_digest("workflow/scripts/solve_toys.py"),
        script:
            "../scripts/solve_toys.py"


SOLVED = expand(f"{THEORY}/toys/{{item}}.json", item=TOY_TABLES)
SOLVED_CASES = expand(f"{THEORY}/toys/{{item}}.csv", item=TOY_TABLES)
SOLVED_TABLES = expand(
    f"{THEORY}/{{table}}.csv", table=[t for tables in TOY_TABLES.values() for t in tables]
)


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
        toys=SOLVED,
        cases=SOLVED_CASES,
        compared=expand(f"{THEORY}/{{table}}.csv", table=TOY_TABLES[8]),
        shares=expand(f"{THEORY}/{{table}}.csv", table=["minima_share", "relaxed_share"]),
        models=f"{THEORY}/flat_models.csv",
        points=rules.probe_network.output.points,
        closing=rules.probe_network.output.closing,
    output:
        report(
            multiext(f"{THEORY}/checks", ".csv", ".md"),
            caption="../report/check_theory.rst",
            category="Theory",
        ),
        json=f"{THEORY}/checks.json",
        verdicts=f"{THEORY}/verdicts.csv",
        cases=f"{THEORY}/cases.csv",
        flat=f"{THEORY}/flat_models.md",
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
        tables=SOLVED_TABLES,
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
    *SOLVED,
    *SOLVED_CASES,
    *SOLVED_TABLES,
    *rules.probe_network.output,
    *rules.check_theory.output,
    *rules.draw_theory.output,
]
