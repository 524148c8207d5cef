"""The step and what it is made of, on PyTorch alone.

================  ====================================================================================================
module            what it knows
================  ====================================================================================================
`parts`           the contracts: policy, perturbation, descent and samples; `part`, what they have in common
`schedules`       the radius of a perturbation over training; `radii`, those of parameter groups
`step`            what a part sees of the step that is being taken: a view that can be moved
`optimizer`       the only step loop; `attempt`, one step as it is being taken; `pending`, one that somebody else takes
`evaluation`      runs the passes that the views ask for, each once
`gradients`       gradients as they lie on the parameters
`surroundings`    what every evaluation of an optimizer needs
`passes`          how a pass reaches the program around it; `closures`, those of hand-written loops; `scaling`, those
                  under a ``GradScaler``; `foreign`, programs in which none can be right
`handover`        whether the base optimizer uses the gradient that it is given
`sight`           whether a displaced pass sees the displaced weights
`memory`          what is remembered between steps; `stopwatch`, how long they take
`replay`          how a later pass repeats the first, with `streams` (random numbers) and `state` (of modules)
`displacement`    moving the weights to ``w + ε`` and back, exactly
`vector`          one tensor per parameter as one long vector, over `tensors` (lists), `blocks` (in cache) and
                  `shards` (of distributed ones)
`selection`       some of a batch's samples; `samples`, the choice of them that is no paper's
`names`           what a model calls its parameters, and which layers they belong to
`recalibration`   BatchNorm's statistics gathered anew, after training
`profiling`       ranges for torch.profiler; `compilation`, what torch.compile leaves alone
`wrapper`         looking like the base optimizer to everything around
`options`         validation; the only module that words an error about an argument
================  ====================================================================================================
"""
