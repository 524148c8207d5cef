"""What each method costs, where the time goes and what accuracy it buys: ``python -m benchmarks --help``.

===========================  ===========================================================================
module                       contents
===========================  ===========================================================================
`cost`                       step time against gradients per step, compared with other implementations
`phases`                     where a step's time goes, by profiler ranges
`study`                      accuracy of methods, tuned alike on validation images
`targets`                    requested costs against measured costs
`gpu`                        cost, phases and all GPU-specific checks in one command
`contenders`                 the implementations to compare
`workloads`, `networks`      the models and data to train
`loops`, `trainer`           the training loops: hand-written, and in Composer's Trainer
`timing`                     interleaved timing, step by step, in one process
`summary`                    statistics of the measurements
`results`                    the JSON result files, which can be resumed
`report`, `plots`            reports in Markdown and plots in SVG
`names`                      display names and colours of the methods
`environment`                description of the machine, and environment variables to set at start
===========================  ===========================================================================

Only `trainer`, `study` and `targets` need Composer.
"""
