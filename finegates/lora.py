"""LoRA through ``peft`` on the layers that gates would go on."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import nn

from finegates.adapters import adapter_for, unwrap
from finegates.compaction.peft_targets import teach_peft
from finegates.extras import needed_for
from finegates.gates.attachment import head_parameters
from finegates.gates.gated_linear import gated_layers


def add_lora(
    model: nn.Module, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0
) -> nn.Module:
    """Adds LoRA to every layer that gates would go on, and a trained head.

    Stacked experts get none, and neither do dense layers whose names peft takes for theirs (such as
    ``down_proj`` of DeepSeek), with a warning.

    The low-rank factors are initialised by ``peft`` from torch's default generator. The head is
    trained as a copy (``modules_to_save`` of ``peft``), so that ``save_pretrained`` of the wrapper
    and the checkpoints of any trainer hold it. Weights that a head shares with the embeddings stay
    frozen, like all other parameters.

    Args:
        model: a transformers model that has an architecture adapter; dense or compact. In a compact
            model the factors have the kept sizes, and fused layers get one pair of factors.
        rank: of the low-rank factors.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: before the low-rank factors.

    Returns:
        a ``peft.PeftModel`` around the same model.

    Raises:
        ImportError: peft is not installed.
        ValueError: the model has gates already.
    """
    first = next(iter(gated_layers(model)), None)
    if first is not None:
        raise ValueError(
            f"{first} has gates already, and peft adds nothing around them; call add_lora before "
            "attach"
        )
    with needed_for("finegates.add_lora", "peft"):
        import peft

    teach_peft()
    targets = list(adapter_for(model).gated(model))
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=_unshared(model) or None,
        bias="none",
    )
    kept = _without_names_of_experts(config, model)
    if len(kept) < len(targets):
        first = next(path for path in targets if path not in kept)
        warnings.warn(
            f"{first} ({len(targets) - len(kept)} such layers) gets no LoRA: peft takes its name "
            f"for that of the experts of {type(unwrap(model)).__name__}",
            stacklevel=2,
        )
        config.target_modules = [path for path in targets if path in kept]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: nn.Module = peft.get_peft_model(model, config)
    left_out = [n for n, p in head_parameters(wrapped).items() if not p.requires_grad]
    for name in left_out:
        unwrap(wrapped).get_parameter(name).requires_grad_(True)
    if left_out:
        warnings.warn(
            f"{', '.join(left_out)} are trained, but peft does not save them: their parent modules "
            "share weights with the embeddings; save the whole model after merge_and_unload",
            stacklevel=2,
        )
    return wrapped


def _without_names_of_experts(config: Any, model: nn.Module) -> set[str]:
    """The targets of a configuration that peft does not turn into parameters of experts.

    In some mixtures of experts, peft takes every ``down_proj`` for one of the experts that older
    versions of transformers had, also the dense ones.
    """
    targets = set(config.target_modules)
    try:
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:  # older versions take names as they are
        return targets
    converted = copy.deepcopy(config)
    conversion.convert_peft_config_for_transformers(converted, model=model, conversions=None)
    return targets & set(converted.target_modules)


def _unshared(model: nn.Module) -> list[str]:
    """Largest modules of the task head that share no parameter with other modules."""
    inner = unwrap(model)
    head = {id(parameter) for parameter in head_parameters(inner).values()}
    holders: dict[int, list[str]] = {}
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    found: list[str] = []
    for path, module in inner.named_modules():
        if not path or any(path.startswith(f"{outer}.") for outer in found):
            continue
        own = [id(parameter) for parameter in module.parameters()]
        if own and all(
            one in head and all(name.startswith(f"{path}.") for name in holders[one]) for one in own
        ):
            found.append(path)
    return found
