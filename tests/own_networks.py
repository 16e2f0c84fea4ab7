"""Small networks from elsewhere, each with something that pruning or coding can trip over. See test_amounts.py."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Few(nn.Module):
    """Layers of few channels, and a fully connected one that reads every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(1, 7, 3, padding=1),
            nn.Conv2d(7, 7, 3, padding=1),
            nn.Conv2d(7, 6, 3, padding=1),
        )
        self.fc = nn.Linear(384, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).flatten(1))


class Up(nn.Module):
    """A grouped transposed convolution, which Torch-Pruning cannot rank."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.up, self.fc = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1, groups=4), nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.up(F.relu(self.b(F.relu(self.a(x)))))).flatten(1))


class PlainUp(nn.Module):
    """A transposed convolution without groups, and PReLUs of a weight for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.PReLU(16)
        self.up, self.act2 = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1), nn.PReLU(8)
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act2(self.up(self.act(self.a(x)))).flatten(1))


class Shuffled(nn.Module):
    """Half of the channels go through a block, then all are shuffled, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.last, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.outer(F.relu(self.inner(right)))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Dense(nn.Module):
    """Layers that read all layers before them, as in DenseNet, with a norm over the lot."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(16, 8, 3, padding=1),
        )
        self.norm, self.fc = nn.BatchNorm2d(24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = torch.cat([a, F.relu(self.b(a))], 1)
        return self.fc(F.relu(self.norm(torch.cat([b, self.c(b)], 1))).mean((2, 3)))


class Gated(nn.Module):
    """The halves of a layer are multiplied with each other; what follows has groups, and a norm with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm, self.fc = nn.GroupNorm(4, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        return self.fc(F.relu(self.norm(self.b(left * right.sigmoid()))).mean((2, 3)))


class Scaled(nn.Module):
    """Parameters of their own beside the layers: (1, c, 1, 1) gammas, a (c, 1, 1) layer scale; depthwise, LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gamma = nn.Conv2d(1, 16, 2, stride=2), nn.Parameter(torch.ones(1, 16, 1, 1))
        self.depth, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.LayerNorm(16)
        self.wide, self.back = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale, self.fc = nn.Parameter(torch.full((16, 1, 1), 1e-6)), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * self.gamma
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        x = x + self.back(F.gelu(self.wide(y))).permute(0, 3, 1, 2) * self.scale
        return self.fc(x.mean((2, 3)))


class Attentive(nn.Module):
    """Heads, whose size the code takes for granted, a sum with positions, and a wide layer that can be made thinner."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.place = nn.Conv2d(1, 16, 2, stride=2), nn.Parameter(torch.randn(1, 16, 16))
        self.qkv, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)
        self.wide, self.back, self.fc = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, 2, 8).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 16))
        return self.fc((x + self.back(F.gelu(self.wide(x)))).mean(1))


class Twice(nn.Module):
    """A convolution that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.again = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.b, self.fc = nn.Conv2d(12, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.again(F.relu(self.a(x))))))
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(1, 12, 3, padding=1),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.Conv2d(12, 12, 3, padding=1),
        )
        self.c.weight = self.b.weight
        self.d, self.fc = nn.Conv2d(12, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.fc(F.relu(self.d(x)).mean((2, 3)))


class Frozen(nn.Module):
    """Its first layers learn nothing; one is called without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(1, 12, 3, padding=1),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.Conv2d(12, 12, 3, padding=1),
        )
        self.fc = nn.Linear(12, 10)
        self.a.requires_grad_(False)
        self.b.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.a(x))
        return self.fc(F.relu(self.c(F.relu(self.b(x)))).mean((2, 3)))


class AllFrozen(Few):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Linears(nn.Module):
    """No convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(64, 30), nn.Linear(30, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x.flatten(1))))))


class Odd(nn.Module):
    """No layer has a multiple of four inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 7, 3, padding=1), nn.Conv2d(7, 7, 3, padding=1), nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class OneLayer(nn.Module):
    """Its outputs are all there is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Shortcut(nn.Module):
    """Blocks with shortcuts, with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(12, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU())
        self.second, self.norm = nn.Conv2d(20, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(F.relu(x + self.norm(self.second(self.first(x)))).mean((2, 3)))


class TwoOutputs(nn.Module):
    """Two layers make the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(1, 12, 3, padding=1)
        self.few, self.fc = nn.Linear(12, 4), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.few(F.relu(self.a(x)).mean((2, 3))), self.fc(F.relu(self.b(x)).mean((2, 3)))], 1)


class Fours(nn.Module):
    """Its code wants a multiple of four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        n, c, h, w = x.shape
        return self.fc((x.view(n, 4, c // 4, h, w) * 2).reshape(n, c, h, w).mean((2, 3)))


class SharedInput(nn.Module):
    """Two layers look at the same image; what follows is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.first(x) + self.second(x)).mean((2, 3))
