"""Which patient a case belongs to, so that no scan of a validation patient is read in pre-training."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_topomae.files import read_json
from nnunet_topomae.nnunet.names import PATIENTS_FILE


class Patients:
    """Finds the patient of a case.

    Args:
        rule: a regular expression with one group, searched in the case's name; or the path of a JSON file, a table
            from case to patient; or None, where every case is a patient of its own.
        complete: whether a table must name every case; one that it does not name is else a patient of its own.

    Raises:
        ValueError: not an expression with one group, or not a table of strings.
        FileNotFoundError: the JSON file does not exist.
    """

    def __init__(self, rule: str | None, complete: bool = True) -> None:
        self.rule, self.complete = rule, complete
        self.table: Mapping[str, str] | None = None
        self.expression: re.Pattern[str] | None = None
        if rule is None:
            return
        if rule.endswith(".json"):
            self.table = _read_table(Path(rule))
            return
        try:
            self.expression = re.compile(rule)
        except re.error as error:
            raise ValueError(f"pretraining.patients = {rule!r} is not a regular expression: {error}") from error
        if self.expression.groups != 1:
            raise ValueError(
                f"pretraining.patients = {rule!r} has {self.expression.groups} groups; it needs one, the patient, "
                "for example '(.+)_[^_]+' for PATIENT_SCAN, or the path of a .json table from case to patient"
            )

    @classmethod
    def of_dataset(cls, rule: str | None, folder: Path, complete: bool = True) -> "Patients":
        """The plan's rule; without one, the table that a converter has written, if there is one.

        Args:
            rule: the plan's `pretraining.patients`.
            folder: the data set, raw or preprocessed.
            complete: whether the converter's table must name every case; it names no unlabelled images.
        """
        table = folder / PATIENTS_FILE
        return cls(str(table), complete) if rule is None and table.is_file() else cls(rule)

    def of(self, case: str) -> str:
        """The patient of ``case``.

        Raises:
            ValueError: the rule says nothing about the case.
        """
        if self.table is not None:
            if case not in self.table and self.complete:
                raise ValueError(f"{self.rule} has no patient for case {case}. Add it.")
            return self.table.get(case, case)
        if self.expression is not None:
            found = self.expression.search(case)
            if found is None:
                raise ValueError(f"pretraining.patients = {self.rule!r} finds no patient in the case name {case}")
            return found.group(1)
        return case

    def shared(self, cases: Iterable[str], with_cases: Iterable[str]) -> list[str]:
        """Those of ``cases`` whose patient is also one of ``with_cases``, sorted.

        Args:
            cases: names of the cases to choose from.
            with_cases: names of the cases whose patients count.

        Raises:
            ValueError: the rule says nothing about a case.
        """
        others = {self.of(case) for case in with_cases}
        return sorted(case for case in cases if self.of(case) in others)


def _read_table(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        raise FileNotFoundError(f"pretraining.patients names {path}, which does not exist")
    table: Any = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(patient, str) for patient in table.values()):
        raise ValueError(f"{path} must be a JSON table from case to patient, both strings")
    return table
