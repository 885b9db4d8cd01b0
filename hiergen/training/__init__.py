"""Training: the engine, which knows no model, and `tasks/`, which say what is trained.

- `loop.py` the one training loop: step, report, evaluate, save, stop · `step.py` one optimizer step, and what is skipped in it
- `ema.py` averaged weights (EMA) · `optim.py` the optimizer, weight decay, learning rate · `muon.py` Muon · `validation.py` scores on held-out data
- `checkpoints/` the commit rule (`checkpoint.py`), what is saved and resumed (`run_state.py`), the best model (`best.py`)
- `processes/` several processes, parameters shared out over them, signals · `reporting/` log, measurements, progress
- `finetune/` start from weights that are there (`weights.py`), train adapters beside them (`lora.py`)
- `config.py` one run's settings · `run.py` a recipe as a program · `plan.py` memory and time before anything is allocated
"""
