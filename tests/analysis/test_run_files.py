"""Runs of other tools, read from files as these tools write them."""

import json

import pandas as pd
import pytest

from spectrum.analysis.compare import compare
from spectrum.analysis.run_files import NOTES, read_runs

ROWS = [{"method": m, "seed": s, "accuracy": 0.9 + 0.01 * s + (m == "b") / 100} for m in "ab" for s in range(3)]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".json", ".jsonl"])
def test_a_file_of_rows_is_read_back(tmp_path, ending):
    table, path = pd.DataFrame(ROWS), tmp_path / f"runs{ending}"
    if ending == ".csv":
        table.to_csv(path, index=False)
    elif ending == ".parquet":
        table.to_parquet(path)
    else:
        rows = [json.dumps(row) for row in ROWS]
        write(path, "\n".join(rows) if ending == ".jsonl" else f"[{', '.join(rows)}]")
    pd.testing.assert_frame_equal(read_runs(path), table)


def test_objects_inside_become_columns_and_texts_stay_texts(tmp_path):
    path = write(tmp_path / "runs.jsonl", '{"config": {"lr": 0.1}, "created_at": "2024-01-01", "acc": NaN}\n\n')
    found = read_runs(path)
    assert found["config.lr"][0] == 0.1
    assert found["created_at"][0] == "2024-01-01"
    assert found["acc"].isna().all()


def test_runs_that_wandb_does_not_call_finished_are_left_out_and_counted(tmp_path):
    text = (
        '"Name","State","Notes","User","Tags","Created","Runtime","Sweep","lr","accuracy"\n'
        '"warm-sun-1","finished","-","me","","2024-05-01T10:00:00.000Z","61","","0.1","0.91"\n'
        '"cold-sea-2","crashed","-","me","","2024-05-01T10:00:00.000Z","12","","0.1","0.55"\n'
        '"odd-moon-3","running","-","me","","2024-05-01T10:00:00.000Z","12","","0.2","0.35"\n'
    )
    found = read_runs(write(tmp_path / "wandb.csv", text))
    assert list(found["run"]) == ["warm-sun-1"]
    assert found.attrs[NOTES] == ("Runs that W&B does not call finished are left out: 1 crashed, 1 running.",)


def test_a_chart_of_wandb_gives_each_runs_last_value(tmp_path):
    text = (
        '"Step","a-seed0 - val/acc","a-seed0 - val/acc__MIN","a-seed0 - val/acc__MAX",'
        '"b-seed0 - val/acc","b-seed0 - val/acc__MIN","b-seed0 - val/acc__MAX"\n'
        '"0","0.5","0.5","0.5","0.6","0.6","0.6"\n"1","0.7","0.7","0.7","0.8","0.8","0.8"\n"2","0.65","0.65","0.65","","",""\n'
    )
    found = read_runs(write(tmp_path / "chart.csv", text), pattern=r"(?P<method>.+)-seed(?P<seed>\d+)")
    assert found[["run", "val/acc", "method", "seed"]].to_dict("records") == [
        {"run": "a-seed0", "val/acc": 0.65, "method": "a", "seed": "0"},
        {"run": "b-seed0", "val/acc": 0.8, "method": "b", "seed": "0"},
    ]
    assert "over Step, the value at its last step counts" in found.attrs[NOTES][0]


def test_tensorboard_folders_are_read_as_torch_writes_them(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for row in ROWS:
        with SummaryWriter(str(tmp_path / f"{row['method']}-seed{row['seed']}")) as writer:
            for step in range(2000):  # more than a reader keeps by default
                writer.add_scalar("accuracy", step / 4000, step)
            writer.add_scalar("accuracy", row["accuracy"], 2000)
            writer.add_scalar("accuracy", 0.123, 1500)  # written later, but no later step
    found = compare(tmp_path, by="method", pair="seed", metric="accuracy", pattern=r"(?P<method>.)-seed(?P<seed>\d)")
    assert found.judged["mean"][0] == pytest.approx(-0.01, abs=1e-6)  # TensorBoard keeps float32
    assert found.judged["n"][0] == 3


def test_hyperparameters_of_tensorboard_become_columns(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "only")) as writer:
        writer.add_hparams({"lr": 0.1, "norm": "batch", "nesterov": True}, {"final/acc": 0.75}, run_name="run")
        writer.add_scalar("train/acc", 0.5, 1)
    table = read_runs(tmp_path)
    assert list(table["run"]) == ["only"]  # torch writes them below the run's folder
    row = table.iloc[0]
    assert row["train/acc"] == 0.5
    assert (row["lr"], row["norm"], row["nesterov"], row["final/acc"]) == (0.1, "batch", True, 0.75)


@pytest.mark.parametrize(
    ("name", "text", "pattern", "said"),
    [
        ("runs.csv", "method;acc\na;0,5\n", None, "separated by semicolons"),
        ("runs.csv", "", None, "cannot be read as .csv"),
        ("runs.csv", "method,acc\n", None, "has no rows"),
        ("runs.jsonl", '{"acc": 1}\n{"acc"', None, "cannot be read as .jsonl"),
        ("runs.jsonl", "3\n", None, "expected one object per run"),
        ("runs.txt", "acc", None, "expected .csv, .parquet, .json, .jsonl, or a folder"),
        ("runs.parquet", "acc", None, "cannot be read as .parquet"),
        ("runs.csv", "method,acc\na,1\n", "(?P<seed>x)", "has no column run with names for the pattern"),
        ("runs.csv", "run,acc\na,1\n", "(", "is no regular expression"),
        ("runs.csv", "run,acc\na,1\n", "a", "has no named group"),
        ("runs.csv", "run,acc\na,1\nbb,2\n", "(?P<one>.)", "does not match bb"),
        ("runs.csv", "run,acc\na,1\n", "(?P<acc>.)", "has a column acc already"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, text, pattern, said):
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        read_runs(write(tmp_path / name, text), pattern=pattern)


def test_a_folder_without_event_files_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no event files of TensorBoard"):
        read_runs(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        read_runs(tmp_path / "runs.csv")
