"""Everything that can go wrong, as a tree.

    LorasizeError
    ├── CorpusError              a corpus file cannot be read, split or tokenised without loss
    ├── ModelError               a base model or adapter is missing, unreadable, unsupported or another one
    ├── CalibrationError         no calibration, or one made for another model, dtype or recipe
    ├── FitError                 the observations do not identify the law
    ├── StalePlanError           the plan's inputs are not the ones on disk
    ├── InfeasibleCorpusError    no rank can recall this corpus
    └── TrainingDivergedError    the loss stopped being a number

Errors are raised where they are discovered and carry their data as attributes. The message says what was seen and what
to do, and never names a command-line flag: `cli` adds that hint. A run that ends without recall is a result
(`records.Outcome`), not an error.
"""

from __future__ import annotations

from collections.abc import Sequence


class LorasizeError(Exception):
    """The root: every error a user can cause or correct."""


class CorpusError(LorasizeError):
    """A corpus file cannot be read, split or tokenised without loss.

    Attributes:
        file: The file as the user named it.
        line: One-based line, where one is known.
    """

    def __init__(self, message: str, *, file: str = "", line: int | None = None) -> None:
        """Prefix the message with its place."""
        place = f"{file}:{line}: " if file and line is not None else f"{file}: " if file else ""
        super().__init__(place + message)
        self.file = file
        self.line = line


class ModelError(LorasizeError):
    """A base model or an adapter is missing, unreadable, unsupported or not the expected one."""


class CalibrationError(LorasizeError):
    """No calibration fits: none was found, or it is for another model, dtype or recipe."""


class FitError(LorasizeError):
    """The observations do not identify the law.

    Attributes:
        unidentified: Names of what the observations leave open, such as `length_exponent`.
    """

    def __init__(self, message: str, *, unidentified: Sequence[str] = ()) -> None:
        """Keep the names of what is not identified."""
        super().__init__(message)
        self.unidentified = tuple(unidentified)


class StalePlanError(LorasizeError):
    """The plan's inputs are not the ones on disk.

    Attributes:
        changed: What differs, such as `corpus_sha256`.
    """

    def __init__(self, message: str, *, changed: Sequence[str] = ()) -> None:
        """Keep the names of what changed."""
        super().__init__(message)
        self.changed = tuple(changed)


class InfeasibleCorpusError(LorasizeError):
    """No rank can recall this corpus: one context, two next tokens; or a token that the head cannot tell from others.

    Attributes:
        issues: Every conflict found (`records.FeasibilityIssue`), by file and line.
    """

    def __init__(self, message: str, *, issues: Sequence[object] = ()) -> None:
        """Keep the conflicts."""
        super().__init__(message)
        self.issues = tuple(issues)


class TrainingDivergedError(LorasizeError):
    """The loss stopped being a number.

    Attributes:
        step: The optimiser step at which it was seen.
    """

    def __init__(self, message: str, *, step: int = 0) -> None:
        """Keep the step."""
        super().__init__(message)
        self.step = step
