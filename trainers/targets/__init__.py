"""One file per distillation method.

| file | method | paper |
|---|---|---|
| progressive.py | two teacher steps into one, halving the step count stage by stage | Salimans and Ho 2022, arXiv 2202.00512 |
| denoising.py | no teacher: the clean sample is the target; trains the demo teacher | Ho et al. 2020, in the x0 form |
"""
