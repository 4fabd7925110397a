"""Configuration of studies."""

from __future__ import annotations

from pydantic import Field, model_validator

from finegates.suite.config.methods import Method, check_names
from finegates.suite.config.section import Section
from finegates.suite.config.suggest import nearest


class Study(Section):
    """A comparison of methods.

    Attributes:
        title: title of a few words.
        question: the question of the study, a sentence that opens the captions.
        methods: labels of the compared methods, in the order of the rows; differences are from the
            first.
        vary: the setting on the figure's horizontal axis, such as ``gates.target``; None shows the
            methods side by side.
        lines: the setting with one line per value in the figure; one line if None.
        timed: measure the forward pass of each method's deployed model.
    """

    title: str
    question: str
    methods: list[str] = Field(min_length=2)
    vary: str | None = None
    lines: str | None = None
    timed: bool = False

    @model_validator(mode="after")
    def _once(self) -> Study:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("a study must not name a method twice")
        for name in (self.vary, self.lines):
            if name is not None:
                check_setting(name)
        if self.lines is not None and self.vary is None:
            raise ValueError("lines go with vary: without an axis there are none")
        return self


class Studies(Section):
    """All studies of a tier, which share tasks, seeds and runs.

    In a file, the section may extend another one (``extends``, in the tier's folder). Settings
    under ``gated`` apply to every method with gates.

    Attributes:
        tasks: some of the tier's tasks.
        seeds: seeds of every method.
        methods: methods in addition to the tier's own; resolved against the experiment files.
        compared: the studies by name.
        shared: labels of methods whose runs on *all* tasks of the tier are loaded into one frozen
            encoder, task after task; empty for no such table.
        properties: labels for the table of properties: dense, LoRA, mask, gates; each must be in a
            timed study.
        batch: sequences of a timed forward pass.
        length: tokens of each sequence.
        repeats: interleaved rounds.
    """

    tasks: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    methods: dict[str, Method] = Field(default_factory=dict)
    compared: dict[str, Study] = Field(min_length=1)
    shared: list[str] = Field(default_factory=list)
    properties: list[str] = Field(default_factory=list)
    batch: int = Field(default=8, gt=0)
    length: int = Field(default=64, gt=0)
    repeats: int = Field(default=20, gt=0)

    @property
    def named(self) -> set[str]:
        """Labels of all methods that a study compares."""
        return {label for study in self.compared.values() for label in study.methods}

    @property
    def timed(self) -> list[str]:
        """Labels of all methods of timed studies, without repeats."""
        studies = (study.methods for study in self.compared.values() if study.timed)
        return list(dict.fromkeys(label for methods in studies for label in methods))

    def check(self, tasks: list[str], methods: dict[str, Method]) -> None:
        """Checks the studies against the tier's own tasks and methods.

        Raises:
            ValueError: a task is not one of the tier's, a label is defined by the tier and by the
                studies, a method is not defined, or a method that another one needs is missing.
        """
        for task in self.tasks:
            if task not in tasks:
                raise ValueError(f"studies.tasks: {task!r} is not the tier's{nearest(task, tasks)}")
        if len(set(self.tasks)) < len(self.tasks) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("studies: tasks and seeds must not repeat")
        for label in self.methods:
            if label in methods:
                raise ValueError(f"studies.methods: {label!r} is a method of the tier already")
        known = methods | self.methods
        check_names(self.tasks, known)
        for name, study in self.compared.items():
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"study name {name!r}: use letters, digits, '-' and '_'")
            for label in study.methods:
                if label not in known:
                    raise ValueError(
                        f"studies.compared.{name}: no method {label!r}{nearest(label, known)}"
                    )
                for needed in known[label].needs:
                    if needed not in study.methods:
                        raise ValueError(
                            f"studies.compared.{name}: {label!r} needs {needed!r}; compare it too"
                        )
        for label in self.shared:
            if label not in methods or methods[label].trains_all:
                raise ValueError(
                    f"studies.shared: {label!r} is not a method of the tier with a frozen encoder"
                    f"{nearest(label, methods)}"
                )
        for label in self.properties:
            if label not in self.timed:
                close = nearest(label, self.timed)
                raise ValueError(f"studies.properties: {label!r} is in no timed study{close}")


def check_setting(name: str) -> None:
    """Raises ValueError unless ``name`` is a method's setting (dotted name)."""
    section: object = Method
    for part in name.split("."):
        fields = getattr(section, "model_fields", {})
        if part not in fields:
            raise ValueError(f"no setting {name!r} of methods{nearest(part, fields)}")
        candidates = getattr(fields[part].annotation, "__args__", (fields[part].annotation,))
        section = next((c for c in candidates if hasattr(c, "model_fields")), None)
