"""Attaches gates, also to a model that is compact already, and detaches them.

A compact model is gated in its dense sizes (:mod:`finegates.compaction.reopening`). What it lacks
is then removed from the gated model as while training (:mod:`finegates.compaction.removal`), so
that no step pays for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from finegates.adapters import adapter_for, unwrap
from finegates.adapters.undescribed import warn_of_undescribed
from finegates.arguments import check_config
from finegates.compaction.given_sizes import gate_as_given, given_size
from finegates.compaction.peft_targets import product_paths
from finegates.compaction.removal import remove_closed
from finegates.compaction.reopening import is_compact, reopened
from finegates.compaction.training_state import TrainingState
from finegates.compaction.transform import compact
from finegates.compaction.widening import widened
from finegates.gates import attachment, detachment
from finegates.gates.config import GateConfig
from finegates.gates.dense_form import check_whole, in_dense_sizes
from finegates.gates.gated_linear import gated_layers, leaf_gates
from finegates.gates.removed_before import lost_of
from finegates.gates.stochastic import StochasticGate

logger = logging.getLogger(__name__)


def attach(model: nn.Module, config: GateConfig | None = None) -> nn.Module:
    """Wraps the model's linear layers with stochastic gates, in place.

    The preset decides what is trained afterwards: the gates, the biases of gated layers, the task
    head, and low-rank factors of ``peft``; everything else is frozen. Methods of ``peft`` other
    than plain LoRA must be merged by ``peft`` before the model is compacted.

    The first forward passes are watched (:func:`finegates.gates.bypass.watch_weights`): they raise
    ValueError if a module uses the weight of a gated layer without the gates.

    A compact model can be gated again, by shared gates. ``target`` is then a fraction of the MACs
    of the compact model, unless ``target_of="original"``. Its layers get the sizes that their
    gates have in common: with q, k and v that read different inputs (independent gates were closed)
    all read what one of them reads. Its fused layers are separate again until it is compacted.

    Args:
        model: a transformers model, or a ``peft`` model around one; dense or compact.
        config: defaults to ``GateConfig()``.

    Returns:
        the same model. A compact one has other modules inside; what was taken out of it before,
        such as a submodule, does not belong to it any more.

    Raises:
        ValueError: gates are attached already; a pattern matches no layer, or a layer whose weight
            a module reads directly or holds outside of the tree of modules; no layer of the model
            is described and no patterns are given; a layer is missing or used twice; the target
            cannot be reached; the model is spread over several devices, or compact with independent
            gates, narrower experts or fewer hidden dimensions; with ``shrink``, a layer holds
            experts, an adapter other than plain LoRA, or a weight that another module has, too; or
            a layer of a compact model that gets other sizes has a hook, or a replaced forward. The
            model does not change.
        TypeError: a layer to be gated is not linear-like, or quantised; ``model`` is not a model,
            or ``config`` not a configuration. The model does not change.
    """
    check_config(config, GateConfig)
    config = config or GateConfig()
    inner = unwrap(model)
    if config.gate_preset().penalty != "macs" or not is_compact(inner) or gated_layers(inner):
        attachment.attach(model, config)
        if config.modules is None:
            warn_of_undescribed(adapter_for(inner).blocks(inner))
        return model
    with in_dense_sizes_again(model):
        attachment.attach(model, config)
        try:
            remove_closed(inner)
        except ValueError as error:
            logger.info("%s is gated in its dense sizes: %s", type(inner).__name__, error)
    warn_of_undescribed(adapter_for(inner).blocks(inner))
    return model


def detach(model: nn.Module, *, fold: bool = False) -> nn.Module:
    """Removes the gates, in place.

    A dense model that was pruned, once or several times, becomes the dense model that it was. A
    compact model that was gated or pruned again becomes the compact model that it was. Trained
    weights, biases and heads stay. So do ``requires_grad`` of every parameter and the mode of every
    module; a fused layer is trained if one of its layers was.

    Args:
        model: with or without gates.
        fold: multiply the evaluation gates into weights and biases, so that the outputs in
            evaluation mode do not change (up to rounding). Needs plain linear layers: merge
            low-rank adapters first, or use ``finegates.compact``. A layer that shares its weight
            with the embeddings gets its own copy.

    Returns:
        the same model; with ``fold=False`` it computes the same as before gates were attached,
        except for trained weights, biases, head and low-rank factors. The modules of one that was
        compact are others, as after :func:`attach`.

    Raises:
        ValueError: ``fold`` and a layer holds an unmerged low-rank adapter; dimensions were removed
            since gates were attached; or a compact model that was gated again has low-rank
            adapters, or got a hook on a smaller layer or another forward since. The model does not
            change.
    """
    inner = unwrap(model)
    modules = in_dense_sizes(inner).named_modules()
    records = {path: lost for path, module in modules if (lost := lost_of(module))}
    if not records:
        return detachment.detach(model, fold=fold)
    for gate in leaf_gates(inner):
        if isinstance(gate, StochasticGate) and gate.size < given_size(gate):
            check_whole(inner, "detach")
    adapted = next((path for path, m in inner.named_modules() if hasattr(m, "lora_A")), None)
    if adapted is not None:
        raise ValueError(
            f"{adapted} holds a low-rank adapter, which does not fit the layers that "
            f"{type(inner).__name__} had before it was gated again; merge it first "
            "(merge_and_unload of peft), or call finegates.compact, which merges"
        )
    state, dense = TrainingState(inner), widened(inner)
    detachment.detach(dense, fold=fold)
    gate_as_given(dense, records)
    small = compact(dense, inplace=True)
    state.restore(small)
    if small is not inner:
        vars(inner).clear()
        vars(inner).update(vars(small))
    return model


@contextmanager
def in_dense_sizes_again(model: nn.Module) -> Iterator[None]:
    """Gives a compact model its dense sizes, in place.

    Args:
        model: compact, plain or wrapped by ``peft``. After an error within the block it is as it
            was before.
    """
    inner = unwrap(model)
    before = dict(vars(inner))
    trained = {parameter: parameter.requires_grad for parameter in inner.parameters()}
    products = set(product_paths(inner).values())
    vars(inner).update(vars(reopened(inner)))
    former = [(holder, name, getattr(holder, name)) for holder, name in _names_of_layers(model)]
    adapted = {path: m for path, m in inner.named_modules() if hasattr(m, "lora_A")}
    for holder, name, old in former:
        if products & set(old):
            setattr(holder, name, type(old)(adapted))
    try:
        yield
    except BaseException:
        vars(inner).clear()
        vars(inner).update(before)
        for parameter, requires_grad in trained.items():
            parameter.requires_grad_(requires_grad)
        for holder, name, old in former:
            setattr(holder, name, old)
        raise


def _names_of_layers(model: nn.Module) -> Iterator[tuple[Any, str]]:
    """Where ``peft`` keeps the paths of the layers with adapters: objects and attributes."""
    configs: Any = getattr(model, "peft_config", None)
    for config in configs.values() if isinstance(configs, dict) else ():
        if isinstance(config.target_modules, set | list):
            yield config, "target_modules"
    tuner: Any = getattr(model, "base_model", None)
    if isinstance(getattr(tuner, "targeted_module_names", None), list):
        yield tuner, "targeted_module_names"
