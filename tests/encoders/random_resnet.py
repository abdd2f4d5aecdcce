"""A small ResNet's tensors, drawn at random."""

import numpy as np

from jclip_fewshot.encoders.resnet import layout

BLOCKS, STEM, PLANES = (2, 1, 1, 1), 8, (4, 6, 8, 10)


def shapes_of(blocks=BLOCKS):
    seed = {"conv1.weight": np.zeros((STEM, 3, 7, 7))}
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            seed[f"layer{stage}.{block}.conv1.weight"] = np.zeros((PLANES[stage - 1], 1, 1, 1))
    return layout(seed)


def random_tensors(seed=0):
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes_of().items():
        if len(shape) == 4:
            tensors[name] = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        elif name.endswith("running_var"):
            tensors[name] = rng.uniform(0.5, 2, shape).astype(np.float32)
        else:
            tensors[name] = (rng.standard_normal(shape) * 0.3 + name.endswith("weight")).astype(np.float32)
    return tensors
