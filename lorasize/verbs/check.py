"""The verb check: a committed plan against the corpus and calibrations on disk and today's budgets. No model, no torch.

What can be told from texts alone is told: files that changed, records of one prompt that go on differently. Tokens
are not: a plan that still matches its corpus byte for byte was checked for conflicts between tokens when it was made.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from lorasize.artifacts.calibrations import find_by_digest
from lorasize.corpus import corpus_sha256, read
from lorasize.corpus.feasibility import conflicts
from lorasize.corpus.gather import gather
from lorasize.planning import Limits, all_kept, budgets, judged_again
from lorasize.records import (
    BYTES_PER_PARAMETER,
    RECIPE,
    Budget,
    Calibration,
    Check,
    Feasibility,
    Passage,
    Plan,
)


def check(plan: Plan, file: str, limits: Limits) -> Check:
    """The verdict. A corpus that no rank can hold comes before a stale plan, and that before a budget.

    Args:
        plan: What was committed.
        file: Where it was read from, for the report.
        limits: Today's budgets; those of the plan count where there are none.

    Raises:
        CorpusError: a file of the corpus cannot be read.
    """
    passages, changed, notes = _corpus(plan)
    template = plan.corpus.reading.prompt_template or ""
    told_apart = "{number}" in template or "{file}" in template  # prompts alike are not so in the end
    issues = () if told_apart else tuple(conflicts(passages))
    if not changed and not plan.feasibility.feasible:
        issues = plan.feasibility.issues
    calibration = _calibration(plan)
    verdict = _budgets(plan, limits)
    over = not all_kept(verdict)
    stale = (*changed, *_other_reasons(plan, calibration), *_contradictions(plan, calibration, over=over))
    return Check(
        status="infeasible" if issues else "stale" if stale else "over_budget" if over else "ok",
        plan=file,
        stale=stale,
        feasibility=Feasibility(feasible=not issues, issues=issues),
        adapter=plan.adapter,
        budgets=verdict,
        costliest=plan.demand.costliest if plan.demand is not None else (),
        warnings=(*plan.warnings, *(note for note in notes if note not in plan.warnings)),
    )


def _corpus(plan: Plan) -> tuple[list[Passage], list[str], tuple[str, ...]]:
    """The passages of the plan's files as they are now, which files changed, and what there is to say of them."""
    planned = plan.corpus.files
    missing = [f"{file.path} is missing" for file in planned if not Path(file.path).is_file()]
    there = [Path(file.path) for file in planned if Path(file.path).is_file()]
    if not there:
        return [], missing, ()
    found = read(there, plan.corpus.reading, planned)
    known = {file.path: file.sha256 for file in planned}
    missing += [f"{path} is new in the corpus" for path in _fresh(plan.corpus.named, known)]
    changed = [f"{file.path} changed" for file in found.files if known[file.path] != file.sha256]
    return found.passages, [*missing, *changed], found.notes


def _fresh(named: Sequence[str], known: Container[str]) -> list[str]:
    """The files that hold something and that a folder or a pattern of the corpus stands for only now."""
    fresh = [path for path in gather(named).found if str(path) not in known] if named else []
    return sorted(str(path) for path in fresh if path.read_bytes().strip())


def _calibration(plan: Plan) -> Calibration | None:
    kept = None if plan.inputs.prior else find_by_digest(plan.inputs.calibration_sha256)
    return None if kept is None else kept[0]


def _other_reasons(plan: Plan, calibration: Calibration | None) -> Iterator[str]:
    if plan.inputs.recipe != RECIPE:
        yield f"the training recipe is {RECIPE} now, the plan is for {plan.inputs.recipe}"
    if plan.adapter is None or plan.inputs.prior:
        return
    if calibration is None:
        yield "the calibration it was made from is not here, or has changed"
    elif calibration.model.fingerprint.tokenizer != plan.inputs.tokenizer_sha256:
        yield "the calibration's tokenizer is another"


def _contradictions(plan: Plan, calibration: Calibration | None, *, over: bool) -> Iterator[str]:
    """Where the file does not agree with itself, as after a merge or an edit by hand."""
    digests = {plan.corpus.sha256, plan.inputs.corpus_sha256, corpus_sha256(plan.corpus.files)}
    if not plan.corpus.files or len(digests) > 1:
        yield "its list of corpus files and their digests do not agree"
    adapter = plan.adapter
    if adapter is None:
        return
    sites = [] if calibration is None else [(s.site, s.parameters_per_rank) for s in calibration.sites]
    if calibration is not None and (law := calibration.bounded) is not None:
        sites.append((law.site, law.parameters_per_rank))
    per_rank = [n for site, n in sites if site == adapter.site]
    wrong = bool(per_rank) and adapter.n_parameters != adapter.rank * per_rank[0]
    if wrong or adapter.bytes != BYTES_PER_PARAMETER * adapter.n_parameters:
        yield "its adapter's size is not that of its rank and site"
    if plan.status == "over_budget" and not over:
        yield "it was over budget when it was made, and would not be now"


def _budgets(plan: Plan, limits: Limits) -> tuple[Budget, ...]:
    """Today's budgets, and those of the plan that today does not mention."""
    if plan.adapter is None or plan.prediction is None:
        return ()
    today = budgets(limits, plan.adapter, plan.prediction, same_device=plan.inputs.same_device)
    named = {b.id for b in today} | {name for name, level in limits.levels.items() if level == "off"}
    return (*today, *(judged_again(b) for b in plan.budgets if b.id not in named))
