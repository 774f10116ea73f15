"""`with precaudit.audit(model, optimizer):` the trace around a loop that is already there, in this process."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from precaudit.api.reports import Audited
from precaudit.errors import UsageError

if TYPE_CHECKING:
    from precaudit.launch.identity import Started
    from precaudit.model.wire import Report
    from precaudit.runtime.session import Session

Function = TypeVar("Function", bound=Callable[..., Any])
Values = Literal["off", "sample", "full"]

_running: list[Audit] = []
"""The audit of this process, where one is going on."""


class Audit(Audited):
    """Watches the optimizer steps between `with` and the end of the block; afterwards it holds their report.

    Nothing changes for the loop: once `steps` steps are seen, or the block ends, every hook is taken out again. In a
    run of several ranks each process has the report of its own rank.
    """

    def __init__(
        self,
        model: Any = None,
        optimizer: Any = None,
        *,
        steps: int = 2,
        skip: int | None = None,
        values: Values = "sample",
        exact: bool = False,
    ) -> None:
        if steps < 1 or (skip is not None and skip < 0):
            raise UsageError(f"audit: steps={steps}, skip={skip}: at least 1 step is watched, after 0 or more")
        self._models, self._optimizers = list(_each(model)), [_inner(one) for one in _each(optimizer)]
        # Without an optimizer in hand nobody knows when a first step's forward pass begins.
        self.skip = (0 if self._optimizers else 1) if skip is None else skip
        self.steps, self._values, self._exact = steps, values, exact
        self._session: Session | None = None
        self._started: Started | None = None
        self._report: Report | None = None
        self._begun_at = ""

    @property
    def report(self) -> Report:
        """What was found, as the trace would report it. Raises UsageError before the audit has ended."""
        if self._report is None:
            raise UsageError("audit: no report yet; it is there once the with block has ended")
        return self._report

    @property
    def over(self) -> bool:
        """All steps were watched, or the audit has ended: nothing of it is left in the process."""
        return self._report is not None or (self._session is not None and not self._session.guard.open)

    def __enter__(self) -> Audit:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(error)

    def begin(self) -> None:
        """Starts to watch; what `with` calls. Raises UsageError where another audit is going on in this process."""
        self._begun_at = _caller()
        if _running:
            raise UsageError(
                f"audit: another audit is going on in this process, begun at {_running[0]._begun_at}; end it first"
            )
        if self._report is not None:
            raise UsageError("audit: this audit has ended; make another one for further steps")
        if "_precaudit.runtime.session" in sys.modules:
            return  # precaudit trace is watching already: two traces would see each other
        from precaudit.launch import identity
        from precaudit.runtime import session

        self._started = identity.begin()
        self._session = session.start(
            {
                "cwd": os.getcwd(),
                "skip": self.skip,
                "steps": self.steps,
                "values": self._values,
                "exact": self._exact,
                "keep_going": True,
            }
        )
        _running.append(self)
        self._session.introduce(self._models, self._optimizers)

    def end(self, error: BaseException | None = None) -> Report:
        """Ends the audit and judges what was seen; what `with` calls. `error` is what ended the loop, if anything."""
        if self._report is None:
            if self._session is None:
                self._report = _watched_from_outside()
            else:
                try:
                    seen = self._session.rank_file.content()
                finally:
                    self._session.remove()
                    _running.remove(self)
                self._report = self._judged(seen, error)
            self._models, self._optimizers, self._session = [], [], None
        return self._report

    def _judged(self, seen: Mapping[str, Any], error: BaseException | None) -> Report:
        from precaudit import rulebook
        from precaudit.allowed.read import contract_of
        from precaudit.commands.output import chosen_rules
        from precaudit.launch.bootstrap import TraceSettings
        from precaudit.launch.merge import Merged
        from precaudit.launch.trace import Choice, report_of
        from precaudit.launch.verdict import loud
        from precaudit.model.wire import RankFile
        from precaudit.settings import load

        merged = Merged()
        merged.add(RankFile.model_validate(seen))
        merged.finish()
        book, configured = rulebook.load(), load()
        choice = Choice(
            rules=chosen_rules(book, configured.select, configured.ignore, configured.extend_select),
            per_file_ignores=configured.per_file_ignores,
            root=configured.root.resolve(),
            contract=contract_of(configured, book),
        )
        report = report_of(merged, TraceSettings(cwd=os.getcwd(), skip=self.skip, steps=self.steps), choice, book)
        whole = merged.coverage.steps >= self.steps
        report.status = "findings" if loud(report.findings) else "clean" if whole else "inconclusive"
        if not whole:
            report.coverage.notes.append(self._why_short(merged.coverage.steps, error))
        if self._started is not None:
            report.run = self._started.ended(merged.program)
        _name_cells(report)
        return report

    def _why_short(self, steps: int, error: BaseException | None) -> str:
        seen = f"{steps} of {self.steps} steps were watched"
        if error is not None:
            return f"audit: {seen} before {type(error).__name__} ended the loop"
        enough = f"let the loop take at least {self.skip + self.steps} inside it"
        return f"audit: {seen} before the block ended; {enough}{f', or say steps={steps}' if steps else ''}"


def audit(
    model: Any = None,
    optimizer: Any = None,
    *,
    steps: int = 2,
    skip: int | None = None,
    values: Values = "sample",
    exact: bool = False,
) -> Audit:
    """An audit of the training steps in a `with` block.

        with precaudit.audit(model, optimizer) as run:
            train(model, optimizer)
        run.raise_for_findings()

    Args:
        model: a torch.nn.Module, or a list or dict of several: their parameters get their names in the report.
        optimizer: what steps inside the block, one or several; others that come up are watched too.
        steps: optimizer steps to watch; after them nothing of the audit is left in the process.
        skip: steps to let pass before: 0 where the optimizer is given, else 1.
        values: how much of each tensor is read for numbers: "off", "sample" (at most 65,536 elements) or "full".
        exact: compute one of the steps in float64 beside itself, see docs/exact.md.

    Raises:
        UsageError: another audit is going on in this process, or steps and skip are no numbers of steps.
    """
    return Audit(model, optimizer, steps=steps, skip=skip, values=values, exact=exact)


def audited(
    function: Function | None = None,
    *,
    steps: int = 2,
    skip: int | None = None,
    on_report: Callable[[Audit], object] | None = None,
) -> Any:
    """A training function that is audited at each call; its last audit is in the function's `audit`.

        @precaudit.audited
        def train(model, optimizer): ...

    Modules and optimizers among its arguments are named in the report. `on_report` gets each audit; without it the
    report is printed on stderr where it has errors or warnings. What the function returns or raises is its own.
    """

    def decorate(train: Function) -> Function:
        @functools.wraps(train)
        def around(*args: Any, **kwargs: Any) -> Any:
            models, optimizers = _among([*args, *kwargs.values()])
            run = Audit(models, optimizers, steps=steps, skip=skip)
            around.audit = run  # type: ignore[attr-defined]
            try:
                with run:
                    return train(*args, **kwargs)
            finally:
                if on_report is not None:
                    on_report(run)
                elif run.findings:
                    print(run, file=sys.stderr)

        return around  # type: ignore[return-value]

    return decorate if function is None else decorate(function)


def _each(given: Any) -> Iterable[Any]:
    """One object, several in a list, tuple or dict, or none at all."""
    if given is None:
        return ()
    if isinstance(given, Mapping):
        return given.values()
    return given if isinstance(given, (list, tuple)) else (given,)


def _inner(optimizer: Any) -> Any:
    """What steps: accelerate's and DeepSpeed's wrappers hold it as `optimizer`, and are told of no step."""
    while getattr(optimizer, "optimizer", None) is not None:
        optimizer = optimizer.optimizer
    return optimizer


def _among(arguments: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """The modules and the optimizers among these."""
    import torch

    flat = [one for argument in arguments for one in _each(argument)]
    return (
        [one for one in flat if isinstance(one, torch.nn.Module)],
        [one for one in flat if isinstance(one, torch.optim.Optimizer)],
    )


def _watched_from_outside() -> Report:
    """The report of an audit inside `precaudit trace`, whose own report tells what happened."""
    from precaudit import __version__
    from precaudit.model.wire import Coverage, Report, Tool

    note = "audit: this process runs under precaudit trace, whose report tells of these steps"
    coverage = Coverage(notes=[note])
    return Report(tool=Tool(version=__version__), command="trace", status="inconclusive", coverage=coverage)


def _name_cells(report: Report) -> None:
    """In a notebook's kernel: `In[3]` for the file, in a temporary folder, that Jupyter compiles a cell as."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    files: Mapping[str, Any] = getattr(getattr(shell, "compile", None), "_filename_map", {})
    cells = {os.path.realpath(file): f"In[{count}]" for file, count in files.items()}
    for place in (*report.findings, *(finding.cause for finding in report.findings)) if cells else ():
        if place is not None and place.path:
            place.path = cells.get(os.path.realpath(place.path), place.path)


def _caller() -> str:
    """`train.py:12`: the innermost line outside of this package."""
    ours = str(Path(__file__).parent.parent) + os.sep
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
