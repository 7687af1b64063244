"""Sizes follow transformers, its defaults included; unknown kinds are refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.bases import DENSE, EXPERTS
from trainables.base.layers import linear_layers
from trainables.errors import BaseModelError
from trainables.memory.architecture import FAMILIES, Architecture

KNOWN = {name: one for name, one in {**DENSE, **EXPERTS}.items() if one.model_type in FAMILIES}

SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
}
BARE = {
    kind: SMALL if kind != "gpt2" else {"vocab_size": 128, "n_embd": 64, "n_layer": 3, "n_head": 4}
    for kind in FAMILIES
}
"""Configs that leave all else to the defaults, as many on the hub do."""


def built(model_type, config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))


@pytest.mark.parametrize("name", KNOWN)
def test_layers_and_weights_are_those_of_the_model(name):
    one = KNOWN[name]
    model = built(one.model_type, one.config)
    shape = Architecture.from_config(model.config.to_dict())
    assert list(shape.named_linears()) == list(linear_layers(model))
    assert shape.weights() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_config_without_defaults_is_read_as_transformers_reads_it(kind):
    model = built(kind, BARE[kind])
    shape = Architecture.from_config({**BARE[kind], "model_type": kind})
    whole = Architecture.from_config(model.config.to_dict())
    assert shape == whole
    assert shape.weights() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["mamba", "bert", "llama4_text", None])
def test_an_unknown_kind_is_refused_and_not_guessed(kind):
    with pytest.raises(BaseModelError, match="memory is not known"):
        Architecture.from_config({**SMALL, "model_type": kind})


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": None}, {"hidden_size": "64"}, {"num_attention_heads": 0}, {"vocab_size": -1}],
    ids=str,
)
def test_a_config_without_sizes_is_refused(change):
    with pytest.raises(BaseModelError, match=r"config\.json"):
        Architecture.from_config({**SMALL, "model_type": "llama", **change})
