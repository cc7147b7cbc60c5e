"""Studies with runs that failed or are still to come: what is said of them, and what is not."""

import pandas as pd

from spectrum import stats
from spectrum.analysis.answer import answer
from tests.analysis.test_plots import results

NO_SEED = "no seed has a run of each configuration"


def without_a_whole_seed(table, rows=None):
    """The table in which, among some rows, the first segments fail at seed 0 and the second at seed 1."""
    rows = pd.Series(True, index=table.index) if rows is None else rows
    lost = table["segments"].eq(1) & table["seed"].eq(0) | table["segments"].eq(4) & table["seed"].eq(1)
    return table.assign(test_accuracy=table["test_accuracy"].where(~(lost & rows)))


def test_where_no_seed_is_whole_nothing_is_excluded_from_the_optima_and_the_answer_says_why():
    table = without_a_whole_seed(results(segments=[1, 4]))
    found = stats.optimum(table)
    assert found["label"].tolist() == ["1", "4"]
    assert found["n"].tolist() == [0, 0]
    assert found["in_set"].all()
    assert not found["best"].any()
    assert answer(table, pd.DataFrame())[1] == f"Possible optima are not known: {NO_SEED}."
    unpaired = results(segments=[1, 4])
    unpaired = unpaired[unpaired["segments"].eq(1) == unpaired["seed"].eq(0)]
    assert answer(unpaired, pd.DataFrame())[1] == f"Possible optima are not known: {NO_SEED}."


def test_a_curve_without_a_whole_seed_is_said_to_be_unknown_and_the_others_are_listed():
    table = results(segments=[1, 4], batch_size=[32, 64])
    table = without_a_whole_seed(table, table["batch_size"].eq(64))
    said = answer(table, pd.DataFrame())[1]
    assert said == (
        f"Possible optima (95% set of segments): batch size 32: 1, 4; batch size 64: not known, since {NO_SEED}."
    )
    assert stats.trend(table)["batch_size"].tolist() == [32]
