"""Methods inside Composer's Trainer: besides the recipes, the only place that knows Composer."""
