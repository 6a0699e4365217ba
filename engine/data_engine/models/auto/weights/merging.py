"""An adapter into a model of transformers, in place, one weight after the other."""

from collections import Counter
from collections.abc import Callable, Collection

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data_engine.models.checkpoints.adapter import Adapter, Change


def merge(model: PreTrainedModel, adapter: Adapter) -> None:
    """Raises ModelError where the adapter is not of this model; nothing is changed then."""
    for name, change in changes(model, adapter).items():
        weight = model.get_parameter(name).data
        weight.copy_(change(weight))


def changes(model: PreTrainedModel, adapter: Adapter) -> dict[str, Change]:
    """By parameter; the model may be on the meta device. Raises ModelError as Adapter.changes does."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    uses = Counter(map(id, parameters.values()))
    return adapter.changes(
        {name: tuple(parameter.shape) for name, parameter in parameters.items()},
        _rename(model, parameters),
        tied={name for name, parameter in parameters.items() if uses[id(parameter)] > 1},
        turned={f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)},
    )


def _rename(model: PreTrainedModel, names: Collection[str]) -> Callable[[str], str]:
    """From a name in the model that was trained to one here: as transformers reads checkpoints of older releases,
    in which `language_model.model.layers` or `model.layers` is what `model.language_model.layers` is now.
    """
    known = get_model_conversion_mapping(model)
    renamings = [one for one in known if isinstance(one, WeightRenaming)]
    converters = [one for one in known if isinstance(one, WeightConverter)]
    shapes = dict.fromkeys(names, True)

    def rename(name: str) -> str:
        if name in names:
            return name
        renamed, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, shapes)
        # One expert's weight is a part of a larger one here.
        return name if converted else renamed

    return rename
