"""Diagnose: one sick run or one new model, and what to do about it. One file per question.

advice       which format for which layer, from one pass over its tensors
weights      how the weights lie on their grids, and how many directions they use
ailments     what is wrong with a run, from what it logged (the failure modes are data: `altgrad.symptoms`)
variants     the same step again under other formats
attribution  which casts the loss and the gradient are owed to
bisection    where two runs part that should agree, and which casts part them
oracle       before training: how often weights will move, and the learning rate at which they do
"""
