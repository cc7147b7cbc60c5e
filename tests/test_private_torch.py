"""The private names of torch in spectrum/_torch.py still behave as described there, and no other module reads any."""

import ast
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile

from spectrum import _torch

PACKAGE = Path(__file__).parents[1] / "spectrum"
HOME = PACKAGE / "_torch.py"
SEEN_IN = {  # the version of torch with which each was last seen to pass the tests below
    "torch._C._current_autograd_node": "2.13.0",
    "torch._C._dispatch_has_kernel_for_dispatch_key": "2.13.0",
    "torch._C._dispatch_key_parse": "2.13.0",
    "torch._C._dispatch_keys": "2.13.0",
    "torch._C._functorch.peek_interpreter_stack": "2.13.0",
    "torch._C._get_cudnn_enabled": "2.13.0",
    "torch._C._get_mkldnn_enabled": "2.13.0",
    "torch._C._is_alias_of": "2.13.0",
    "torch._C._set_cudnn_enabled": "2.13.0",
    "torch._C._set_mkldnn_enabled": "2.13.0",
    "torch._ops.OpOverload": "2.13.0",
    "torch.autograd._get_sequence_nr": "2.13.0",
    "torch.autograd.forward_ad._current_level": "2.13.0",
    "torch.nn.modules.batchnorm._BatchNorm": "2.13.0",
    "torch.nn.modules.instancenorm._InstanceNorm": "2.13.0",
    "torch.utils._python_dispatch.TorchDispatchMode": "2.13.0",
    "torch.utils._python_dispatch._get_current_dispatch_mode_stack": "2.13.0",
    "torch.utils._python_dispatch.is_in_torch_dispatch_mode": "2.13.0",
}
PRIVATE = re.compile(r"\._(?!_)")


def names_of_torch(path: Path) -> set[str]:
    """All dotted names below torch that a module imports or reads, under their names in torch."""
    tree = ast.parse(path.read_text())
    homes, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            of_torch = [one for one in node.names if one.name.split(".")[0] == "torch"]
            homes |= {one.asname or "torch": one.name if one.asname else "torch" for one in of_torch}
            found |= {one.name for one in of_torch}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            homes |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
            found |= {f"{node.module}.{one.name}" for one in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if first in homes and re.fullmatch(r"[\w.]+", rest):
                found.add(f"{homes[first]}.{rest}")
    return found


def private(path: Path) -> set[str]:
    names = {name for name in names_of_torch(path) if PRIVATE.search(name)}
    return {name for name in names if not any(other.startswith(name + ".") for other in names)}


def test_no_other_module_reads_a_private_name_of_torch() -> None:
    found = {path: private(path) for path in PACKAGE.rglob("*.py") if path != HOME}
    assert {path: names for path, names in found.items() if names} == {}


def test_every_private_name_says_in_which_version_it_was_seen() -> None:
    assert private(HOME) == set(SEEN_IN)


@pytest.mark.parametrize("name", SEEN_IN)
def test_torch_still_has_it(name: str) -> None:
    value = torch
    for part in name.split(".")[1:]:
        assert hasattr(value, part), f"{name} was seen in torch {SEEN_IN[name]}; torch {torch.__version__} lacks {part}"
        value = getattr(value, part)


def test_what_was_written_to_and_what_shares_memory_is_known() -> None:
    x = torch.ones(3, 4)
    before = _torch.version(x)
    x.add_(1)
    assert _torch.version(x) > before
    assert _torch.shares_memory(x, x[1:])
    assert not _torch.shares_memory(x, x.clone())
    assert not _torch.shares_memory(x, x.to("meta"))
    with torch.inference_mode():
        assert _torch.version(torch.ones(3)) == 0


def test_a_constant_result_is_marked_as_torch_marks_it() -> None:
    def ours() -> int:
        return 1

    def torchs() -> int:
        return 1

    assert _torch.assume_constant_result(ours) is ours
    assert vars(ours) == vars(torch.compiler.assume_constant_result(torchs)) != {}


def test_a_layer_starts_without_torchs_compiler() -> None:
    """Importing it takes over a second."""
    code = "import sys, torch, spectrum; y = spectrum.SegmentedConv2d(4, 4, segments=2)(torch.ones(1, 4, 5, 5))"
    code += "; y.sum().backward(); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_batch_of_gradients_is_told_from_one() -> None:
    seen = []
    torch.vmap(lambda x: (seen.append(_torch.is_batched(x)), x)[1])(torch.ones(2, 3))
    assert seen == [True]
    assert not _torch.is_batched(torch.ones(2, 3))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap, torch.func.functionalize])
def test_a_transform_is_seen_while_it_runs(transform) -> None:
    seen = []
    transform(lambda x: (seen.append(_torch.is_in_transform()), x.sum())[1])(torch.ones(3))
    assert seen == [True]
    assert not _torch.is_in_transform()


def test_forward_mode_is_seen_while_it_is_open() -> None:
    assert not _torch.is_in_forward_mode()
    with forward_ad.dual_level():
        assert _torch.is_in_forward_mode()
    assert not _torch.is_in_forward_mode()


def test_operators_that_are_made_of_others_are_told() -> None:
    aten = torch.ops.aten
    assert _torch.has_composite_kernel(aten.linear.default)
    assert not _torch.has_composite_kernel(aten.addmm.default)
    assert isinstance(aten.linear.default, _torch.OpOverload)


def test_a_node_keeps_the_number_that_was_next_when_it_was_recorded() -> None:
    x = torch.ones(3, requires_grad=True)
    number = _torch.next_sequence_number()
    y = x * 2
    assert _torch.sequence_number(y.grad_fn) == number
    assert _torch.next_sequence_number() > number
    torch.ones(3) * 2
    after = _torch.next_sequence_number()
    torch.ones(3) * 2  # records nothing
    assert _torch.next_sequence_number() == after


def test_the_node_that_is_differentiated_is_seen_in_its_hook_and_nowhere_else() -> None:
    x = torch.ones(3, requires_grad=True)
    y = (x * 2).exp()
    seen = []
    y.grad_fn.next_functions[0][0].register_prehook(lambda _: seen.append(_torch.backward_node().name()))
    assert _torch.backward_node() is None
    y.sum().backward()
    assert seen == ["MulBackward0"]


def test_modes_are_those_of_the_thread_that_entered_them() -> None:
    class Mode(_torch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    seen = []
    assert not _torch.is_in_torch_dispatch_mode()
    with Mode() as mode:
        assert _torch.is_in_torch_dispatch_mode()
        assert _torch.dispatch_modes() == [mode]
        thread = threading.Thread(target=lambda: seen.append(_torch.dispatch_modes()))
        thread.start()
        thread.join()
    assert seen == [[]]


def test_memory_that_is_taken_and_given_back_is_seen_in_order() -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        block = torch.empty(1 << 20, dtype=torch.uint8)
        del block
    taken = [size for size in _torch.memory_changes(profiler) if abs(size) >= 1 << 20]
    assert taken == [1 << 20, -(1 << 20)]


@pytest.mark.parametrize("before", [True, False])
def test_libraries_are_off_for_a_while_and_then_as_before(before: bool) -> None:
    def enabled() -> tuple[bool, bool]:
        return torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()

    found = enabled()
    try:
        torch._C._set_mkldnn_enabled(before)
        torch._C._set_cudnn_enabled(before)
        with _torch.without_libraries():
            assert enabled() == (False, False)
        assert enabled() == (before, before)
    finally:
        torch._C._set_mkldnn_enabled(found[0])
        torch._C._set_cudnn_enabled(found[1])


def test_norms_of_all_dimensions_are_of_one_class() -> None:
    assert issubclass(nn.BatchNorm2d, _torch.AnyBatchNorm)
    assert issubclass(nn.SyncBatchNorm, _torch.AnyBatchNorm)
    assert issubclass(nn.InstanceNorm2d, _torch.AnyInstanceNorm)
    assert not issubclass(nn.GroupNorm, (_torch.AnyBatchNorm, _torch.AnyInstanceNorm))
