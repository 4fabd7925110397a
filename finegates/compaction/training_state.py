"""Which parameters of a model are trained, and which of its modules are in training mode.

They are noted by dense path, so that a model with gates and one with other sizes can get them.
"""

from __future__ import annotations

from torch import nn

from finegates.compaction.dense_paths import by_dense_path, joined_path
from finegates.compaction.peft_targets import joint_layers


class TrainingState:
    """The flags of a model at the time of construction.

    Args:
        model: plain, of any kind; its gates are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modes: dict[str, bool] = {}
        self._trained: dict[str, bool] = {}
        for path, module in by_dense_path(model):
            self._modes.setdefault(path, module.training)
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._trained[joined_path(path, name)] = parameter.requires_grad

    def restore(self, model: nn.Module) -> None:
        """Sets the flags of another form of the model, in place.

        A fused layer is trained, or in training mode, if one of its layers is. A bias that the
        noted model does not have follows its weight.

        Args:
            model: plain, without gates.
        """
        members = joint_layers(model)
        modes: dict[str, bool] = {}
        for path, module in by_dense_path(model):
            sources = members.get(path, (path,))
            known = [self._modes[source] for source in sources if source in self._modes]
            outer = modes.get(path.rpartition(".")[0], False)
            module.training = modes[path] = any(known) if known else outer
            weight = False
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                each = (self._trained.get(joined_path(source, name)) for source in sources)
                flags = [flag for flag in each if flag is not None]
                trained = any(flags) if flags else weight
                parameter.requires_grad_(trained)
                weight = trained if name == "weight" else weight
