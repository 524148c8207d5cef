"""Hugging Face's models in recipes: what they compute, with which methods, and what is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sam_algos import train
from sam_algos.recipes import RecipeError, load_recipe
from sam_algos.recipes.data.datasets import build_dataset
from sam_algos.recipes.data.models import build_model
from sam_algos.recipes.data.texts import Bytes, LabelledTexts, TextBlocks
from sam_algos.recipes.run import prepare
from tests.command.running import Capture, lines, metrics, refused
from tests.recipes.test_algorithms import BLOCKS, COMMON, PASSAGES
from tests.recipes.writing import Write

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16}
BERT = {"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
CALM = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CALM_BERT = ["model.config.hidden_dropout_prob=0", "model.config.attention_probs_dropout_prob=0"]


@pytest.fixture
def blocks() -> TextBlocks:
    return TextBlocks(torch.randint(1, 256, (6, 16)), torch.zeros(6, dtype=torch.int64), 1, Bytes(), 16)


@pytest.fixture
def passages() -> LabelledTexts:
    texts = [torch.randint(1, 256, (length,)) for length in (3, 16, 7, 1)]
    return LabelledTexts(texts, torch.tensor([0, 2, 1, 2]), 3, Bytes(), length=16)


def build(texts: Any, /, name: str = "hf_sequence_classification", **section: Any) -> Any:
    return build_model({"name": name, **section}, texts)


@pytest.mark.parametrize("config", [GPT2, BERT], ids=["gpt2", "bert"])
def test_padding_changes_nothing(config: dict[str, Any], passages: LabelledTexts) -> None:
    model = build(passages, config=config).eval()
    together = model(passages.collate([passages[i] for i in range(4)]))
    alone = torch.cat([model(passages.collate([passages[i]])) for i in range(4)])
    assert together.shape == (4, 3)
    assert torch.allclose(together, alone, atol=1e-6)


def test_a_classifier_has_the_cross_entropy_of_its_labels(passages: LabelledTexts) -> None:
    model = build(passages, config=BERT).eval()
    batch = passages.collate([passages[i] for i in range(4)])
    outputs = model(batch)
    each = functional.cross_entropy(outputs, batch["labels"], reduction="none")
    assert torch.allclose(model.loss(outputs, batch), each.mean())
    assert torch.allclose(model.loss(outputs, batch, reduction="none"), each)
    soft = {**batch, "labels": functional.one_hot(batch["labels"], 3).float()}
    assert torch.allclose(model.loss(outputs, soft), each.mean())


def test_a_language_model_predicts_the_next_token(blocks: TextBlocks) -> None:
    model = build(blocks, "hf_causal_lm", config=GPT2).eval()
    batch = blocks.collate([blocks[i] for i in range(3)])
    outputs = model(batch)
    logits, following = outputs["logits"][:, :-1].reshape(-1, 256), batch["labels"][:, 1:].reshape(-1)
    each = functional.cross_entropy(logits, following, reduction="none").reshape(3, 15).mean(1)
    assert torch.allclose(model.loss(outputs, batch), each.mean())
    assert torch.allclose(model.loss(outputs, batch, reduction="none"), each)


def test_what_the_data_say_is_in_the_config(blocks: TextBlocks, passages: LabelledTexts) -> None:
    config = build(passages, config=GPT2).config
    assert (config.vocab_size, config.num_labels, config.pad_token_id, config.eos_token_id) == (256, 3, 0, None)
    assert build(blocks, "hf_causal_lm", config={**GPT2, "hidden_size": 12}).config.n_embd == 12


@pytest.mark.parametrize("text", [BLOCKS, PASSAGES], ids=["blocks", "passages"])
def test_microbatches_give_the_gradient_of_the_batch(text: str, write: Write) -> None:
    overrides = [f"model.config.{key}={value}" for key, value in CALM.items()] if text is BLOCKS else CALM_BERT
    found: list[dict[str, Tensor]] = []
    for name, more in (("whole", []), ("parts", ["device_train_microbatch_size=3"])):
        recipe = load_recipe(write(text + COMMON), [*overrides, *more, f"run_name={name}", "optimizer.lr=1.0"])
        run = prepare(recipe, "test")
        run.trainer.fit()
        found.append({key: value.clone() for key, value in run.trainer.state.model.state_dict().items()})
        run.trainer.close()
    assert all(torch.allclose(found[0][key], found[1][key], atol=1e-5) for key in found[0])


def test_evaluation_weighs_every_token_alike(write: Write, tmp_path: Path) -> None:
    """Whatever the last batch has."""
    letters = "".join(map(chr, torch.randint(97, 123, (16 * 9,)).tolist()))
    (tmp_path / "text.txt").write_text(letters)
    section = "train_dataset={name: text_file, path: ../text.txt, eval_path: ../text.txt, block_size: 16}"
    run = prepare(
        load_recipe(write(BLOCKS + COMMON), [section, "global_eval_batch_size=4", "optimizer.lr=1.0"]), "test"
    )
    assert run.summary().headline is None
    run.trainer.fit()
    run.trainer.close()
    model: Any = run.trainer.state.model.eval()
    data: Any = run.trainer.state.evaluators[0].dataloader.dataloader.dataset
    assert bytes(torch.stack([ids for ids, _ in data]).flatten().tolist()).decode() == letters
    with torch.no_grad():
        losses = [model.loss(model(batch), batch) for batch in (data.collate([data[i]]) for i in range(9))]
    found = run.summary().headline
    assert found is not None and found.name == "perplexity"
    assert found.value == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-5)


def test_evaluation_weighs_every_passage_alike(write: Write, tmp_path: Path) -> None:
    rows = [f"{'ab'[number % 2] * (number + 1)},{number % 3 > 0}" for number in range(9)]
    (tmp_path / "table.csv").write_text("\n".join(["text,label", *rows]))
    section = "train_dataset={name: text_table, path: ../table.csv, eval_path: ../table.csv, max_length: 16}"
    run = prepare(load_recipe(write(PASSAGES + COMMON), [section, "global_eval_batch_size=4"]), "test")
    run.trainer.fit()
    run.trainer.close()
    model: Any = run.trainer.state.model.eval()
    data: Any = build_dataset("data", load_recipe(run.recipe).train_dataset, train=False)
    with torch.no_grad():
        right = [int(model(data.collate([data[i]])).argmax()) == data[i][1] for i in range(9)]
    found = run.summary().headline
    assert found is not None and found.name == "accuracy"
    assert found.value == pytest.approx(100 * sum(right) / 9)


METHODS = {
    "aesam": "{lambda_1: 2.0, lambda_2: 2.0}", "sam": "{ascent_fraction: 0.5}", "esam": "{}", "gsam": "{}",
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", [BLOCKS, PASSAGES], ids=["blocks", "passages"])
def test_methods_take_text(method: str, text: str, write: Write, capsys: Capture) -> None:
    argv = [str(write(text + COMMON)), f"algorithms.{method}={METHODS[method]}", "optimizer={name: adamw, lr: 1e-3}"]
    assert train.main([*argv, "max_duration=4ba", "device_train_microbatch_size=2", "--traceback"]) == 0
    table = lines(capsys.readouterr().out)
    logged = metrics(table)
    assert any(line.get("sam/applied") for line in logged)
    score = "test perplexity" if text is BLOCKS else "clean test accuracy"
    assert re.fullmatch(r"\d+\.\d+( %)?", table[score])
    assert ("clean test accuracy" in table) == (text is PASSAGES)


def test_smoothed_labels_change_what_a_classifier_learns(write: Write, capsys: Capture) -> None:
    losses = []
    for name, more in (("hard", []), ("soft", ["algorithms.label_smoothing={smoothing: 0.9, target_key: labels}"])):
        assert train.main([str(write(PASSAGES + COMMON)), f"run_name={name}", *more]) == 0
        losses.append([line.get("loss/train/total") for line in metrics(lines(capsys.readouterr().out))][:2])
    assert losses[0] != losses[1] and None not in losses[0] + losses[1]


def test_bootstrap_relabels_passages(write: Write, capsys: Capture) -> None:
    argv = [str(write(PASSAGES + COMMON)), "bootstrap=1", "train_dataset.label_noise=0.4"]
    assert train.main([*argv, "global_eval_batch_size=300", "max_duration=20ba"]) == 0
    table = lines(capsys.readouterr().out)
    assert re.fullmatch(r"\d+\.\d\d % changed; true ones from 59\.94 % to \d+\.\d\d %", table["labels, round 1"])


def test_bootstrap_needs_classes(write: Write, capsys: Capture) -> None:
    message = "error: bootstrap: must be 0 where text has no classes, got 1"
    refused([str(write(BLOCKS + COMMON)), "bootstrap=1"], capsys, message)


def test_a_pretrained_model_comes_from_a_folder(blocks: TextBlocks, passages: LabelledTexts, tmp_path: Path) -> None:
    model = build(blocks, "hf_causal_lm", config=GPT2)
    model.model.save_pretrained(tmp_path / "saved")
    folder = str(tmp_path / "saved")
    again = build(blocks, "hf_causal_lm", pretrained=folder, config={"attn_pdrop": 0.5})
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert (again.training, again.config.attn_pdrop) == (True, 0.5)
    classifier = build(passages, pretrained=folder)
    assert torch.equal(classifier.model.transformer.wte.weight, model.model.transformer.wte.weight)
    assert classifier.model.score.weight.shape == (3, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"model.pretrained: '.*empty' does not hold such a model: "):
        build(blocks, "hf_causal_lm", pretrained=str(tmp_path / "empty"))
    with pytest.raises(RecipeError, match=r"model.config: unknown argument 'n_layr'; did you mean 'n_layer'?"):
        build(blocks, "hf_causal_lm", pretrained=folder, config={"n_layr": 1})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "model.config.model_type: required without model.pretrained"),
        ({"config": {}}, "model.config.model_type: required"),
        (
            {"config": {"model_type": "gtp2"}},
            "model.config.model_type: unknown model_type 'gtp2'; did you mean 'gpt2'?",
        ),
        ({"config": {"model_type": "vit"}}, "model.config.model_type: unknown model_type 'vit'"),
        ({"config": {**GPT2, "n_layr": 1}}, "model.config: unknown argument 'n_layr'; did you mean 'n_layer'?"),
        ({"config": {**GPT2, "vocab_size": 9}}, "model.config.vocab_size: follows from the data: leave it out"),
        ({"config": {**GPT2, "n_positions": 8}}, "train_dataset.block_size: must be at most 8, which the model takes"),
        ({"config": {**GPT2, "n_embd": 9}}, "model: `embed_dim` must be divisible by num_heads"),
        ({"config": 3}, "model.config: must be a mapping, or null, got 3"),
        ({"pretrained": "gpt2"}, "model.pretrained: no folder 'gpt2'; put it there, nothing is downloaded"),
        ({"pretrain": "gpt2"}, "model: unknown argument 'pretrain'; did you mean 'pretrained'?"),
        ({"data": 1}, "model: unknown argument 'data'"),
        ({"name": "small_cnn"}, "model.name: small_cnn takes images; train_dataset has text: write hf_causal_lm"),
        ({"name": "hf_sequence_classification"}, "model.name: hf_sequence_classification needs classes"),
        ({"name": "hf_causal_ml"}, "model.name: unknown model 'hf_causal_ml'; did you mean 'hf_causal_lm'?"),
    ],
)
def test_wrong_models(section: dict[str, Any], message: str, blocks: TextBlocks) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        build(blocks, **{"name": "hf_causal_lm", **section})


def test_a_pretrained_model_must_know_the_tokens(blocks: TextBlocks, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {key: value for key, value in GPT2.items() if key != "model_type"}
    GPT2LMHeadModel(GPT2Config(vocab_size=100, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"model.pretrained: has 100 tokens, train_dataset 256; set its tokenizer"):
        build(blocks, "hf_causal_lm", pretrained=str(tmp_path))


def test_text_and_images_are_told_apart(passages: LabelledTexts) -> None:
    with pytest.raises(RecipeError, match=r"small_cnn takes images; .*: write hf_sequence_classification"):
        build(passages, "small_cnn")
    with pytest.raises(RecipeError, match=r"model.name: hf_causal_lm needs text to predict"):
        build(passages, "hf_causal_lm", config=GPT2)
    with pytest.raises(RecipeError, match=r"model.name: hf_causal_lm takes text; train_dataset has images"):
        build_model({"name": "hf_causal_lm"}, build_dataset("data", {"name": "digits"}, train=True))


def test_without_transformers_the_extra_is_named(blocks: TextBlocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        RecipeError, match=re.escape("model: Hugging Face's transformers is not installed: pip install")
    ):
        build(blocks, "hf_causal_lm", config=GPT2)
