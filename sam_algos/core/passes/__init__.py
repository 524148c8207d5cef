"""How a pass reaches the program, on which samples it runs, and how another repeats it without a trace."""
