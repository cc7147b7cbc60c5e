"""The paper's training set-ups are in every value what the paper says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrum import RunConfig
from spectrum._records import SpecError
from spectrum.data.load import load_images
from spectrum.design.changes import choices, merged
from spectrum.design.recipes import RECIPES
from spectrum.design.study_file import load_study, parse_study
from spectrum.models import build_model
from spectrum.training.loop import train
from spectrum.training.optimisation import learning_rate, make_optimizer

ROOT = Path(__file__).parents[2]
SGD = {
    "optimizer": "sgd", "momentum": 0.9, "nesterov": False, "lr": 0.045, "schedule": "exponential", "decay": 0.94,
    "decay_epochs": 2.0, "decay_images": None, "dropout": 0.5, "ema": 0.9999,
}  # fmt: skip
PAPER: dict[str, dict[str, Any]] = {
    "imagenet_xception": SGD | {"weight_decay": 1e-5},
    "imagenet_inception": SGD | {"weight_decay": 4e-5},
    "jft": {
        "optimizer": "rmsprop", "momentum": 0.9, "lr": 0.001, "schedule": "exponential", "decay": 0.9,
        "decay_images": 3_000_000, "dropout": 0.0, "ema": 0.9999, "weight_decay": 1e-5,
    },
}  # fmt: skip


def test_the_recipes_are_those_that_a_run_can_have() -> None:
    assert set(PAPER) == set(RECIPES) == set(choices("recipe"))


@pytest.mark.parametrize("recipe", PAPER)
def test_a_recipe_fills_what_a_run_leaves_open(recipe: Any) -> None:
    run = RunConfig(recipe=recipe)
    assert {name: getattr(run, name) for name in PAPER[recipe]} == PAPER[recipe]
    assert RunConfig(recipe=recipe, lr=0.2, ema=0.0).lr == 0.2
    assert RunConfig(recipe=recipe, lr=0.2, ema=0.0).ema == 0.0


@pytest.mark.parametrize("recipe", PAPER)
def test_a_run_is_what_its_values_are_whatever_they_come_from(recipe: Any) -> None:
    assert RunConfig(recipe=recipe).id == RunConfig(**RECIPES[recipe]).id != RunConfig().id
    again = RunConfig(**json.loads(RunConfig(recipe=recipe).model_dump_json()))
    assert again == RunConfig(recipe=recipe)


def test_recipes_can_be_an_axis_and_what_a_study_says_beside_them_holds() -> None:
    study = parse_study({"base": {"ema": 0.5}, "axes": {"recipe": ["imagenet_xception", "jft"]}}, "recipes")
    first, second = study.runs()
    assert (first.lr, first.optimizer, first.ema) == (0.045, "sgd", 0.5)
    assert (second.lr, second.optimizer, second.decay_images, second.ema) == (0.001, "rmsprop", 3_000_000, 0.5)


def test_another_recipe_takes_the_place_of_the_base_one() -> None:
    base = RunConfig(recipe="imagenet_xception", epochs=4)
    changed = merged(base, {"recipe": "jft"})
    assert changed == RunConfig(recipe="jft", epochs=4)
    assert merged(base, {"recipe": "jft", "lr": 0.5}).lr == 0.5
    with pytest.raises(SpecError, match="did you mean"):
        merged(base, {"recipe": "imagenet_xceptoin"})


def test_the_learning_rate_falls_by_six_per_cent_every_second_epoch() -> None:
    run = RunConfig(recipe="imagenet_xception", epochs=8)
    rates = [learning_rate(run, epoch) for epoch in (0, 1.99, 2, 3.99, 4, 6)]
    assert rates == pytest.approx([0.045, 0.045, 0.0423, 0.0423, 0.045 * 0.94**2, 0.045 * 0.94**3])


def test_momentum_is_not_nesterovs_and_decay_is_of_weights_alone() -> None:
    model = build_model("probe", in_channels=1, image_size=8)
    optimizer = make_optimizer(RunConfig(recipe="imagenet_inception"), model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["nesterov"] for group in optimizer.param_groups] == [False, False]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [4e-5, 0.0]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]
    assert isinstance(make_optimizer(RunConfig(recipe="jft"), model), torch.optim.RMSprop)


def test_a_schedule_in_images_steps_after_so_many_images() -> None:
    run = RunConfig(
        dataset="digits", train_images=200, width=0.25, batch_size=50, epochs=3,
        lr=0.1, schedule="exponential", decay=0.5, decay_images=300,
    )  # fmt: skip
    history = train(run, load_images("digits")).history
    # of the last batches of each epoch, which begin after 150, 350 and 550 images
    assert [entry["lr"] for entry in history] == pytest.approx([0.1, 0.05, 0.05])


def test_the_page_has_the_same_values() -> None:
    page = (ROOT / "docs/reference/study_file.md").read_text()
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    names = lines[0][1:]
    shown = {
        recipe: {row[0]: row[column] for row in lines[2:] if row[column]} for column, recipe in enumerate(names, 1)
    }
    assert shown == {
        recipe: {
            name: f"{value:g}" if isinstance(value, float) else str(value).lower() for name, value in values.items()
        }
        for recipe, values in RECIPES.items()
    }


@pytest.mark.parametrize("plan", sorted(ROOT.glob("results/*/plan.json")), ids=lambda path: path.parent.name)
def test_plans_that_were_frozen_are_those_of_their_studies_still(plan: Path) -> None:
    study = load_study(ROOT / f"experiments/{plan.parent.name}.toml")
    assert json.loads(plan.read_text())["hash"] == study.hash
