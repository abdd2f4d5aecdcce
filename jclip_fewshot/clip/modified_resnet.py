"""CLIP's ModifiedResNet, the image tower of RN50 to RN50x64.

Paper: Radford et al. 2021 (arXiv:2103.00020), section 2.4. It differs from torchvision's ResNet in three ways: a stem
of three convolutions, average pools in place of strided convolutions, and attention for the last pool.

B images · R pixels a side · W channels · D feature width
"""

from jclip_fewshot.backend import jt
from jclip_fewshot.clip import cpu
from jclip_fewshot.clip.checkpoint import Architecture
from jclip_fewshot.clip.layers import Linear, attend_plainly, normal


class BatchNorm(jt.nn.Module):
    """Always with the stored statistics: the ModifiedResNet is for inference (trained nowhere here)."""

    def __init__(self, width: int):
        self.weight, self.bias = jt.ones((width,)), jt.zeros((width,))
        self.running_mean, self.running_var = jt.zeros((width,)).stop_grad(), jt.ones((width,)).stop_grad()

    def scale_and_shift(self):
        scale = self.weight.float32() / jt.sqrt(self.running_var.float32() + 1e-5)
        return scale, self.bias.float32() - self.running_mean.float32() * scale

    def execute(self, x):
        scale, shift = (value.reshape((1, -1, 1, 1)).cast(x.dtype) for value in self.scale_and_shift())
        return x * scale + shift


class Conv(jt.nn.Module):
    """A convolution without bias; its weight is a matrix (kernel², inputs; outputs)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        self.inputs, self.kernel, self.stride = inputs, kernel, stride
        self.weight = normal((kernel * kernel * inputs, outputs), (kernel * kernel * inputs) ** -0.5)

    def execute(self, x):
        weight = self.weight.reshape((self.kernel, self.kernel, self.inputs, -1)).transpose(3, 2, 0, 1)
        return jt.nn.conv2d(x, weight, stride=self.stride, padding=self.kernel // 2)


def _halve(x, stride: int):
    return x if stride == 1 else jt.nn.avg_pool2d(x, stride, stride)


class Bottleneck(jt.nn.Module):
    """Convolutions of stride 1; where the block halves the image, an average pool does it."""

    def __init__(self, inputs: int, planes: int, stride: int, downsample: bool):
        self.stride = stride
        self.conv1, self.bn1 = Conv(inputs, planes, 1), BatchNorm(planes)
        self.conv2, self.bn2 = Conv(planes, planes, 3), BatchNorm(planes)
        self.conv3, self.bn3 = Conv(planes, 4 * planes, 1), BatchNorm(4 * planes)
        self.downsample = jt.nn.Sequential(Conv(inputs, 4 * planes, 1), BatchNorm(4 * planes)) if downsample else None

    def execute(self, x):
        y = jt.nn.relu(self.bn1(self.conv1(x)))
        y = jt.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(_halve(y, self.stride)))
        return jt.nn.relu(y + (x if self.downsample is None else self.downsample(_halve(x, self.stride))))


class AttentionPool2d(jt.nn.Module):
    """Attention whose one query is the mean over all positions."""

    def __init__(self, side: int, width: int, heads: int, output_dim: int):
        self.heads = heads
        std = width ** -0.5
        self.positional_embedding = normal((side * side + 1, width), std)
        self.k_proj, self.q_proj, self.v_proj = (Linear(width, width, std) for _ in range(3))
        self.c_proj = Linear(width, output_dim, std)

    def execute(self, x):
        """(B, W, side, side) -> (B, D)"""
        batch, width = x.shape[:2]
        x = x.reshape((batch, width, -1)).transpose(0, 2, 1)
        x = jt.concat([x.mean(1, keepdims=True), x], dim=1) + self.positional_embedding  # (B, L, W)
        kv = jt.concat([self.k_proj(x), self.v_proj(x)], dim=2)
        return self.c_proj(attend_plainly(self.q_proj(x[:, :1]), kv, self.heads)[:, 0])


class ModifiedResNet(jt.nn.Module):
    def __init__(self, sizes: Architecture):
        self.input_resolution, self.output_dim, self.width = sizes.image_resolution, sizes.embed_dim, sizes.vision_width
        inputs = width = self.width
        self.conv1, self.bn1 = Conv(3, width // 2, 3, stride=2), BatchNorm(width // 2)
        self.conv2, self.bn2 = Conv(width // 2, width // 2, 3), BatchNorm(width // 2)
        self.conv3, self.bn3 = Conv(width // 2, width, 3), BatchNorm(width)
        for stage, blocks in enumerate(sizes.stages):
            planes, made = width * 2 ** stage, []
            for number in range(blocks):
                stride = 2 if number == 0 and stage > 0 else 1
                made.append(Bottleneck(inputs, planes, stride, downsample=number == 0))
                inputs = 4 * planes
            setattr(self, f"layer{stage + 1}", jt.nn.Sequential(*made))
        self.attnpool = AttentionPool2d(sizes.image_resolution // 32, inputs, sizes.vision_heads, sizes.embed_dim)
        self.matrices = cpu.Matrices()

    def execute(self, images):
        """(B, 3, R, R) -> (B, D)"""
        if not self.is_training() and cpu.available():
            return cpu.run_resnet(images, self, self.matrices)
        x = jt.nn.relu(self.bn1(self.conv1(images)))
        x = jt.nn.relu(self.bn2(self.conv2(x)))
        x = _halve(jt.nn.relu(self.bn3(self.conv3(x))), 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.attnpool(x)
