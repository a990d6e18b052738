"""Reads outcomes, probabilities and groups of n patients from arrays, series, or columns of a data frame.

Design notes:
- Nothing is dropped, clipped or aligned silently: every fault is an error that names the column and the first rows.
- Rows are counted from 0, as ``iloc`` counts them. No message contains a value of a patient.
"""

from __future__ import annotations

import unicodedata
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from numpy.typing import NDArray

from app.evaluation.clusters import Clusters, of_patients
from app.evaluation.metrics import Array, Labels

Values: TypeAlias = "str | npt.ArrayLike | pd.Series[Any]"
"""Name of a column of ``data``, or values (n,)."""
SHOWN_ROWS = 5
MOST_LEVELS = 12
"""Different numbers beyond which a column is no subgroup."""


def labels_and_probabilities(
    outcome: Values,
    probability: Values,
    data: pd.DataFrame | None,
    *,
    name: str = "probability",
    needs_both: bool = True,
) -> tuple[Labels, Array]:
    """Outcomes (n,) 0/1 and probabilities (n,), 0 to 1.

    Args:
        outcome: 0, 1 or a boolean for each patient.
        probability: Predicted probability of each patient.
        data: Data frame of the columns that are named.
        name: What a message calls the probabilities.
        needs_both: Whether patients with and without the outcome are needed.

    Raises:
        ValueError: A value is missing, no number, or out of range; lengths or indexes differ; or all outcomes are
            equal and both are needed.
    """
    labels, probabilities = same_rows(data, ("outcome", outcome), (name, probability))
    return _labels(labels, needs_both=needs_both), _shares(probabilities, name)


def shares(values: Values, name: str, data: pd.DataFrame | None = None) -> Array:
    """Probabilities (n,), 0 to 1; raises ValueError as ``labels_and_probabilities`` does."""
    return _shares(column(values, name, data), name)


def clusters(patient: Values | None, outcome: Values, data: pd.DataFrame | None) -> Clusters:
    """Numbers of the patients (n,) of the studies with ``outcome``; None if each study is of another patient.

    Raises:
        ValueError: The lengths differ, or the indexes of two series.
    """
    if patient is None:
        return None
    _, found = same_rows(data, ("outcome", outcome), ("patient", patient))
    return of_patients(np.array(["" if pd.isna(one) else str(one) for one in found], dtype=np.str_))


def column(values: Values, name: str, data: pd.DataFrame | None) -> pd.Series[Any]:
    """One column as a series of n patients; ``name`` is what a message calls it."""
    if isinstance(values, str):
        if data is None:
            raise ValueError(f"{name}: {values!r} is the name of a column; give its table as data=")
        if values not in data.columns:
            raise ValueError(f"{name}: the table has no column {values!r}; it has {', '.join(map(str, data.columns))}")
        found = data[values]
        if isinstance(found, pd.DataFrame):
            raise ValueError(f"{name}: the table has several columns {values!r}")
        return found
    if isinstance(values, pd.Series):
        return values
    shape = np.shape(cast("npt.ArrayLike", values))
    if len(shape) != 1:
        raise ValueError(f"{name}: expected one value for each patient, shape (n,); found the shape {shape}")
    return pd.Series(values)


def same_rows(
    data: pd.DataFrame | None, first: tuple[str, Values], second: tuple[str, Values]
) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """Two columns of the same patients; each is given with what a message calls it.

    Raises:
        ValueError: There is no patient, the lengths differ, or the indexes of two series differ.
    """
    (name, given), (other_name, other_given) = first, second
    found, other = column(given, name, data), column(other_given, other_name, data)
    if found.empty:
        raise ValueError(f"{name}: there is no patient")
    if len(other) != len(found):
        raise ValueError(f"{name} has {len(found)} patients and {other_name} has {len(other)}")
    # An array has no index; its order is the caller's.
    indexed = all(isinstance(each, str | pd.Series) for each in (given, other_given))
    if indexed and not found.index.equals(other.index):
        raise ValueError(
            f"{name} and {other_name} have different indexes, so that their rows may be of different patients; "
            "join them into one table, or give arrays (to_numpy) if the order is the same"
        )
    return found, other


def numbers(values: pd.Series[Any], name: str) -> Array:
    """Finite numbers (n,).

    Raises:
        ValueError: A value is missing, infinite or no number.
    """
    if missing := rows_text(values.isna().to_numpy(bool)):
        raise ValueError(f"{name}: {missing} without a value; leave these patients out, and say so, or complete them")
    known = values.infer_objects()
    if not (pd.api.types.is_numeric_dtype(known) or pd.api.types.is_bool_dtype(known)):
        raise ValueError(f"{name}: expected numbers, found values of the type {known.dtype}")
    if pd.api.types.is_complex_dtype(known):
        raise ValueError(f"{name}: expected real numbers, found complex ones")
    found = known.to_numpy(np.float64)
    if infinite := rows_text(~np.isfinite(found)):
        raise ValueError(f"{name}: {infinite} with an infinite value")
    return np.asarray(found)


def levels(
    values: Values,
    name: str,
    data: pd.DataFrame | None,
    outcome: Values,
    probability: Values,
    *,
    most_numbers: int | None = None,
) -> tuple[NDArray[np.str_], list[str]]:
    """Level (n,) of each patient, "" if it is missing, and all levels in their order.

    Args:
        values: Level of each patient.
        name: What a message calls it.
        data: Data frame of the columns that are named.
        outcome: Outcomes of the same patients.
        probability: Probabilities of the same patients.
        most_numbers: Different numbers beyond which they are no levels; None: any, as for sites that have numbers.

    Raises:
        ValueError: It has other patients than ``outcome`` or ``probability``, its values are of several types, or there
            are too many numbers for levels.
    """
    for other in (("outcome", outcome), ("probability", probability)):
        _, read = same_rows(data, other, (name, values))
    is_number = pd.api.types.is_numeric_dtype(read) and not pd.api.types.is_bool_dtype(read)
    if is_number and most_numbers is not None and read.nunique() > most_numbers:
        raise ValueError(
            f"{name}: {read.nunique()} different numbers are no subgroups; divide them first, as with pandas.cut, or "
            "give them as texts"
        )
    texts = np.array(["" if missing else _text(value) for value, missing in zip(read, read.isna(), strict=True)])
    try:
        ordered = read.cat.categories if isinstance(read.dtype, pd.CategoricalDtype) else sorted(set(read.dropna()))
    except TypeError:
        raise ValueError(f"{name}: found values of several types, or lists; expected texts, numbers or dates") from None
    return texts, [*dict.fromkeys(name for level in ordered if (name := _text(level))), ""]  # an empty text is missing


def _text(level: object) -> str:
    """Text of a level, in the composed form of Unicode: one name can be written in two ways that look alike."""
    return unicodedata.normalize("NFC", str(level))


def rounds_of(rounds: int, least: int = 1) -> int:
    """Number of resamples; raises ValueError if it is below ``least``."""
    if rounds < least:
        raise ValueError(f"rounds: expected at least {least}")
    return rounds


def rows_text(chosen: NDArray[np.bool_]) -> str:
    """Number and first places of the chosen rows (n,), as ``2 of 40 patients (rows 3, 17)``; "" if there are none."""
    places = np.flatnonzero(chosen)
    if not len(places):
        return ""
    shown = ", ".join(map(str, places[:SHOWN_ROWS].tolist())) + (", ..." if len(places) > SHOWN_ROWS else "")
    return f"{len(places)} of {len(chosen)} patients ({'row' if len(places) == 1 else 'rows'} {shown})"


def _labels(values: pd.Series[Any], *, needs_both: bool) -> Labels:
    found = numbers(values, "outcome")
    if wrong := rows_text((found != 0) & (found != 1)):
        raise ValueError(f"outcome: {wrong} with another value than 0 and 1")
    labels = found.astype(np.int64)
    if needs_both and labels.min() == labels.max():
        raise ValueError(
            f"outcome: all {len(labels)} are {labels[0]}; patients with and without the outcome are needed"
        )
    return labels


def _shares(values: pd.Series[Any], name: str) -> Array:
    found = numbers(values, name)
    if wrong := rows_text((found < 0) | (found > 1)):
        raise ValueError(f"{name}: {wrong} below 0 or above 1; expected probabilities, so divide percent by 100")
    return found
