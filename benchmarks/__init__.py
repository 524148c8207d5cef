"""What each method costs, where the time goes and what accuracy it buys: ``python -m benchmarks --help``.

=================  ======================================================================================
module             what is in it
=================  ======================================================================================
`cost`             step time against the share of sharp steps, beside other implementations
`phases`           where a sharp step's time goes, and how far its optimizer side is from copying memory
`pareto`           accuracy against wall-clock, by training a recipe with each method over several seeds
`contenders`       the implementations that are compared
`workloads`        what they are run on
`timing`           how: in turn, step by step, in one process
`summary`          from measurements to numbers
`results`          the files: JSON, which can be resumed, with Markdown and plots beside it
`tables`, `plots`  what is shown of a result
`report`           any number of results as one HTML page
`environment`      what has to be said about the machine, and set before a process starts
=================  ======================================================================================
"""
