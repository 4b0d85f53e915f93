"""tools/keras_to_onnx.py: small Keras networks as ONNX, against what their layers are defined to compute."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "keras_to_onnx.py"


def imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("keras_to_onnx", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["keras_to_onnx"] = module
    spec.loader.exec_module(module)
    return module


keras_to_onnx = imported()
RANDOM = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(0, 1, shape).astype(np.float32)


def layer(kind: str, name: str, *reads: str, **config):
    nodes = [[[read, 0, 0, {}] for read in reads]] if reads else []
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


def functional(shape, *layers, output: str):
    entry = layer("InputLayer", "x", batch_input_shape=[None, *shape])
    return {
        "class_name": "Functional",
        "config": {
            "name": "net",
            "layers": [entry, *layers],
            "input_layers": [["x", 0, 0]],
            "output_layers": [[output, 0, 0]],
        },
    }


def run(config, weights, x):
    model = keras_to_onnx.to_onnx(config, weights)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def convolved(x, kernel, stride, padding, *, depthwise=False):
    """TensorFlow's convolution, NHWC, one output at a time."""
    height, width = kernel.shape[:2]
    if padding == "same":
        out = [-(-x.shape[axis + 1] // stride[axis]) for axis in (0, 1)]
        total = [max((out[a] - 1) * stride[a] + kernel.shape[a] - x.shape[a + 1], 0) for a in (0, 1)]
        x = np.pad(x, [(0, 0), *((each // 2, each - each // 2) for each in total), (0, 0)])
    else:
        out = [(x.shape[axis + 1] - kernel.shape[axis]) // stride[axis] + 1 for axis in (0, 1)]
    made = []
    for row in range(out[0]):
        for column in range(out[1]):
            top, left = row * stride[0], column * stride[1]
            patch = x[:, top : top + height, left : left + width]
            rule = "nhwc,hwcm->ncm" if depthwise else "nhwc,hwco->no"
            made.append(np.einsum(rule, patch, kernel).reshape(len(x), -1))
    return np.stack(made, 1).reshape(len(x), *out, -1)


CONV = {
    "dilation_rate": [1, 1],
    "data_format": "channels_last",
    "groups": 1,
    "activation": "linear",
    "use_bias": True,
}


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("stride", "size"), [((1, 1), (7, 6)), ((2, 2), (8, 7)), ((2, 1), (9, 5))])
def test_a_convolution_pads_as_tensorflow_does(padding, stride, size):
    kernel, bias, x = normal(3, 4, 2, 5), normal(5), normal(1, *size, 2)
    config = functional(
        (*size, 2), layer("Conv2D", "c", "x", strides=stride, padding=padding, **CONV), output="c"
    )
    made = run(config, {"c": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(made, convolved(x, kernel, stride, padding) + bias, atol=1e-5)


def test_a_depthwise_convolution_with_a_multiplier_keeps_the_order_of_its_channels():
    kernel, bias, x = normal(3, 3, 3, 2), normal(6), normal(1, 6, 6, 3)
    config = functional(
        (6, 6, 3), layer("DepthwiseConv2D", "d", "x", strides=[2, 2], padding="same", **CONV), output="d"
    )
    made = run(config, {"d": {"depthwise_kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(made, convolved(x, kernel, (2, 2), "same", depthwise=True) + bias, atol=1e-5)


def test_a_temporal_convolution_runs_along_the_first_axis():
    kernel, x = normal(5, 1, 3, 1), normal(1, 9, 1, 3)
    config = functional(
        (9, 1, 3), layer("MultiScaleTemporalConvolution", "t", "x", stride=2, scales=[5]), output="t"
    )
    made = run(config, {"t": {"depthwise_kernel": kernel}}, x)
    np.testing.assert_allclose(made, convolved(x, kernel, (2, 1), "same", depthwise=True), atol=1e-5)


def test_normalization_pooling_a_residual_and_a_classifier_in_one_network():
    x = normal(1, 8, 8, 3)
    gamma, beta, mean, variance = normal(3), normal(3), normal(3), np.abs(normal(3)) + 0.1
    dense, bias = normal(2 * 2 * 3, 4), normal(4)
    config = functional(
        (8, 8, 3),
        layer("BatchNormalization", "n", "x", axis=[3], epsilon=0.001, center=True, scale=True),
        layer("ReLU", "r", "n", max_value=6.0, negative_slope=0.0, threshold=0.0),
        layer("Add", "a", "r", "x"),
        layer(
            "MaxPooling2D",
            "m",
            "a",
            pool_size=[2, 2],
            strides=[2, 2],
            padding="valid",
            data_format="channels_last",
        ),
        layer("AveragePooling2D", "v", "m", pool_size=[2, 2], strides=[2, 2], padding="same"),
        layer("Dropout", "o", "v", rate=0.5),
        layer("Flatten", "f", "o", data_format="channels_last"),
        layer("Dense", "d", "f", units=4, activation="softmax", use_bias=True),
        output="d",
    )
    weights = {
        "n": {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": variance},
        "d": {"kernel": dense, "bias": bias},
    }
    kept = np.clip((x - mean) / np.sqrt(variance + 0.001) * gamma + beta, 0, 6) + x
    pooled = kept.reshape(1, 4, 2, 4, 2, 3).max((2, 4)).reshape(1, 2, 2, 2, 2, 3).mean((2, 4))
    logits = pooled.reshape(1, -1) @ dense + bias
    wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(run(config, weights, x), wanted, atol=1e-5)


def test_a_sequential_network_without_an_input_layer_says_its_shape_in_the_first_layer():
    kernel, bias, x = normal(3, 2), normal(2), normal(1, 3)
    dense = layer("Dense", "d", units=2, activation="relu", use_bias=True, batch_input_shape=[None, 3])
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [dense]}}
    made = run(config, {"d": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(made, np.maximum(x @ kernel + bias, 0), atol=1e-6)


def test_an_image_that_comes_out_is_nhwc_as_it_went_in():
    x = normal(1, 4, 5, 2)
    config = functional((4, 5, 2), layer("Activation", "t", "x", activation="tanh"), output="t")
    np.testing.assert_allclose(run(config, {}, x), np.tanh(x), atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([layer("LSTM", "remembers", "x")], "remembers"),
        ([layer("Activation", "odd", "x", activation="gelu")], "odd"),
        ([layer("Conv2D", "bare", "x", strides=[1, 1], padding="same", **CONV)], "bare"),
    ],
)
def test_what_cannot_be_said_in_onnx_is_named(layers, named):
    with pytest.raises(keras_to_onnx.CannotConvert, match=named):
        keras_to_onnx.to_onnx(functional((4, 4, 1), *layers, output=named), {})


def test_a_file_that_is_no_keras_network_ends_with_one_line(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"not hdf5")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "a.h5"), str(tmp_path / "a.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("keras_to_onnx: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "a.onnx").exists()


def test_an_h5_file_is_read_with_its_names(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["model_config"] = '{"class_name": "Sequential", "config": {}}'
        group = file.create_group("model_weights").create_group("conv")
        group.create_dataset("conv/kernel:0", data=np.ones((2, 3), np.float32))
        group.attrs["weight_names"] = [b"conv/kernel:0"]
    config, weights = keras_to_onnx.read_h5(tmp_path / "a.h5")
    assert config["class_name"] == "Sequential"
    np.testing.assert_array_equal(weights["conv"]["kernel"], np.ones((2, 3)))
