# Only this rule writes committed copies of results: snakemake publish --config tier=local


rule publish:
    input:
        rules.all.input,
        bag_of_words=rules.score_bag_of_words.output,
        records=RECORDS,
        studied=STUDY_RECORDS,
        llama=LLAMA_RECORDS if TIER.llama else [],
        trials=TRIALS,
        rates=expand(CHOSEN_RATES, task=TIER.tasks) if SEARCH else [],
    output:
        directory(f"results/published/{TIER.tier}"),
    log:
        f"{RESULTS}/logs/publish.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code_digest("workflow/scripts/publish.py"),
    script:
        "../scripts/publish.py"
