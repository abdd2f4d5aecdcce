"""Where it is said how a checkpoint is computed, where its files lie, and what is wrapped around it."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from jclip_fewshot import errors
from jclip_fewshot.clip.checkpoint import (
    Architecture,
    Conventions,
    Tower,
    convert,
    layout,
    read_clip,
    read_state_dict,
    write_safetensors,
)
from jclip_fewshot.clip.checkpoint.architecture import OPENAI, to_metadata
from jclip_fewshot.clip.checkpoint.origin import conventions_said, open_clips_form, origin_of
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import named

from .clip_reference import hugging_face, random_weights

SIZES = Architecture(16, 32, 1, 48, 16, 8, 20, 64, 1)  # heads of 64 do not fit into its image tower
WEIGHTS = random_weights(layout(SIZES))
OPEN_CLIP = {"model_cfg": {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 48, "head_width": 24, "image_size": 32,
                                                           "patch_size": 16},
                           "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 64, "heads": 4, "layers": 1}},
             "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}}
HUGGING_FACE = {"model_type": "clip", "projection_dim": 16,
                "vision_config": {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
                                  "hidden_act": "gelu"},
                "text_config": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
                                "hidden_act": "gelu", "eos_token_id": 2}}
GELU = Conventions(Tower("gelu", 24), Tower("gelu", 16))


def model_cfg(vision=(), text=(), **more):
    """OPEN_CLIP's model_cfg with other values."""
    model = json.loads(json.dumps(OPEN_CLIP["model_cfg"]))
    model["vision_cfg"].update(vision)
    model["text_cfg"].update(text)
    return {**model, **more}


def plain(path, tensors=WEIGHTS):
    """A file that says nothing but its tensors."""
    save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}, str(path))
    return path


def outlined(path, *said):
    """The sizes and conventions of a CLIP by its headers."""
    return read_clip(path, *said, outline=True).sizes


def test_what_nothing_says_is_asked_for(tmp_path):
    path = plain(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="a.safetensors: nothing says whether its activation is QuickGELU or GELU"):
        read_clip(path)
    with pytest.raises(UserError, match="a.safetensors: nothing says how wide .*48 and 64 wide.*give head_width"):
        read_clip(path, "gelu")
    assert outlined(path, "gelu", 16).conventions == Conventions(Tower("gelu", 16), Tower("gelu", 16))
    with pytest.raises(UserError, match="heads 64 wide do not fit into a tower that is 48 wide"):
        read_clip(path, "gelu", 64)
    with pytest.raises(UserError, match="'relu' is none of quick_gelu, gelu, gelu_tanh"):
        read_clip(path, "relu", 16)


def test_a_refusal_names_the_parameter_or_on_the_command_line_the_flag(tmp_path, monkeypatch):
    path = plain(tmp_path / "a.safetensors")
    for flags, said in ((False, "or give activation:"), (True, "or give --activation:")):
        monkeypatch.setattr(errors, "flags", flags)
        with pytest.raises(UserError, match=said):
            read_clip(path)


@pytest.mark.parametrize("width, heads", [(768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16), (1792, 16)])
def test_released_towers_need_their_activation_alone(tmp_path, width, heads):
    sizes = Architecture(1024, 28, 1, width, 14, 8, 20, 1024, 1)
    outline = {name: np.broadcast_to(np.float32(0), shape) for name, shape in layout(sizes).items()}
    found = origin_of(tmp_path / "absent", outline, outline, {}, "gelu")[0]
    assert found.image == Tower("gelu", width // heads) and found.text == Tower("gelu", 64)


def test_a_file_says_it_itself(tmp_path):
    sizes = Architecture(16, 32, 1, 64, 16, 8, 20, 64, 1)
    weights = random_weights(layout(sizes))
    write_safetensors(tmp_path / "ours.safetensors", weights)
    assert outlined(tmp_path / "ours.safetensors") == sizes
    marked = {**weights, **{name: np.array([8]) for name in ("input_resolution", "context_length", "vocab_size")}}
    jclips = {**weights, "transformer.resblocks.0.attn_mask": np.zeros((8, 8), np.float32)}
    for number, tensors in enumerate((marked, jclips)):
        (tmp_path / f"{number}.pkl").write_bytes(pickle.dumps(tensors, 4))
        assert outlined(tmp_path / f"{number}.pkl").conventions == OPENAI
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))  # another model's: left aside
    assert outlined(tmp_path / "0.pkl").conventions == OPENAI


@pytest.mark.parametrize("name, config", [("open_clip_config.json", OPEN_CLIP), ("config.json", HUGGING_FACE)])
def test_the_configuration_beside_it_says_it(tmp_path, capsys, name, config):
    plain(tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert outlined(path).conventions == GELU
    assert outlined(tmp_path, "quick_gelu").conventions == GELU
    assert "its activation is gelu" in capsys.readouterr().err
    (tmp_path / name).write_text(json.dumps(config).replace("48", "96"))  # that of a larger model
    with pytest.raises(UserError, match="nothing says"):
        read_clip(tmp_path)


def test_of_two_configurations_the_names_choose(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP).replace('"embed_dim"', '"quick_gelu": true, '
                                                                                   '"embed_dim"'))
    (tmp_path / "config.json").write_text(json.dumps(HUGGING_FACE))
    (tmp_path / "preprocessor_config.json").write_text('{"crop_size": 32}')
    plain(tmp_path / "model.safetensors", hugging_face(WEIGHTS))
    assert outlined(tmp_path).conventions == GELU
    assert read_clip(tmp_path).preprocessing == {"crop_size": 32}
    plain(tmp_path / "open_clip_model.safetensors")
    assert outlined(tmp_path).conventions == Conventions(Tower("quick_gelu", 24), Tower("quick_gelu", 16))
    assert read_clip(tmp_path).preprocessing == {"preprocess_cfg": OPEN_CLIP["preprocess_cfg"]}


def test_convert_keeps_it(tmp_path):
    plain(tmp_path / "model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    convert(tmp_path, tmp_path / "elsewhere.safetensors")
    (tmp_path / "open_clip_config.json").unlink()
    found = read_clip(tmp_path / "elsewhere.safetensors")
    assert found.sizes.conventions == GELU and found.preprocessing == {"preprocess_cfg": OPEN_CLIP["preprocess_cfg"]}


@pytest.mark.parametrize("config, said", [
    (model_cfg(vision={"timm_model_name": "vit_base"}), "'timm_model_name' with the value 'vit_base'"),
    (model_cfg(text={"hf_model_name": "roberta-base"}), "'hf_model_name'"),
    (model_cfg(vision={"pool_type": "avg"}), "without final_ln_after_pool"),
    (model_cfg(vision={"pool_type": "none"}), "pool_type of vision_cfg 'none'"),
    (model_cfg(vision={"attentional_pool": True}), "'attentional_pool'"),
    (model_cfg(text={"pool_type": "first"}), "text_cfg 'first' is not computed here, only argmax, eos, last"),
    (model_cfg(text={"embed_cls": True}), "'embed_cls'"), (model_cfg(text={"ls_init_value": 1e-4}), "'ls_init_value'"),
    (model_cfg(text={"act_kwargs": {"a\x1b[31m\nb": 1}}), r"'a\\x1b\[31m\\nb'"),
    (model_cfg(multimodal_cfg={"width": 512}), "'multimodal_cfg'"), (model_cfg(text={"heads": 0}), "by 0 heads"),
    (model_cfg(vision={"head_width": "64"}), r"a.json.*Expected `int`, got `str` - at `\$.image.head_width`")])
def test_what_is_not_computed_is_refused_by_name(config, said):
    with pytest.raises(UserError, match=said) as caught, named("a.json"):
        conventions_said(open_clips_form({"model_cfg": config}))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("change, said", [
    ({"model_type": "siglip"}, "'model_type' with the value 'siglip'"),
    ({"vision_config": {"hidden_act": "relu\n\x1b[2J"}}, r"hidden_act 'relu\\n\\x1b\[2J' is not computed here"),
    ({"text_config": []}, "^$"), ({"vision_config": "x"}, "config.json is damaged"),
    ({"text_config": {"num_attention_heads": 7}}, "a width of 512 cannot be shared by 7 heads"),
    ({"text_config": {"eos_token_id": None}}, r"config.json.*Expected `int`, got `null` - at `\$.end`"),
    ({"text_config": {"layer_norm_eps": 0}}, r"config.json.*>= 1e-30 - at `\$.text.eps`")])
def test_strange_configurations_of_hugging_face(change, said):
    if said == "^$":
        assert conventions_said(open_clips_form({**HUGGING_FACE, **change})).text == Tower()
        return
    with pytest.raises(UserError, match=said) as caught, named("config.json"):
        conventions_said(open_clips_form({**HUGGING_FACE, **change}))
    assert str(caught.value).isprintable()


def test_defaults_that_transformers_leaves_out():
    found = conventions_said(open_clips_form({"model_type": "clip", "vision_config": {}, "text_config": {}}))
    assert found == Conventions(Tower(), Tower(), text_pool="end", end=49407)
    assert conventions_said(open_clips_form({"text_config_dict": {"hidden_act": "gelu"}})).text.activation == "gelu"


def test_headers_go_round(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, WEIGHTS, to_metadata(GELU))
    assert outlined(path).conventions == GELU
    for text in ("", "[]", "{}", '{"image": 1, "text": 2}', "[" * 100_000, '{"image": {}, "text": {}, "pool": []}',
                 '{"image": {}, "text": {}, "end": null}', '{"image": {}, "text": {}, "another": 1}'):
        write_safetensors(path, WEIGHTS, {"conventions": text})
        with pytest.raises(UserError, match="a.safetensors is damaged"):
            outlined(path)
    write_safetensors(path, WEIGHTS, {**to_metadata(GELU), "preprocessing": "[]"})
    with pytest.raises(UserError, match="a.safetensors is damaged"):
        outlined(path)


def test_shards(tmp_path):
    names = sorted(WEIGHTS)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        plain(tmp_path / file, {name: WEIGHTS[name] for name in part})
    index = tmp_path / "model.safetensors.index.json"
    where = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"weight_map": where}))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    for path in (tmp_path, index):
        found = read_clip(path)
        assert found.sizes.conventions == GELU
        assert all(np.array_equal(found.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="model-2.safetensors is missing, one of the 2 shards that model.safetensors"):
        read_clip(tmp_path)
    for bad in ({"weight_map": {"a": "../secret.bin"}}, {"weight_map": {"a": "/etc/passwd"}}, {}, {"weight_map": [1]}):
        index.write_text(json.dumps(bad))
        with pytest.raises(UserError, match="index.json"):
            read_clip(tmp_path)


def test_folders_that_leave_it_open(tmp_path):
    with pytest.raises(UserError, match="is a folder without a checkpoint"):
        read_clip(tmp_path)
    write_safetensors(tmp_path / "one.safetensors", WEIGHTS)
    with pytest.raises(UserError, match="heads 64 wide"):  # it is read
        read_clip(tmp_path)
    write_safetensors(tmp_path / "two.safetensors", WEIGHTS)
    with pytest.raises(UserError, match="by its file name .one.safetensors, two.safetensors"):
        read_clip(tmp_path)


@pytest.mark.parametrize("wrapped", [
    {"model_state_dict": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": WEIGHTS["ln_final.bias"]}}}, "epoch": 3},
    {"state_dict": {f"model.{name}": array for name, array in WEIGHTS.items()}, "pytorch-lightning_version": "2.0"},
    {"model": {f"_orig_mod.{name}": array for name, array in WEIGHTS.items()}},
    {"state_dict": {f"module.{name}": array for name, array in WEIGHTS.items()}},
    {**WEIGHTS, "logit_bias": np.float32(-10)}, {"model.clip": WEIGHTS, "head": {"weight": np.ones(3, np.float32)}}])
def test_wrappers_come_off(tmp_path, wrapped):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(wrapped, 4))
    found = read_state_dict(tmp_path / "a.pkl")
    assert found.keys() == WEIGHTS.keys() and all(np.array_equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_two_clips_in_one_file(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": WEIGHTS, "ema": WEIGHTS}, 4))
    with pytest.raises(UserError, match=r"a.pkl: it holds several CLIPs, under 'ema\.', 'model\.'"):
        read_state_dict(tmp_path / "a.pkl")


def test_open_clips_custom_text(tmp_path):
    theirs = {name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": array
              for name, array in WEIGHTS.items() if name != "text_projection"}
    theirs |= {"text.text_projection.weight": WEIGHTS["text_projection"].T, "text.text_projection.bias": np.ones(16)}
    found = read_state_dict(plain(tmp_path / "a.safetensors", theirs))
    assert found.keys() == WEIGHTS.keys() | {"text_projection_bias"}
    assert np.array_equal(found["text_projection"], WEIGHTS["text_projection"])
