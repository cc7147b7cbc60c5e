"""Labels of tables: what is served, and what is refused by column and value."""

import datetime
import math
import unicodedata
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrum.data.labels import LabelColumn
from spectrum.data.layout import LayoutError

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def column(values: list[Any], names: tuple[str, ...] | None = None, split: str = "train") -> LabelColumn:
    return LabelColumn(split, "label", values, names)


@pytest.mark.parametrize(
    ("values", "names", "classes", "numbers"),
    [
        ([7, 3, 7], None, ("3", "7"), [1, 0, 1]),
        (["b", "a"], None, ("a", "b"), [1, 0]),
        ([True, False], None, ("False", "True"), [1, 0]),
        ([1.0, 2.0, 10.0], None, ("1", "2", "10"), [0, 1, 2]),
        ([1, 0], ("rose", "iris"), ("rose", "iris"), [1, 0]),
        ([2, 0], ("rose", "iris", "lily"), ("rose", "lily"), [1, 0]),
        (["B", "b"], None, ("B", "b"), [0, 1]),
    ],
)
def test_labels_become_numbers_from_0(
    values: list[Any], names: Any, classes: tuple[str, ...], numbers: list[int]
) -> None:
    labels = column(values, names)
    assert labels.classes().names == classes
    assert labels.numbers(labels.classes()).tolist() == numbers


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 1, -1, -1], r"column 'label' of the train split holds -1 2 times \(first: image 2\), .* missing label"),
        ([0, None, 1], r"column 'label' of the train split holds None 1 time \(first: image 1\)"),
        (["a", "", "b"], r"holds '' 1 time \(first: image 1\), .* missing label"),
        ([0.0, math.nan, 1.0], r"holds nan 1 time \(first: image 1\)"),
        ([1.0, 1.5], "holds 1.5, which is not a whole number"),
        ([1.0, math.inf], "holds inf, which is not a whole number"),
        ([[0], [1, 2]], r"holds list values \(image 0: \[0\]\); a label is one"),
        ([{"a": 1}], "holds dict values"),
        ([b"a", b"b"], "holds bytes values"),
        ([Decimal(1), Decimal(2)], "holds Decimal values"),
        ([datetime.date(2020, 1, 1)], "holds date values"),
        ([4, 4], "has one class only, '4'"),
        ([NFC, NFD], r"holds '\\xe9' and 'e\\u0301', which differ only in Unicode|holds 'e\\u0301' and '\\xe9'"),
        (["a", "a "], "holds 'a' and 'a ', which differ only in Unicode normalisation or in blanks"),
    ],
)
def test_training_labels_that_are_none_are_refused_by_column_and_value(values: list[Any], said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        column(values).classes()


def test_a_number_beyond_the_names_is_refused() -> None:
    with pytest.raises(LayoutError, match="holds 2, but the table names 2 classes only"):
        column([0, 2], ("a", "b")).classes()


ABC = column([0, 1, 2], ("a", "b", "c")).classes()


@pytest.mark.parametrize(
    "values", [[-1, -1], [None, None], [math.nan], ["", " "], [None, -1], [2, 2], ["?", "?"], [0.0]]
)
def test_labels_that_are_withheld_are_known_in_any_form(values: list[Any]) -> None:
    assert column(values, split="test").withheld(ABC)


@pytest.mark.parametrize("values", [[0, 1], [-1, 0], [None, 1], []])
def test_labels_that_are_there_are_not_withheld(values: list[Any]) -> None:
    assert column(values, split="test").withheld(ABC) is None


def test_a_missing_label_among_test_labels_is_refused() -> None:
    with pytest.raises(LayoutError, match="column 'label' of the test split holds -1 1 time"):
        column([0, 1, -1], ("a", "b", "c"), "test").numbers(ABC)


def test_classes_are_the_same_by_name_where_another_split_numbers_them_otherwise() -> None:
    assert column([0, 1, 2], ("c", "a", "b"), "test").numbers(ABC).tolist() == [2, 0, 1]
    assert column(["c", "a"], None, "test").numbers(ABC).tolist() == [2, 0]
    with pytest.raises(LayoutError, match="names its classes in the train split and not in the test split"):
        column([0, 1], None, "test").numbers(ABC)


def test_a_name_is_the_same_in_either_unicode_form() -> None:
    classes = column([NFC, "b"]).classes()
    assert column([NFD, "b"], split="test").numbers(classes).tolist() == column([NFC, "b"]).numbers(classes).tolist()


def test_a_class_of_one_split_only_is_named() -> None:
    with pytest.raises(LayoutError, match=r"the test split holds 3 \('d'\), which no training image has"):
        column([0, 3], ("a", "b", "c", "d"), "test").numbers(column([0, 1, 2], ("a", "b", "c", "d")).classes())
    numbers = column([0, 2], ("a", "b", "c"), "test").numbers(ABC)
    with pytest.raises(LayoutError, match="class 'b' of the train split has no images in the test split"):
        column([0, 2], ("a", "b", "c"), "test").raise_unless_all(ABC, numbers)


@given(st.lists(st.integers(0, 50) | st.text("ab", min_size=1, max_size=3), min_size=2, max_size=40))
def test_numbers_name_what_the_column_holds(values: list[Any]) -> None:
    values = [value for value in values if isinstance(value, type(values[0]))]
    labels = column(values)
    if len(set(values)) == 1:
        with pytest.raises(LayoutError, match="one class only"):
            labels.classes()
        return
    classes = labels.classes()
    assert [classes.keys[number] for number in labels.numbers(classes)] == values


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "b", "a"), "names two of its classes 'a', 0 and 2; give each a name of its own"),
        ((NFC, "b", NFD), "differ only in Unicode normalisation or in blanks"),
        (("a", "b", "a "), "differ only in Unicode normalisation or in blanks"),
    ],
)
def test_classes_that_a_table_names_alike_are_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        LabelColumn("train", "label", [0, 1, 2], names).classes()
    assert LabelColumn("train", "label", [0, 1, 1], names).classes().keys == (0, 1), "the other has no images"
