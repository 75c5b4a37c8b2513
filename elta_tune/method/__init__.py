"""The maths of ELTA (Liu et al., ICML 2024).

    scores      MOS of a rating distribution; distances between scores
    mixup       TFA: which rows of a batch are mixed with which, and how strongly
    losses      EMD and squared error; FLSA, the feature-label similarity loss
    sharpening  APDS: pseudo-labels of the unlabelled pool, sharpened and selected
    metrics     what is measured on a split, on the data set's own scale (NumPy float64)

Pure functions: tensors in, tensors out, in float32 or float64, on any device; scores on AVA's 1…10.
"""
