#!/usr/bin/env python3
"""Train the demo's three-exit network on Fashion-MNIST and export it as one ONNX file. A script: never imported.

    python tools/train_demo_model.py --out models/fashion_mnist_3exit.onnx

Needs torch, onnx, onnxruntime and numpy. Of the 60,000 training images the first 55,000 are trained on; the last
5,000 are held out, so that calibration and exit thresholds can be found on images the network has never seen. The
test images are read once, after training, and decide nothing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

# Threads that wait must sleep: spinning ones made an epoch many times slower as soon as something else wanted a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    import numpy as np
    import onnx
    import onnxruntime as ort
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from torch import nn
    from torch.nn import functional
except ImportError as err:
    sys.exit(f"train_demo_model: {err}; it needs: pip install torch numpy onnx onnxruntime")

LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
HELD_OUT = 5_000  # the last images of the training file
SCALE = 1.0 / 255.0
OPSET, IR_VERSION = 17, 8
COMPARED = 1_000  # images on which the exported file must give the trained network's logits
THREADS = 2  # fixed: the order of float additions, and so the result, depends on it

BATCH, FEWEST_STEPS = (
    128,
    200,
)  # a short run takes smaller batches, so that it has steps enough to learn something
PEAK_RATE, WEIGHT_DECAY, MOMENTUM = (
    0.15,
    5e-4,
    0.9,
)  # the rate is for BATCH images; smaller batches take less of it
WARM_UP = 0.15  # share of all steps
SHIFT = 2  # pixels, each way
LAST_EXIT_WEIGHT, DISTILL_WEIGHT, TEMPERATURE = 2.0, 1.0, 2.0


# --- the network: one table, read by the cost, the trainable module and the export --------------------------


@dataclass(frozen=True)
class Conv:
    """Convolution, batch norm, a skip connection from `add` where named, ReLU; `same` padding."""

    name: str
    source: str
    channels_in: int
    channels_out: int
    kernel: int = 3
    stride: int = 1
    add: str = ""


@dataclass(frozen=True)
class Head:
    """Global average pooling and one linear layer: the logits of an exit."""

    name: str
    source: str
    channels_in: int


Layer = Conv | Head

# One tensor passes from stage to stage. Most work is done at 14x14: full-resolution layers with few channels are
# slow for their MACs, above all in int8, and 7x7 layers would need too many weights for a file of 1 MB.
NETWORK: tuple[Layer, ...] = (
    Conv("stage1/conv1", "image", 1, 16, kernel=5, stride=2),
    Conv("stage1/conv2", "stage1/conv1", 16, 48),
    Conv("stage1/conv3", "stage1/conv2", 48, 48),
    Conv("exit1/conv", "stage1/conv3", 48, 48, stride=2),
    Head("exit1", "exit1/conv", 48),
    Conv("stage2/conv1", "stage1/conv3", 48, 48),
    Conv("stage2/conv2", "stage2/conv1", 48, 48, add="stage1/conv3"),
    Conv("exit2/conv", "stage2/conv2", 48, 64, stride=2),
    Head("exit2", "exit2/conv", 64),
    Conv("stage3/conv1", "stage2/conv2", 48, 64),
    Conv("stage3/conv2", "stage3/conv1", 64, 64, add="stage3/conv1"),
    Conv("stage3/conv3", "stage3/conv2", 64, 80, stride=2),
    Head("exit3", "stage3/conv3", 80),
)
EXITS = tuple(layer.name for layer in NETWORK if isinstance(layer, Head))


def cumulative_macs() -> dict[str, int]:
    """Multiply-accumulates spent when the answer is taken at each exit, earlier heads included."""
    side, total, at_exit = {"image": 28}, 0, {}
    for layer in NETWORK:
        if isinstance(layer, Conv):
            side[layer.name] = side[layer.source] // layer.stride
            total += side[layer.name] ** 2 * layer.kernel**2 * layer.channels_in * layer.channels_out
        else:
            total += layer.channels_in * len(LABELS)
            at_exit[layer.name] = total
    return at_exit


def make_module() -> nn.ModuleDict:
    """The table as trainable layers, by layer name."""
    module = nn.ModuleDict()
    for layer in NETWORK:
        if isinstance(layer, Conv):
            conv = nn.Conv2d(
                *(layer.channels_in, layer.channels_out, layer.kernel, layer.stride),
                padding=layer.kernel // 2,
                bias=False,
            )
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            module[layer.name] = nn.Sequential(conv, nn.BatchNorm2d(layer.channels_out))
        else:
            module[layer.name] = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(layer.channels_in, len(LABELS))
            )
    return module.to(memory_format=torch.channels_last)


def forward(module: nn.ModuleDict, image: torch.Tensor) -> list[torch.Tensor]:
    """float32 [N, 1, 28, 28], normalised -> the logits of each exit, float32 [N, 10]."""
    values = {"image": image}
    for layer in NETWORK:
        value = module[layer.name](values[layer.source])
        if isinstance(layer, Conv):
            value = functional.relu(value + values[layer.add] if layer.add else value)
        values[layer.name] = value
    return [values[name].float() for name in EXITS]


# --- data ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """`x`: uint8 [N, 28, 28]; `y`: int64 [N]."""

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]

    def take(self, part: slice) -> Images:
        return Images(self.x[part], self.y[part])


def read_idx(path: Path) -> np.ndarray[Any, Any]:
    """A gzipped IDX file of bytes (http://yann.lecun.com/exdb/mnist: two zeros, type 8, rank, sizes, content)."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        fail(f"{path}: wanted an IDX file of unsigned bytes, got one that starts with {content[:3].hex()}")
    rank = content[3]
    sizes = np.frombuffer(content, ">i4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def read_split(folder: Path, prefix: str) -> Images:
    """`train` or `t10k` of the folder."""
    try:
        x = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        y = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    except OSError as err:
        fail(f"--data: wanted a folder with the four Fashion-MNIST files, got {folder} ({err})")
    return Images(x, y.astype(np.int64))


def find_data() -> Path:
    """The folder that tools/fetch_data.py answers with."""
    script = Path(__file__).with_name("fetch_data.py")
    answer = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode != 0:
        sys.exit(answer.returncode)
    return Path(answer.stdout.strip())


def augment(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Shift each image by up to SHIFT pixels, filling with black; mirror half of them: uint8 [N, 28, 28] both."""
    count, height, width = x.shape
    padded = functional.pad(x, (SHIFT, SHIFT, SHIFT, SHIFT))
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, count, 1), generator=random)
    mirrored = torch.rand(count, 1, generator=random) < 0.5
    rows = down + torch.arange(height)
    columns = right + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


# --- training -----------------------------------------------------------------------------------------------


def joint_loss(logits: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy at every exit, and the early exits also follow the last (Hinton et al. 2015, arXiv:1503.02531)."""
    loss = LAST_EXIT_WEIGHT * functional.cross_entropy(logits[-1], labels)
    teacher = functional.log_softmax(logits[-1].detach() / TEMPERATURE, dim=1)
    for exit_logits in logits[:-1]:
        student = functional.log_softmax(exit_logits / TEMPERATURE, dim=1)
        divergence = functional.kl_div(student, teacher, log_target=True, reduction="batchmean")
        loss = (
            loss
            + functional.cross_entropy(exit_logits, labels)
            + DISTILL_WEIGHT * TEMPERATURE**2 * divergence
        )
    return loss


def rate_at(done: float) -> float:
    """Learning rate over its peak after this share of all steps: a straight rise, then a cosine down to 0."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def train(images: Images, mean: float, std: float, epochs: int, seed: int, bfloat16: bool) -> nn.ModuleDict:
    """A trained module in evaluation mode."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    module = make_module()
    weights = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        momentum=MOMENTUM,
        nesterov=True,
    )
    x, y = torch.from_numpy(images.x.copy()), torch.from_numpy(images.y)
    batch_size = min(BATCH, max(8, len(x) * epochs // FEWEST_STEPS), len(x))
    peak_rate = PEAK_RATE * math.sqrt(batch_size / BATCH)
    steps = len(x) // batch_size  # an incomplete last batch is left out: another shuffle brings its images
    started = time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=random)
        loss_sum = 0.0
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = peak_rate * rate_at((epoch * steps + step) / (epochs * steps))
            chosen = order[step * batch_size : (step + 1) * batch_size]
            batch = normalise(augment(x[chosen], random), mean, std)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = forward(module, batch)
            loss = joint_loss(logits, y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
        spent = time.monotonic() - started
        progress(f"epoch {epoch + 1}/{epochs}: loss {loss_sum / steps:.4f}, {spent:.0f} s")
    return module.eval()


def normalise(x: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """uint8 [N, 28, 28] -> float32 [N, 1, 28, 28], as the model's metadata tells others to do it."""
    return ((x[:, None].float() * SCALE - mean) / std).contiguous(memory_format=torch.channels_last)


# --- export -------------------------------------------------------------------------------------------------


def folded(block: nn.Sequential) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Weight and bias, float32, of a convolution that does its batch norm's work too."""
    conv, norm = block[0], block[1]
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    return weight.detach().float().contiguous().numpy(), bias.detach().float().numpy()


def export(module: nn.ModuleDict, mean: float, std: float) -> onnx.ModelProto:
    """The trained module as ONNX: Conv, Relu, Add, GlobalAveragePool, Flatten, Gemm; batch 1; with metadata."""
    nodes, weights = [], []

    def emit(op: str, inputs: list[str], output: str, name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def initializer(name: str, value: np.ndarray[Any, Any]) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    for layer in NETWORK:
        name = layer.name
        if isinstance(layer, Conv):
            weight, bias = folded(module[name])
            inputs = [layer.source, initializer(f"{name}/weight", weight), initializer(f"{name}/bias", bias)]
            pad = layer.kernel // 2
            shape = {"kernel_shape": [layer.kernel] * 2, "pads": [pad] * 4, "strides": [layer.stride] * 2}
            value = emit("Conv", inputs, f"{name}/out", name, **shape)
            if layer.add:
                value = emit("Add", [value, layer.add], f"{name}/sum", f"{name}/add")
            emit("Relu", [value], name, f"{name}/relu")
        else:
            linear = module[name][2]
            value = emit("GlobalAveragePool", [layer.source], f"{name}/pooled", f"{name}/pool")
            value = emit("Flatten", [value], f"{name}/features", f"{name}/flatten")
            inputs = [value, initializer(f"{name}/weight", linear.weight.detach().numpy())]
            inputs.append(initializer(f"{name}/bias", linear.bias.detach().numpy()))
            emit("Gemm", inputs, name, f"{name}/linear", transB=1)

    graph = helper.make_graph(
        nodes,
        "fashion_mnist_3exit",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 28, 28])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, len(LABELS)]) for name in EXITS],
        weights,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="train_demo_model",
    )
    helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata(mean, std).items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return model


def metadata(mean: float, std: float) -> dict[str, Any]:
    """What convert wants to know of a model, by metadata key."""
    preprocess = {
        "channels": "L",
        "resize": "stretch",
        "resampler": "bilinear",
        "scale": SCALE,
        "mean": [mean],
        "std": [std],
    }
    image = {
        "name": "image",
        "shape": [1, 1, 28, 28],
        "dtype": "float32",
        "layout": "NCHW",
        "preprocess": preprocess,
    }
    return {
        "edgekit.exits": [{"name": name, "output": name} for name in EXITS],
        "edgekit.labels": list(LABELS),
        "edgekit.input": image,
    }


# --- judgement: the exported file, in onnxruntime, one image at a time --------------------------------------


def run_exported(content: bytes, x: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    """The logits of each exit for every image: float32 [N, 10] each."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    answers = [session.run(list(EXITS), {"image": image[None]}) for image in x.contiguous().numpy()]
    return [np.concatenate(column) for column in zip(*answers, strict=True)]


def accuracies(logits: list[np.ndarray[Any, Any]], labels: np.ndarray[Any, Any]) -> dict[str, float]:
    """Top-1 by exit, as fractions."""
    return {name: float((each.argmax(1) == labels).mean()) for name, each in zip(EXITS, logits, strict=True)}


def check_same(module: nn.ModuleDict, x: torch.Tensor, logits: list[np.ndarray[Any, Any]]) -> float:
    """The largest difference between the module's logits for `x` and the file's; fails above 1e-4."""
    with torch.no_grad():
        wanted = forward(module, x)
    pairs = zip(wanted, logits, strict=True)
    largest = max(float(np.abs(a.numpy() - b[: len(x)]).max()) for a, b in pairs)
    if largest > 1e-4:
        fail(
            f"export: the ONNX file must give the trained network's logits to 1e-4, got a difference of {largest:.2e}"
        )
    return largest


# --- command line -------------------------------------------------------------------------------------------


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> NoReturn:
    progress(f"train_demo_model: {text}")
    sys.exit(2)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("models/fashion_mnist_3exit.onnx"), help="the ONNX file to write"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with the four IDX files (default: ask tools/fetch_data.py)"
    )
    parser.add_argument("--epochs", type=positive, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-train", type=positive, metavar="N", help="train on the first N images only")
    parser.add_argument(
        "--bfloat16", action="store_true", help="train in mixed precision: faster on CPUs that have it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the printed figures as JSON, too")
    return parser.parse_args()


def main() -> None:
    wanted = arguments()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    folder = wanted.data or find_data()
    everything = read_split(folder, "train")
    in_training, held_out = everything.take(slice(0, -HELD_OUT)), everything.take(slice(-HELD_OUT, None))
    mean, std = (round(float(f(in_training.x)) * SCALE, 6) for f in (np.mean, np.std))
    images = in_training.take(slice(0, wanted.limit_train))
    try:  # now, not after half an hour
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        fail(f"--out: cannot make the folder of {wanted.out}: {err.strerror}")

    module = train(images, mean, std, wanted.epochs, wanted.seed, wanted.bfloat16)
    model = export(module, mean, std)
    content: bytes = model.SerializeToString(deterministic=True)

    judged, difference = {}, 0.0
    for name, part in (("held_out", held_out), ("test", read_split(folder, "t10k"))):
        x = normalise(torch.from_numpy(part.x.copy()), mean, std)
        logits = run_exported(content, x)
        difference = max(difference, check_same(module, x[:COMPARED], logits))
        judged[name] = accuracies(logits, part.y)

    unfinished = wanted.out.with_suffix(".part")
    unfinished.write_bytes(content)
    unfinished.replace(wanted.out)
    figures = {
        "v": 1,
        "exits": exit_figures(judged),
        "images": {"train": len(images.x), "held_out": HELD_OUT, "test": 10_000},
        "parameters": sum(math.prod(each.dims) for each in model.graph.initializer),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "torch_difference": difference,
        "epochs": wanted.epochs,
        "seed": wanted.seed,
        "bfloat16": wanted.bfloat16,
        "versions": {each.__name__: each.__version__ for each in (torch, np, onnx, ort)},
    }
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=2) + "\n")
    print_figures(figures)


def exit_figures(judged: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """One row an exit; the cost share is cumulative MACs over those of the whole network."""
    macs = cumulative_macs()
    return [
        {
            "name": name,
            "macs": macs[name],
            "cost_share": macs[name] / macs[EXITS[-1]],
            "accuracy_test": judged["test"][name],
            "accuracy_held_out": judged["held_out"][name],
        }
        for name in EXITS
    ]


def print_figures(figures: dict[str, Any]) -> None:
    print(f"{'exit':<8}{'test':>9}{'held out':>10}{'MACs':>13}{'of all':>8}")
    for each in figures["exits"]:
        print(
            f"{each['name']:<8}{each['accuracy_test']:>8.2%} {each['accuracy_held_out']:>8.2%}"
            f"{each['macs']:>14,}{each['cost_share']:>8.1%}"
        )
    print(
        f"{figures['parameters']:,} parameters, {figures['size_bytes']:,} bytes, sha256 {figures['sha256']}"
    )
    print("versions: " + ", ".join(f"{name} {version}" for name, version in figures["versions"].items()))


if __name__ == "__main__":
    main()
