"""Diagnosis: one sick run or one new model, and what to do about it. One file per question.

examination  `diagnose`: which questions a target is asked, and everything found as plain data
page         the same as lines of text
advice       which format for which layer, from one pass over its tensors
weights      how the weights lie on their grids, and how many directions they use
findings     what is wrong with a run, from what it logged (the failure modes are data: `altgrad.symptoms`)
variants     the same step again under other formats
attribution  what each cast adds to the loss and to the gradient's error
departure    from which step two runs diverge that should agree
bisection    the casts that make them diverge
forecasts    before training: how often weights will move (`oracle`), under other formats, storages and optimizers
"""
