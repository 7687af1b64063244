"""Train one adapter on one base: the flat version of `trainables/engine.py`.

The engine trains many adapters at once, and measures, saves and moves each of them. This page
trains one adapter from the first step to the last with plain calls. For the same spec, both write
the same two PEFT files, byte for byte in float32 on one machine (`tests/test_one_adapter.py`).

Left out here: dropout, DoRA, EVA starts, micro-batches, float16, evaluation and checkpoints.

    python docs/one_adapter.py BASE ROWS.jsonl FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from trainables.base.layers import linear_layers
from trainables.base.loading import load_base
from trainables.base.targets import resolve_targets, short_targets
from trainables.packing.lora import initial_weights, peft_tensors
from trainables.rows.data import IGNORED_TARGET, collate, load_splits
from trainables.rows.epochs import batch_rows
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.bundle import ADAPTER_FILES, adapter_config
from trainables.training.optim import apply_gradients, build_optimizer


def train_adapter(spec: TrialSpec, folder: Path) -> list[float]:
    """Train the adapter of `spec`, save it for PEFT, and give the loss of every step."""
    base = load_base(spec.base)  # frozen, and quantized only the first time
    rows = load_splits(spec.data, base.tokenizer).train.rows
    layers = linear_layers(base.model)
    targets = resolve_targets(tuple(layers), spec.lora.targets)
    adapter = {name: add_branch(name, layers[name], spec) for name in targets}

    slow = [branch["a"] for branch in adapter.values()]
    fast = [branch["b"] for branch in adapter.values()]
    optimizer = build_optimizer(slow, fast, spec.optim)  # AdamW; LoRA+ tells the two groups apart
    parameters = [weight for pair in zip(slow, fast, strict=True) for weight in pair]
    lengths = tuple(len(row.input_ids) for row in rows)
    losses = []
    for step in range(spec.optim.steps):
        chosen = [rows[i] for i in batch_rows(lengths, spec.optim.batch_size, spec.seed, step)]
        # Rows are padded on the right, so a causal model needs no attention mask.
        padded = collate(chosen, base.tokenizer.pad_token_id or 0)
        ids, wanted = (torch.from_numpy(part).to(base.device) for part in padded)
        logits = base.model(input_ids=ids, use_cache=False).logits
        # The logits at t - 1 predict the token at t; prompts and padding do not count.
        is_scored = wanted[:, 1:] != IGNORED_TARGET
        found, goals = logits[:, :-1][is_scored].float(), wanted[:, 1:][is_scored]
        loss = F.cross_entropy(found, goals, reduction="sum") / len(goals)
        loss.backward()
        # Clips the gradient, sets the learning rate of this step, updates, clears the gradient.
        apply_gradients(optimizer, parameters, spec.optim, step)
        losses.append(loss.item())

    folder.mkdir(parents=True, exist_ok=True)
    config = adapter_config(spec.lora, base.record, short_targets(tuple(layers), targets))
    (folder / ADAPTER_FILES[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {name: one.detach().cpu() for name, one in peft_tensors(adapter).items()}
    save_file(tensors, folder / ADAPTER_FILES[1], metadata={"format": "pt"})
    return losses


def add_branch(
    name: str, layer: torch.nn.Linear, spec: TrialSpec
) -> dict[str, torch.nn.Parameter]:
    """LoRA on one frozen layer: from now on it gives `W x + scaling * B A x`."""
    drawn = initial_weights(spec.lora, name, layer.in_features, layer.out_features, spec.seed)
    a, b = (torch.nn.Parameter(one.to(layer.weight.device)) for one in drawn)

    def add(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        update = F.linear(F.linear(inputs[0].to(a.dtype), a), b)
        return output + (update * spec.lora.scaling).to(output.dtype)

    layer.register_forward_hook(add)
    return {"a": a, "b": b}  # (rank, in_features) and (out_features, rank), in float32


if __name__ == "__main__":
    model, data, folder = sys.argv[1:]
    trial = TrialSpec(
        base=BaseSpec(model=model, quantization="nf4"),
        lora=LoraSpec(rank=8, targets="attention"),
        optim=OptimSpec(steps=20, learning_rate=1e-3),
        data=DataSpec(train=data),
    )
    print(f"loss of the last step: {train_adapter(trial, Path(folder))[-1]:.4f}")
