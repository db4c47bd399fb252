"""Guards: is a model measured at the right places?"""
