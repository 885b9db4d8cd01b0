"""Official checkpoints -> models of hiergen, one module per family, each with `from_official(state_dict, config) -> model`.

`hiergen convert FAMILY SOURCE TARGET` runs them from the command line.
"""
