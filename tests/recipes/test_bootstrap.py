"""Each training but the first has the labels that the one before predicts, and an initialisation of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composer import Trainer
from PIL import Image
from torch import Tensor, nn

from sam_algos import train
from sam_algos.recipes import Recipe, RecipeError, load_recipe
from sam_algos.recipes.data.datasets import build_dataset
from sam_algos.recipes.data.models import build_model
from sam_algos.recipes.data.samples import LabelledImages
from sam_algos.recipes.run import Run, prepare, trainings
from tests.command.running import Capture, lines, refused
from tests.recipes.writing import Write

NOISY = ["train_dataset.label_noise=0.4", "bootstrap=1", "run_name=twice"]


def trained(recipe: Recipe) -> list[tuple[Run, dict[str, Tensor], Tensor]]:
    """The trainings, with their first weights and the labels that they are trained on."""
    found = []
    for run in trainings(recipe, "test"):
        first = {name: value.clone() for name, value in run.trainer.state.model.state_dict().items()}
        labels = run.trainer.state.train_dataloader.dataset.labels
        run.trainer.fit()
        found.append((run, first, labels))
    return found


def predicted(recipe: Recipe, checkpoint: str, images: Tensor) -> Tensor:
    """What a fresh network with the checkpoint's weights predicts."""
    model = build_model(recipe.model, LabelledImages([[image] for image in images], [0] * len(images), 10))
    model.load_state_dict(torch.load(checkpoint, weights_only=False)["state"]["model"])
    network: nn.Module = model.module.eval()
    with torch.no_grad():
        return torch.stack([network(image[None])[0].argmax() for image in images])


def test_the_second_training_has_the_labels_that_the_first_predicts(write: Write) -> None:
    recipe = load_recipe(write(), [*NOISY, "max_duration=3ep", "global_train_batch_size=100", "model.width=8"])
    (first, weights, noisy), (second, other_weights, labels) = trained(recipe)
    true = build_dataset("train_dataset", {"name": "digits"}, train=True)
    images = torch.stack([image for image, _ in true])
    assert torch.equal(labels, predicted(recipe, str(first.checkpoint), images))
    assert not torch.equal(labels, noisy)
    assert (noisy != true.labels).sum() == round(0.4 * len(true))
    (relabelling,) = second.relabellings
    assert relabelling.changed == pytest.approx(int((labels != noisy).sum()) / len(true))
    shares = [int((given == true.labels).sum()) / len(true) for given in (noisy, labels)]
    assert relabelling.correct == pytest.approx(shares)
    assert not torch.equal(weights["module.0.weight"], other_weights["module.0.weight"])
    assert not first.relabellings


def test_images_are_relabelled_without_their_augmentation(write: Write, tmp_path: Path) -> None:
    colours = torch.randint(0, 256, (12, 12, 12, 3), dtype=torch.uint8)
    for part in ("train", "val"):
        for number, pixels in enumerate(colours):
            path = tmp_path / "images" / part / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(path)
    section = f"{{name: imagefolder, path: {tmp_path}/images, image_size: 12, augmentation: cutout}}"
    overrides = [f"train_dataset={section}", "global_train_batch_size=4", "bootstrap=1", "optimizer.lr=0.01"]
    seen: list[Tensor] = []
    recipe = load_recipe(write(), overrides)
    for run in trainings(recipe, "test"):
        run.trainer.fit()
        keep = run.trainer.state.model.module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    keep.remove()
    plain = build_dataset("train_dataset", recipe.train_dataset | {"augmentation": "none"}, train=True)
    assert torch.equal(torch.cat(seen), torch.stack([image for image, _ in plain]))
    assert run.relabellings[0].correct is None


def test_the_table_says_what_became_of_the_labels(write: Write, capsys: Capture) -> None:
    argv = [str(write()), *NOISY, "bootstrap=2"]
    assert train.main(argv) == 0
    table = lines(capsys.readouterr().out)
    assert table["labels, round 1"].endswith(" %")
    assert " % changed; true ones from 59.98 %" in table["labels, round 1"]
    assert (
        table["labels, round 1"].rpartition(" to ")[2] == table["labels, round 2"].split(" from ")[1].split(" to ")[0]
    )
    assert table["recipe"] == "runs/twice/training-2/recipe.yaml"
    assert load_recipe(table["recipe"], ["run_name=twice"]) == load_recipe(argv[0], argv[1:])
    assert load_recipe("runs/twice/training-1/recipe.yaml").bootstrap == 1


def test_a_run_goes_on_where_it_was_interrupted(write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, fitted = Trainer.fit, list[str]()

    def until(count: int) -> Callable[[Trainer], None]:
        def run(self: Trainer) -> None:
            if len(fitted) == count:
                raise KeyboardInterrupt
            fitted.append(str(self.state.run_name))
            fit(self)

        return run

    argv = [str(write()), *NOISY]
    monkeypatch.setattr(Trainer, "fit", until(1))
    assert train.main([*argv, "autoresume=true"]) == 130
    monkeypatch.setattr(Trainer, "fit", until(2))
    assert train.main([*argv, "autoresume=true"]) == 0
    resumed = lines(capsys.readouterr().out)
    assert len(fitted) == 2
    monkeypatch.setattr(Trainer, "fit", fit)
    assert train.main([*argv, "run_name=whole"]) == 0
    whole = lines(capsys.readouterr().out)
    same = ("clean test accuracy", "labels, round 1")
    assert [resumed[name] for name in same] == [whole[name] for name in same]


def test_wrong_values_are_refused(write: Write, capsys: Capture, tmp_path: Path) -> None:
    refused([str(write()), "bootstrap=-1"], capsys, "error: bootstrap: must be an integer >= 0, got -1")
    refused([str(write()), "bootstrap=often"], capsys, "error: bootstrap: ")
    (tmp_path / "some.pt").touch()
    refused(
        [str(write()), "bootstrap=1", "load_path=../some.pt"],
        capsys,
        "error: load_path: with bootstrap every training starts from it: needs load_weights_only=true",
    )


def test_the_recipe_of_a_bootstrapped_run_can_be_run_again(write: Write, capsys: Capture) -> None:
    argv = [str(write()), *NOISY, "bootstrap=1", "run_name=twice", "max_duration=1ba"]
    assert train.main(argv) == 0
    first = lines(capsys.readouterr().out)
    assert train.main([first["recipe"], "run_name=again"]) == 0
    assert lines(capsys.readouterr().out)["clean test accuracy"] == first["clean test accuracy"]


def test_one_training_alone_is_not_a_bootstrap(write: Write) -> None:
    recipe = load_recipe(write(), NOISY)
    with pytest.raises(RecipeError, match="bootstrap: "):
        prepare(recipe, "test")
    prepare(replace(recipe, bootstrap=0), "test")
