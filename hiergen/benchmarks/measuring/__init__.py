"""How benchmarks measure: fair timing, the work of a call and what the machine could do, synthetic inputs, plain programs to compare with."""
