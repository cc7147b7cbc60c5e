"""One training run: its parts against references, its promises end to end, and no option that does nothing."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler

from spectrum.data.augment import batches
from spectrum.data.images import images_of
from spectrum.data.load import load_images
from spectrum.data.splits import Images, carve, split
from spectrum.design.changes import choices
from spectrum.design.run import RunConfig
from spectrum.models import NetworkOptions, build_model
from spectrum.models.families import FAMILIES, Family
from spectrum.training import loop as training
from spectrum.training.evaluation import evaluate, hash_weights
from spectrum.training.loop import Result, train
from spectrum.training.optimisation import learning_rate, make_optimizer
from tests.registries import restored

TINY: dict[str, Any] = {"train_images": 200, "epochs": 1, "width": 0.25, "batch_size": 50}


@pytest.fixture
def digits() -> Images:
    return load_images("digits")


def flat(arch: NetworkOptions) -> nn.Module:
    """The smallest architecture: logistic regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(arch.in_channels * arch.image_size**2, arch.num_classes))


Read = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Read]:
    """What is evaluated from now on: the network, the images and their labels."""
    seen: list[Read] = []
    real = training.evaluate

    def recorded(model: nn.Module, normalise: Any, x_nchw: Tensor, y_n: Tensor, **options: Any) -> tuple[float, float]:
        seen.append((model, x_nchw, y_n))
        return real(model, normalise, x_nchw, y_n, **options)

    monkeypatch.setattr(training, "evaluate", recorded)
    return seen


@pytest.fixture
def after_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, dict[str, Tensor]]]:
    """After every optimiser step from now on: its learning rate, and the network's weights and buffers."""
    seen: list[tuple[float, dict[str, Tensor]]] = []
    real = training.make_optimizer

    def recorded(run: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
        optimizer = real(run, model)
        optimizer.register_step_post_hook(
            lambda *_: seen.append(
                (
                    optimizer.param_groups[0]["lr"],
                    {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
                )
            )
        )
        return optimizer

    monkeypatch.setattr(training, "make_optimizer", recorded)
    return seen


# The learning rate


def schedule_of_torch(make: Callable[[torch.optim.Optimizer], Any], lr: float, steps: int) -> list[float]:
    """The learning rate before each of `steps` steps and after the last."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("lr", [0.1, 3.0])
@pytest.mark.parametrize("epochs", [1, 8, 30])
def test_cosine_is_that_of_torch(lr: float, epochs: int) -> None:
    steps = 5 * epochs
    run = RunConfig(lr=lr, epochs=epochs)
    expected = schedule_of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=steps), lr, steps)
    np.testing.assert_allclose([learning_rate(run, n / 5) for n in range(steps + 1)], expected, atol=1e-9 * lr)


@pytest.mark.parametrize("lr", [0.1, 3.0])
@pytest.mark.parametrize("epochs", [2, 8, 30])
def test_one_cycle_is_that_of_torch(lr: float, epochs: int) -> None:
    steps = 5 * epochs
    run = RunConfig(lr=lr, epochs=epochs, schedule="one_cycle")

    def make(optimizer: torch.optim.Optimizer) -> Any:
        # torch counts steps from 0, which puts its peak at step pct_start · total_steps − 1
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=lr,
            total_steps=steps + 1,
            pct_start=(0.3 * steps + 1) / (steps + 1),
            anneal_strategy="cos",
            cycle_momentum=False,
            div_factor=25,
            final_div_factor=1e4 / 25,
        )

    expected = schedule_of_torch(make, lr, steps)
    np.testing.assert_allclose([learning_rate(run, n / 5) for n in range(steps + 1)], expected, rtol=1e-9)


@pytest.mark.parametrize(("decay_epochs", "steps_per_epoch"), [(2.0, 5), (0.5, 4), (1.0, 3), (2.5, 6), (0.1, 10)])
@pytest.mark.parametrize("decay", [0.94, 0.5, 1.0])
def test_exponential_is_that_of_torch(decay_epochs: float, steps_per_epoch: int, decay: float) -> None:
    steps = 8 * steps_per_epoch
    run = RunConfig(lr=0.3, epochs=8, schedule="exponential", decay=decay, decay_epochs=decay_epochs)
    every = round(decay_epochs * steps_per_epoch)
    expected = schedule_of_torch(lambda o: lr_scheduler.StepLR(o, every, decay), 0.3, steps)
    rates = [learning_rate(run, n / steps_per_epoch) for n in range(steps + 1)]
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


@pytest.mark.parametrize("schedule", choices("schedule"))
@pytest.mark.parametrize("warmup_epochs", [0.5, 1.0, 2.5])
def test_warm_up_is_linear_and_the_schedule_starts_after_it(schedule: Any, warmup_epochs: float) -> None:
    warm = RunConfig(lr=0.2, epochs=8, schedule=schedule, warmup_epochs=warmup_epochs, decay_epochs=1.0)
    moments = np.linspace(0, warmup_epochs, 20, endpoint=False)
    expected = np.interp(moments, [0, warmup_epochs], [0, 0.2])
    np.testing.assert_allclose([learning_rate(warm, moment) for moment in moments], expected, atol=1e-12)

    cold = RunConfig(lr=0.2, epochs=8, schedule=schedule, decay_epochs=1.0)
    for t in np.linspace(0, 0.999, 30):
        since = t * (8 - warmup_epochs)
        same_moment = since if schedule == "exponential" else t * 8
        assert learning_rate(warm, warmup_epochs + since) == pytest.approx(learning_rate(cold, same_moment), rel=1e-6)


def test_training_takes_the_learning_rate_of_each_step(digits: Images, after_steps: list[Any]) -> None:
    run = RunConfig(**TINY | {"epochs": 2, "warmup_epochs": 0.5})
    result = train(run, digits)
    rates = [rate for rate, _ in after_steps]
    assert rates == [learning_rate(run, step / 4) for step in range(8)]
    assert [entry["lr"] for entry in result.history] == [rates[3], rates[7]]


# The optimiser


def test_weight_decay_is_on_weights_of_more_than_one_dimension_only() -> None:
    run = RunConfig(weight_decay=0.01)
    model = build_model("probe", segments=3, norm=True, image_size=8)
    kinds = {
        id(parameter): isinstance(module, nn.BatchNorm2d) or name == "bias"
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    for optimizer in choices("optimizer"):
        groups = make_optimizer(run.model_copy(update={"optimizer": optimizer}), model).param_groups
        decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
        assert decay == {key: 0.0 if free else 0.01 for key, free in kinds.items()}


def test_what_needs_no_gradient_is_not_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    groups = make_optimizer(RunConfig(), model).param_groups
    assert [id(p) for group in groups for p in group["params"]] == [id(model[1].weight), id(model[1].bias)]


class ByHand:
    """One parameter's updates, as the papers and torch's documentation write them, in float64."""

    def __init__(self, run: RunConfig, value: np.ndarray[Any, Any]) -> None:
        self.run, self.value, self.step = run, value.copy(), 0
        self.decay = run.weight_decay if value.ndim > 1 else 0.0
        self.first, self.second = np.zeros_like(value), np.zeros_like(value)

    def update(self, gradient: np.ndarray[Any, Any]) -> None:
        self.step += 1
        getattr(self, self.run.optimizer)(gradient)

    def sgd(self, gradient: np.ndarray[Any, Any]) -> None:
        momentum = self.run.momentum
        gradient = gradient + self.decay * self.value
        self.first = momentum * self.first + gradient
        self.value = self.value - self.run.lr * (gradient + momentum * self.first)  # Nesterov

    def adamw(self, gradient: np.ndarray[Any, Any]) -> None:
        beta1, beta2 = self.run.momentum, 0.999
        self.value = self.value * (1 - self.run.lr * self.decay)
        self.first = beta1 * self.first + (1 - beta1) * gradient
        self.second = beta2 * self.second + (1 - beta2) * gradient**2
        mean, square = self.first / (1 - beta1**self.step), self.second / (1 - beta2**self.step)
        self.value = self.value - self.run.lr * mean / (np.sqrt(square) + 1e-8)

    def rmsprop(self, gradient: np.ndarray[Any, Any]) -> None:
        gradient = gradient + self.decay * self.value
        self.second = 0.9 * self.second + 0.1 * gradient**2
        self.first = self.run.momentum * self.first + gradient / (np.sqrt(self.second) + 1e-3)
        self.value = self.value - self.run.lr * self.first


@pytest.mark.parametrize("optimizer", choices("optimizer"))
@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9])
def test_steps_are_those_computed_by_hand(optimizer: Any, momentum: float) -> None:
    run = RunConfig(optimizer=optimizer, momentum=momentum, weight_decay=0.1, lr=0.03)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)).double()
    real = make_optimizer(run, model)
    by_hand = [ByHand(run, parameter.detach().numpy()) for parameter in model.parameters()]
    for _ in range(3):
        for parameter, reference in zip(model.parameters(), by_hand, strict=True):
            parameter.grad = torch.randn_like(parameter)
            reference.update(parameter.grad.numpy())
        real.step()
        for parameter, reference in zip(model.parameters(), by_hand, strict=True):
            np.testing.assert_allclose(parameter.detach(), reference.value, rtol=1e-9, atol=1e-12)


# The whole run against a plain loop


def test_training_is_a_plain_loop(digits: Images, reads: list[Read]) -> None:
    options = {"flip": True, "shift": 1, "label_smoothing": 0.1, "weight_decay": 0.01}
    run = RunConfig(**TINY | options | {"epochs": 2, "seed": 3})
    result = train(run, digits)

    torch.manual_seed(3)
    model = build_model("probe", in_channels=1, num_classes=10, image_size=8, width=0.25, segments="per_channel")
    plain = [p for module in model.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()]
    plain += [module.bias for module in model.modules() if isinstance(module, nn.Linear)]
    decayed = [p for p in model.parameters() if not any(p is other for other in plain)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    data = split(digits, 0.1, 200)
    losses: list[list[float]] = []
    for epoch in range(2):
        losses.append([])
        for x_nchw, y_n in batches(data, batch_size=50, seed=3, epoch=epoch, flip=True, shift=1):
            loss = cross_entropy(model(x_nchw), y_n, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            losses[-1].append(loss.item())

    trained = reads[-1][0].state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([entry["train_loss"] for entry in result.history], np.mean(losses, 1), rtol=1e-4)
    model.eval()
    with torch.no_grad():
        logits = model(data.normalise(digits.test_x))
    assert result.test_accuracy == pytest.approx((logits.argmax(1) == digits.test_y).double().mean().item(), abs=0.01)
    assert result.test_loss == pytest.approx(cross_entropy(logits, digits.test_y).item(), rel=1e-4)
    assert result.test_images == len(digits.test_y)


@pytest.mark.parametrize("ema", [0.3, 0.9])
def test_what_is_scored_is_the_average_of_the_weights_and_buffers(
    ema: float, digits: Images, reads: list[Read], after_steps: list[Any]
) -> None:
    result = train(RunConfig(**TINY | {"epochs": 2, "ema": ema}), digits)
    states = [state for _, state in after_steps]
    assert len(states) == 8
    expected = {name: tensor.double() for name, tensor in states[0].items()}
    for n, state in enumerate(states[1:], start=1):
        keep = min(ema, (1 + n) / (10 + n))
        for name, tensor in state.items():
            whole = not tensor.is_floating_point()  # BN counts its batches
            expected[name] = tensor.double() if whole else keep * expected[name] + (1 - keep) * tensor.double()

    scored = reads[-1][0]
    assert any(name.endswith("running_var") for name in expected)
    for name, tensor in scored.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert all(model is scored for model, _, _ in reads)
    assert not torch.allclose(scored.state_dict()["exit.4.weight"], states[-1]["exit.4.weight"], atol=1e-4)
    assert result.weights_sha256 == hash_weights(scored)


def test_the_average_changes_what_is_scored_and_not_the_training(digits: Images) -> None:
    plain, averaged = (train(RunConfig(**TINY | {"epochs": 2, "ema": ema}), digits) for ema in (0.0, 0.9))
    assert [e["train_loss"] for e in plain.history] == [e["train_loss"] for e in averaged.history]
    assert plain.weights_sha256 != averaged.weights_sha256


# Guarantees


def outcome(result: Result) -> dict[str, Any]:
    """A result without times."""
    fields = asdict(result) | {"train_seconds": None, "images_per_second": None}
    fields["history"] = [entry | {"train_seconds": None} for entry in result.history]
    return fields


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "dropout": 0.5, "flip": True, "shift": 1, "cutout": 2}], ids=str)
def test_the_same_run_gives_the_same_result_and_another_seed_another(digits: Images, options: Any) -> None:
    first = train(RunConfig(**TINY | options), digits)
    torch.manual_seed(12345)
    torch.rand(7)
    assert outcome(train(RunConfig(**TINY | options), digits)) == outcome(first)
    assert train(RunConfig(**TINY | options, seed=1), digits).weights_sha256 != first.weights_sha256


def test_the_test_set_is_read_once_and_the_validation_split_once_an_epoch(digits: Images, reads: list[Read]) -> None:
    train(RunConfig(**TINY | {"epochs": 3}), digits)
    data = split(digits, 0.1)
    assert [len(y_n) for _, _, y_n in reads] == [149] * 3 + [299]
    assert all(torch.equal(x_nchw, data.validation_x) for _, x_nchw, _ in reads[:3])
    assert reads[3][1] is digits.test_x


def test_nothing_but_the_test_scores_depends_on_the_test_set(digits: Images) -> None:
    run = RunConfig(**TINY | {"epochs": 2})
    other = replace(digits, test_x=digits.test_x.flip(2), test_y=digits.test_y.flip(0))
    results = [outcome(train(run, images)) for images in (digits, other)]
    scores = [{name: result.pop(name) for name in ("test_accuracy", "test_loss")} for result in results]
    assert results[0] == results[1]
    assert scores[0] != scores[1]


def test_the_weights_do_not_depend_on_the_validation_images(digits: Images) -> None:
    _, validation = carve(digits.train_y, 0.1)
    x_nchw = digits.train_x.clone()
    x_nchw[validation] = 255 - x_nchw[validation]
    run = RunConfig(**TINY)
    first, second = train(run, digits), train(run, replace(digits, train_x=x_nchw))
    assert first.weights_sha256 == second.weights_sha256
    assert first.val_loss != second.val_loss


def test_history_has_one_entry_an_epoch_and_is_told_as_it_goes(digits: Images) -> None:
    told: list[dict[str, Any]] = []
    result = train(RunConfig(**TINY | {"epochs": 3}), digits, on_epoch=told.append)
    assert result.history == told
    assert [entry["epoch"] for entry in told] == [1, 2, 3]
    assert (told[-1]["val_accuracy"], told[-1]["val_loss"]) == (result.val_accuracy, result.val_loss)
    assert told[-1]["train_loss"] == result.train_loss
    seconds = [entry["train_seconds"] for entry in told]
    assert 0 < seconds[0] < seconds[1] < seconds[2] == result.train_seconds
    assert result.images_per_second == pytest.approx(600 / result.train_seconds)


def test_a_partial_batch_is_left_out_unless_there_is_no_other(digits: Images, after_steps: list[Any]) -> None:
    train(RunConfig(**TINY | {"batch_size": 60}), digits)
    assert len(after_steps) == 3
    result = train(RunConfig(**TINY | {"batch_size": 1000, "epochs": 2}), digits)
    assert len(after_steps) == 3 + 2
    assert result.images_per_second == pytest.approx(400 / result.train_seconds)


@pytest.mark.parametrize(
    ("optimizer", "lr", "ema"),
    [("sgd", 1e30, 0.0), ("sgd", 1e30, 0.9), ("adamw", 1e8, 0.0), ("rmsprop", 1e20, 0.0), ("adamw", 1e30, 0.0)],
)
def test_a_run_that_diverges_is_a_result_at_chance(
    digits: Images, reads: list[Read], optimizer: Any, lr: float, ema: float
) -> None:
    result = train(RunConfig(**TINY | {"epochs": 3, "optimizer": optimizer, "lr": lr, "ema": ema}), digits)
    assert result.status == "diverged"
    assert result.test_accuracy == result.val_accuracy == 0.1
    assert (result.test_loss, result.val_loss) == (None, None)
    assert [entry["val_accuracy"] for entry in result.history] == [0.1], "it ends with the first epoch"
    assert all(x_nchw is not digits.test_x for _, x_nchw, _ in reads)
    assert len(result.weights_sha256) == 64
    json.dumps(asdict(result), allow_nan=False)


def test_a_last_step_that_only_validation_sees_diverge_counts(digits: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(monkeypatch, FAMILIES)
    FAMILIES.add("flat", Family(flat, None), maker=flat)
    run = RunConfig(**TINY | {"model": "flat", "batch_size": 200}).model_copy(update={"lr": 1e37})
    result = train(run, digits)
    assert result.train_loss == pytest.approx(math.log(10), rel=0.3), "before the only step"
    assert (result.status, result.val_loss, result.val_accuracy, result.test_accuracy) == ("diverged", None, 0.1, 0.1)


def test_a_network_that_cannot_be_built_is_a_value_error(digits: Images) -> None:
    with pytest.raises(ValueError, match="too small for 5 stages"):
        train(RunConfig(widths=(8, 8, 8, 8, 8)), digits)


# Evaluation


@pytest.mark.parametrize("count", [1, 7, 499, 500, 501, 1000, 1203])
def test_evaluation_counts_each_image_once(count: int) -> None:
    torch.manual_seed(count)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.9), nn.Flatten(), nn.Linear(18, 5))
    x_nchw, y_n = torch.randint(0, 256, (count, 2, 3, 3), dtype=torch.uint8), torch.randint(0, 5, (count,))
    before = hash_weights(model)
    loss, accuracy = evaluate(model.train(), lambda x: x.float() / 255, x_nchw, y_n, device="cpu")
    assert hash_weights(model) == before, "evaluation changes no buffer"

    weight, bias = (p.detach().double().numpy() for p in model[3].parameters())
    pixels = x_nchw.double().numpy().reshape(count, 18) / 255 / math.sqrt(1 + 1e-5)  # BN before its first batch
    logits = pixels @ weight.T + bias
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(count), y_n]
    assert loss == pytest.approx(losses.mean(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == y_n.numpy()).sum() / count


def test_the_hash_sees_names_shapes_types_and_every_byte() -> None:
    class Held(nn.Module):
        def __init__(self, **buffers: Tensor) -> None:
            super().__init__()
            for name, tensor in buffers.items():
                self.register_buffer(name, tensor)

    zeros = torch.zeros(2, 3)
    different = [
        Held(a=zeros),
        Held(b=zeros),
        Held(a=zeros.view(3, 2)),
        Held(a=zeros.int()),
        Held(a=-zeros),
        Held(a=zeros, b=zeros),
        Held(a=torch.eye(2, 3)),
    ]
    assert len({hash_weights(module) for module in different}) == len(different)
    image = torch.arange(120.0).view(2, 3, 4, 5)
    assert hash_weights(Held(a=image)) == hash_weights(Held(a=image.to(memory_format=torch.channels_last)))


# Learning


@pytest.mark.medium
@pytest.mark.parametrize("segments", [1, 3, "per_channel"])
def test_digits_are_learned_in_three_epochs(digits: Images, segments: Any) -> None:
    result = train(RunConfig(segments=segments, epochs=3, width=0.25, batch_size=25, train_images=600), digits)
    assert result.status == "done"
    assert result.val_accuracy > 0.6
    assert result.test_accuracy > 0.6
    assert result.history[2]["train_loss"] < result.history[0]["train_loss"]


# Every knob does something

# A field: the run beside which it acts, and values that must all give different weights.
KNOBS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "dataset": ({"train_images": 20, "batch_size": 10}, ["digits", "./letters"]),
    "image_size": ({}, [None, 16, 12]),
    "resize": (
        {"dataset": "./letters", "image_size": 6} | {"train_images": 20, "batch_size": 10},
        ["stretch", "centre_crop"],
    ),
    "train_images": ({}, [200, 150, None]),
    "validation_fraction": ({}, [0.1, 0.2]),
    "normalisation": ({}, ["moments", "plus_minus_one"]),
    "flip": ({}, [False, True]),
    "shift": ({}, [0, 1, 2]),
    "cutout": ({}, [0, 2, 3]),
    "model": ({}, ["probe", "flat"]),
    "width": ({}, [0.25, 0.5]),
    "widths": ({"width": 1.0}, [(8, 16), (8, 12), (8,)]),
    "depth": ({}, [None, 2]),
    "segments": ({}, [1, 2, 3, 8, "per_channel"]),
    "segment_width": ({"segments": None}, [1, 2, 4]),
    "stage_segments": ({"segments": None}, [(1, 2, 4), (4, 2, 1), (1, 2, "per_channel")]),
    "segment_shares": ({"segments": 3}, ["even", (2, 1, 1), (1, 1, 2)]),
    "order": ({}, ["pointwise_first", "spatial_first"]),
    "activation": ({}, ["none", "relu", "elu", "gelu", "silu"]),
    "norm": ({}, [False, True]),
    "pointwise": ({}, [True, False]),
    "pointwise_segments": ({}, [1, 2, 4]),
    "shuffle": ({"pointwise_segments": 2, "segments": 2}, [False, True]),
    "stem_stride": ({}, [1, 2]),
    "residual": ({}, [True, False]),
    "dropout": ({}, [0.0, 0.2, 0.5]),
    "hidden": ({}, [(), (8,), (8, 8)]),
    "padding": ({"model": "xception", "width": 0.02, "image_size": 80}, ["tf_same", "torch"]),
    "form": ({"model": "inception", "image_size": 16}, ["segments", "canonical"]),
    "norm_eps": ({}, [None, 1e-3]),
    "norm_momentum": ({}, [None, 0.5]),
    "epochs": ({}, [1, 2]),
    "batch_size": ({}, [50, 40]),
    "optimizer": ({}, ["sgd", "adamw", "rmsprop"]),
    "lr": ({}, [0.1, 0.05]),
    "momentum": ({}, [0.9, 0.5, 0.0]),
    "nesterov": ({}, [True, False]),
    "weight_decay": ({}, [5e-4, 0.01, 0.0]),
    "schedule": ({}, ["cosine", "one_cycle", "exponential"]),
    "warmup_epochs": ({}, [0.0, 0.5]),
    "decay": ({"schedule": "exponential", "decay_epochs": 0.5}, [0.94, 0.5]),
    "decay_epochs": ({"schedule": "exponential"}, [0.5, 0.25]),
    "decay_images": ({"schedule": "exponential"}, [None, 100, 50]),
    "label_smoothing": ({}, [0.0, 0.1]),
    "ema": ({}, [0.0, 0.1, 0.9]),
    "autocast": ({}, [False, True]),
    "compile": ({}, [False, True]),
    "seed": ({}, [0, 1]),
    "teacher_segments": ({}, [None, 1, 4, "per_channel"]),
    "label_noise": ({"teacher_segments": 1}, [0.0, 0.2]),
    "teacher_seed": ({"teacher_segments": 1, "seed": 2}, [0, 1, "seed"]),
    "downsampling": ({}, ["pool", "stride"]),
    "scored_on": ({}, ["test", "validation"]),
}


def test_every_field_of_a_run_is_tried() -> None:
    assert set(KNOBS) | {"recipe"} == set(RunConfig.model_fields)  # a recipe is values of others, and has its own tests
    for field, (_, values) in KNOBS.items():
        if isinstance(RunConfig.model_fields[field].default, str) and choices(field):
            assert {value for value in values if isinstance(value, str)} == set(choices(field))


@cache
def weights_of(run: RunConfig) -> str:
    return train(run, images_of(run)).weights_sha256


def write_letters(folder: Path) -> None:
    """Noise of ten classes, in the size and kind of digits."""
    generator = np.random.default_rng(0)
    for letter in "abcdefghij":
        (folder / letter).mkdir(parents=True)
        for number in range(5):
            pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / letter / f"{number}.png")


@pytest.mark.medium
@pytest.mark.parametrize("field", [field for field in KNOBS if field not in ("compile", "scored_on")])
def test_no_knob_does_nothing(field: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if field in ("dataset", "resize"):
        request.getfixturevalue("data_root")
        write_letters(Path("letters"))
    if field == "model":
        restored(monkeypatch, FAMILIES)
        FAMILIES.add("flat", Family(flat, None), maker=flat)
    beside, values = KNOBS[field]
    runs = [RunConfig(**TINY | beside | {field: value}) for value in values]
    for run in runs[1:]:
        changed = {name for name in RunConfig.model_fields if getattr(run, name) != getattr(runs[0], name)}
        assert changed == {field}
    weights = {value: weights_of(run) for value, run in zip(values, runs, strict=True)}
    assert len(set(weights.values())) == len(values), weights


def test_a_run_that_is_scored_on_validation_never_reads_the_test_set(digits: Images) -> None:
    unread = replace(digits, test_x=None, test_y=None)  # type: ignore[arg-type]
    result = train(RunConfig(**TINY, scored_on="validation"), unread)
    scored = train(RunConfig(**TINY), digits)
    assert (result.test_accuracy, result.test_loss, result.test_images) == (None, None, None)
    assert (result.val_accuracy, result.weights_sha256) == (scored.val_accuracy, scored.weights_sha256)
    assert scored.test_accuracy is not None


def test_compile_trains_what_torch_compiles(digits: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_sizes: list[int] = []

    def compiled(model: nn.Module, dynamic: bool) -> Callable[[Tensor], Tensor]:
        def run(x_nchw: Tensor) -> Tensor:
            batch_sizes.append(len(x_nchw))
            return 2 * model(x_nchw)  # so that it shows in the weights

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    plain = train(RunConfig(**TINY), digits)
    assert batch_sizes == []
    assert train(RunConfig(**TINY, compile=True), digits).weights_sha256 != plain.weights_sha256
    assert batch_sizes == [50] * 4, "of one size, or it would be compiled anew"


@pytest.mark.slow
def test_every_network_is_compiled_however_many_a_process_has_trained(
    digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.testing import CompileCounter  # slow to import

    real, counters = torch.compile, []

    def counting(model: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
        counters.append(CompileCounter())
        return real(model, backend=counters[-1], **options)

    monkeypatch.setattr(torch, "compile", counting)
    for number in range(10):
        train(RunConfig(**TINY | {"width": 0.125 * (2 + number)}, compile=True), digits)
    assert [counter.frame_count for counter in counters] == [1] * 10
