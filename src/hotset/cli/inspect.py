"""`hotset inspect`: what a model is and what running it takes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli.options import JsonFlag, ModelArgument
from hotset.cli.text import human_bytes, note, print_json

if TYPE_CHECKING:
    from hotset.engine.budget import KvType
    from hotset.tools.inspect import ModelInfo


def inspect(
    model: ModelArgument,
    context: Annotated[
        int | None, typer.Option("--context", "-c", min=1, help="Context to count memory for; default: the model's.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all of a store and check its checksums.")] = False,
    ignore_key: Annotated[
        list[str] | None, typer.Option("--ignore-key", help="Accept this key of config.json although unknown.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Show a model's config, shapes, formats, sizes and the memory that running it takes. Downloads nothing."""
    from hotset.engine.budget import kv_bytes
    from hotset.tools import inspect as tool

    info = tool.inspect(_find(model), ignore_keys=tuple(ignore_key or ()))
    tokens = context or info.config.context
    kinds: tuple[KvType, ...] = ("f16", "int8")
    memory: dict[str, int] = {kv: kv_bytes(info.config, kv, tokens) for kv in kinds}
    if json:
        print_json(_as_json(info, tokens, memory))
    else:
        _print(info, tokens, memory)
        if tensors:
            _print_tensors(info)
    if verify:
        _verify(info)


def _find(model: str) -> Path:
    from hotset.tools import resolve_model

    path = Path(model).expanduser()
    return path if path.exists() else resolve_model(model, online=False)


def _as_json(info: ModelInfo, tokens: int, memory: dict[str, int]) -> dict[str, Any]:
    return {
        "path": str(info.path),
        "kind": info.kind,
        "family": info.family,
        "parameters": info.parameters,
        "weight_bytes": info.weight_bytes,
        "bytes_by_format": info.bytes_by_format(),
        "context": tokens,
        "kv_bytes": memory,
        "config": info.config.to_native(),
        "tensors": [asdict(tensor) for tensor in info.tensors],
    }


def _print(info: ModelInfo, tokens: int, memory: dict[str, int]) -> None:
    cfg, weights = info.config, info.weight_bytes
    local = sum(layer.window > 0 for layer in cfg.layers)
    windows = f" ({local} with a sliding window)" if local else ""
    up = "" if cfg.act_up == "none" else f" and {cfg.act_up}"
    ffn = f"gated, {cfg.act_gate}{up}" if cfg.gated else f"plain, {cfg.act_gate}"
    formats = ", ".join(f"{name} {human_bytes(size)}" for name, size in info.bytes_by_format().items())
    needs = ", ".join(f"{human_bytes(weights + size)} with KV in {kv}" for kv, size in memory.items())
    lines = {
        "path": f"{info.path} ({info.kind})",
        "model": f"{info.family}, {info.parameters / 1e6:,.1f} M parameters",
        "limits": f"vocabulary {cfg.vocab}, context {cfg.context}",
        "layers": f"{len(cfg.layers)}{windows}, hidden {cfg.hidden}, FFN {cfg.ffn} ({ffn})",
        "attention": f"{cfg.heads} heads, {cfg.kv_heads} for keys and values, of {cfg.head_dim}",
        "weights": f"{human_bytes(weights)}: {formats}",
        "memory": f"weights + {tokens} tokens of context: {needs}",
    }
    for name, text in lines.items():
        print(f"{name:<12} {text}")


def _print_tensors(info: ModelInfo) -> None:
    width = max(len(tensor.name) for tensor in info.tensors)
    for tensor in info.tensors:
        shape = " x ".join(map(str, tensor.shape))
        print(f"{tensor.name:<{width}}  {tensor.format:<5} {shape:>15}  {human_bytes(tensor.bytes):>10}  {tensor.file}")


def _verify(info: ModelInfo) -> None:
    from hotset.cli.progress import progress_bar
    from hotset.errors import UsageError
    from hotset.formats.gates import verify_gates
    from hotset.formats.predictors import verify_predictors
    from hotset.formats.sketch import verify_sketch
    from hotset.formats.store import open_store

    if info.kind != "store":
        raise UsageError(f"--verify reads a store's checksums; {info.path} is a {info.kind} model and has none")
    with progress_bar() as progress:
        open_store(info.path).verify(progress)
    verify_predictors(info.path)
    verify_sketch(info.path)
    verify_gates(info.path)
    note(f"verified: every block of {Path(info.path).name} matches its checksum")
