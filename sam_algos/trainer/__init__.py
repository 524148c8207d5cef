"""Methods inside Composer's Trainer. Apart from the recipes, only this package depends on Composer."""

try:
    import composer  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "sam_algos.trainer needs MosaicML Composer, which is not installed: pip install 'sam_algos[composer]'. Without "
        "it, sam_algos.recalibrate(model, data) recomputes BatchNorm's statistics in a hand-written loop.",
        name=error.name,
        path=error.path,
    ) from error

from sam_algos.trainer.recalibration import RecalibrateBatchNorm

__all__ = ["RecalibrateBatchNorm"]
