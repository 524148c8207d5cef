"""The step: it asks the parts, and lets the base optimizer step by what they answer."""
