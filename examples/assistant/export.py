"""Write a trained network in Hugging Face layout, and read it back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from . import schema
from .net import Llama, Shape

if TYPE_CHECKING:
    from pathlib import Path


def export(net: Llama, folder: Path) -> None:
    """Write config.json, action.schema.json and model.safetensors (f16) into a folder, the weights in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(net.shape.config(), indent=2) + "\n")
    (folder / "action.schema.json").write_text(schema.text())
    tensors = {name: weight.to(torch.float16).contiguous() for name, weight in net.tensors().items()}
    fresh = folder / "model.safetensors.new"
    save_file(tensors, fresh, metadata={"format": "pt"})
    fresh.chmod(0o644)
    fresh.replace(folder / "model.safetensors")


def load(folder: Path) -> Llama:
    """Return the network that `export` wrote, its weights in float32."""
    net = Llama(Shape())
    tensors = load_file(folder / "model.safetensors")
    net.load_state_dict({name.removeprefix("model."): weight.float() for name, weight in tensors.items()})
    net.eval()
    return net
