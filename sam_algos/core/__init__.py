"""The step and what it is made of, on PyTorch alone. Modules import from the rows above them only.

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
=======
======================  ==============================================================================================
module                  what it knows
======================  ==============================================================================================
`options`               validation; the only module that words an error about an argument
`profiling`             ranges for ``torch.profiler``
`tensors.shards`        sharded tensors, and what has to be equal on all processes
`tensors.lists`         arithmetic on lists of tensors; `tensors.blocks` rescales them in blocks that fit the cache
`tensors.vector`        one tensor per parameter as one long vector
`tensors.parameters`    what a model calls its parameters, and which layers they belong to
`tensors.gradients`     gradients as they lie on the parameters; `tensors.scaling`, the scale of a ``GradScaler``
`tensors.displacement`  moving the weights to ``w + ε`` and back, exactly
`refusals`              programs under which a method would be silently wrong
`passes.selection`      some of a batch's samples
`passes.randomness`     the global random streams
`passes.modules`        what modules keep from one forward pass to the next
`passes.replay`         how a later pass repeats the first
`passes.contract`       how the step reaches the program around it: passes, clock and log
`passes.closures`       the passes of hand-written loops
`objective.answers`     what parts answer: `Ascent`, `Decision`, `Update`, `Rho`
`objective.radii`       the radius of each parameter
`objective.sight`       whether a displaced pass sees the displaced weights
`objective.stopwatch`   how long plain and sharp steps take
`objective.context`     what the passes of every step of an optimizer need
`objective.evaluation`  runs the passes that the views ask for, each once
`objective.view`        what a part sees of the step: a view that can be moved
`parts`                 the contracts: policy, perturbation, descent, samples and schedules of the radius
`schedules`             radii over training; `samples`, choices of samples that no paper made
`stepping.memory`       what is remembered between steps
`stepping.attempt`      one step as it is being taken: asks the parts, and remembers what they said
`stepping.figures`      the figures of a step, worked out when somebody reads them
`stepping.activity`     whether the method ever acts
`stepping.handover`     whether the base optimizer uses the gradient that it is given
`stepping.pending`      a step whose gradient is ready, and which somebody else takes
`stepping.wrapper`      looking like the base optimizer to everything around
`stepping.compilation`  what ``torch.compile`` leaves alone
`stepping.optimizer`    the only step loop
======================  ==============================================================================================
"""
