# Measured times. Unlike tables of results, these files differ between runs.


rule time_training:
    input:
        encoder=ENCODER,
    output:
        csv=f"{RESULTS}/timing/training.csv",
        md=f"{RESULTS}/timing/training.md",
    log:
        f"{RESULTS}/logs/time_training.log",
    conda:
        "../../environment.yml"
    # All cores, so that nothing else runs during the measurement.
    threads: workflow.cores
    resources:
        mem_mb=memory(6000),
        runtime=120,
    params:
        settings=training_benchmark_settings(TIER),
        code=code_digest("workflow/scripts/time_training.py"),
    script:
        "../scripts/time_training.py"


# Not among the results of a tier: it shows whether models take the time that was asked for, which
# needs cores without other load. Run it by the name of its table.
rule time_budgets:
    input:
        encoder=ENCODER,
    output:
        csv=f"{RESULTS}/timing/budgets.csv",
        md=f"{RESULTS}/timing/budgets.md",
    log:
        f"{RESULTS}/logs/time_budgets.log",
    conda:
        "../../environment.yml"
    # All cores, so that nothing else runs during the measurement.
    threads: workflow.cores
    resources:
        mem_mb=memory(6000),
        runtime=60,
    params:
        settings=time_budget_settings(TIER),
        code=code_digest("workflow/scripts/time_budgets.py"),
    script:
        "../scripts/time_budgets.py"


SHAPES = {shape.label: shape for shape in TIER.inference_benchmarks}


# One job per shape, so that the times in a ratio are measured in the same process.
rule time_inference:
    output:
        csv=f"{RESULTS}/timing/inference/{{shape}}.csv",
        machine=f"{RESULTS}/timing/inference/{{shape}}.json",
    log:
        f"{RESULTS}/logs/time_inference/{{shape}}.log",
    wildcard_constraints:
        shape="|".join(map(re.escape, SHAPES)) or "none",
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        mem_mb=lambda wildcards, attempt: memory(SHAPES[wildcards.shape].memory_mb)(
            wildcards, attempt
        ),
        runtime=60,
    params:
        settings=lambda wildcards: inference_settings(TIER, wildcards.shape),
        code=code_digest("workflow/scripts/time_inference.py"),
    script:
        "../scripts/time_inference.py"


rule tabulate_timing:
    input:
        csvs=expand(rules.time_inference.output.csv, shape=SHAPES),
        machines=expand(rules.time_inference.output.machine, shape=SHAPES),
    output:
        csv=f"{RESULTS}/timing/inference.csv",
        machine=f"{RESULTS}/timing/inference_machine.json",
        md=f"{RESULTS}/timing/inference.md",
        tex=f"{RESULTS}/timing/inference.tex",
    log:
        f"{RESULTS}/logs/tabulate_timing.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        repeats=sorted({shape.repeats for shape in TIER.inference_benchmarks}),
        code=code_digest("workflow/scripts/tabulate_timing.py"),
    script:
        "../scripts/tabulate_timing.py"


rule draw_timing:
    input:
        csv=rules.tabulate_timing.output.csv,
        machine=rules.tabulate_timing.output.machine,
    output:
        report(
            multiext(f"{RESULTS}/timing/inference", ".svg", ".png", ".pdf"),
            caption="../report/draw_timing.rst",
            category="Timing",
        ),
    log:
        f"{RESULTS}/logs/draw_timing.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code_digest("workflow/scripts/draw_timing.py"),
    script:
        "../scripts/draw_timing.py"


# Benchmarks of the tier's configuration.
TIMINGS = [
    *(rules.time_training.output if TIER.training_benchmark else []),
    *(
        [
            *rules.tabulate_timing.input,
            *rules.tabulate_timing.output,
            *rules.draw_timing.output,
        ]
        if TIER.inference_benchmarks
        else []
    ),
]


rule tabulate_cost:
    input:
        records=RECORDS,
        studied=STUDY_RECORDS,
        tables=rules.tabulate_glue.output,
        figures=[*rules.draw_tradeoff.output, *rules.draw_gates.output],
        timing=TIMINGS,
    output:
        csv=f"{RESULTS}/timing/cost.csv",
        md=f"{RESULTS}/timing/cost.md",
    log:
        f"{RESULTS}/logs/tabulate_cost.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        benchmarks=f"{RESULTS}/benchmarks",
        pretraining=f"{RESULTS}/models/pretraining.json",
        code=code_digest("workflow/scripts/tabulate_cost.py"),
    script:
        "../scripts/tabulate_cost.py"
