"""Methods in frameworks whose loops take the step themselves; each module imports its own framework only.

They stand on `SharpnessAwareOptimizer.backward`: the framework keeps the base optimizer, its clipping, its scaler and
its checkpoints, and gets the method's gradient where it expects that of ``loss.backward()``.
"""
