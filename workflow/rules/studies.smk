# Studies in addition to the main table: tables, figures, measured times, the shared encoder.

STUDIES = TIER.studies
FOLDER = f"{RESULTS}/studies"
TIMES = f"{RESULTS}/timing"  # all files with measured times
TIMED_STUDIES = [name for name, study in STUDIES.compared.items() if study.timed]
# Times are measured on the models of one task and seed.
TIMED = {"task": STUDIES.tasks[0], "seed": STUDIES.seeds[0]}


rule tabulate_study:
    input:
        records=study_records,
    output:
        table=report(
            multiext(f"{FOLDER}/{{study}}", ".csv", ".md", ".tex"),
            caption="../report/tabulate_study.rst",
            category="Studies",
        ),
        runs=f"{FOLDER}/runs/{{study}}.csv",
    log:
        f"{RESULTS}/logs/tabulate_study/{{study}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_study/{{study}}.tsv"
    wildcard_constraints:
        study="|".join(STUDIES.compared),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        study=lambda wildcards: STUDIES.compared[wildcards.study].model_dump(),
        tasks=STUDIES.tasks,
        seeds=STUDIES.seeds,
        words=lambda wildcards: words_of(TIER, STUDIES.compared[wildcards.study].methods),
        code=code_digest("workflow/scripts/tabulate_study.py"),
    script:
        "../scripts/tabulate_study.py"


rule draw_study:
    input:
        records=study_records,
        table=f"{FOLDER}/{{study}}.csv",
    output:
        figure=report(
            multiext(f"{FOLDER}/{{study}}", ".svg", ".png", ".pdf"),
            caption="../report/tabulate_study.rst",
            category="Studies",
        ),
    log:
        f"{RESULTS}/logs/draw_study/{{study}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_study/{{study}}.tsv"
    wildcard_constraints:
        study="|".join(STUDIES.compared),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        study=lambda wildcards: STUDIES.compared[wildcards.study].model_dump(),
        tasks=STUDIES.tasks,
        seeds=STUDIES.seeds,
        words=lambda wildcards: words_of(TIER, STUDIES.compared[wildcards.study].methods),
        code=code_digest("workflow/scripts/draw_study.py"),
    script:
        "../scripts/draw_study.py"


rule time_studies:
    input:
        encoder=ENCODER,
        trained=expand(TRAINED, method=STUDIES.timed, **TIMED),
        matched=expand(
            RUN,
            method=sorted(
                {m for label in STUDIES.timed if (m := TIER.all_methods[label].matched)}
            ),
            **TIMED,
        ),
    output:
        csv=f"{TIMES}/deployed.csv",
        md=f"{TIMES}/deployed.md",
        tex=f"{TIMES}/deployed.tex",
    log:
        f"{RESULTS}/logs/time_studies.log",
    conda:
        "../../environment.yml"
    # All cores, so that nothing else runs during the measurement.
    threads: workflow.cores
    resources:
        mem_mb=memory(4000),
        runtime=30,
    params:
        **TIMED,
        settings=study_times_settings(TIER),
        code=code_digest("workflow/scripts/time_studies.py"),
    script:
        "../scripts/time_studies.py"


# The same tables and figures with measured times, which differ from run to run.
use rule tabulate_study as tabulate_timed_study with:
    input:
        records=study_records,
        times=rules.time_studies.output.csv,
    output:
        table=multiext(f"{TIMES}/study_{{study}}", ".csv", ".md", ".tex"),
    log:
        f"{RESULTS}/logs/tabulate_timed_study/{{study}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_timed_study/{{study}}.tsv"


use rule draw_study as draw_timed_study with:
    input:
        records=study_records,
        table=f"{TIMES}/study_{{study}}.csv",
    output:
        figure=multiext(f"{TIMES}/study_{{study}}", ".svg", ".png", ".pdf"),
    log:
        f"{RESULTS}/logs/draw_timed_study/{{study}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_timed_study/{{study}}.tsv"


rule share_encoder:
    input:
        tables=DATA_FILES,
        encoder=ENCODER,
        records=expand(RUN, task=TIER.tasks, method=STUDIES.shared, seed=TIER.seeds[0]),
        trained=expand(TRAINED, task=TIER.tasks, method=STUDIES.shared, seed=TIER.seeds[0]),
    output:
        report(
            multiext(f"{FOLDER}/shared_encoder", ".csv", ".md", ".tex"),
            caption="../report/share_encoder.rst",
            category="Studies",
        ),
    log:
        f"{RESULTS}/logs/share_encoder.log",
    benchmark:
        f"{RESULTS}/benchmarks/share_encoder.tsv"
    conda:
        "../../environment.yml"
    threads: TIER.threads
    resources:
        mem_mb=memory(2500),
        runtime=60,
    params:
        methods=STUDIES.shared,
        tasks=TIER.tasks,
        seed=TIER.seeds[0],
        words=words_of(TIER, STUDIES.shared),
        code=code_digest("workflow/scripts/share_encoder.py"),
    script:
        "../scripts/share_encoder.py"


rule tabulate_properties:
    input:
        records=runs_of(STUDIES.properties),
        times=rules.time_studies.output.csv,
    output:
        report(
            multiext(f"{TIMES}/properties", ".csv", ".md", ".tex"),
            caption="../report/tabulate_properties.rst",
            category="Studies",
        ),
    log:
        f"{RESULTS}/logs/tabulate_properties.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_properties.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        methods=STUDIES.properties,
        tasks=STUDIES.tasks,
        words=words_of(TIER, STUDIES.properties),
        code=code_digest("workflow/scripts/tabulate_properties.py"),
    script:
        "../scripts/tabulate_properties.py"


# Outputs of the tier's configuration.
STUDY_RESULTS = [
    *expand(rules.tabulate_study.output, study=STUDIES.compared),
    *expand(rules.draw_study.output, study=STUDIES.compared),
    *(rules.time_studies.output if STUDIES.timed else []),
    *expand(rules.tabulate_timed_study.output, study=TIMED_STUDIES),
    *expand(rules.draw_timed_study.output, study=TIMED_STUDIES),
    *(rules.share_encoder.output if STUDIES.shared else []),
    *(rules.tabulate_properties.output if STUDIES.properties else []),
]
