"""Small encoders as ONNX files, made here: an image tower that averages, a text tower that looks words up."""

import json

import numpy as np

WORDS = ["<pad>", "<end>", "cat", "dog", "a", "red"]
SIZE, WIDTH = 16, 3


def make_folder(folder, text=True, batch="batch", image_output="image_embeds", external="", size=SIZE):
    """A folder as the hub has it. external: where the image tower's weights lie, if not in it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    (folder / "onnx").mkdir(parents=True)
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((3, WIDTH)).astype(np.float32), "weight")
    if external:
        (folder / "onnx" / "weights.bin").write_bytes(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
    nodes = [helper.make_node("GlobalAveragePool", ["pixel_values"], ["mean"]),
             helper.make_node("Flatten", ["mean"], ["flat"]),
             helper.make_node("MatMul", ["flat", "weight"], [image_output])]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [batch, 3, size, size])
    rows = helper.make_tensor_value_info(image_output, TensorProto.FLOAT, [batch, WIDTH])
    name = "vision_model.onnx" if text else "model.onnx"
    _save(onnx, folder / "onnx" / name, helper.make_graph(nodes, "image", [pixels], [rows], [weight]))
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": {"pad_token_id": 0}}))
    (folder / "preprocessor_config.json").write_text(json.dumps(
        {"image_processor_type": "CLIPImageProcessor", "size": SIZE, "crop_size": SIZE}))
    if text:
        table = numpy_helper.from_array(rng.standard_normal((len(WORDS), WIDTH)).astype(np.float32), "table")
        nodes = [helper.make_node("Gather", ["table", "input_ids"], ["each"]),
                 helper.make_node("ReduceSum", ["each", "one"], ["text_embeds"], keepdims=0)]
        one = numpy_helper.from_array(np.array([1], np.int64), "one")
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", 8])
        rows = helper.make_tensor_value_info("text_embeds", TensorProto.FLOAT, ["batch", WIDTH])
        _save(onnx, folder / "onnx" / "text_model.onnx", helper.make_graph(nodes, "text", [ids], [rows], [table, one]))
        _tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def _save(onnx, path, graph):
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A <end>", special_tokens=[("<end>", 1)])
    return tokenizer
