# Tables and figures, made only from run records.

STUDY = {"methods": METHODS, "tasks": TIER.tasks, "seeds": TIER.seeds}
WORDS = words_of(TIER, METHODS)
TABLES = f"{RESULTS}/tables"
FIGURES = f"{RESULTS}/figures"


rule tabulate_glue:
    input:
        records=RECORDS,
        bag_of_words=f"{RESULTS}/bag_of_words.json",
    output:
        report(
            multiext(f"{TABLES}/glue", ".csv", ".md", ".tex"),
            caption="../report/tabulate_glue.rst",
            category="Tables",
        ),
        best=multiext(f"{TABLES}/glue_best_epoch", ".csv", ".md", ".tex"),
        sparsity=multiext(f"{TABLES}/sparsity", ".csv", ".md", ".tex"),
        detectable=multiext(f"{TABLES}/detectable", ".csv", ".md", ".tex"),
        runs=f"{TABLES}/runs.csv",
    log:
        f"{RESULTS}/logs/tabulate_glue.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_glue.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        study=STUDY,
        words=WORDS,
        code=code_digest("workflow/scripts/tabulate_glue.py"),
    script:
        "../scripts/tabulate_glue.py"


# Times differ between runs, so this is not a table of results.
rule tabulate_method_cost:
    input:
        records=RECORDS,
    output:
        report(
            multiext(f"{RESULTS}/timing/methods", ".csv", ".md", ".tex"),
            caption="../report/tabulate_method_cost.rst",
            category="Tables",
        ),
    log:
        f"{RESULTS}/logs/tabulate_method_cost.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_method_cost.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        study=STUDY,
        words=WORDS,
        starts={label: method.start for label, method in TIER.methods.items()},
        code=code_digest("workflow/scripts/tabulate_method_cost.py"),
    script:
        "../scripts/tabulate_method_cost.py"


RATES = multiext(f"{TABLES}/rates", ".csv", ".md", ".tex") if SEARCH else []

if SEARCH:

    rule tabulate_rates:
        input:
            records=TRIALS,
        output:
            report(RATES, caption="../report/tabulate_rates.rst", category="Tables"),
        log:
            f"{RESULTS}/logs/tabulate_rates.log",
        benchmark:
            f"{RESULTS}/benchmarks/tabulate_rates.tsv"
        conda:
            "../../environment.yml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            tier=TIER.tier,
            titles={label: method.title for label, method in TIER.methods.items()},
            shared={l: m.rates_of for l, m in TIER.methods.items() if m.rates_of},
            code=code_digest("workflow/scripts/tabulate_rates.py"),
        script:
            "../scripts/tabulate_rates.py"


rule draw_tradeoff:
    input:
        records=RECORDS,
        bag_of_words=f"{RESULTS}/bag_of_words.json",
    output:
        sparsity=report(
            multiext(f"{FIGURES}/tradeoff", ".svg", ".png", ".pdf"),
            caption="../report/draw_tradeoff.rst",
            category="Figures",
        ),
        macs=report(
            multiext(f"{FIGURES}/tradeoff_macs", ".svg", ".png", ".pdf"),
            caption="../report/draw_tradeoff.rst",
            category="Figures",
        ),
        csv=f"{FIGURES}/tradeoff.csv",
    log:
        f"{RESULTS}/logs/draw_tradeoff.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_tradeoff.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        study=STUDY,
        words=WORDS,
        code=code_digest("workflow/scripts/draw_tradeoff.py"),
    script:
        "../scripts/draw_tradeoff.py"


# One figure for each method with trained gates.
rule draw_gates:
    input:
        records=RECORDS,
    output:
        report(
            expand(
                f"{FIGURES}/gates/{{method}}.{{suffix}}",
                method=[label for label, method in TIER.methods.items() if method.gates],
                suffix=["svg", "png", "pdf"],
            ),
            caption="../report/draw_gates.rst",
            category="Figures",
        ),
        csv=f"{FIGURES}/gates/histograms.csv",
    log:
        f"{RESULTS}/logs/draw_gates.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_gates.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        study=STUDY,
        words=WORDS,
        gated=[label for label, method in TIER.methods.items() if method.gates],
        code=code_digest("workflow/scripts/draw_gates.py"),
    script:
        "../scripts/draw_gates.py"
