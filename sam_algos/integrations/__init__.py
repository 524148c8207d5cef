"""Methods in frameworks that take the step themselves. Each module imports only its own framework.

They build on `SharpnessAwareOptimizer.backward`: the framework keeps the base optimizer, its clipping, its scaler and
its checkpoints, and gets the method's gradient in place of the gradient of ``loss.backward()``.
"""
