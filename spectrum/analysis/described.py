"""A study in words: its design, its settings, what its sweep chose, and the command that runs it again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from spectrum.analysis.held import differing, held_equal
from spectrum.analysis.sentences import pp
from spectrum.analysis.table import IMAGES, SPLIT, varied_settings
from spectrum.analysis.words import configuration_words, edge_sides, setting_name, setting_words, split_words
from spectrum.design.plan import Plan, PlannedChoice, PlannedRun
from spectrum.design.run import RunConfig
from spectrum.models import own_values
from spectrum.models.position import Position

SWEPT = {"lr": "learning rates", "weight_decay": "weight decays"}
IMAGES_SEEN = (*IMAGES, "train_images", "validation_fraction", "normalisation")
SEEN = {  # what a run sees → options that decide it
    "images": IMAGES_SEEN,
    "batches": (*IMAGES_SEEN, "batch_size"),
    "augmentation": (*IMAGES_SEEN, "flip", "shift", "cutout"),
}
TOLD = ("dataset", "model", "epochs", "batch_size", "optimizer", "lr")  # settings that a report names, default or not
WORDS = {"lowering": "backend asked for", "lowerings": "backends"}  # of fields that rows call by earlier names


def problems(results: pd.DataFrame) -> list[dict[str, str]]:
    """Runs that failed or diverged, with the reason.

    Args:
        results: the study's rows, from `load_results`.
    """
    if not len(results):
        return []
    names = varied_settings(results)
    return [
        {
            "name": f"{configuration_words(row, names)}, seed {row['seed']}",
            "status": row["status"],
            "reason": "a loss that is not finite; scored at chance" if row["status"] == "diverged" else row["reason"],
        }
        for _, row in results[results["status"] != "done"].iterrows()
    ]


def design(plan: Plan) -> list[tuple[str, str]]:
    """What a study compares, with how many runs, and what was decided beforehand."""
    asked = [run.asked_options for run in plan.known]
    varied = [
        (setting_name(name), _each(_value(name, options) for options in asked))
        for name in plan.varied
        if name not in (*SPLIT, "match")
    ]
    if set(SPLIT) & set(plan.varied):
        varied.insert(0, ("segments", _each(map(split_words, asked))))
    if len(plan.budgets) > 1:
        varied.append(("budget", ", ".join(setting_words("match", match) for match in plan.budgets)))
    design = [("what varies", "; ".join(f"{name}: {values}" for name, values in varied) or "nothing but the seed")]
    follows = [
        f"{setting_name(name)}: {_each(map(_words, values))}"
        for name, values in differing(_runs(plan)).items()
        if name not in (*plan.varied, *SPLIT, *_solved(plan))
    ]
    if follows:
        design.append(("what differs with it", "; ".join(follows)))
    if plan.runs:
        design.append(("seeds", _each(str(options.get("seed", "")) for options in asked)))
    design.append(("runs", f"{len({run.id for run in plan.known})}{_alike(plan)}"))
    if plan.tuning is not None:
        grid = "; ".join(
            f"{SWEPT[name]} {_each(f'{v:g}' for v in values)}" for name, values in plan.tuning.grid.items()
        )
        seeds = _each(str(run.options.get("seed", "")) for run in plan.swept)
        design.append(("sweep", f"{grid}; seeds {seeds}; the same for every configuration, on validation images only"))
    design.append(("clamped layers", _clamped(plan)))
    margins = Counter(f"±{pp(one.margin)}" for one in plan.contrasts if one.margin)
    if margins:
        said = [f"{margin} ({count} comparison{'' if count == 1 else 's'})" for margin, count in margins.items()]
        design.append(("margins of equivalence, pp", "; ".join(said)))
    return design


def _alike(plan: Plan) -> str:
    """What all runs of one seed see alike, as far as no option that decides it differs."""
    differ = set(differing(_runs(plan)))
    alike = [word for word, options in SEEN.items() if not differ & set(options)]
    if not alike:
        return ""
    listed = alike[0] if len(alike) == 1 else f"{', '.join(alike[:-1])} and {alike[-1]}"
    return f", each on the same {listed} for one seed"


def seeds_vary(plan: Plan) -> str:
    """What differs between the seeds of a study, in a sentence."""
    own = [options.get("teacher_seed") == "seed" for options in _runs(plan)]
    if any(own):
        where = "Seeds vary" if all(own) else "In some configurations seeds vary"
        return f"{where} the teacher, its images (test images too) and the training together."
    return "Seeds vary the training, not the test images."


def _clamped(plan: Plan) -> str:
    """Networks in which some layers have fewer channels than segments, and how many layers."""
    found: dict[str, None] = {}
    told = True
    for run in plan.known:
        options, realised, counts = run.options, run.realised_segments, run.clamped_layers
        if counts is None:  # a plan of an earlier version
            count = Position.of(options).clamped_count(realised)
            counts = {} if count is None else {"segments": count}
            told &= count is not None and options.get("pointwise_segments", 1) == 1
        for option, count in counts.items():
            if count:
                where = "" if option in SPLIT else f" in {option}"
                found[f"{network_name(plan, run)}: {count} of {len(realised)}{where}"] = None
    if not told:
        found["not counted in this plan for segments by stage, of a width or in shares, nor for those of the 1×1"] = (
            None
        )
    return "; ".join(found) or "none"


def _runs(plan: Plan) -> list[Mapping[str, Any]]:
    """Options of each run, as it is trained."""
    return [run.options for run in plan.known]


def _solved(plan: Plan) -> tuple[str, ...]:
    """Options that a budget or a sweep sets for each configuration."""
    widths = ("width", "widths") if plan.budgets != ("none",) else ()
    return (*widths, *plan.tuned)


def settings(plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings that have one value in all runs: those that a reader looks for, and others that are at their defaults.

    Without what a sweep is still to find. Of the first are all that are not at a default, and those of `TOLD`.
    """
    open_still = () if plan.runs else plan.tuned
    shared = {name: value for name, value in held_equal(_runs(plan)).items() if name not in open_still}
    own = own_values(str(shared.get("model")), pointwise=shared.get("pointwise") is not False)
    defaults = {name: field.default for name, field in RunConfig.model_fields.items()} | own
    others = {
        name: value
        for name, value in shared.items()
        if name not in TOLD and name in defaults and value == defaults[name]
    }
    return {name: value for name, value in shared.items() if name not in others}, others


def _value(name: str, run: Mapping[str, Any]) -> str:
    return _words(run.get(name))


def _words(value: Any) -> str:
    return value_words(value).replace("_", " ")


def _each(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def choices(plan: Plan) -> list[dict[str, str]]:
    """What the sweep chose for each configuration, and where that lies at the edge of the grid."""
    return [
        {
            "name": choice_name(plan, choice),
            "values": ", ".join(f"{name} {value:g}" for name, value in choice.values.items()),
            "accuracy": "" if choice.val_accuracy is None else f"{100 * choice.val_accuracy:.2f}",
            "edges": ", ".join(edge_sides(plan, choice)),
        }
        for choice in (plan.tuning.choices if plan.tuning is not None else ())
    ]


def choice_name(plan: Plan, choice: PlannedChoice) -> str:
    """Name a configuration of the sweep: its split, what else varies, and its budget where there are several."""
    rest = {**choice.options, "seed": None}
    networks = plan.asked if "width" in plan.varied else ()
    asked = [run.width for run in networks if {**run.options, "seed": None} == rest]
    return _name(plan, {**choice.options, "width": asked[0] if asked else None}, choice.match)


def network_name(plan: Plan, run: PlannedRun) -> str:
    """Name a configuration of a plan: its split, what else varies, and its budget where there are several."""
    return _name(plan, run.asked_options, run.match)


def run_command(plan: Plan) -> str:
    """The command that trained the runs of a plan."""
    words = ["spectrum", "run", str(plan.file)]
    for name, value in plan.overrides.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    for module in plan.imports:
        words += ["--import", module]
    words += ["--confirm"] if plan.tuning is not None and plan.runs else []
    return shlex.join(words)


def environment(finished: pd.DataFrame) -> list[tuple[str, str]]:
    """Machine and versions that trained the runs, from their provenance."""
    if finished.empty:
        return []
    records = pd.DataFrame(list(finished["provenance"]))
    return [(WORDS.get(str(name), str(name)).replace("_", " "), _all_values(records[name])) for name in records]


def _all_values(column: pd.Series) -> str:
    return ", ".join(dict.fromkeys(_counted(value) for value in column))


def _counted(value: Any) -> str:
    """A value in words; of a record of many, such as the backend of every layer, how many have each value."""
    if not isinstance(value, Mapping):
        return value_words(value)
    return " and ".join(f"{count} × {kind}" for kind, count in Counter(map(value_words, value.values())).items())


def value_words(value: Any) -> str:
    """A value of a setting as the report shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and not value:
        return "none"
    return "not set" if value is None or value != value else str(value)


def _name(plan: Plan, options: Mapping[str, Any], match: str | None) -> str:
    names = [name for name in plan.varied if name not in (*SPLIT, "match") and name in options]
    budget = ["match"] if len(plan.budgets) > 1 else []
    return configuration_words({**options, "match": match}, [*names, *budget])
