"""Families that fail in the ways that real ones do. Workers import this module by name."""

import ctypes
import multiprocessing
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from spectrum import register_model
from spectrum.models import NetworkOptions


class Linear(nn.Module):
    """A classifier of pixels that does something else first."""

    def __init__(self, arch: NetworkOptions, before=None) -> None:
        super().__init__()
        self.classifier = nn.Linear(arch.in_channels * arch.image_size**2, arch.num_classes)
        self.before = before
        # other options, another network
        segments = 0 if arch.segments in (None, "per_channel") else arch.segments
        self.register_buffer("options", torch.tensor([segments, arch.width]))

    def forward(self, x):
        if self.before is not None and self.training:
            self.before()
        return self.classifier(x.flatten(1))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_once():
    marker = Path(os.environ["SPECTRUM_TEST_FOLDER"]) / "died"
    if not marker.exists():
        marker.touch()
        die()


def die_at_step(step):
    """Once in a study's folder, in training, at this step from the start of the process."""
    left = step

    def count():
        nonlocal left
        left -= 1
        if left == 0:
            die_once()

    return count


def die_at_each_step(step):
    """In every process at this step from its start."""
    left = step

    def count():
        nonlocal left
        left -= 1
        if left == 0:
            die()

    return count


def say_who():
    (Path(os.environ["SPECTRUM_TEST_FOLDER"]) / f"worker-{os.getpid()}").touch()


def stick():
    say_who()
    time.sleep(60)


def stick_in_native_code():
    say_who()
    ctypes.PyDLL(None).sleep(60)  # which keeps the interpreter's lock: no signal is handled, no thread runs


held = []


def take_two_gigabytes():
    held.append(torch.ones(2**29))


def run_out_of_memory():
    torch.empty(2**50)


def dawdle():
    say_who()
    time.sleep(0.05)


def time_out():
    raise TimeoutError("a file system that does not answer")


def talk():
    os.write(1, b"a word of a talkative model\n")


def fail():
    raise ValueError("this model never works")


def fail_once_beside_another():
    """Once in a study's folder, as soon as another worker trains."""
    folder = Path(os.environ["SPECTRUM_TEST_FOLDER"])
    if (folder / "failed").exists():
        return
    deadline = time.monotonic() + 60
    while not list(folder.glob("worker-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # a few steps of the other
    (folder / "failed").touch()
    fail()


if os.environ.get("SPECTRUM_TEST_IMPORT") == "dies" and multiprocessing.parent_process() is not None:
    die()

register_model("linear", Linear)
register_model("dies", lambda arch: Linear(arch, die))
register_model("dies_once", lambda arch: Linear(arch, die_once))
register_model("dies_at_step_5", lambda arch: Linear(arch, die_at_step(5)))
register_model("dies_after_three_steps", lambda arch: Linear(arch, die_at_each_step(4)))
register_model("stuck", lambda arch: Linear(arch, stick))
register_model("stuck_in_native_code", lambda arch: Linear(arch, stick_in_native_code))
register_model("greedy", lambda arch: Linear(arch, take_two_gigabytes))
register_model("out_of_memory", lambda arch: Linear(arch, run_out_of_memory))
register_model("slow", lambda arch: Linear(arch, dawdle))
register_model("times_out", lambda arch: Linear(arch, time_out))
register_model("talks", lambda arch: Linear(arch, talk))


def fail_on_rank_1():
    if os.environ.get("RANK") == "1":
        raise RuntimeError("only here")


register_model("fails_on_rank_1", lambda arch: Linear(arch, fail_on_rank_1))
register_model("fails_once_beside_another", lambda arch: Linear(arch, fail_once_beside_another))
register_model("fails", lambda arch: Linear(arch, fail))
register_model("fails_at_three", lambda arch: Linear(arch, fail if arch.segments == 3 else None))
