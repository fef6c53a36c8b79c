"""The families hotset can run. A new one adds its descriptor file and a line here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hotset.errors import ModelError
from hotset.models import arcee, bamboo, falcon, gemma3, llama, minicpm, mistral, nemotron, olmo2, opt, qwen2, qwen3
from hotset.models.blocks import tensor_specs
from hotset.models.inert import INERT
from hotset.models.reader import Reader, show
from hotset.models.spec import Family, Model

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    gemma3.FAMILY,
    gemma3.MULTIMODAL,
    olmo2.FAMILY,
    opt.FAMILY,
    llama.PROSPARSE,
    bamboo.FAMILY,
    minicpm.FAMILY,
    arcee.FAMILY,
    nemotron.FAMILY,
    falcon.FAMILY,
)
BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}
BY_MODEL_TYPE = {name: family for family in FAMILIES for name in family.model_types}


def families() -> tuple[str, ...]:
    """Names of the families, in order."""
    return tuple(dict.fromkeys(family.name for family in FAMILIES))


def resolve(config: Mapping[str, Any], *, ignore_keys: Collection[str] = ()) -> Model:
    """Reads a config.json in any spelling of transformers 4 and 5.

    Args:
        config: the parsed file. Of a store's own section `hotset` only the ignore_keys it was converted with matter.
        ignore_keys: keys to treat as absent ("rope_scaling.mscale" for nested ones).
    Raises: ModelError for an unknown architecture, an unknown, missing or unsupported key, a value out of range.
    """
    reader = Reader(config, ignore={*ignore_keys, *_converted_without(config)})
    family = find(reader)
    _refuse_quantized(reader)
    reader.only("is_encoder_decoder", False)
    reader.only("add_cross_attention", False)
    reader.only("pruned_heads", {})
    parts = family.build(reader)
    reader.finish(INERT | family.inert)
    # A tied head is often stored as well, as a copy of the embedding; `convert` makes sure that it is one.
    copies = () if "head" in parts.names else ("lm_head.weight", "*.lm_head.weight")
    predictors = (name.replace("{}", "*") for name in parts.predictor.values())
    return Model(
        family=family.name,
        config=parts.config,
        tensors=tensor_specs(parts),
        unused=(*parts.unused, *copies, *predictors),
        prefixes=parts.prefixes,
        notes=parts.notes,
        predictor=parts.predictor,
    )


def _converted_without(config: Mapping[str, Any]) -> Collection[str]:
    """The keys that a store was converted with as absent; it keeps the model's config.json unchanged."""
    section = Reader(config).section("hotset")
    options = section.section("options") if section is not None else None
    keys = options.typed("ignore_keys", list, "a list of keys", []) if options is not None else []
    return [key for key in keys if isinstance(key, str)]


def find(reader: Reader) -> Family:
    """The family by architectures[0], or by model_type where a config names no architecture."""
    architectures = reader.typed("architectures", list, "a list of texts", None)
    model_type = reader.text("model_type", None)
    name = str(architectures[0]) if architectures else None
    if name in BY_ARCHITECTURE:
        return BY_ARCHITECTURE[name]
    if name is None and model_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[model_type]
    if name is None and model_type is None:
        raise ModelError(
            f"{reader.source} names no architecture: it has neither 'architectures' nor 'model_type'. "
            f"hotset runs {', '.join(BY_ARCHITECTURE)}"
        )
    raise unknown(name or str(model_type), BY_ARCHITECTURE if name else BY_MODEL_TYPE, "architecture")


def unknown(name: str, known: Collection[str], what: str) -> ModelError:
    """The error that lists the known names and the closest of them."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    hint = f"; the closest is {close[0]}" if close else ""
    return ModelError(f"the {what} '{name}' is not one that hotset runs: {', '.join(known)}{hint}")


def _refuse_quantized(reader: Reader) -> None:
    section = reader.section("quantization_config")
    if section is not None:
        method = section.found("quant_method")
        reader.refuse(
            "quantization_config",
            "its absence",
            f"the weights are packed by {show(method)}; convert the unquantized model",
        )
