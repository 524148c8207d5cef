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
from torchmetrics.classification import MulticlassAccuracy

from sam_algos.recipes.errors import BadArgument, RecipeError, unknown
from sam_algos.recipes.names import arguments_of, construct
from sam_algos.recipes.paths import Folder
from sam_algos.recipes.texts import LabelledTexts, TextBlocks, transformers

# With bytes there is no tokenizer to save, which Composer would warn of.
logging.getLogger("composer.models.huggingface").addFilter(
    lambda record: "tokenizer was not provided" not in record.msg
)

_OURS = ("vocab_size", "num_labels", "pad_token_id")  # which follow from the data


class CausalLM(HuggingFaceModel):
    """A model that predicts the next token, with the cross-entropy and the perplexity of what it is evaluated on.

    Args:
        model (Any): Of Hugging Face's causal language models.
        data (TextBlocks): What it is trained on.
    """

    def __init__(self, model: Any, data: TextBlocks) -> None:
        metrics = [LanguageCrossEntropy(), LanguagePerplexity()]
        tokenizer = data.vocabulary.tokenizer
        super().__init__(model, tokenizer, use_logits=True, eval_metrics=metrics, shift_labels=True)
        if getattr(model, "loss_type", None) is None:  # where its name does not say so, it would warn
            model.loss_type = "ForCausalLM"

    def loss(self, outputs: Any, batch: Mapping[str, Tensor], reduction: str = "mean") -> Tensor:
        """The model's own loss; with ``reduction="none"`` that of each block."""
        if reduction == "mean":
            return super().loss(outputs, batch)
        following = batch["labels"][:, 1:]
        predicted = outputs["logits"][:, :-1].float().transpose(1, 2)
        return functional.cross_entropy(predicted, following, reduction="none").mean(1)


class SequenceClassifier(HuggingFaceModel):
    """A model that tells the class of a passage, with its accuracy on what it is evaluated on.

    The loss is that of the labels as algorithms left them: soft ones too.

    Args:
        model (Any): Of Hugging Face's sequence classifiers.
        data (LabelledTexts): What it is trained on.
    """

    def __init__(self, model: Any, data: LabelledTexts) -> None:
        metrics = [MulticlassAccuracy(num_classes=data.num_classes, average="micro")]
        tokenizer = data.vocabulary.tokenizer
        super().__init__(model, tokenizer, use_logits=True, eval_metrics=metrics, shift_labels=False)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits, shape ``(batch, classes)``: what algorithms that change labels look for."""
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
        data (TextBlocks): What it is trained on; with a new model the vocabulary is that of the data.
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
    return CausalLM(_network("AutoModelForCausalLM", data, pretrained, config or {}), data).train()


def hf_sequence_classification(
    *, data: LabelledTexts, pretrained: Folder | None = None, config: dict[str, Any] | None = None
) -> HuggingFaceModel:
    """A sequence classifier.

    Args:
        data (LabelledTexts): What it is trained on; gives the number of classes, and as for `hf_causal_lm`.
        pretrained (str, optional): As for `hf_causal_lm`. Where it is no classifier, its last layer is a new one.
        config (dict, optional): As for `hf_causal_lm`.

    Returns:
        HuggingFaceModel: In training mode.

    Raises:
        RecipeError: For a wrong config.
        ValueError: If there is no model in the folder, and if transformers is not installed.
    """
    if not isinstance(data, LabelledTexts):
        raise RecipeError("model.name", "hf_sequence_classification needs classes; train_dataset has none")
    auto, classes = "AutoModelForSequenceClassification", data.num_classes
    return SequenceClassifier(_network(auto, data, pretrained, config or {}, num_labels=classes), data).train()


TEXT_MODELS = {build.__name__: build for build in (hf_causal_lm, hf_sequence_classification)}
"""The models of text by name: functions of the data and of the arguments in the recipe."""


def build_text_model(section: Mapping[str, Any], factory: Any, data: LabelledTexts | TextBlocks) -> HuggingFaceModel:
    """Build the model of a recipe, and see that it takes the data's text.

    Args:
        section (Mapping[str, Any]): Its name and arguments.
        factory (Callable): One of `TEXT_MODELS`.
        data (LabelledTexts | TextBlocks): What it is trained on.

    Returns:
        HuggingFaceModel: With metrics that go with the data.

    Raises:
        RecipeError: For a wrong argument, and if the model does not take the data.
    """
    model = construct("model", factory, arguments_of(section), data=data)
    config: Any = model.config
    longest = getattr(config, "max_position_embeddings", None) or data.length
    if longest < data.length:
        key = f"train_dataset.{'block_size' if isinstance(data, TextBlocks) else 'max_length'}"
        raise RecipeError(key, f"must be at most {longest}, which the model takes, got {data.length}")
    try:
        with torch.no_grad():
            model.eval()(data.collate([data[0], data[1 % len(data)]]))  # type: ignore[list-item]
    except Exception as error:  # each model has its own way to refuse
        raise RecipeError("model", f"{section['name']} does not take the text of train_dataset: {error}") from error
    return model.train()


def _network(
    auto: str, data: LabelledTexts | TextBlocks, pretrained: str | None, config: dict[str, Any], **own: Any
) -> Any:
    """A model of Hugging Face's."""
    own = {**own, "pad_token_id": data.vocabulary.pad}
    for key in _OURS:
        if key in config:
            raise RecipeError(f"model.config.{key}", "follows from the data: leave it out")
    if pretrained is None:
        return transformers(auto).from_config(_new_config(auto, config, data.vocabulary.size, own))
    folder = {"local_files_only": True, "trust_remote_code": False}
    path = Path(pretrained).expanduser()
    try:
        known = transformers("AutoConfig").from_pretrained(path, **folder)
        _check_keys(type(known), config)
        if known.vocab_size < data.vocabulary.size:
            few = f"has {known.vocab_size} tokens, train_dataset {data.vocabulary.size}; set its tokenizer"
            raise RecipeError("model.pretrained", few)
        return transformers(auto).from_pretrained(path, config=_changed(known, {**config, **own}), **folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, RecipeError):
            raise
        raise BadArgument("pretrained", f"{pretrained!r} does not hold such a model: {error}") from error


def _new_config(auto: str, config: dict[str, Any], vocab_size: int, own: dict[str, Any]) -> Any:
    kinds = transformers("CONFIG_MAPPING")
    if "model_type" not in config:
        raise RecipeError("model.config.model_type", "required without model.pretrained, e.g. gpt2 or bert")
    kind, others = config["model_type"], {key: value for key, value in config.items() if key != "model_type"}
    can = [name for name in kinds.keys() if kinds[name] in transformers(auto)._model_mapping]  # noqa: SIM118
    if kind not in can:
        raise unknown("model.config.model_type", "model_type", kind, can)
    _check_keys(kinds[kind], others)
    # Those of the defaults need not be among the data's tokens.
    ends = {"bos_token_id": None, "eos_token_id": None}
    return kinds[kind](**{**ends, **others, **own, "vocab_size": vocab_size})


def _check_keys(kind: Any, config: Mapping[str, Any]) -> None:
    """Refuse what the kind of config does not know: it would keep it without a word."""
    named = {*inspect.signature(kind.__init__).parameters, *kind.attribute_map} - {"self", "kwargs", "model_type"}
    valid = named | set(transformers("PretrainedConfig")().to_dict()) - {"model_type"}
    for key in config:
        if key not in valid:
            raise unknown("model.config", "argument", key, valid)


def _changed(config: Any, changes: Mapping[str, Any]) -> Any:
    config.update(dict(changes))
    return config
