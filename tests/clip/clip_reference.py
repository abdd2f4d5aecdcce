"""Small CLIPs whose weights come from a seed, and how tests/data/clip_reference.npz was made.

The stored features are those of OpenAI's model in PyTorch (the one in benchmarks/encode.py) on
the weights and inputs below. To make them again, with an interpreter that has torch:

    python tests/clip/clip_reference.py
"""

from pathlib import Path

import numpy as np

EXPECTED = Path(__file__).parents[1] / "data" / "clip_reference.npz"
# The arguments of OpenAI's constructor but heads; as many blocks as ../shared/reference/clip has, so that Jittor
# compiles the towers once for both.
SIZES = {
    "vit": dict(embed_dim=16, image_resolution=32, vision_layers=3, vision_width=128, vision_patch_size=8,
                context_length=20, vocab_size=100, transformer_width=64, transformer_layers=2),
    "resnet": dict(embed_dim=16, image_resolution=64, vision_layers=(1, 2, 1, 1), vision_width=8,
                   vision_patch_size=None, context_length=20, vocab_size=100, transformer_width=64,
                   transformer_layers=2),
}


def random_weights(shapes: dict, seed: int = 0) -> dict:
    """float32 tensors that make activations neither vanish nor explode, the same forever."""
    random = np.random.RandomState(seed)
    weights = {}
    for name in sorted(shapes):
        shape = shapes[name]
        noise = random.standard_normal(shape).astype(
    np.float32) if shape else np.float32(
        random.standard_normal())
        if len(shape) > 1:
            weights[name] = noise * np.float32(1.5 * np.prod(shape[1:]) ** -0.5)
        elif name.endswith("running_var") or name.endswith("weight"):
            weights[name] = 1 + np.abs(noise) * np.float32(0.2)
        elif shape == ():
            weights[name] = np.array(2.5, dtype=np.float32)
        else:
            weights[name] = noise * np.float32(0.1)
    return weights


def inputs(kind: str, count: int = 5) -> tuple:
    """images (count, 3, R, R) float32 and tokens (count, L) int32 of different lengths."""
    sizes, random = SIZES[kind], np.random.RandomState(1)
    images = random.standard_normal((count, 3, sizes["image_resolution"], sizes["image_resolution"]))
    tokens = np.zeros((count, sizes["context_length"]), dtype=np.int32)
    for row, length in zip(tokens, (3, 12, 7, 2, 20)):
        row[:length] = random.randint(1, sizes["vocab_size"] - 2, length)
        row[length - 1] = sizes["vocab_size"] - 1
    return images.astype(np.float32), tokens


HUGGING_FACE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # Hugging Face's spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias"}
HUGGING_FACE_IN_BLOCK = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                         "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def hugging_face(state):
    """A state dict under CLIPModel's names."""
    result = {"logit_scale": state["logit_scale"], "text_projection.weight": state["text_projection"].T,
              "visual_projection.weight": state["visual.proj"].T,
              "text_model.embeddings.position_ids": np.arange(20)[None]}
    result.update({theirs: state[ours] for theirs, ours in HUGGING_FACE.items()})
    for name, array in state.items():
        if ".resblocks." not in name:
            continue
        head, tail = name.split("resblocks.")
        number, part = tail.split(".", 1)
        prefix = f"{'vision' if head.startswith('visual') else 'text'}_model.encoder.layers.{number}."
        if part.startswith("attn.in_proj_"):
            for letter, third in zip("qkv", np.split(array, 3)):
                result[f"{prefix}self_attn.{letter}_proj.{part[len('attn.in_proj_'):]}"] = third
        else:
            for theirs, ours in HUGGING_FACE_IN_BLOCK.items():
                part = part.replace(ours, theirs)
            result[prefix + part] = array
    return result


def make() -> None:
    import sys

    import torch
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "benchmarks")]
    import encode
    torch.set_default_dtype(torch.float64)
    expected = {}
    for kind, sizes in SIZES.items():
        model = encode.torch_clip(torch, encode.Architecture(**sizes, transformer_heads=1)).eval()
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()
                  if not name.endswith("num_batches_tracked")}
        weights = {name: torch.as_tensor(value) for name, value in random_weights(shapes).items()}
        model.load_state_dict(weights, strict=False)
        images, tokens = inputs(kind)
        with torch.no_grad():
            expected[kind + "_image"] = model.encode_image(torch.from_numpy(images).double()).numpy()
            expected[kind + "_text"] = model.encode_text(torch.from_numpy(tokens)).numpy()
        expected[kind + "_names"] = np.array(sorted(shapes))
    np.savez_compressed(EXPECTED, **expected)


if __name__ == "__main__":
    make()
