"""The recipe book: published recipes of low-precision training, one YAML each, by name.

    book.find("te_nvfp4")     the recipe: what it casts, whose it is, what it leaves out
    recipe.expansion()        what a run's spec says instead of its name, as plain data

Nothing here loads torch. What an expansion says is checked by those who read it: casts by `altgrad.nn`, storage by
`altgrad.optim`, the rest by `altgrad.training`.
"""
