"""The step and what it is made of, on PyTorch alone. Modules import from the rows above them only.

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
