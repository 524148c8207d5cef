"""Hugging Face's models of text that a recipe can name: pretrained ones from a folder, or new ones from a config."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from composer.loss import soft_cross_entropy
from composer.metrics import LanguageCrossEntropy, LanguagePerplexity
from composer.models import HuggingFaceModel
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from sam_algos.recipes.data.texts import Bytes, LabelledTexts, TextBlocks, transformers
from sam_algos.recipes.errors import BadArgument, RecipeError, unknown
from sam_algos.recipes.naming.arguments import Folder
from sam_algos.recipes.naming.names import arguments_of, construct

# Composer warns of a missing tokenizer, but bytes need none to be saved.
logging.getLogger("composer.models.huggingface").addFilter(
    lambda record: "tokenizer was not provided" not in record.msg
)


class CausalLM(HuggingFaceModel):
    """A model that predicts the next token."""

    def loss(self, outputs: Any, batch: Mapping[str, Tensor], reduction: str = "mean") -> Tensor:
        """The model's own loss; with ``reduction="none"`` the loss of each block."""
        if reduction == "mean":
            return super().loss(outputs, batch)
        predicted = outputs["logits"][:, :-1].float().transpose(1, 2)
        return functional.cross_entropy(predicted, batch["labels"][:, 1:], reduction="none").mean(1)


class SequenceClassifier(HuggingFaceModel):
    """A model that classifies passages; its loss takes soft labels, too."""

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits, shape ``(batch, classes)``, as algorithms that change labels expect them."""
        return super().forward({name: value for name, value in batch.items() if name != "labels"})["logits"]

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], reduction: str = "mean") -> Tensor:
        """Cross-entropy."""
        return soft_cross_entropy(outputs, batch["labels"], reduction=reduction)

    def eval_forward(self, batch: Mapping[str, Tensor], outputs: Tensor | None = None) -> Tensor:
        """The logits; the batch keeps its labels."""
        self.labels = batch["labels"]
        return self.forward(batch) if outputs is None else outputs


def hf_causal_lm(
    *, data: TextBlocks, pretrained: Folder | None = None, config: dict[str, Any] | None = None
) -> HuggingFaceModel:
    """A causal language model.

    Args:
        data (TextBlocks): What it is trained on. A new model has the vocabulary of the data.
        pretrained (str, optional): A folder with a model. Default: none; then weights are random.
        config (dict, optional): Without `pretrained` its ``model_type`` and what differs from Hugging Face's defaults
            for that type; with it, what differs from the folder's config. Default: nothing.

    Returns:
        HuggingFaceModel: In training mode.

    Raises:
        RecipeError: For a wrong config.
        ValueError: If there is no model in the folder, and if transformers is not installed.
    """
    if not isinstance(data, TextBlocks):
        raise RecipeError("model.name", "hf_causal_lm needs text to predict; train_dataset has classes")
    model = _network("AutoModelForCausalLM", data, pretrained, config or {})
    if getattr(model, "loss_type", None) is None:  # or transformers warns where the class's name does not say so
        model.loss_type = "ForCausalLM"
    metrics: list[Metric] = [LanguageCrossEntropy(), LanguagePerplexity()]
    return CausalLM(model, _saved(data), use_logits=True, eval_metrics=metrics, shift_labels=True).train()


def hf_sequence_classification(
    *, data: LabelledTexts, pretrained: Folder | None = None, config: dict[str, Any] | None = None
) -> HuggingFaceModel:
    """A sequence classifier.

    Arguments and errors are those of `hf_causal_lm`. The data also give the number of classes. A pretrained model
    without a classifier gets a new last layer.
    """
    if isinstance(data, TextBlocks):
        raise RecipeError("model.name", "hf_sequence_classification needs classes; train_dataset has none")
    classes = data.num_classes
    model = _network("AutoModelForSequenceClassification", data, pretrained, config or {}, num_labels=classes)
    metrics: list[Metric] = [MulticlassAccuracy(num_classes=classes, average="micro")]
    return SequenceClassifier(model, _saved(data), use_logits=True, eval_metrics=metrics, shift_labels=False).train()


TEXT_MODELS = {build.__name__: build for build in (hf_causal_lm, hf_sequence_classification)}
"""The models of text by name: functions of the data and of the arguments in the recipe."""


def build_text_model(section: Mapping[str, Any], factory: Any, data: LabelledTexts) -> HuggingFaceModel:
    """Build the model of a recipe with one of `TEXT_MODELS`, and check that it takes the data's text."""
    model = construct("model", factory, arguments_of(section), data=data)
    longest = getattr(model.config, "max_position_embeddings", None) or data.length
    if longest < data.length:
        key = f"train_dataset.{'block_size' if isinstance(data, TextBlocks) else 'max_length'}"
        raise RecipeError(key, f"must be at most {longest}, which the model takes, got {data.length}")
    try:
        with torch.no_grad():
            model.eval()(data.collate([data[0], data[1 % len(data)]]))
    except Exception as error:  # each model has its own way to refuse
        raise RecipeError("model", f"{section['name']} does not take the text of train_dataset: {error}") from error
    return model.train()


def _saved(data: LabelledTexts) -> Any:
    """The tokenizer that checkpoints hold."""
    return None if isinstance(data.tokenizer, Bytes) else data.tokenizer


def _network(auto: str, data: LabelledTexts, pretrained: str | None, config: dict[str, Any], **own: Any) -> Any:
    """A model of Hugging Face's."""
    own = {**own, "pad_token_id": data.pad}
    tokens = len(data.tokenizer)
    for key in ("vocab_size", "num_labels", "pad_token_id"):
        if key in config:
            raise RecipeError(f"model.config.{key}", "follows from the data: leave it out")
    if pretrained is None:
        return transformers(auto).from_config(_new_config(auto, config, {**own, "vocab_size": tokens}))
    folder = {"local_files_only": True, "trust_remote_code": False}
    path = Path(pretrained).expanduser()
    try:
        known = transformers("AutoConfig").from_pretrained(path, **folder)
        _check_keys(type(known), config)
        if known.vocab_size < tokens:
            few = f"has {known.vocab_size} tokens, train_dataset {tokens}; set its tokenizer"
            raise RecipeError("model.pretrained", few)
        known.update({**config, **own})
        return transformers(auto).from_pretrained(path, config=known, **folder)
    except RecipeError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadArgument("pretrained", f"{pretrained!r} does not hold such a model: {error}") from error


def _new_config(auto: str, config: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    kinds, given = transformers("CONFIG_MAPPING"), dict(config)
    if "model_type" not in given:
        raise RecipeError("model.config.model_type", "required without model.pretrained, e.g. gpt2 or bert")
    kind = given.pop("model_type")
    can = [name for name in kinds.keys() if kinds[name] in transformers(auto)._model_mapping]  # noqa: SIM118
    if kind not in can:
        raise unknown("model.config.model_type", "model_type", kind, can)
    _check_keys(kinds[kind], given)
    # The defaults for these two need not be among the data's tokens.
    return kinds[kind](**{"bos_token_id": None, "eos_token_id": None, **given, **own})


def _check_keys(kind: Any, config: Mapping[str, Any]) -> None:
    """Refuse what the kind of config does not know: it would keep it silently."""
    named = {*inspect.signature(kind.__init__).parameters, *kind.attribute_map} - {"self", "kwargs", "model_type"}
    valid = named | set(transformers("PretrainedConfig")().to_dict()) - {"model_type"}
    for key in config:
        if key not in valid:
            raise unknown("model.config", "argument", key, valid)
