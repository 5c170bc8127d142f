"""A shallower copy of a language model: fewer layers, evenly taken, to be trained as if they were all."""

from typing import Any

import numpy as np
from torch import nn

from store.errors import BadInput


def keep_layers(model: Any, count: int) -> None:
    """Leaves `count` of the model's layers, the first and the last among them, the others evenly spread between.

    What is dropped is recovered by training (Sajjad et al. 2023 drop layers of BERT in this way, and from the top).

    Raises:
        BadInput: when the model has fewer.
    """
    parent, name = _place_of_layers(model)
    layers: nn.ModuleList = getattr(parent, name)
    if count > len(layers):
        raise BadInput(f"the config keeps {count} layers, but the model has {len(layers)}: lower it")
    kept = np.linspace(0, len(layers) - 1, count).round().astype(int)
    setattr(parent, name, nn.ModuleList(layers[place] for place in kept.tolist()))
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[place] for place in kept.tolist()]
    for place, layer in enumerate(getattr(parent, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place


def _place_of_layers(model: Any) -> tuple[Any, str]:
    """The module that holds the layers, and their name in it: of the longest list of modules."""
    found = [
        (len(child), module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    _, module, name = max(found, key=lambda entry: entry[0])
    return module, name
