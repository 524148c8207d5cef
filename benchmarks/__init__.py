"""What each method costs, where the time goes and what accuracy it buys: ``python -m benchmarks --help``.

===========================  ===========================================================================
module                       what is in it
===========================  ===========================================================================
`cost`                       step time against gradients per step, beside other implementations
`phases`                     where a step's time goes, by the ranges that a profiler sees
`accuracy`                   a recipe trained with several methods, or several values of an option
`gpu`                        cost, phases and what else a CUDA device can tell, in one command
`contenders`                 the implementations that are compared
`workloads`, `networks`      what they are run on
`loops`, `trainer`           how they take their turns: by hand, and in Composer's Trainer
`timing`                     in turn, step by step, in one process
`summary`                    from measurements to numbers
`results`                    the JSON files, which can be resumed
`report`, `plots`            what is shown of them, in Markdown and SVG
`names`                      what the methods are called, and their colours
`environment`                what has to be said about the machine, and set before a process starts
===========================  ===========================================================================

Only `trainer` and `accuracy` need Composer.
"""
